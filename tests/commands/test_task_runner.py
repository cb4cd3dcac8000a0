"""What is said before tasks are evaluated."""

from __future__ import annotations

import pytest

from commands.run_setup import Run
from commands.task_runner import prepare_tasks
from runtime.cluster.process_group import ALONE
from tasks.task import CONTINUATION, LoadedTask, Question, Task
from tests import tiny
from tests.tasks.hash_model import Bytes


@pytest.mark.parametrize("entmax_loss", [False, True])
def test_scores_by_another_distribution_than_the_trained_one_are_said(
    entmax_loss: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tiny.run_config(model={"entmax_loss": entmax_loss}), None, ALONE, None, Bytes())
    loaded = LoadedTask(Task("mine", CONTINUATION, "mine.jsonl"), "mine.jsonl", (Question(("a",), ("b",)),))
    (task,) = prepare_tasks(run, [loaded])
    line = "eval_tasks: entmax_loss is true, and log-likelihoods are of the softmax, which was not trained\n"
    assert capsys.readouterr().out == line * entmax_loss and task.n_requests == 1
