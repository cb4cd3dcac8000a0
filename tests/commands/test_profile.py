"""`--profile`, from the command line: what it prints and writes, and when it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from main import main
from tests.program import write_project

STEPS = ("--model", "tiny.json", "--set", "train_steps=5", "--steps_per_checkpoint", "3", "--profile")


def test_a_run_is_profiled_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*STEPS, "2"]) == 0
    lines = "".join(capsys.readouterr()).splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("profile of steps 3 to 4: "))
    assert lines[head].endswith("; TensorBoard's profile plugin shows runs/tiny/plugins/profile")
    assert lines[head + 1] == "  share   ms a step  operation"
    shares = [float(line.split("%")[0]) for line in lines[head + 2 : head + 12]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0.0 < shares[0] < 100.0
    assert any("step 5/5" in line for line in lines) and Path("runs/tiny/model.ckpt-5.index").is_file()
    (trace,) = Path("runs/tiny/plugins/profile").glob("*/*")
    assert trace.name.endswith(".xplane.pb") and b"h0/attn/" in trace.read_bytes()
    assert main([*STEPS, "8", "--set", "train_steps=9"]) == 2
    assert "--profile 8: begins after 2 steps, and the run has 4 left; raise train_steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profile", "0"], "--profile 0: must be at least 1; give a number of steps"),
        (
            ["--profile", "2", "--tpu", "mine"],
            "--profile: traces this machine, not a TPU; leave it out, or trace the TPU from TensorBoard",
        ),
    ],
    ids=["no steps", "TPU"],
)
def test_refused(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert main(["--model", "quickstart", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)
