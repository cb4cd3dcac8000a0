"""Agreement with human judgements: tables of scores, and DSTC-7's archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tasks.dialogue.agreement import main
from tasks.dialogue.human_judgements import read_context_texts
from tests.tasks.dialogue.demo import write

REPOSITORY = Path(__file__).resolve().parents[3]
TEST_DATA = os.environ.get("NEOMESH_TEST_DATA", "")
ARCHIVE = Path(TEST_DATA) / "dialogue" / "dstc7-task2-human_eval.tgz"
JUDGED = ["InstanceID\tA\tB\tHuman\tC", "k1\t1\t2\t5\t3", "k2\t2\t2\t4\t1", "k3\t1\t3\t5\t2", "Average\t1\t2\t5\t2"]
ANSWERS = {
    "A": ["no", "i do not", "x"],
    "B": ["the cat is here", "a dog", "the sun is up"],
    "C": ["the cat", "no", "the sun"],
    "Human": ["the cat is here now", "it is a dog", "the sun is up."],
}
REFERENCES = ["k1\tThe cat is here , now\tthe cat was here", "k2\tIt is a dog\tsee a dog", "k3\tThe sun is up ."]


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """METEOR has tests of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))


def write_archive(folder: Path) -> str:
    answers = [f"{system}\tk{n}\t{text}" for system, texts in ANSWERS.items() for n, text in enumerate(texts, start=1)]
    (folder / "judged").mkdir()
    for name, lines in {
        "task-human_evaluation.tsv": JUDGED,
        "task-system_responses.tsv": ["SystemID\tInstanceID\tResponse", *answers],
        "task-context.tsv": ["InstanceID\tDepth\tContext", "k1\t2\twhat it is about", "k2\t3\tmore"],
        "task-gold_responses.tsv": ["InstanceID\tReference1\t...", *REFERENCES],
    }.items():
        (folder / "judged" / name).write_text("\n".join(lines) + "\n")
    with tarfile.open(folder / "judged.tgz", "w:gz") as archive:
        archive.add(folder / "judged", "judged")
    return str(folder / "judged.tgz")


def agreement(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict, list[str]]:
    status = main([*arguments, "--json"])
    output, errors = capsys.readouterr()
    assert status == 0, errors
    return json.loads(output), errors.splitlines()


def test_a_score_that_orders_as_people_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    human, same, opposite = write(
        tmp_path,
        human=["id\tA\tB\tC\tD", *(f"k{n}\t{n}\t{n + 1}\t{n + 2}\t{n + 3.5}" for n in range(8))],
        same=["id\tD\tC\tB\tA", *(f"k{n}\t{n + 13.5}\t{n + 12}\t{n + 11}\t{n + 10}" for n in range(1, 9))],
        opposite=["id\tA\tB\tC\tD", *(f"k{n}\t{-n}\t{-n - 1}\t{-n - 2}\t" for n in range(8))],
    )
    found, errors = agreement(capsys, human, same, opposite)
    assert found["same.txt"]["systems"] == {"rho": pytest.approx(1), "low": None, "high": None, "n": 4}
    assert [found["same.txt"][key]["n"] for key in ("answers", "contexts")] == [28, 7]
    assert found["same.txt"]["answers"]["rho"] == pytest.approx(1)
    assert (found["opposite.txt"]["contexts"]["rho"], found["opposite.txt"]["answers"]["n"]) == (pytest.approx(-1), 24)
    assert errors == [
        f"{human}: 1 contexts are left out, which the other table lacks",
        f"{same}: 1 contexts are left out, which the other table lacks",
    ]


def test_the_answers_of_an_archive_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, errors = agreement(capsys, write_archive(tmp_path))
    assert errors[:2] == ["1 of 3 contexts are left out, which have no reference", "2 contexts, 4 systems"]
    assert errors[2].startswith("METEOR is left out: ")
    orders = [f"{name}-{n}" for name in ("NIST", "BLEU", "Entropy") for n in (1, 2, 3, 4)]
    assert set(found) == {*orders, "Dist-1", "Dist-2", "Words"}
    # Words of k1: 1 4 5 2, judged 1 2 5 3; of k2: 3 2 4 1, judged 2 2 4 1. Means 2 3 4.5 1.5 and 1.5 2 4.5 2.
    assert found["Words"]["contexts"]["rho"] == pytest.approx((0.8 + 0.9486833) / 2)
    assert found["Words"]["systems"]["rho"] == pytest.approx(0.6324555)
    assert found["Words"]["answers"]["n"] == 8
    assert found["Entropy-1"]["answers"] is None and found["BLEU-1"]["answers"]["rho"] > 0


def test_a_folder_reads_as_the_archive_and_tables_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_archive(tmp_path)
    (scores,) = write(tmp_path, scores=JUDGED)
    outputs = [(main([path, scores]), capsys.readouterr().out) for path in (archive, str(tmp_path / "judged"))]
    assert outputs[0] == outputs[1]
    lines = outputs[0][1].splitlines()
    assert lines[0].split() == ["systems", "answers", "answers", "of", "a", "context"]
    assert lines[-1].split() == ["scores.txt", "1.000", "1.000", "[1.000,", "1.000]", "1.000", "[1.000,", "1.000]"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"human": JUDGED}, "human.txt: is a table of judgements; give tables of scores to compare with it"),
        ({"human": ["\0"]}, "human.txt: is not a table; give a line of systems, then a line of"),
        ({"human": JUDGED, "x": ["id\tQ", "k1\t1"]}, "x.txt: has none of the systems of human.txt; use their names"),
        ({"human": JUDGED, "x": ["id\tA", "k9\t1"]}, "x.txt: has none of the contexts of human.txt; use their names"),
        (
            {"human": JUDGED, "x": ["id\tA", "k1\tmuch"]},
            "x.txt, k1 = much: is not a number; give one, or leave",
        ),
        ({"human": JUDGED, "x": ["id\tA", "k1\t1\t2"]}, "x.txt, k1: has 2 scores; give one for each of 1 systems"),
        ({"human": JUDGED, "x": ["id\tA", "k1\t"]}, "x.txt: scores no answer that human.txt judges; fill the cells"),
        ({"human": ["nothing"], "x": JUDGED}, "human.txt: is not a table; give a line of systems, then a line of"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, list[str]],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [os.path.basename(path) for path in write(tmp_path, **files)]
    assert main(paths) == 2
    assert message in capsys.readouterr().err


def test_an_archive_without_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(tmp_path)
    (tmp_path / "judged" / "task-gold_responses.tsv").unlink()
    assert main([str(tmp_path / "judged")]) == 2
    assert "has no file *gold_responses.tsv; give DSTC-7's archive" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs NEOMESH_TEST_DATA")
def test_the_challenge(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tasks.dialogue.agreement", str(ARCHIVE), "--json", "--clean"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert run.stderr.splitlines()[:2] == [
        "46 of 1,000 contexts are left out, which have no reference",
        "954 contexts, 10 systems",
    ]
    for name in ("NIST-2", "BLEU-2", "Words"):
        answers = found[name]["answers"]
        assert 0.05 < answers["low"] < answers["rho"] < answers["high"] < 0.25 and answers["n"] == 9540
        assert answers["high"] - answers["low"] < 0.06
        assert found[name]["systems"]["n"] == 10


def test_the_archive_holds_what_comes_before_the_answers(tmp_path: Path) -> None:
    assert read_context_texts(write_archive(tmp_path)) == {"k1": "what it is about", "k2": "more"}
