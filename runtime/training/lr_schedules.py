"""The learning rate as a function of the step, computed on the host and fed to the training step.

It is a plain number, not a tensor, so that it can be logged, tested and changed on resume without a new graph.
"""

from __future__ import annotations

import math

from configs.schema import TrainingConfig

FINAL_FRACTION = 0.1  # both decays end at this fraction of the configured rate, and stay there


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Returns the learning rate of one training step.

    The decay is applied first, then the warm-up: while `step < warmup_steps` the decayed rate is multiplied by
    `step / warmup_steps`, so that step 0 has a rate of 0.

    Args:
        step: updates made so far.
        training: the settings `lr`, `lr_decay`, `lr_decay_end` (None means `train_steps`) and `warmup_steps`.

    Returns:
        The rate, in [0, lr].

    Source: GPT-Neo's schedule, kept so that its configs train the same.
    """
    return training.lr * _decay(step, training) * _warmup(step, training.warmup_steps)


def _decay(step: int, training: TrainingConfig) -> float:
    """Returns the fraction of the configured rate that the decay leaves, in [FINAL_FRACTION, 1]."""
    if training.lr_decay is None:
        return 1.0
    end_step = training.lr_decay_end or training.train_steps
    progress = min(step / end_step, 1.0)
    return FINAL_FRACTION + (1.0 - FINAL_FRACTION) * _REMAINING[training.lr_decay](progress)


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


_REMAINING = {"linear": _linear, "cosine": _cosine}


def _warmup(step: int, warmup_steps: int) -> float:
    return step / warmup_steps if step < warmup_steps else 1.0
