"""The benchmark's command line."""

from __future__ import annotations

import sys

import pytest

from benchmarks.train_step import main


@pytest.mark.parametrize("steps", ["0", "-3", "1.5", "many", ""])
def test_a_number_of_steps_that_times_nothing_is_refused(
    steps: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step.py", f"--steps={steps}"])
    with pytest.raises(SystemExit) as exit_status:
        main()
    assert exit_status.value.code == 2
    message = f"argument --steps: {steps!r} is not an integer >= 1; give the number of steps"
    assert message in capsys.readouterr().err
