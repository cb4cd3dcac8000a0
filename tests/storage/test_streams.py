"""Whatever becomes of standard output, a program neither stops nor loses anything for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from storage.streams import ProgramStream, escape_unencodable, raise_if_lost, run_program

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from storage.streams import run_program

def body():
    for number in range(3000):
        print("naïve 🙂 \\udc80", number)
    open("done", "w").write("whole")
    return 0

sys.exit(run_program(body))
"""
FULL = "standard output: cannot be written: No space left on device; make room there, or give a file\n"


def run(folder: Path, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} program.py {redirection}"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [
        ("> /dev/full", 2, FULL),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("| head -1 > first; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_work_is_finished_though_it_cannot_be_shown(tmp_path: Path, redirection: str, status: int, error: str) -> None:
    process = run(tmp_path, redirection)
    assert (process.returncode, process.stderr) == (status, error)
    assert (tmp_path / "done").read_text() == "whole"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_character_ends_a_program(tmp_path: Path, encoding: str) -> None:
    process = run(tmp_path, "> shown", PYTHONIOENCODING=encoding)
    assert (process.returncode, process.stderr) == (0, "")
    first = (tmp_path / "shown").read_bytes().decode(encoding).splitlines()[0]
    assert first.encode().decode("unicode_escape" if encoding == "ascii" else "utf-8").startswith("na")
    assert json.loads(f'"{first}"').encode("utf-16", "surrogatepass") == "naïve 🙂 \udc80 0".encode(
        "utf-16", "surrogatepass"
    )


def test_what_an_encoding_has_is_left_alone() -> None:
    assert escape_unencodable("café \\ ✓", "latin-1") == "café \\ \\u2713"
    assert escape_unencodable("café ✓", "utf-8") == "café ✓"


def test_results_that_cannot_be_written_are_an_error() -> None:
    with open("/dev/full", "w") as full:
        stream = ProgramStream(full)
        raise_if_lost(stream)
        print("text", file=stream, flush=True)
        with pytest.raises(UserError, match="^standard output: cannot be written: No space left on device; "):
            raise_if_lost(stream)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(UserError("wrong"), 2, "wrong\n"), (KeyboardInterrupt(), 130, "stopped\n"), (BrokenPipeError(), 141, "")],
)
def test_how_a_program_ends(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    def fail() -> int:
        raise error

    before = sys.stdout
    assert (run_program(fail, "stopped"), sys.stdout) == (status, before)
    assert capsys.readouterr() == ("", message)


def test_a_machine_without_memory_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: len(bytearray(1 << 62))) == 2
    assert capsys.readouterr().err.startswith("out of memory: ")


def test_a_stream_without_descriptor_may_fail_too() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    stream = ProgramStream(Broken())
    assert stream.write("text") == 4 and stream.error.errno == 5
