"""Random access is compared with plain lists; real files are damaged."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data.loading.reader import BLOCK_RECORDS, RecordRules, Records, prefetch, read_epoch
from data.tfrecord.records import Record, write_examples
from data.tfrecord.shards import Shard, list_shards, shuffle_shards
from meshtf import tf
from tests.data.tfrecord.test_shards import N_CTX, write_chunks

RULES = RecordRules(n_ctx=N_CTX, n_vocab=1000)
CHUNKS_OF = (5, 1, 0, 40, 3)
N_RECORDS = sum(CHUNKS_OF)


def numbers_of(rows) -> list[int]:
    return [int(record.ids_L[0]) for record in rows]


def weighted(weights=None, segments=None) -> Record:
    return Record(np.arange(4), *(None if values is None else np.array(values) for values in (weights, segments)))


UNORDERED = "holds segments that are not 1, 2, ... in order, with 0 for the padding at the end; write the file again"


def read_forever(shards: Sequence[Shard], rules: RecordRules, start: int = 0) -> Iterator[Record]:
    """Yields records one by one, without end."""
    records = Records(shards, rules)
    return (records.read(np.array([number]))[0] for number in itertools.count(start))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    starts = [0, *itertools.accumulate(CHUNKS_OF)]
    return [write_chunks(folder / f"part_{i}", starts[i], n) for i, n in enumerate(CHUNKS_OF)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=40))
def test_any_records_can_be_read_in_any_order(shards, numbers):
    assert numbers_of(Records(shards, RULES).read(np.array(numbers))) == [number % N_RECORDS for number in numbers]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 10**9))
def test_every_epoch_gives_every_record_once_in_the_order_of_seed_and_epoch(shards, seed, epoch):
    numbers = np.arange(epoch * N_RECORDS, (epoch + 1) * N_RECORDS)
    rows = numbers_of(Records(shards, RULES, seed).read(numbers))
    order = shuffle_shards(shards, seed if epoch == 0 else f"{seed}/{epoch}")
    starts = dict(zip(shards, itertools.accumulate(CHUNKS_OF, initial=0), strict=False))
    assert rows == [number for shard in order for number in range(starts[shard], starts[shard] + shard.n_examples)]
    assert sorted(rows) == list(range(N_RECORDS))


def test_epochs_differ_where_files_are_shuffled(shards):
    epochs = Records(shards, RULES, 1).read(np.arange(20 * N_RECORDS))
    assert len({tuple(numbers_of(epochs[start : start + N_RECORDS])) for start in range(0, len(epochs), N_RECORDS)}) > 5


def test_seeking_among_ten_thousand_files_costs_nothing(tmp_path):
    here = write_chunks(tmp_path / "here", 0, 1000)
    elsewhere = [Shard(f"{tmp_path}/{number}", 10**6) for number in range(9_999)]
    records = Records([*elsewhere, here], RULES)
    last = 10**5 * records.n_records - 1
    assert numbers_of(records.read(np.array([last - 3, last]))) == [996, 999]


def test_only_requested_records_are_read(tmp_path):
    """Damage in records that another process reads is not noticed."""
    shard = write_chunks(tmp_path / "a", 0, 20)
    content = bytearray(Path(shard.path).read_bytes())
    size = len(content) // 20
    content[7 * size + 14] ^= 1
    Path(shard.path).write_bytes(content)
    records = Records([shard], RULES)
    assert numbers_of(records.read(np.array([6, 8, 19]))) == [6, 8, 19]
    with pytest.raises(DataError, match=f"^{shard.path}: record 7 is truncated or damaged"):
        records.read(np.array([6, 7]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(), max_size=50), st.integers(1, 10))
def test_results_come_in_order(tasks, n_ahead):
    assert list(prefetch(lambda number: number + 1, tasks, n_ahead)) == [number + 1 for number in tasks]


def test_prefetching_is_limited_to_n_ahead_tasks():
    begun = []
    results = prefetch(lambda number: begun.append(number) or number, itertools.count(), n_ahead=3)
    assert [next(results), next(results)] == [0, 1]
    deadline_seconds = time.monotonic() + 5.0
    while len(begun) < 4 and time.monotonic() < deadline_seconds:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2, 3]
    results.close()
    assert not any(thread.name.startswith("reading") for thread in threading.enumerate())


def test_an_error_is_raised_in_place_of_its_result():
    def work(number: int) -> int:
        if number == 2:
            raise DataError("two")
        return number

    results = prefetch(work, itertools.count(), n_ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="two"):
        next(results)


def test_an_epoch_gives_every_record_once(shards):
    assert numbers_of(read_epoch(shards, RULES)) == list(range(sum(CHUNKS_OF)))


def test_documents_keep_their_lengths(tmp_path):
    documents = [list(range(length)) for length in (1, 70, 2, 5)] * 20
    write_examples(str(tmp_path / "d"), documents)
    rows = read_epoch([Shard(str(tmp_path / "d"), 80)], RecordRules(None, 1000))
    assert [record.ids_L.tolist() for record in rows] == documents


def test_reading_works_while_the_caller_builds_a_graph(shards):
    with tf.Graph().as_default() as graph:
        assert numbers_of(itertools.islice(read_forever(shards, RULES, 3), 4)) == [3, 4, 5, 6]
        assert not graph.get_operations()


def message_of(rows) -> str:
    with pytest.raises(DataError) as caught:
        for _ in itertools.islice(rows, 1000):
            pass
    return str(caught.value)


@pytest.mark.parametrize("read", [read_forever, read_epoch])
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            [1, 2, 3],
            "holds 3 ids, but n_ctx 3 needs 4; write the file again with --chunk_size 3; records of documents need ",
        ),
        ([1, 2, 3, 1000], "holds the id 1000, outside [0, 1000); raise n_vocab, or use the tokenizer and dataset "),
        ([1, -2, 3, 4], "holds the id -2, outside [0, 1000); raise n_vocab, or use the tokenizer and dataset "),
        ([1, 2**40, 3, 4], "holds the id 1099511627776, outside [0, 1000); raise n_vocab, or use the tokenizer and "),
        (weighted([1, 2, 3]), "holds 4 ids, but 3 loss_weights; write the file again"),
        (weighted([1, 2, 3, -0.5]), "holds the loss weight -0.5, which is not a number >= 0; write the file again"),
        (weighted([1, np.inf, 3, 4]), "holds the loss weight inf, which is not a number >= 0; write the file again"),
        (weighted([1, np.nan, 3, 4]), "holds the loss weight nan, which is not a number >= 0; write the file again"),
        (weighted(segments=[1, 1, 2]), "holds 4 ids, but 3 segments; write the file again"),
        (weighted(segments=[0, 1, 1, 2]), UNORDERED),
        (weighted(segments=[1, 1, 3, 3]), UNORDERED),
        (weighted(segments=[1, 2, 1, 0]), UNORDERED),
        (weighted(segments=[1, 0, 0, 2]), UNORDERED),
        (weighted(segments=[2, 2, 2, 2]), UNORDERED),
        (weighted(segments=[1, -1, -1, -1]), UNORDERED),
    ],
)
def test_an_invalid_record_is_named(tmp_path, read, record, problem):
    good = write_chunks(tmp_path / "a_good", 0, 40)
    bad = Shard(str(tmp_path / "b_bad"), 5)
    write_examples(bad.path, [[1] * 4] * 3 + [record] + [[1] * 4])
    assert message_of(read([good, bad], RULES)).startswith(f"{bad.path}: record 3 {problem}")


def test_weights_and_segments_are_read_where_a_record_has_them(tmp_path):
    shard = Shard(str(tmp_path / "a"), 4)
    whole, alone = weighted([0, 1, 0.5, 0], [1, 1, 2, 0]), weighted(segments=[0, 0, 0, 0])
    write_examples(shard.path, [whole, [1, 2, 3, 4], weighted([1, 2, 3, 4]), alone])
    one, two, three, four = read_epoch([shard], RULES)
    assert (one.loss_weights_L.tolist(), one.segments_L.tolist()) == ([0, 1, 0.5, 0], [1, 1, 2, 0])
    assert (two.loss_weights_L, two.segments_L) == (None, None) and two.ids_L.tolist() == [1, 2, 3, 4]
    assert (three.loss_weights_L.tolist(), three.segments_L) == ([1, 2, 3, 4], None)
    assert (four.loss_weights_L, four.segments_L.tolist()) == (None, [0, 0, 0, 0])


def test_an_empty_document_is_named(tmp_path):
    bad = Shard(str(tmp_path / "bad"), 2)
    write_examples(bad.path, [[1], []])
    assert message_of(read_epoch([bad], RecordRules(None, 10))).startswith(f"{bad.path}: record 1")


@pytest.mark.parametrize("read", [read_forever, read_epoch])
def test_a_truncated_file_is_named_with_the_record(tmp_path, read):
    shard = write_chunks(tmp_path / "cut", 0, 50)
    Path(shard.path).write_bytes(Path(shard.path).read_bytes()[:-9])
    assert message_of(read([shard], RULES)).startswith(f"{shard.path}: record 49 is truncated or damaged")


@pytest.mark.parametrize("read", [read_forever, read_epoch])
@pytest.mark.parametrize("named", [1, BLOCK_RECORDS, 100])
@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_name_with_a_wrong_count_is_named_with_both_counts(tmp_path, read, named, surplus):
    path = tmp_path / f"a_{named}.tfrecords"
    write_chunks(path, 0, named + surplus)
    others = [write_chunks(tmp_path / "b", 0, BLOCK_RECORDS)]
    assert message_of(read([*list_shards(str(path)), *others], RULES)) == (
        f"{path}: holds {named + surplus} examples, but its name says {named}; copy it again if it was cut short, "
        f"or rename it so that it ends in _{named + surplus}.tfrecords"
    )


@pytest.mark.parametrize("read", [read_forever, read_epoch])
def test_a_wrong_count_of_the_only_file_is_found(tmp_path, read):
    path = tmp_path / "a_20.tfrecords"
    write_chunks(path, 0, 19)
    message = message_of(read(list_shards(str(path)), RULES))
    assert message.startswith(f"{path}: holds 19 examples, but its name says 20")


def test_a_wrong_count_shows_when_reading_begins_after_the_true_end(tmp_path):
    path = tmp_path / "a_90.tfrecords"
    write_chunks(path, 0, 10)
    others = write_chunks(tmp_path / "b", 0, 3)
    message = message_of(read_forever([*list_shards(str(path)), others], RULES, 50))
    assert message.startswith(f"{path}: holds 10 examples, but its name says 90")


def test_damage_after_the_last_record_is_found(tmp_path):
    shard = write_chunks(tmp_path / "tail", 0, BLOCK_RECORDS)
    with Path(shard.path).open("ab") as file:
        file.write(b"torn" * 5)
    assert message_of(read_epoch([shard], RULES)).startswith(f"{shard.path}: record {BLOCK_RECORDS} is truncated")


def test_a_missing_file_is_named(tmp_path):
    assert message_of(read_epoch([Shard(str(tmp_path / "gone"), 3)], RULES)) == (
        f"{tmp_path / 'gone'}: no such file; check the path"
    )


def test_another_n_ctx_is_advised_if_the_first_record_has_another_length(tmp_path):
    shard = Shard(str(tmp_path / "short"), 2)
    write_examples(shard.path, [[1, 2, 3]] * 2)
    assert message_of(read_epoch([shard], RULES)) == (
        f"{shard.path}: record 0 holds 3 ids, but n_ctx 3 needs 4; set n_ctx to 2, or write the file again with "
        "--chunk_size 3; records of documents need input_fn = generic_text"
    )


def test_a_folder_among_the_files_is_named(tmp_path):
    (tmp_path / "a_3.tfrecords").mkdir()
    message = message_of(read_epoch(list_shards(f"{tmp_path}/*"), RULES))
    assert message.startswith(f"{tmp_path}/a_3.tfrecords: cannot be read (")
    assert message.endswith("); check the path and its permissions")


def test_all_valid_records_of_a_damaged_file_can_be_read(tmp_path):
    path = tmp_path / "a_6.tfrecords"
    write_examples(str(path), [[0] * 4, [1] * 3, [2] * 4, [3, 3, 3, 5000], [4] * 4, [5] * 4])
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # in the ids of the last record
    path.write_bytes(content)
    read = Records(list_shards(str(path)), RULES).try_read(np.arange(6))
    assert [one.ids_L.tolist() for one in read if not isinstance(one, DataError)] == [[0] * 4, [2] * 4, [4] * 4]
    problems = [str(row) for row in read if isinstance(row, DataError)]
    named = ["record 1 holds 3 ids, but", "record 3 holds the id 5000, outside", "record 5 is truncated or damaged"]
    assert [problem.startswith(f"{path}: {text}") for problem, text in zip(problems, named, strict=True)] == [True] * 3


def test_all_complete_records_of_a_truncated_file_can_be_read(tmp_path):
    path = tmp_path / "a_50.tfrecords"
    write_chunks(path, 0, 50)
    path.write_bytes(path.read_bytes()[:-200])
    read = Records(list_shards(str(path)), RULES).try_read(np.arange(50))
    whole = [row for row in read if not isinstance(row, DataError)]
    assert 40 < len(whole) < 50 and numbers_of(whole) == list(range(len(whole)))
    assert str(read[49]).startswith(f"{path}: record 49 is truncated or damaged")
