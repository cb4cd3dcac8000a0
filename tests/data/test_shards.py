"""Counts, order and place of records are checked against plain lists; every damage is made on real files."""

from __future__ import annotations

import glob
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data.shards import (
    BLOCK_RECORDS,
    COUNTS_FILE,
    RecordRules,
    Shard,
    list_shards,
    locate,
    read_cyclic,
    read_once,
    shard_ends,
    shuffle_shards,
    sort_shards,
)
from data.tfrecords import write_examples
from meshtf import tf

N_CTX = 3
RULES = RecordRules(n_ctx=N_CTX, n_vocab=1000)
CHUNKS_OF = (5, 1, 0, 40, 3)


def write_chunks(path: Path, first: int, n_examples: int) -> Shard:
    """Writes chunks that all hold their own number, so that a row says which one it is."""
    write_examples(str(path), [[number] * (N_CTX + 1) for number in range(first, first + n_examples)])
    return Shard(str(path), n_examples)


def numbers_of(rows) -> list[int]:
    return [int(row[0]) for row in rows]


def first_of(rows, count: int) -> list[int]:
    return numbers_of(itertools.islice(rows, count))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    starts = [0, *itertools.accumulate(CHUNKS_OF)]
    return [write_chunks(folder / f"part_{i}", starts[i], n) for i, n in enumerate(CHUNKS_OF)]


# Names and counts.


def test_counts_come_from_names_and_files_are_in_natural_order(tmp_path):
    for name in ("a_10_7.tfrecords", "a_2_30.tfrecords", "a_1_5.tfrecords"):
        (tmp_path / name).touch()
    found = list_shards(f"{tmp_path}/*.tfrecords")
    assert found == (
        Shard(f"{tmp_path}/a_1_5.tfrecords", 5),
        Shard(f"{tmp_path}/a_2_30.tfrecords", 30),
        Shard(f"{tmp_path}/a_10_7.tfrecords", 7),
    )
    assert not (tmp_path / COUNTS_FILE).exists()


def test_files_without_a_count_are_counted_once_and_remembered(tmp_path):
    write_chunks(tmp_path / "bundestag_0.tfrecords", 0, 4)
    write_chunks(tmp_path / "speech.tfrecords", 0, 6)
    write_chunks(tmp_path / "named_3.tfrecords", 0, 3)
    assert {Path(shard.path).name: shard.n_examples for shard in list_shards(f"{tmp_path}/*")} == {
        "bundestag_0.tfrecords": 4,
        "named_3.tfrecords": 3,
        "speech.tfrecords": 6,
    }
    counts = json.loads((tmp_path / COUNTS_FILE).read_text())
    assert {name: entry["n_examples"] for name, entry in counts.items()} == {
        "bundestag_0.tfrecords": 4,
        "speech.tfrecords": 6,
    }
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tfrecords") == [COUNTS_FILE]

    counts["speech.tfrecords"]["n_examples"] = 77
    (tmp_path / COUNTS_FILE).write_text(json.dumps(counts))
    assert list_shards(f"{tmp_path}/speech*") == (Shard(f"{tmp_path}/speech.tfrecords", 77),)


def test_a_changed_file_is_counted_again(tmp_path):
    path = tmp_path / "speech.tfrecords"
    write_chunks(path, 0, 6)
    assert list_shards(str(path))[0].n_examples == 6
    write_chunks(path, 0, 8)
    assert list_shards(str(path))[0].n_examples == 8
    status = path.stat()
    write_chunks(path, 100, 8)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert list_shards(str(path))[0].n_examples == 8


@pytest.mark.parametrize("content", ["{", "[]", '{"speech.tfrecords": 5}', '{"speech.tfrecords": {"n_examples": "6"}}'])
def test_a_broken_side_file_is_written_anew(tmp_path, content):
    path = tmp_path / "speech.tfrecords"
    write_chunks(path, 0, 2)
    (tmp_path / COUNTS_FILE).write_text(content)
    assert list_shards(str(path))[0].n_examples == 2
    assert json.loads((tmp_path / COUNTS_FILE).read_text())["speech.tfrecords"]["n_examples"] == 2


def test_counts_do_not_need_a_side_file(tmp_path):
    write_chunks(tmp_path / "speech.tfrecords", 0, 6)
    (tmp_path / COUNTS_FILE).mkdir()
    assert list_shards(f"{tmp_path}/*.tfrecords")[0].n_examples == 6


