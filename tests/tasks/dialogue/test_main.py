"""The command line: what people see, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.dialogue.__main__ import main, parse_arguments
from tests.tasks.dialogue import demo
from tests.tasks.dialogue.demo import write, write_demo

REPOSITORY = Path(__file__).resolve().parents[3]
TABLE = """\
             hyp.txt
NIST-1        1.8338
NIST-2        2.0838
NIST-3        2.1949
NIST-4        2.1949
BLEU-1        0.4667
BLEU-2        0.4410
BLEU-3        0.4017
BLEU-4        0.3224
METEOR             -
Entropy-1     2.5232
Entropy-2     2.4849
Entropy-3     2.1972
Entropy-4     1.7918
Dist-1        0.8667
Dist-2        1.0000
Mean words    5.0000
"""
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """METEOR has tests of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capsys.readouterr()

    return run


def test_a_user_measures_the_demonstration(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.dialogue", *write_demo(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, TABLE)
    assert run.stderr.startswith("METEOR is left out: ") and run.stderr.count("\n") == 1


def test_the_program_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "dialogue.md").read_text(encoding="utf-8").split("## Metrics\n")[1]
    exec(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0], {})
    assert capsys.readouterr().out.startswith("[1.0, 1.0, 1.0, 1.0] (1.38")


def test_json_holds_every_figure(tmp_path: Path, program: Program) -> None:
    status, output, _ = program("--json", *write_demo(tmp_path))
    found = json.loads(output)["hyp.txt"]
    assert status == 0
    assert [round(value, 4) for value in found["nist"]] == demo.NIST
    assert [round(value, 4) for value in found["bleu"]] == demo.BLEU
    assert [round(value, 4) for value in found["entropy"]] == demo.ENTROPY
    assert [round(value, 4) for value in found["dist"]] == demo.DIST
    assert {key: found[key] for key in ("lines", "empty_lines", "meteor", "mean_words")} == {
        "lines": 3,
        "empty_lines": 0,
        "meteor": None,
        "mean_words": 5.0,
    }


def test_without_references(tmp_path: Path, program: Program) -> None:
    hypotheses = write_demo(tmp_path)[0]
    status, output, errors = program(hypotheses, "--n_refs", "2", "--keys", "nowhere")
    assert status == 0 and output == "\n".join(TABLE.splitlines()[:1] + TABLE.splitlines()[10:]) + "\n"
    assert errors.splitlines() == [
        "--keys: has no effect without references",
        "--n_refs: has no effect without references",
    ]


def test_a_folder_of_systems_and_the_human(tmp_path: Path, program: Program) -> None:
    references = write(tmp_path, ref0=demo.FIRST_REFERENCES, ref1=demo.SECOND_REFERENCES, ref2=demo.FIRST_REFERENCES)
    (tmp_path / "systems").mkdir()
    write(tmp_path / "systems", b=demo.HYPOTHESES, a=demo.SECOND_REFERENCES)
    report = tmp_path / "new" / "report.tsv"
    status, output, _ = program(
        str(tmp_path / "systems"), *references, "--human_reference", "3", "--json", "--report", str(report)
    )
    found = json.loads(output)
    assert (status, list(found)) == (0, ["a.txt", "b.txt", "human"])
    assert found["a.txt"]["bleu"] == found["human"]["bleu"] == [1.0] * 4
    assert [round(value, 4) for value in found["b.txt"]["nist"]] == demo.NIST
    head, *rows = [line.split("\t") for line in report.read_text().splitlines()]
    orders = [f"{name}{n}" for name in ("nist", "bleu", "entropy") for n in (1, 2, 3, 4)]
    assert head == ["fname", "n_lines", *orders[:8], "meteor", *orders[8:], "div1", "div2", "avg_len"]
    assert [(row[0], row[1], row[10], row[17]) for row in rows] == [
        ("a.txt", "3", "", str(13 / 3)),
        ("b.txt", "3", "", "5.0"),
        ("human", "3", "", "4.0"),
    ]


