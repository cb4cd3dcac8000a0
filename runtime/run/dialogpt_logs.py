"""DialoGPT's two logs, `train_log.txt` and `eval_log.txt`: views of `metrics.jsonl`, with DialoGPT's columns.

They are written anew from the metrics each time, so that they hold what the metrics hold, whatever was resumed.
Source: DialoGPT's LSP_train.py, whose epochs and steps are one too high.
"""

from __future__ import annotations

import dataclasses
import math
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from runtime.run.metrics import read_metrics
from runtime.run.token_count import TokenCount
from storage.files import write_text

TRAIN_LOG, EVAL_LOG = "train_log.txt", "eval_log.txt"
TRAIN_COLUMNS = "epoch,global_step,step,mean_loss,mean_ppl,n_token_real,n_token_total,epoch_time"
EVAL_COLUMNS = "epoch,global_step,step,eval_loss,eval_ppl"
MAX_NATS = 700.0  # the perplexity of more is no number

Line = dict[str, Any]


def write_logs(model_path: str, token_count: TokenCount) -> None:
    """Writes both logs into the folder of a run.

    Args:
        model_path: the folder, local or `gs://`.
        token_count: the tokens of the run's steps.

    Raises:
        DataError: the metrics cannot be read.
        UserError: the files cannot be written.
    """
    metrics = read_metrics(model_path)
    for name, text in ((TRAIN_LOG, train_log(metrics, token_count)), (EVAL_LOG, eval_log(metrics))):
        write_text(posixpath.join(model_path, name), text)


@dataclasses.dataclass(frozen=True)
class _EpochSums:
    """Sums over the steps of one epoch so far; a line of metrics stands for all steps since the line before it.

    Attributes:
        epoch: its number, from 1 on.
        n_steps: updates.
        nats: the loss of each step.
        n_labels: tokens that the loss is the mean of.
        n_tokens: those that are no labels included.
        seconds: taken by the steps alone.
    """

    epoch: int
    n_steps: int = 0
    nats: float = 0.0
    n_labels: int = 0
    n_tokens: int = 0
    seconds: float = 0.0

    def add(self, line: Line, n_steps: int, n_tokens: int) -> _EpochSums:
        return _EpochSums(
            self.epoch,
            self.n_steps + n_steps,
            self.nats + n_steps * line["loss"],
            self.n_labels + n_steps * int(line["tokens"]),
            self.n_tokens + n_tokens,
            self.seconds + n_tokens / line["tokens_per_second"],
        )


def train_log(metrics: Sequence[Line], token_count: TokenCount) -> str:
    """Returns `train_log.txt`, a line for each training line of the metrics.

    `mean_loss` and the columns after it are of the epoch so far. `n_token_real` counts the labels that the loss is the
    mean of, and `mean_ppl` is the exponential of `mean_loss`.
    """
    rows, last_step, sums = [TRAIN_COLUMNS], 0, _EpochSums(0)
    for line in _train_lines(metrics):
        if _epoch(line) != sums.epoch:
            sums = _EpochSums(_epoch(line))
        n_tokens = int(np.diff(token_count.before(np.array([last_step, line["step"]])))[0])
        sums, last_step = sums.add(line, line["step"] - last_step, n_tokens), line["step"]
        mean_loss = sums.nats / sums.n_steps
        counts = f"{sums.n_labels},{sums.n_tokens},{sums.seconds}"
        rows.append(f"{sums.epoch},{last_step},{last_step},{mean_loss},{math.exp(min(mean_loss, MAX_NATS))},{counts}")
    return "".join(f"{row}\n" for row in rows)


def eval_log(metrics: Sequence[Line]) -> str:
    """Returns `eval_log.txt`, a line for each evaluation; a loss that is no likelihood has no perplexity."""
    rows, epoch_at = [EVAL_COLUMNS], {line["step"]: _epoch(line) for line in _train_lines(metrics)}
    for line in metrics:
        if line["split"] == "eval" and "loss" in line:
            step = line["step"]
            epoch = max((epoch for at, epoch in epoch_at.items() if at <= step), default=1)
            rows.append(f"{epoch},{step},{step},{line['loss']},{line.get('perplexity', '')}")
    return "".join(f"{row}\n" for row in rows)


def _train_lines(metrics: Sequence[Line]) -> Iterator[Line]:
    """Yields the training lines that say how far into the data they are, which those of older runs do not."""
    return (line for line in metrics if line["split"] == "train" and "epoch" in line)


def _epoch(line: Line) -> int:
    """Returns the number of the epoch, from 1 on, that the last example of a step belongs to."""
    return max(1, math.ceil(line["epoch"]))
