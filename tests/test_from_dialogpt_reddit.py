"""Each setting of DialoGPT's extractor, as docs/from-dialogpt.md lists them, run by our program on a small dump."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data.dialogue import reddit, reddit_references
from tests.test_from_dialogpt import PAGE

SECTION = PAGE.split("## Data from Reddit\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", SECTION, re.MULTILINE)[2:])
COMMANDS = re.findall(r"^python3 (data/dialogue/reddit.*)$", SECTION, re.MULTILINE)
LONG = "one two three four five six seven eight nine ten " * 3
# The threads of a month: of each, the comments with their scores; every one answers the one before.
THREADS: Mapping[str, list[tuple[str, int]]] = {
    "a": [(f"word {number} here", 1) for number in range(7)],
    "b": [("how are you", 1), ("fine and you", 1), ("very darn well", 1)],
    "c": [("what is it", 1), ("nothing at all", 0)],
    "d": [("who is it", 1), (LONG, 1), ("me and you", 2)],
    "e": [("who is it", 1), (LONG + "more", 1), ("you and me", 2)],
    "f": [("see the list", 1), ("it is [here]", 3)],
    "g": [("in bad places", 1), ("so it is", 3)],
}
Counts = Mapping[str, int]


def write_month(month: str) -> None:
    submissions, comments = [], []
    for name, turns in THREADS.items():
        subreddit = "bad" if name == "g" else "good"
        submissions.append({"id": name, "num_comments": len(turns), "title": "the title", "subreddit": subreddit})
        for number, (body, score) in enumerate(turns):
            parent = f"t1_{name}{number - 1}" if number else f"t3_{name}"
            ids = {"id": f"{name}{number}", "parent_id": parent, "link_id": f"t3_{name}", "created_utc": 1483228800}
            comments.append({**ids, "body": body, "score": score})
    for kind, values in (("RS", submissions), ("RC", comments)):
        lines = "".join(f"{json.dumps(each)}\n" for each in values)
        Path(f"data/reddit/{kind}_{month}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of DialoGPT's files."""
    monkeypatch.chdir(tmp_path)
    Path("data/reddit").mkdir(parents=True)
    Path("data/keys").mkdir()
    for month in ("2017-01", "2018-02"):
        write_month(month)
        read = [f"t3_{name}\tt1_{name}{number}\tdep" for name in "bcd" for number in range(len(THREADS[name]))]
        keys = [*read, "t3_b\tt1_b2\tkeep", "t3_d\tt1_d2\tkeep"]
        Path(f"data/keys/{month}.gz").write_bytes(gzip.compress("\n".join(keys).encode()))
        discarded = hashlib.sha224(b"me and you").hexdigest()
        Path(f"data/keys/{month}-o.gz").write_bytes(gzip.compress(discarded.encode()))
    Path("words.blocklist.txt").write_text("# Insert block word list\ndarn\n")
    Path("subreddits.blocklist.txt").write_text("# List of subreddits to ignore\nBad\n")
    Path("frequent.txt").write_text("and\nare\n")
    Path("test-multi-refs-ids.txt").write_text("multiref\t10,t3_b,t1_b0,t1_b1\n")


def lines_of(month: str = "2017-01") -> list[str]:
    return Path(f"data/out/{month}.tsv").read_text().splitlines()


A = [f"1.0 word {number} here" for number in range(7)]
B = ["1.0 how are you", "1.0 fine and you", "1.0 very darn well"]
D = ["1.0 who is it", f"1.0 {LONG.strip()}", "1.0 me and you"]
G = ["1.0 in bad places", "1.0 so it is"]


def line(*turns: str) -> str:
    return f"{' EOS '.join(turns[:-1])}\t{turns[-1]}"


DEFAULT = [line(*A[2:]), line(*B), line(*D), line(*G)]
DROPPED = {"answered": 15, "low_score": 1, "few_turns": 1, "brackets": 1}


def check_default(counts: Counts) -> None:
    assert sorted(lines_of()) == sorted(DEFAULT) and sorted(lines_of("2018-02")) == sorted(DEFAULT)
    assert {name: counts[name] for name in DROPPED} == {name: 2 * count for name, count in DROPPED.items()}


def check_lines(*expected: str) -> Callable[[Counts], None]:
    def check(counts: Counts) -> None:
        assert sorted(lines_of()) == sorted(expected)

    return check


def check_month(counts: Counts) -> None:
    check_lines(*DEFAULT)(counts)
    assert counts["comments"] == sum(map(len, THREADS.values())) and not Path("data/out/2018-02.tsv").exists()


