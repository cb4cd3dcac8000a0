"""data/dialogue/reddit.py: survivors equal those of an independent implementation; resuming; what it refuses."""

from __future__ import annotations

import bz2
import collections
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data import create_dialogue_tfrecords
from data.dialogue.readers import conversations_of
from data.dialogue.reddit import main
from data.dialogue.reddit_extraction.filters import FILTERS
from data.preprocessing.pipeline import create_tfrecords
from storage.locks import locked
from tests.data.dialogue.made_up_reddit import MONTH_START, write_dumps
from tests.data.dialogue.simple_reddit import survivors
from tests.data.dialogue.test_templates import PLAIN

REPOSITORY = Path(__file__).resolve().parents[3]
MONTH = "2017-01"
BAD_WORDS = ["badword", "Very bad thing", "a b"]
FREQUENT = ["the", "OF", "a"]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps")
    write_dumps(folder, 6_000)
    return folder


def extract(dumps: Path, output: Path, *flags: str) -> dict:
    """Runs the tool in this process; returns its report."""
    assert main(["--input_dir", str(dumps), "--output_dir", str(output), "--processes", "1", *flags]) == 0
    return json.loads((output / "total.report").read_text())


def lines_of(output: Path, name: str = MONTH) -> list[str]:
    return (output / f"{name}.tsv").read_text(encoding="utf-8").split("\n")[:-1]


def write_list(path: Path, entries: list[str]) -> str:
    path.write_text("".join(f"{entry}\n" for entry in ["# a list", *entries]), encoding="utf-8")
    return str(path)


def is_same(dumps: Path, output: Path, flags: list[str], changes: dict) -> int:
    """Compares lines and counts of each filter with the independent implementation; returns how many there are."""
    counts = extract(dumps, output, *flags)["counts"]
    expected, taken = survivors(dumps, MONTH, **changes)
    assert lines_of(output) == expected
    others = ("submissions", "comments", "conversations", "blocked_turns")
    found = {name: n for name, n in counts.items() if n and name not in others and not name.startswith("cut_at")}
    assert found == dict(taken)
    assert counts["comments"] == sum(taken.values()) - taken["few_comments"] + len(expected)
    return len(expected)


def test_survivors_are_those_of_the_simple_rules(dumps: Path, tmp_path: Path) -> None:
    assert is_same(dumps, tmp_path, [], {}) > 200


