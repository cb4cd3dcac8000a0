"""The learning rate as a function of the step, computed on the host and fed to the training step.

It is a plain number, not a tensor, so that it can be logged, tested and changed on resume without a new graph.

GPT-Neo's schedules (linear, cosine, constant) and DialoGPT's (noam, noamwd, bert) are kept as they were, so that their
configs train the same. GPT-Neo's multiply the warm-up by the decay, which begins at step 0: after `warmup_steps` their
rate is below lr. That of bert and wsd is lr.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from configs.schema import TrainingConfig

FINAL_FRACTION = 0.1  # both of GPT-Neo's decays end at this fraction of the configured rate, and stay there
WSD_SHARE = 5  # without lr_decay_steps, wsd falls over one in so many steps
NOAM_SCALE = 1e4  # DialoGPT's, by which lr 1e-5 and 345M parameters give a peak of 2.5e-5
NOAMWD_STEPS, NOAMWD_LEAD = 1000, 500  # noamwd halves the rate at updates 500, 1500, 2500, ...

Schedule = Callable[[int, TrainingConfig, int], float]


def learning_rate(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Returns the learning rate of one training step.

    Args:
        step: updates made so far.
        training: the settings `lr`, `lr_decay`, `lr_decay_end` (None means `train_steps`), `lr_decay_steps` and
            `warmup_steps`.
        n_embd: width of the model, by which noam and noamwd scale the rate.

    Returns:
        The rate; at most lr, but for noam and noamwd, whose peak is lr * 10^4 * (n_embd * warmup_steps)^-0.5.
    """
    return training.lr * _SCHEDULES[training.lr_decay](step, training, n_embd)


def _constant(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Returns the fraction of a rate that is constant after the warm-up; step 0 has a rate of 0."""
    return step / training.warmup_steps if step < training.warmup_steps else 1.0


def _decaying(remaining: Callable[[float], float], final: float = FINAL_FRACTION) -> Schedule:
    """Returns GPT-Neo's schedule: the decay is applied first, then the warm-up.

    Args:
        remaining: maps progress through the decay to what remains of it, both in [0, 1].
        final: the fraction of the rate at the end.
    """

    def fraction(step: int, training: TrainingConfig, n_embd: int) -> float:
        progress = min(step / _end_step(training), 1.0)
        decayed = final + (1.0 - final) * remaining(progress)
        return decayed * _constant(step, training, n_embd)

    return fraction


def _end_step(training: TrainingConfig) -> int:
    return training.lr_decay_end or training.train_steps


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _noam(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Rises linearly over `warmup_steps`, then falls with the square root of the step.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 5.3, times DialoGPT's 10^4.
    """
    number, warmup = step + 1, max(training.warmup_steps, 1)
    return NOAM_SCALE * n_embd**-0.5 * min(number**-0.5, number * warmup**-1.5)


def _noamwd(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Halves noam's rate every thousand steps.

    Source: DialoGPT, lsp_model/optim.py, noamwd_decay.
    """
    halvings = (step + 1 + NOAMWD_LEAD) // NOAMWD_STEPS
    return _noam(step, training, n_embd) * 0.5**halvings


def _bert(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Rises linearly over `warmup_steps`, then falls linearly to 0 at `lr_decay_end`.

    Source: Devlin et al. 2018, BERT, appendix A.2; DialoGPT's warmup_proportion is `warmup_steps / lr_decay_end`.
    """
    warmup, end = training.warmup_steps, _end_step(training)
    return step / warmup if step < warmup else max(end - step, 0) / max(end - warmup, 1)


def _wsd(step: int, training: TrainingConfig, n_embd: int) -> float:
    """Rises linearly over `warmup_steps`, stays, and falls linearly to 0 over the last `lr_decay_steps`.

    A warm-up that reaches into the decay is cut short by it.

    Source: Hu et al. 2024, MiniCPM, section 4; the linear form: Hägele et al. 2024, Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations, section 3.
    """
    end = _end_step(training)
    decay_steps = training.lr_decay_steps or max(end // WSD_SHARE, 1)
    return min(_constant(step, training, n_embd), max(end - step, 0) / decay_steps)


_SCHEDULES: dict[str | None, Schedule] = {
    None: _constant,
    "linear": _decaying(_linear),
    "cosine": _decaying(_cosine),
    "linear_to_zero": _decaying(_linear, final=0.0),
    "wsd": _wsd,
    "noam": _noam,
    "noamwd": _noamwd,
    "bert": _bert,
}
