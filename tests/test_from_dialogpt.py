"""Each flag of DialoGPT's evaluation script, as docs/from-dialogpt.md lists them, run by our program on small files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.dialogue.__main__ import main
from tasks.dialogue.figures import measure
from tests.program import ENVIRONMENT, REPOSITORY
from tests.talks import Talks

PAGE = (REPOSITORY / "docs" / "from-dialogpt.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Evaluation\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", SECTION, re.MULTILINE)[2:])
BASE = re.findall(r"^python3 -m tasks.dialogue (.*)$", SECTION, re.MULTILINE)[0].split()
FILES = {
    "test_real.keys.txt": ["k1", "k2", "k3", "k4"],
    "keys.2k.txt": ["k4", "k1", "k2"],
    "test.refs.txt": [
        "k4\t1|it's fine\t3|it is fine\t2|not so bad",
        "k3\t1|never used\t1|nor this",
        "k2\t1|the cat\t1|a cat sat\t1|it sat\t1|one\t1|two\t1|three\t1|four",
        "k1\t9|i see it\t9|no i do n't",
    ],
    "test.refs.6k.txt": ["how are you\t1|it's fine\t2|fine", "who\t4|the cat", "what\t1|x", "why\t1|y"],
    "answers.txt": ["No I don't", "the cat sat", "not counted", "it's fine"],
    "systems/one.txt": ["i see it", "the cat", "x", "it's fine"],
    "systems/two.txt": ["a", "b", "c", "d"],
}
ANSWERS = ["No I don't", "the cat sat", "it's fine"]  # of the keys that count
REFERENCES = [
    ["i see it", "no i do n't"],
    ["the cat", "a cat sat", "it sat", "one", "two", "three", "four"],
    ["it's fine", "it is fine", "not so bad"],
]
Found = Mapping[str, Mapping[str, Any]]


def repeated(n_refs: int) -> list[list[str]]:
    return [[texts[number % len(texts)] for number in range(n_refs)] for texts in REFERENCES]


def is_of(found: Mapping[str, Any], answers: list[str], references: list[list[str]]) -> bool:
    """Returns whether figures are those of texts that were put together by hand."""
    expected = measure(answers, references)
    return found["nist"] == pytest.approx(expected.nist) and found["bleu"] == pytest.approx(expected.bleu)


def check_whole(found: Found) -> None:
    assert found["answers.txt"]["lines"] == 3 and is_of(found["answers.txt"], ANSWERS, repeated(6))


def check_clean(found: Found) -> None:
    cleaned = [[text.replace("it's", "it 's") for text in texts] for texts in repeated(6)]
    assert is_of(found["answers.txt"], ["no i do n't", "the cat sat", "it 's fine"], cleaned)
    assert found["answers.txt"]["mean_words"] == 10 / 3


def check_first_lines(found: Found) -> None:
    assert found["answers.txt"]["lines"] == 2 and is_of(found["answers.txt"], ANSWERS[:2], repeated(6)[:2])
    assert found["answers.txt"]["dist"] == [1.0, 1.0]


def check_human(found: Found) -> None:
    assert list(found) == ["answers.txt", "human"]
    left = [
        ["i see it"] * 6,
        ["the cat", "it sat", "it sat", "one", "two", "three"],
        ["it's fine", "not so bad", "not so bad", "it's fine", "not so bad", "not so bad"],
    ]
    assert is_of(found["answers.txt"], ANSWERS, left)
    assert is_of(found["human"], ["no i do n't", "a cat sat", "it is fine"], left)


def check_folder(found: Found) -> None:
    assert list(found) == ["one.txt", "two.txt"]
    assert is_of(found["one.txt"], ["i see it", "the cat", "it's fine"], repeated(6))


def check_report(_: Found) -> None:
    head, *rows = Path("report.tsv").read_text().splitlines()
    assert head.split("\t")[:3] == ["fname", "n_lines", "nist1"] and len(head.split("\t")) == 18
    assert all(len(row.split("\t")) == 18 for row in rows) and rows


def check_batch(found: Found) -> None:
    check_report(found)
    assert list(found) == ["one.txt", "two.txt"] and found["one.txt"]["mean_words"] == 8 / 3


def check_6k(found: Found) -> None:
    texts = [["it's fine", "fine"], ["the cat"], ["x"], ["y"]]
    assert is_of(found["answers.txt"], FILES["answers.txt"], texts)


CHECKS: dict[str, Callable[[Found], None]] = {
    "`python dstc.py answers.txt`": check_whole,
    "`--clean`, `-c`": check_clean,
    "`--n_lines 2`, `-n 2`": check_first_lines,
    "`--n_refs 6`, `-r 6`": check_whole,
    "`--vshuman 1`, `-v 1`": check_human,
    "`--vshuman -1`, `-v -1`": check_whole,
    "`--refs test.refs.txt`, `-g test.refs.txt`": check_whole,
    "`--keys keys.2k.txt`, `-k keys.2k.txt`": check_whole,
    "`--teams teams.txt`, `-i teams.txt`": check_folder,
    "`--report report.tsv`, `-o report.tsv`": check_report,
    "`extract_human.py`": check_human,
    "`batch_eval.py --input_dir systems`": check_batch,
    "METEOR with `-norm`": check_whole,
    "the 6k multi-reference set": check_6k,
}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of DialoGPT's files, without Java."""
    (tmp_path / "systems").mkdir()
    for name, lines in FILES.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))


