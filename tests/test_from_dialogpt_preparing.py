"""Each flag of DialoGPT's prepro.py, as docs/from-dialogpt.md lists them, run by our program on small files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from data.create_dialogue_tfrecords import main
from tests.data.dialogue.test_templates import PLAIN
from tests.data.test_create_dialogue_tfrecords import records, spelled
from tests.test_from_dialogpt import PAGE

SECTION = PAGE.split("## Preparing data\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", SECTION, re.MULTILINE)[2:])
(COMMAND,) = re.findall(r"^python3 data/create_dialogue_tfrecords.py (.*)$", SECTION, re.MULTILINE)
FILES = {
    "data/train.tsv": ["0.0 ab EOS 1.0 c\t1.0 de", "1.0 f\t1.0 g"],
    "data/train_raw.tsv": ["h EOS i\tj", "3 k\tl"],
    "data/out/2017-01.tsv": ["1.0 m EOS 0.0 n\t1.0 o"],
}
# The texts of conversations, "." for the end of a turn, each with the characters that count in the loss in upper case.
WHOLE = {"ab.C.DE.", "f.G."}
RAW = {"h.I.J.", "3 k.L."}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lines in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("".join(f"{line}\n" for line in lines))
    Path("bytes.json").write_text(PLAIN.to_json())


def conversations(folder: str = "tfrecords") -> set[str]:
    """The conversations of all records; a record may hold several."""
    found: dict[tuple[int, int], str] = {}
    for number, record in enumerate(records(folder, "train")):
        for character, weight, segment in zip(*spelled(record), strict=True):
            if segment:
                text = found.get((number, segment), "")
                found[number, segment] = text + (character.upper() if weight else character)
    return set(found.values())


def expect(*texts: str) -> Callable[[], None]:
    def check() -> None:
        assert conversations() == set(texts)

    return check


def check_two_files() -> None:
    """One record holds both conversations."""
    expect(*WHOLE)()
    assert len(records("tfrecords", "train")) == 1


def check_length() -> None:
    expect(*WHOLE)()
    assert {len(record.ids_L) for record in records("tfrecords", "train")} == {129}


def check_folder() -> None:
    assert conversations("data/train.128len") == WHOLE
    assert {path.suffix for path in Path("data/train.128len").iterdir()} == {".tfrecords", ".json"}


CHECKS: dict[str, Callable[[], None]] = {
    "`python prepro.py --corpus data/train.tsv`": expect(*WHOLE),
    "`--max_seq_len 128`": check_length,
    "`--chunk_size 65536`": check_two_files,
    "`--reverse`": expect("de.C.", "g.F."),  # turns at the end that do not count are left out
    "`--two_turn`": expect("ab.C.", "f.G."),
    "`bash prepare4db.sh`": expect(*RAW),
    "`data/train.128len.db/`": check_folder,
    "`Found existing DB, please backup`": expect(*WHOLE),
    "`demo.py --data dummy`": expect(*RAW),
    "`demo.py --data small`, `demo.py --data full`": expect("m.n.O."),
}


def run(here: str) -> int:
    (code,) = re.findall(r"^`(.*?)`", here)
    return main([*shlex.split(COMMAND), "--encoder_path", "bytes.json", "--processes", "1", *shlex.split(code)])


def test_every_row_is_tried() -> None:
    assert set(CHECKS) == set(ROWS)


@pytest.mark.parametrize(("theirs", "here"), ROWS.items())
def test_a_row_does_what_it_says(theirs: str, here: str) -> None:
    assert run(here) == 0
    CHECKS[theirs]()


@pytest.mark.parametrize("other", ["--corpus data/train.tsv", "--max_seq_len 128", "--chunk_size 128"])
def test_the_other_spelling_does_the_same(other: str) -> None:
    assert any(f"`{other}`" in here for here in ROWS.values()) and run(f"`{other}`") == 0
    assert conversations() == WHOLE


def test_existing_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("`--two_turn`") == 0
    assert run("`--reverse`") == 2 and "overwrite" in capsys.readouterr().err
    assert run("`--reverse --overwrite`") == 0 and conversations() == {"de.C.", "g.F."}


def test_a_reversed_file_of_weights_gives_nothing_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/train.tsv").write_text("0.0 a\t1.0 b\n1.0 c\t1.0 d\n")
    assert run("`--reverse`") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["discarded_unanswered"] == 1 and conversations() == {"d.C."}