def test_an_empty_glob_is_an_error():
    with pytest.raises(DataError) as caught:
        list_shards("no/such/*.tfrecords")
    assert str(caught.value) == (
        "no/such/*.tfrecords: no file matches -- check the path in the dataset config "
        f"(relative paths start at {os.getcwd()})"
    )


@pytest.mark.parametrize("lost_bytes", [lambda record: 5, lambda record: record - 13, lambda record: record - 1])
def test_counting_a_truncated_file_names_the_record(tmp_path, lost_bytes):
    path = tmp_path / "speech.tfrecords"
    write_chunks(path, 0, 6)
    record_bytes = path.stat().st_size // 6
    path.write_bytes(path.read_bytes()[: -lost_bytes(record_bytes)])
    with pytest.raises(DataError, match=rf"^{path}: record 5 is cut off"):
        list_shards(str(path))


# Order and place.


def test_shuffling_is_that_of_gpt_neo_in_every_python_version():
    shards = [Shard(f"a_{number}", 1) for number in range(8)]
    names = [shard.path for shard in shards]
    random.seed(7)
    random.shuffle(names)
    assert [shard.path for shard in shuffle_shards(shards, 7)] == names
    assert [shard.path[2:] for shard in shuffle_shards(shards, 1)] == SHUFFLED_BY_SEED_1


SHUFFLED_BY_SEED_1 = list("36157042")


def test_sorting_does_not_depend_on_the_order_that_files_come_in():
    paths = ["b/1", "a/10", "a/9", "a/09", "a/009"]
    expected = ["a/009", "a/09", "a/9", "a/10", "b/1"]
    for order in itertools.permutations(paths):
        assert [shard.path for shard in sort_shards(Shard(path, 1) for path in order)] == expected


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
)
def test_places_are_those_of_a_list_repeated_without_end(counts, numbers):
    places = [(shard, record) for shard, count in enumerate(counts) for record in range(count)]
    ends = shard_ends([Shard("", count) for count in counts])
    found = zip(*locate(ends, np.array(numbers)), strict=True)
    assert list(found) == [places[number % len(places)] for number in numbers]


def test_a_data_set_without_records_is_an_error():
    with pytest.raises(DataError, match="^a, b: the data set holds no record"):
        shard_ends([Shard("a", 0), Shard("b", 0)])


# Reading.


@settings(deadline=None, max_examples=6)
@given(start=st.integers(0, 300), count=st.integers(1, 120))
def test_reading_from_a_place_equals_reading_up_to_it_and_on(shards, start, count):
    expected = [number % sum(CHUNKS_OF) for number in range(start, start + count)]
    assert first_of(read_cyclic(shards, RULES, start), count) == expected


def test_reading_from_far_away_is_exact(shards):
    start = 10**15 * sum(CHUNKS_OF) + 44
    assert first_of(read_cyclic(shards, RULES, start), 7) == [44, 45, 46, 47, 48, 0, 1]


def test_reading_once_gives_every_record_once(shards):
    assert numbers_of(read_once(shards, RULES)) == list(range(sum(CHUNKS_OF)))


def test_documents_keep_their_lengths(tmp_path):
    documents = [list(range(length)) for length in (1, 70, 2, 5)] * 20
    write_examples(str(tmp_path / "d"), documents)
    rows = read_once([Shard(str(tmp_path / "d"), 80)], RecordRules(None, 1000))
    assert [row.tolist() for row in rows] == documents


def test_reading_works_while_the_caller_builds_a_graph(shards):
    with tf.Graph().as_default() as graph:
        assert first_of(read_cyclic(shards, RULES, 3), 4) == [3, 4, 5, 6]
        assert not graph.get_operations()


# Damage.


def message_of(rows) -> str:
    with pytest.raises(DataError) as caught:
        for _ in itertools.islice(rows, 1000):
            pass
    return str(caught.value)


@pytest.mark.parametrize("read", [read_cyclic, read_once])
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([1, 2, 3], "holds 3 ids, but n_ctx 3 needs 4 -- write the file again with --chunk_size 3"),
        ([1, 2, 3, 1000], "holds the id 1000, outside [0, 1000) -- raise n_vocab, or use the tokenizer and dataset "),
        ([1, -2, 3, 4], "holds the id -2, outside [0, 1000) -- raise n_vocab, or use the tokenizer and dataset "),
        ([1, 2**40, 3, 4], "holds the id 1099511627776, outside [0, 1000) -- raise n_vocab, or use the tokenizer and "),
    ],
)
def test_a_wrong_record_is_named(tmp_path, read, record, problem):
    good = write_chunks(tmp_path / "a_good", 0, 40)
    bad = Shard(str(tmp_path / "b_bad"), 5)
    write_examples(bad.path, [[1] * 4] * 3 + [record] + [[1] * 4])
    assert message_of(read([good, bad], RULES)).startswith(f"{bad.path}: record 3 {problem}")