def check_unclean(counts: Counts) -> None:
    check_lines(*DEFAULT, line("1.0 see the list", "1.0 it is [ here ]"))(counts)


def check_characters(counts: Counts) -> None:
    """No turn of more than 30 characters: the long one of 10 words three times goes too."""
    assert not any("one two" in each for each in lines_of()) and counts["few_turns"] == 4


def check_test_set(counts: Counts) -> None:
    values = [json.loads(each) for each in Path("data/out/2017-01.jsonl").read_text().splitlines()]
    assert [value["comment"] for value in values] == ["t1_b2", "t1_d2"]
    assert [[turn["weight"] for turn in value["turns"]] for value in values] == [[0.0, 0.0, 1.0]] * 2


DISCARDED = line(*D[:2], "0.0 me and you")
CHECKS: dict[str, Callable[[Counts], None]] = {
    "`make train`": check_default,
    "`make -j 8`": check_default,
    "`python src/reddit.py 2017-01`": check_month,
    "months of `Makefile.targets.full`": check_month,
    "`--task extract`, `--task conv`": check_default,
    "`S=data/reddit`, `--reddit_input data/reddit`": check_default,
    "`T=data/out`, `--reddit_output data/out`": check_default,
    "`MIN_DEPTH=2`, `--min_depth 2`": check_default,
    "`MAX_DEPTH=5`, `--max_depth 5`": check_default,
    "`MIN_SCORE=1`, `--min_score 1`": check_default,
    "`TITLE=0`, `--use_title 0`": check_default,
    "`LEAVES_ONLY=1`, `--leaves_only 1`": check_default,
    "`--max_len 30`": check_default,
    "`--max_len_type w`, `--max_len_type c`": check_characters,
    "`--clean True`": check_default,
    "`--clean False`": check_unclean,
    "`WORDS_BLOCKLIST`, `--bl_words words.blocklist.txt`": check_lines(
        *(each for each in DEFAULT if "darn" not in each), line(*B[:2], "0.0 very darn well")
    ),
    "`SUBREDDITS_BLOCKLIST`, `--bl_subreddits subreddits.blocklist.txt`": check_lines(*DEFAULT[:3]),
    "`--freq_words frequent.txt`": check_lines(line(*D)),
    "`K=data/keys`, `--keep_keys data/keys/2017-01.gz`": check_lines(line(*B), line(*D)),
    "`--discard_tgt_keys data/keys/2017-01-o.gz`": check_lines(*DEFAULT[:2], DEFAULT[3], DISCARDED),
    "`HASH_FLAG=--ignore_keys=True`": check_default,
    "`--split_size 500000`": check_default,
    "`--parallel True`": check_default,
    "`--pre_tok True`": check_default,
    "`cut -f 2-3`": check_default,
    "`data/prepare4db.sh`": check_default,
    "`make test`": check_test_set,
}


def arguments_of(here: str) -> list[str]:
    """The command of the page with what a row gives in its first words of code; its own flags win."""
    (_, code), *_ = re.findall(r"^(no flag)|^`(.*?)`", here)
    flags = shlex.split(code)
    script, *base = shlex.split(COMMANDS[0])
    assert script == "data/dialogue/reddit.py"
    return [*base, *(["--processes", "1"] if "--processes" not in flags else []), *flags]


def counts_of(arguments: list[str]) -> Counts:
    assert reddit.main(arguments) == 0
    return json.loads(Path("data/out/total.report").read_text())["counts"]


def test_every_row_is_tried() -> None:
    assert set(CHECKS) == set(ROWS)


@pytest.mark.parametrize(("theirs", "here"), ROWS.items())
def test_a_row_does_what_it_says(theirs: str, here: str) -> None:
    CHECKS[theirs](counts_of(arguments_of(here)))


OTHER_VALUES = {"min_depth": 4, "max_depth": 3, "min_score": 0, "use_title": 1, "leaves_only": 0, "max_len": 9}


@pytest.mark.parametrize(("flag", "other"), OTHER_VALUES.items())
def test_another_value_than_the_default_gives_other_conversations(flag: str, other: int) -> None:
    counts_of([*arguments_of("no flag"), f"--{flag}", str(other)])
    assert sorted(lines_of()) != sorted(DEFAULT)


def test_the_test_set_of_several_references(capsys: pytest.CaptureFixture[str]) -> None:
    counts_of([*arguments_of("no flag"), "--format", "jsonl", "--leaves_only", "0"])
    script, *arguments = shlex.split(COMMANDS[1])
    assert script == "data/dialogue/reddit_references.py" and reddit_references.main(arguments) == 0
    assert Path("test.refs.txt").read_text() == "how are you\t10|fine and you\n"