def test_small_batches_and_buffers_give_the_same(dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.dialogue.reddit_extraction.dumps.BATCH_BYTES", 5_000)
    monkeypatch.setattr("data.dialogue.reddit_extraction.partitions.BUFFERED_BYTES", 20_000)
    report = extract(dumps, tmp_path, "--partition_mb", "1")
    assert report["dumps"][0]["partitions"] > 1
    expected, taken = survivors(dumps, MONTH)
    assert sorted(lines_of(tmp_path)) == sorted(expected)
    assert report["counts"]["duplicate"] == taken["duplicate"]


@pytest.mark.slow
def test_survivors_of_a_hundred_thousand_comments(tmp_path: Path) -> None:
    write_dumps(tmp_path / "dumps", 100_000, seed=7)
    assert is_same(tmp_path / "dumps", tmp_path / "out", [], {}) > 4_000


@pytest.mark.parametrize("leaves_only", [True, False])
def test_survivors_with_lists_and_titles(leaves_only: bool, dumps: Path, tmp_path: Path) -> None:
    every, _ = survivors(dumps, MONTH)
    texts = [line.split("\t")[1].removeprefix("1.0 ") for line in every]
    keys = [hashlib.sha224(text.encode()).hexdigest() for text in texts[:20]]
    bland = [" ".join(text.lower().split()[:3]) for text in texts if len(text.split()) == 3][:30]
    flags = ["--leaves_only", str(int(leaves_only)), "--use_title", "1", "--add_filters", "repeated_trigram"]
    flags += ["--bl_words", write_list(tmp_path / "words.txt", BAD_WORDS)]
    flags += ["--bl_subreddits", write_list(tmp_path / "subreddits.txt", ["BANNED"])]
    flags += ["--discard_tgt_keys", write_list(tmp_path / "keys.txt", keys)]
    flags += ["--freq_words", write_list(tmp_path / "frequent.txt", FREQUENT)]
    flags += ["--bland_trigrams", write_list(tmp_path / "bland.txt", bland)]
    flags += ["--min_depth", "3", "--max_depth", "4", "--min_score", "0", "--max_len", "90", "--max_len_type", "c"]
    changes = {
        "leaves_only": leaves_only,
        "use_title": True,
        "repeated_trigram": True,
        "bad_words": BAD_WORDS,
        "bad_subreddits": ["banned"],
        "bad_keys": keys,
        "frequent": ["the", "of", "a"],
        "bland": bland,
        "min_depth": 3,
        "max_depth": 4,
        "min_score": 0,
        "max_len": 90,
        "max_len_type": "c",
    }
    assert is_same(dumps, tmp_path, flags, changes) > 50
    assert any("\t0.0 " in line for line in lines_of(tmp_path)) == leaves_only


OPENING = "what do you think"


def write_threads(folder: Path, responses: list[str | dict], submission: dict | None = None) -> None:
    """A dump in which each response answers an opening of its own."""
    folder.mkdir()
    submissions, comments = [], []
    for number, response in enumerate(responses):
        response = {"body": response} if isinstance(response, str) else response
        link = {"id": f"s{number}", "num_comments": 2, "title": "a title", "permalink": "/r/Cats/comments/x/"}
        submissions.append(link | (submission or {}))
        shared = {"link_id": f"t3_s{number}", "score": 1, "created_utc": MONTH_START}
        comments.append(shared | {"id": f"a{number}", "parent_id": f"t3_s{number}", "body": OPENING})
        comments.append(shared | {"id": f"b{number}", "parent_id": f"t1_a{number}"} | response)
    for kind, values in (("RS", submissions), ("RC", comments)):
        (folder / f"{kind}_{MONTH}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in values))


LONG = "so many words " * 10
# What each filter drops of responses, and the likes of it that stay.
BODIES: dict[str, tuple[list[str | dict], list[str | dict]]] = {
    "deleted": (["[deleted]", "[removed]"], ["deleted it", "it was removed"]),
    "quote": (["> you said so", "is 3 &gt; 2", "a->b is it"], ["is 2 &lt; 3", "so it is"]),
    "short_comment": (["yes", " yes\n", "&nbsp; yes"], ["oh yes", "is &amp;"]),
    "low_score": (
        [{"body": "so it is", "score": 0}, {"body": "so it is", "score": None}],
        [{"body": "ok so", "score": 1}],
    ),
    "long_response": ([f"{LONG} more"], [LONG]),
    "empty_turn": (["#one #two", "\U0001f600 \U0001f600"], ["#one two", "so \U0001f600"]),
    "end_mark": (["it is EOS now", "EOS ok"], ["it is EOSX", "eos it is"]),
    "long_word": (["so " + "a" * 31], ["so " + "a" * 30]),
    "url": (["see http://a.b", "see xHTTPS://a", "it is __url__ ."], ["see URL", "see ht tp"]),
    "brackets": (["it is [so", "it is so]", "it (is so", "it is) so"], ["it is {so}"]),
    "capitals": (["it is SOOOO", "xSHOUTx it"], ["it is SOOO", "IT IS SO NICE"]),
    "repeated_word": (["no no no it is", "it is a , , ,"], ["no no it no", "No no no"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_filter_drops_what_it_says(name: str, tmp_path: Path) -> None:
    dropped, kept = BODIES[name]
    write_threads(tmp_path / "dumps", [*dropped, *kept])
    counts = extract(tmp_path / "dumps", tmp_path / "out")["counts"]
    assert (counts[name], counts["conversations"]) == (len(dropped), len(kept))
    skipped = extract(tmp_path / "dumps", tmp_path / "without", "--skip_filters", name)["counts"]
    assert skipped[name] == 0


# What a filter with a list drops and what it keeps, with the list.
LISTED: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    "offensive": (
        "--bl_words",
        ["darn", "shut up", "# no word"],
        ["you DARN cat", "now shut up !", "darn-it then"],
        ["darned cat", "shut it up", "a no word"],
    ),
    "no_frequent_word": (
        "--freq_words",
        ["the", *(f"w{n}" for n in range(49)), "rare"],
        ["it is rare"],
        ["is The cat"],
    ),
    "bland": (
        "--bland_trigrams",
        [
            "i do not",
            "do not know",
            "so it is",
            *(f"{a} {b} {c}" for a, b, c in zip("abcdefghi", "bcdefghij", "cdefghijk", strict=True)),
        ],
        ["I do not know", "so it is", "a b c d e f g h i j k l"],
        ["i do not know this", "it is", "so it was", "a b c d e f g h i j k l m"],
    ),
}


@pytest.mark.parametrize("name", LISTED)
def test_a_filter_drops_by_its_list(name: str, tmp_path: Path) -> None:
    flag, entries, dropped, kept = LISTED[name]
    write_threads(tmp_path / "dumps", [*dropped, *kept])
    flags = [flag, write_list(tmp_path / "list.txt", entries), "--leaves_only", "0"]
    counts = extract(tmp_path / "dumps", tmp_path / "out", *flags)["counts"]
    assert (counts[name], counts["conversations"]) == (len(dropped), len(kept))


def test_repeated_trigrams_are_dropped_if_asked(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["i say so and i say so", "i say so and i say it"])
    assert extract(tmp_path / "dumps", tmp_path / "1")["counts"]["conversations"] == 2
    counts = extract(tmp_path / "dumps", tmp_path / "2", "--add_filters", "repeated_trigram")["counts"]
    assert (counts["repeated_trigram"], counts["conversations"]) == (1, 1)


def test_long_conversations_are_dropped(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["well , " * 98, "well , " * 99])  # 4 words come before
    counts = extract(tmp_path / "dumps", tmp_path / "out", "--max_len", "300", "--skip_filters", "repeated_word")[
        "counts"
    ]
    assert (counts["long_conversation"], counts["conversations"]) == (1, 1)


def test_submissions_of_few_comments_are_dropped_with_their_comments(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["so it is"], {"num_comments": 1})
    counts = extract(tmp_path / "dumps", tmp_path / "out")["counts"]
    assert (counts["few_comments"], counts["no_submission"], counts["conversations"]) == (1, 2, 0)
    flags = ["--skip_filters", "no_submission"]
    assert extract(tmp_path / "dumps", tmp_path / "without", *flags)["counts"]["conversations"] == 1
    assert (tmp_path / "out" / f"{MONTH}.tsv").read_text() == ""


def test_listed_subreddits_are_dropped_and_unknown_ones_too(tmp_path: Path) -> None:
    flags = ["--bl_subreddits", write_list(tmp_path / "list.txt", ["cats"])]
    for name, submission in (("listed", {}), ("unknown", {"permalink": None}), ("kept", {"subreddit": "dogs"})):
        write_threads(tmp_path / name, ["so it is"], submission)
        counts = extract(tmp_path / name, tmp_path / f"{name}_out", *flags)["counts"]
        assert (counts["subreddit"], counts["conversations"]) == ((0, 1) if name == "kept" else (1, 0))


def test_comments_of_other_months_are_dropped(tmp_path: Path) -> None:
    times = [MONTH_START - 1, MONTH_START, str(MONTH_START + 31 * 86400 - 1), MONTH_START + 31 * 86400, None]
    write_threads(tmp_path / "dumps", [{"body": "so it is", "created_utc": each} for each in times])
    counts = extract(tmp_path / "dumps", tmp_path / "out", "--since", MONTH, "--until", MONTH)["counts"]
    assert (counts["outside_dates"], counts["conversations"]) == (3, 2)
    assert extract(tmp_path / "dumps", tmp_path / "2", "--since", "2016-12")["counts"]["outside_dates"] == 1


def test_keys_say_which_comments_are_read_and_which_are_kept(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["so it is", "so it was", "so it will be"])
    keys = [f"t3_s{n}\tt1_{x}{n}\t{use}" for n in (0, 1) for x, use in (("a", "dep"), ("b", "dep"))]
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / f"{MONTH}.gz").write_bytes(gzip.compress("\n".join([*keys, "t3_s1\tt1_b1\tkeep"]).encode()))
    counts = extract(tmp_path / "dumps", tmp_path / "out", "--keep_keys", str(tmp_path / "keys"))["counts"]
    assert (counts["not_listed"], counts["not_kept"], counts["conversations"]) == (2, 3, 1)
    assert lines_of(tmp_path / "out") == ["1.0 what do you think\t1.0 so it was"]


def test_answered_comments_and_short_conversations(tmp_path: Path) -> None:
    third = {"id": "c0", "link_id": "t3_s0", "parent_id": "t1_b0", "body": "no it is not", "score": 1}
    write_threads(tmp_path / "dumps", ["so it is"])
    with open(tmp_path / "dumps" / f"RC_{MONTH}.jsonl", "a") as file:
        file.write(f"{json.dumps(third)}\n")
    counts = extract(tmp_path / "dumps", tmp_path / "leaves")["counts"]
    assert (counts["answered"], counts["few_turns"], counts["conversations"]) == (2, 0, 1)
    assert lines_of(tmp_path / "leaves") == ["1.0 what do you think EOS 1.0 so it is\t1.0 no it is not"]
    counts = extract(tmp_path / "dumps", tmp_path / "all", "--leaves_only", "0")["counts"]
    assert (counts["answered"], counts["few_turns"], counts["conversations"]) == (0, 1, 2)
    expected = ["0.0 what do you think\t1.0 so it is", "0.0 what do you think EOS 0.0 so it is\t1.0 no it is not"]
    assert lines_of(tmp_path / "all") == expected
    extract(tmp_path / "dumps", tmp_path / "titles", "--use_title", "1", "--max_depth", "3")
    assert lines_of(tmp_path / "titles")[0].startswith("1.0 title : a title EOS 1.0 what do you think EOS ")
    counts = extract(tmp_path / "dumps", tmp_path / "cut", "--use_title", "1", "--max_depth", "2")["counts"]
    assert (lines_of(tmp_path / "cut"), counts["cut_at_max_depth"]) == (["1.0 so it is\t1.0 no it is not"], 1)


def test_of_comments_with_one_id_the_last_counts(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    path = tmp_path / "dumps" / f"RC_{MONTH}.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[1].replace("so it is", "so it was") + "\n")
    assert extract(tmp_path / "dumps", tmp_path / "out")["counts"]["duplicate"] == 1
    assert lines_of(tmp_path / "out") == ["1.0 what do you think\t1.0 so it was"]


def test_every_filter_has_cases() -> None:
    elsewhere = {"few_comments", "no_submission", "subreddit", "outside_dates", "not_listed", "not_kept", "answered"}
    elsewhere |= {"few_turns", "repeated_trigram", "long_conversation"}
    assert {each.name for each in FILTERS} == {*BODIES, *LISTED, *elsewhere}


def test_the_table_of_the_page_is_that_of_the_filters() -> None:
    page = (REPOSITORY / "docs" / "dialogue.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ?(.*?) \|$", page, re.MULTILINE)
    expected = []
    for each in FILTERS:
        setting = ", ".join(f"`{flag}`" for flag in each.flag.split(", ")) if each.flag else ""
        expected.append((each.name, each.drops, setting if each.is_default else "off by default"))
    assert rows == expected


def test_a_turn_with_a_blocked_word_has_no_weight(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", ["you darn cat"])
    counts = extract(tmp_path / "dumps", tmp_path / "out", "--bl_words", write_list(tmp_path / "list", ["darn"]))[
        "counts"
    ]
    assert lines_of(tmp_path / "out") == ["1.0 what do you think\t0.0 you darn cat"]
    assert counts["blocked_turns"] == 1


@pytest.mark.parametrize("output_format", ["tsv", "jsonl"])
def test_conversations_are_read_as_such(output_format: str, dumps: Path, tmp_path: Path) -> None:
    counts = extract(dumps, tmp_path, "--format", output_format)["counts"]
    lines = (tmp_path / f"{MONTH}.{output_format}").read_text(encoding="utf-8").split("\n")[:-1]
    values = lines if output_format == "tsv" else map(json.loads, lines)
    read_back = [text for value in values for text, problem in conversations_of(value) if problem is None]
    assert len(read_back) == counts["conversations"] == len(lines)
    turns = [turn for text in read_back for turn in json.loads(text)]
    assert all(weight == 1.0 for _, _, weight in turns)
    expected, _ = survivors(dumps, MONTH)
    spoken = [part[4:] for line in expected for part in line.replace("\t", " EOS ").split(" EOS ")]
    assert [text for _, text, _ in turns] == spoken


def test_lines_of_json_tell_where_they_come_from(tmp_path: Path) -> None:
    write_threads(tmp_path / "dumps", [{"body": "so it is", "score": 5}])
    extract(tmp_path / "dumps", tmp_path / "out", "--format", "jsonl")
    (line,) = (tmp_path / "out" / f"{MONTH}.jsonl").read_text().splitlines()
    assert {key: json.loads(line)[key] for key in ("link", "parent", "comment", "score")} == {
        "link": "t3_s0",
        "parent": "t1_a0",
        "comment": "t1_b0",
        "score": 5,
    }


@pytest.mark.parametrize("suffix", ["jsonl", "gz", "xz", "bz2", "jsonl.gz", "json.zst"])
def test_every_compression_gives_the_same(suffix: str, tmp_path: Path) -> None:
    compress = {
        "jsonl": bytes,
        "gz": gzip.compress,
        "xz": lzma.compress,
        "bz2": bz2.compress,
        "zst": lambda content: zstandard.ZstdCompressor(level=1).compress(content),
    }[suffix.rpartition(".")[2]]
    write_threads(tmp_path / "plain", ["so it is", "no"])
    (tmp_path / "dumps").mkdir()
    for kind, name in (("RS", "cats_submissions"), ("RC", "cats_comments")):
        content = (tmp_path / "plain" / f"{kind}_{MONTH}.jsonl").read_bytes()
        (tmp_path / "dumps" / f"{name}.{suffix}").write_bytes(compress(content))
    extract(tmp_path / "dumps", tmp_path / "out")
    assert lines_of(tmp_path / "out", "cats") == ["1.0 what do you think\t1.0 so it is"]


def test_a_large_window_is_read(tmp_path: Path) -> None:
    write_threads(tmp_path / "plain", ["so it is"])
    (tmp_path / "dumps").mkdir()
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31)  # as Pushshift's
    for kind in ("RS", "RC"):
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        content = compressor.compress((tmp_path / "plain" / f"{kind}_{MONTH}.jsonl").read_bytes())
        (tmp_path / "dumps" / f"{kind}_{MONTH}.zst").write_bytes(content + compressor.flush())
    extract(tmp_path / "dumps", tmp_path / "out")
    assert len(lines_of(tmp_path / "out")) == 1


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the last line of the errors of a run that exits with status 2."""
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_truncated_dump_is_an_error_or_a_count(
    dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dumps, tmp_path / "dumps")
    path = tmp_path / "dumps" / f"RC_{MONTH}.zst"
    path.write_bytes(path.read_bytes()[:-1000])
    flags = ["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out"), "--processes", "1"]
    message = refused(capsys, *flags)
    assert message.startswith(f"{path}: cannot be read after line ") and "middle of a zstandard frame" in message
    assert not (tmp_path / "out" / f"{MONTH}.tsv").exists()
    report = extract(tmp_path / "dumps", tmp_path / "out", "--on_bad_file", "skip")
    (damage,) = report["dumps"][0]["damage"]
    n_lines = int(damage.split("first ")[1].split(" lines")[0].replace(",", ""))
    assert damage.startswith(f"RC_{MONTH}.zst: only the first ") and report["counts"]["comments"] == n_lines
    assert 0 < n_lines < 6000 and damage in capsys.readouterr().out


def test_damaged_lines_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    with open(tmp_path / "dumps" / f"RC_{MONTH}.jsonl", "ab") as file:
        file.write(b'\n{"id": 3}\n\xff\n[1]\n' + b"[" * 100_000 + b"\n")
    counts = extract(tmp_path / "dumps", tmp_path / "out")["counts"]
    assert (counts["damaged_comments"], counts["conversations"], counts["comments"]) == (4, 1, 6)
    output = capsys.readouterr().out
    assert f"damaged line RC_{MONTH}.jsonl:4: no text under 'link_id'" in output
    assert f"damaged line RC_{MONTH}.jsonl:6: not a JSON object" in output
    assert f"damaged line RC_{MONTH}.jsonl:7: nested too deeply" in output


REFUSALS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no_dump": (lambda dumps: [each.unlink() for each in dumps.iterdir()], [], "no file ending in"),
    "no_comments": (
        lambda dumps: (dumps / f"RC_{MONTH}.jsonl").unlink(),
        [],
        "has no dump of comments; name files such as RC_2017-01.zst",
    ),
    "no_submissions": (lambda dumps: (dumps / f"RS_{MONTH}.jsonl").unlink(), [], "its dump of submissions is missing"),
    "twice": (lambda dumps: (dumps / f"RC_{MONTH}.json").write_text("{}"), [], "is of the same name"),
    "other_month": (lambda dumps: None, ["--since", "2018-01"], "has no dump of these months"),
    "no_month": (lambda dumps: None, ["--since", "2018-13"], "'2018-13' is not a month"),
    "no_filter": (lambda dumps: None, ["--skip_filters", "quotes"], "there is no such filter; did you mean quote?"),
    "no_list": (lambda dumps: None, ["--bl_words", "nowhere.txt"], "nowhere.txt: cannot be read"),
    "small": (lambda dumps: None, ["--min_depth", "1"], "--min_depth 1: is too small; give 2 or more"),
    "no_switch": (lambda dumps: None, ["--leaves_only", "2"], "'2' is neither 0 nor 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_mistakes_are_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, flags, message = REFUSALS[case]
    write_threads(tmp_path / "dumps", ["so it is"])
    change(tmp_path / "dumps")
    output = ["--output_dir", str(tmp_path / "out"), "--processes", "1"]
    assert message in refused(capsys, "--input_dir", str(tmp_path / "dumps"), *output, *flags)
    assert not (tmp_path / "out" / f"{MONTH}.tsv").exists()


def test_other_settings_do_not_replace_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    extract(tmp_path / "dumps", tmp_path / "out")
    extract(tmp_path / "dumps", tmp_path / "out")
    assert f"{MONTH}: finished before" in capsys.readouterr().out
    flags = ["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out"), "--min_score", "2"]
    assert "exists, made with other settings or from other dumps" in refused(capsys, *flags, "--processes", "1")
    assert len(lines_of(tmp_path / "out")) == 1
    extract(tmp_path / "dumps", tmp_path / "out", "--min_score", "2", "--overwrite")
    assert lines_of(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path / "out")) == [f"{MONTH}.tsv", f"{MONTH}.tsv.report", "total.report"]


def test_a_dump_that_cannot_be_opened_is_left_out_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    for kind in ("RS", "RC"):
        (tmp_path / "dumps" / f"{kind}_2017-02.zst").symlink_to("nowhere")
    flags = ["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out")]
    assert "_2017-02.zst: cannot be read (a link to nothing)" in refused(capsys, *flags)
    extract(tmp_path / "dumps", tmp_path / "out", "--on_bad_file", "skip")
    assert "left out 2 file(s) that cannot be read" in capsys.readouterr().out


def test_a_missing_package_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_threads(tmp_path / "dumps", ["Naïve, so it is"])
    monkeypatch.setitem(sys.modules, "nltk.tokenize.casual", None)
    flags = ["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out")]
    assert "--normalize dialogpt: needs nltk" in refused(capsys, *flags)
    assert not (tmp_path / "out").exists()
    extract(tmp_path / "dumps", tmp_path / "out", "--normalize", "minimal")
    assert lines_of(tmp_path / "out") == ["1.0 what do you think\t1.0 Naïve, so it is"]


def test_two_formats_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    for output_format in ("tsv", "jsonl", "tsv"):
        extract(tmp_path / "dumps", tmp_path / "out", "--format", output_format)
    assert capsys.readouterr().out.count("finished before") == 1


def test_the_directory_is_one_of_conversations(dumps: Path, tmp_path: Path) -> None:
    counts = extract(dumps, tmp_path / "out")["counts"]
    (tmp_path / "bytes.json").write_text(PLAIN.to_json())
    flags = ["--encoder_path", str(tmp_path / "bytes.json"), "--chunk_size", "1024", "--processes", "1"]
    flags += ["--input_dir", str(tmp_path / "out"), "--output_dir", str(tmp_path / "records")]
    report = create_tfrecords(create_dialogue_tfrecords.parse_arguments(flags))
    assert report.stats.documents_kept == report.stats.documents_read == counts["conversations"] > 100
    assert report.notes == ("passed over: 2 .report; a glob reads files of any suffix",)


def test_the_trigrams_that_the_page_counts(dumps: Path, tmp_path: Path) -> None:
    extract(dumps, tmp_path / "conversations")
    page = (REPOSITORY / "docs" / "dialogue.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^  (cat conversations.*?> trigrams.txt)$", page, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-c", command.replace("1000", "2")], cwd=tmp_path, check=True)
    counted = collections.Counter()
    for line in lines_of(tmp_path / "conversations"):
        words = line.split("\t")[1].lower().split()[1:]
        counted.update(" ".join(words[at : at + 3]) for at in range(len(words) - 2))
    expected = {trigram for trigram, count in counted.items() if count > 2}
    assert set((tmp_path / "trigrams.txt").read_text(encoding="utf-8").splitlines()) == expected and expected


def test_two_runs_do_not_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_threads(tmp_path / "dumps", ["so it is"])
    with locked(str(tmp_path / "out" / ".reddit.lock"), "held", "wait"):
        flags = ["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out")]
        assert "another process writes there; wait for it" in refused(capsys, *flags)


def command(dumps: Path, output: Path, *flags: str) -> list[str]:
    script = str(REPOSITORY / "data" / "dialogue" / "reddit.py")
    return [sys.executable, script, "--input_dir", str(dumps), "--output_dir", str(output), *flags]


@pytest.mark.processes
@pytest.mark.slow
def test_processes_and_kills_change_nothing(tmp_path: Path) -> None:
    """One process, three processes, and a run that is killed again and again give the same bytes."""
    dumps, small = tmp_path / "dumps", ["--partition_mb", "1"]
    write_dumps(dumps, 30_000)
    write_dumps(dumps, 20_000, seed=2, month="2017-02")
    extract(dumps, tmp_path / "one", *small)
    subprocess.run(command(dumps, tmp_path / "three", "--processes", "3", *small), check=True, capture_output=True)
    n_kills = 0
    for seconds in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 30.0, 60.0, 300.0):
        process = subprocess.Popen(command(dumps, tmp_path / "killed", "--processes", "2", *small))
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() == 0:
            break
        os.kill(process.pid, signal.SIGKILL)
        n_kills += 1
        process.wait()
    assert n_kills >= 3 and process.returncode == 0
    for name in ("2017-01.tsv", "2017-02.tsv"):
        whole = (tmp_path / "one" / name).read_bytes()
        assert whole and whole == (tmp_path / "three" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    counts = [
        json.loads((tmp_path / name / "total.report").read_text())["counts"] for name in ("one", "three", "killed")
    ]
    assert counts[0] == counts[1] == counts[2]
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "total.report").read_text())["dumps"][0]["partitions"] > 10
    assert sorted(lines_of(tmp_path / "one")) == sorted(survivors(dumps, MONTH)[0])