def test_an_empty_document_is_named(tmp_path):
    bad = Shard(str(tmp_path / "bad"), 2)
    write_examples(bad.path, [[1], []])
    assert message_of(read_once([bad], RecordRules(None, 10))).startswith(f"{bad.path}: record 1")


@pytest.mark.parametrize("read", [read_cyclic, read_once])
def test_a_truncated_file_is_named_with_the_record(tmp_path, read):
    shard = write_chunks(tmp_path / "cut", 0, 50)
    Path(shard.path).write_bytes(Path(shard.path).read_bytes()[:-9])
    assert message_of(read([shard], RULES)).startswith(f"{shard.path}: record 49 is cut off or damaged")


@pytest.mark.parametrize("read", [read_cyclic, read_once])
@pytest.mark.parametrize("named", [1, BLOCK_RECORDS, 100])
@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_name_with_a_wrong_count_is_named_with_both_counts(tmp_path, read, named, surplus):
    path = tmp_path / f"a_{named}.tfrecords"
    write_chunks(path, 0, named + surplus)
    others = [write_chunks(tmp_path / "b", 0, BLOCK_RECORDS)]
    assert message_of(read([*list_shards(str(path)), *others], RULES)) == (
        f"{path}: holds {named + surplus} examples, but its name says {named} -- copy it again if it was cut short, "
        f"or rename it so that it ends in _{named + surplus}.tfrecords"
    )


@pytest.mark.parametrize("read", [read_cyclic, read_once])
def test_a_wrong_count_of_the_only_file_is_found(tmp_path, read):
    path = tmp_path / "a_20.tfrecords"
    write_chunks(path, 0, 19)
    message = message_of(read(list_shards(str(path)), RULES))
    assert message.startswith(f"{path}: holds 19 examples, but its name says 20")


def test_a_wrong_count_shows_when_reading_begins_after_the_true_end(tmp_path):
    path = tmp_path / "a_90.tfrecords"
    write_chunks(path, 0, 10)
    others = write_chunks(tmp_path / "b", 0, 3)
    message = message_of(read_cyclic([*list_shards(str(path)), others], RULES, 50))
    assert message.startswith(f"{path}: holds 10 examples, but its name says 90")


def test_damage_behind_the_last_record_is_found(tmp_path):
    shard = write_chunks(tmp_path / "tail", 0, BLOCK_RECORDS)
    with Path(shard.path).open("ab") as file:
        file.write(b"torn" * 5)
    assert message_of(read_once([shard], RULES)).startswith(f"{shard.path}: record {BLOCK_RECORDS} is cut off")


def test_a_file_that_goes_away_is_named(tmp_path):
    assert message_of(read_once([Shard(str(tmp_path / "gone"), 3)], RULES)) == (
        f"{tmp_path / 'gone'}: no such file -- check the path"
    )


def test_another_n_ctx_is_advised_where_the_first_record_has_another_length_already(tmp_path):
    shard = Shard(str(tmp_path / "short"), 2)
    write_examples(shard.path, [[1, 2, 3]] * 2)
    assert message_of(read_once([shard], RULES)) == (
        f"{shard.path}: record 0 holds 3 ids, but n_ctx 3 needs 4 -- set n_ctx to 2, or write the file again with "
        "--chunk_size 3"
    )


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_in_place_of_a_glob_is_refused(tmp_path, slash):
    with pytest.raises(DataError) as error:
        list_shards(f"{tmp_path}{slash}")
    assert str(error.value) == f"{tmp_path}{slash}: is a folder -- give a glob such as {tmp_path}/*.tfrecords"


def test_a_folder_among_the_files_is_named(tmp_path):
    (tmp_path / "a_3.tfrecords").mkdir()
    message = message_of(read_once(list_shards(f"{tmp_path}/*"), RULES))
    assert message.startswith(f"{tmp_path}/a_3.tfrecords: cannot be read (")
    assert message.endswith(") -- check the path and who may read it")


def test_an_escaped_glob_finds_files_below_a_folder_with_glob_characters(tmp_path):
    folder = tmp_path / "a[b]*?{c}"
    folder.mkdir()
    shard = write_chunks(folder / "x_2.tfrecords", 0, 2)
    assert list_shards(f"{glob.escape(str(folder))}/*.tfrecords") == (shard,)