def arguments_of(here: str) -> list[str]:
    """The command of the page, with what a row gives in its first words of code."""
    (_, code), *_ = re.findall(r"^(no flag)|^`(.*?)`", here)
    words = shlex.split(code)
    if words[:2] == ["answers.txt", "test.refs.6k.txt"]:
        return words
    paths = [word for word in words[:1] if not word.startswith("--")]
    if paths == ["systems"]:
        return ["systems", *BASE[1:], *words[1:]]
    assert paths in ([], ["answers.txt"], ["test.refs.txt"])
    return [*BASE, *words[len(paths) :]]


def test_every_row_is_tried() -> None:
    assert set(CHECKS) == set(ROWS)


@pytest.mark.parametrize(("theirs", "here"), ROWS.items())
def test_a_row_does_what_it_says(capsys: pytest.CaptureFixture[str], theirs: str, here: str) -> None:
    status = main([*arguments_of(here), "--json"])
    output, errors = capsys.readouterr()
    assert status == 0, errors
    CHECKS[theirs](json.loads(output))


TALKING = PAGE.split("## Talking\n")[1].split("\n## ")[0]
TALKING_ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", TALKING, re.MULTILINE)[2:])
TYPED = "where is the cow ?\nwho is at the sea ?\n"
TYPED_COMMANDS = "where is the cow ?\n/undo\nwhere is the cow ?\n/reset\nwhere is the cow ?\n"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("theirs", "here"), TALKING_ROWS.items())
def test_a_way_to_talk(talks: Talks, theirs: str, here: str) -> None:
    """It gives an answer for each line, and the line that self-play begins with."""
    given = re.findall(r"`(.*?)`", here)
    assert given[0].startswith("--model runs/tiny ") or given[:2] == ["/reset", "/undo"]
    arguments = (
        shlex.split(given[0]) if given[0].startswith("--") else ["--model", "runs/tiny", "--chat", "--seed", "1"]
    )
    typed = TYPED if given[0].startswith("--") else TYPED_COMMANDS
    program = [sys.executable, str(REPOSITORY / "main.py"), *arguments]
    done = subprocess.run(program, cwd=talks.folder, env=ENVIRONMENT, input=typed, capture_output=True, text=True)
    answers = done.stdout.splitlines()
    assert (done.returncode, len(answers)) == (0, 2 + ("--chat" not in given[0])), done.stderr
    if typed == TYPED_COMMANDS:
        assert len(set(answers)) == 1  # each is to a first message
    if "--self_play" in arguments:
        assert answers[0] == arguments[arguments.index("--prompt_text") + 1]
