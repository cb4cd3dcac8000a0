"""data/dialogue/reddit_references.py: contexts with several references, by count and by DialoGPT's list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.dialogue import reddit
from data.dialogue.reddit_references import main
from tests.data.dialogue.made_up_reddit import write_dumps

OPENING = {"role": "user", "content": "what “is” it", "weight": 0.0}


def line(link: str, parent: str, comment: str, score: int, *texts: str) -> str:
    turns = [OPENING, *({"role": "assistant", "content": text, "weight": 1.0} for text in texts)]
    return json.dumps({"link": link, "parent": parent, "comment": comment, "score": score, "turns": turns})


LINES = [
    line("t3_a", "t1_p", "t1_1", 3, "so it is"),
    line("t3_a", "t1_p", "t1_2", 9, "not “so”"),
    line("t3_a", "t1_p", "t1_3", 3, "it is a cat"),
    line("t3_a", "t1_q", "t1_4", 5, "yes", "why"),
    line("t3_b", "t1_p", "t1_5", 5, "yes", "why not"),
    line("t3_b", "t1_p", "t1_6", 1, "yes", "well"),
]


def run(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str, lines: list[str] = LINES) -> tuple[list, dict]:
    (folder / "2018-03.jsonl").write_text("".join(f"{each}\n" for each in lines))
    assert main(["--data", str(folder / "2018-03.jsonl"), "--out", str(folder / "test.refs.txt"), *flags]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    return (folder / "test.refs.txt").read_text().splitlines(), counts


def test_contexts_of_enough_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, counts = run(tmp_path, capsys, "--min_refs", "2")
    assert written == [
        'what "is" it\t9|not "so"\t3|so it is\t3|it is a cat',
        'what "is" it EOS yes\t5|why not\t1|well',
    ]
    assert counts == {"path": str(tmp_path / "test.refs.txt"), "contexts": 2, "references": 5}
    assert run(tmp_path, capsys, "--min_refs", "3")[0] == written[:1]
    assert run(tmp_path, capsys)[0] == []


def test_a_list_of_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order and the scores are those of the list; what is missing is counted."""
    ids = [
        "multiref\t7,t3_b,t1_p,t1_6\t4,t3_b,t1_p,t1_5\t3,t3_b,t1_p,t1_9",
        "other\t1,t3_a,t1_p,t1_1",
        "multiref\t2,t3_a,t1_p,t1_1\t8,t3_a,t1_q,t1_4",
        "multiref\t2,t3_a,t1_p,t1_8\t8,t3_a,t1_p,t1_2",
    ]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    written, counts = run(tmp_path, capsys, "--testids", str(tmp_path / "ids.txt"))
    assert written == ['what "is" it EOS yes\t7|well\t4|why not', 'what "is" it\t2|so it is']
    assert counts == {
        "path": str(tmp_path / "test.refs.txt"),
        "contexts": 2,
        "references": 3,
        "references that are not in the data": 2,
        "references with another context": 1,
        "contexts without their first reference": 1,
    }


def test_other_lines_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["3", '{"turns": ["a", "b"]}', "{", *LINES]
    written, counts = run(tmp_path, capsys, "--min_refs", "3", lines=lines)
    assert (len(written), counts["lines that are no conversations"]) == (1, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--testids", "nowhere.txt"], "nowhere.txt: cannot be read (No such file"),
        (["--testids", "ids.txt"], "ids.txt: is no list of references; give one whose lines are multiref"),
        (["--min_refs", "0"], "--min_refs 0: is too small; give 1 or more"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no file found"),
    ],
)
def test_mistakes_are_named(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("multiref\t3,t3_a,t1_p\n")
    Path("data.jsonl").write_text(f"{LINES[0]}\n")
    assert main(["--data", "data.jsonl", "--out", "out.txt", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out.txt").exists()


def test_a_dump_gives_a_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dumps(tmp_path / "dumps", 5_000)
    flags = ["--format", "jsonl", "--leaves_only", "0", "--min_score", "-9", "--processes", "1"]
    assert reddit.main(["--input_dir", str(tmp_path / "dumps"), "--output_dir", str(tmp_path / "out"), *flags]) == 0
    conversations = [json.loads(each) for each in (tmp_path / "out" / "2017-01.jsonl").read_text().splitlines()]
    of_parent: dict[str, list[dict]] = {}
    for each in conversations:
        of_parent.setdefault(each["parent"], []).append(each)
    expected = set()
    for group in (group for group in of_parent.values() if len(group) > 2):
        turns = [[turn["content"].translate({8220: '"', 8221: '"'}) for turn in each["turns"]] for each in group]
        references = [f"{each['score']}|{texts[-1]}" for each, texts in zip(group, turns, strict=True)]
        expected.add((" EOS ".join(turns[0][:-1]), *sorted(references)))
    assert main(["--data", str(tmp_path / "out"), "--out", str(tmp_path / "refs.txt"), "--min_refs", "3"]) == 0
    lines = [each.split("\t") for each in (tmp_path / "refs.txt").read_text().splitlines()]
    assert {(context, *sorted(references)) for context, *references in lines} == expected and len(expected) > 5
    scores = [[int(each.split("|")[0]) for each in references] for _, *references in lines]
    assert all(each == sorted(each, reverse=True) for each in scores)