def test_clean_and_first_lines(tmp_path: Path, program: Program) -> None:
    hypotheses, references = write(tmp_path, hyp=["I don't know!", "x", "y"], ref=["i do n't know !", "x", "y"])
    found = {
        flags: json.loads(program(hypotheses, references, "--json", *flags)[1])["hyp.txt"]
        for flags in ((), ("--clean",), ("--n_lines", "1"), ("--clean", "--n_lines", "1"))
    }
    assert [each["lines"] for each in found.values()] == [3, 3, 1, 1]
    assert found["--clean",]["bleu"][0] == 1.0 and found[()]["bleu"][0] < 1.0
    assert found["--clean", "--n_lines", "1"]["mean_words"] == 5.0
    alone = json.loads(program(hypotheses, "--json", "--clean", "--n_lines", "1")[1])["hyp.txt"]
    assert (alone["mean_words"], alone["nist"]) == (5.0, [])


def test_answers_behind_other_columns(tmp_path: Path, program: Program) -> None:
    hypotheses, references = write(tmp_path, hyp=["k1\t-\ta b c", "k2\t\ta"], ref=["a b c", "b"])
    for paths in ([hypotheses], [hypotheses, references]):
        status, output, errors = program(*paths, "--json")
        assert (status, json.loads(output)["hyp.txt"]["mean_words"]) == (0, 2.0)
        assert errors.splitlines()[0] == f"{hypotheses}: has lines with tabs; the answer is what follows the last one"


def test_case_counts_if_asked(tmp_path: Path, program: Program) -> None:
    paths = write(tmp_path, hyp=["The Cat"], ref=["the cat"])
    bleu = [
        json.loads(program(*paths, "--json", *flags)[1])["hyp.txt"]["bleu"][0] for flags in ([], ["--case-sensitive"])
    ]
    assert bleu == [1.0, 0.25]


def test_empty_answers_are_said(tmp_path: Path, program: Program) -> None:
    status, output, errors = program(*write(tmp_path, hyp=["a b", "", " "], ref=["a b", "a", "b"]), "--json")
    found = json.loads(output)["hyp.txt"]
    assert (status, found["empty_lines"], found["mean_words"]) == (0, 2, pytest.approx(2 / 3))
    assert "hyp.txt: 2 of 3 answers are empty; they count with 0 words" in errors.splitlines()


def test_many_references_on_a_line_are_said(tmp_path: Path, program: Program) -> None:
    paths = write(tmp_path, hyp=["a", "b"], refs=["hello\t0.5|a\t0.2|c", "bye\tb"])
    status, output, errors = program(*paths, "--json")
    assert (status, json.loads(output)["hyp.txt"]["bleu"][0]) == (0, 1.0)
    assert errors.splitlines()[0] == f"{paths[1]}: 2 contexts or keys with 1 to 2 references"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hyp.txt", "short.txt"], "hyp.txt = 3 lines: short.txt has 1; give files with a line for each context\n"),
        (["empty.txt"], "empty.txt: is empty; give one answer a line\n"),
        (
            ["nowhere.txt"],
            "nowhere.txt: cannot be read (No such file or directory); replace the file",
        ),
        (["folder"], "folder: has no file of hypotheses; give a folder with a .txt file for each system\n"),
        (["hyp.txt", "ref0.txt", "--meteor_jar", "no.jar"], "--meteor_jar no.jar: is not a file; give the path of"),
        (["hyp.txt", "--meteor_jar", "no.jar", "ref0.txt"], "--meteor_jar no.jar: is not a file; give the path of"),
        (["hyp.txt", "--n_lines", "0"], "argument --n_lines: 0 is below 1; give 1 or more\n"),
        (["hyp.txt", "--report", "folder"], "folder: cannot be written: it is a folder; make room there"),
        (["hyp.txt", "ref0.txt", "--human_reference", "1"], "--human_reference 1: context 1 has 1 reference(s); give"),
    ],
)
def test_mistakes_have_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program, arguments: list[str], message: str
) -> None:
    write_demo(tmp_path)
    write(tmp_path, short=["a"], empty=[])
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    status, output, errors = program(*arguments)
    assert (status, output) == (2, "") and message in errors


def test_paths_are_as_a_shell_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/somewhere")
    found = parse_arguments(["~/hyp.txt", "$HERE/ref.txt", "--keys", "$HERE//keys"])
    assert found.hypotheses == os.path.expanduser("~/hyp.txt")
    assert (found.references, found.keys) == (("/somewhere/ref.txt",), "/somewhere/keys")
