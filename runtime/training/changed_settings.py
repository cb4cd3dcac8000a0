"""What differs between the settings that a run was trained with and those that it goes on with."""

from __future__ import annotations

from collections.abc import Iterator

from configs.reader import shown
from configs.schema import GROUPS, RunConfig, keys_of, written_keys
from runtime.training.lr_schedules import learning_rate

LONG_KEYS = ("datasets",)  # too long to be shown


def describe_changes(before: RunConfig, now: RunConfig, step: int) -> str | None:
    """Returns a line with the settings that changed and the learning rate by both; None: they are the same.

    Args:
        before: the settings of the run so far.
        now: those that it goes on with.
        step: updates made so far.
    """
    changes = list(_find_changes(before, now))
    if not changes:
        return None
    rates = [learning_rate(step, config.training, config.model.n_embd) for config in (before, now)]
    rate = f"stays {rates[0]:.4g}" if rates[0] == rates[1] else f"{rates[0]:.4g} -> {rates[1]:.4g}"
    return f"other settings than so far: {', '.join(changes)}; learning rate at step {step}: {rate}"


def _find_changes(before: RunConfig, now: RunConfig) -> Iterator[str]:
    for group in GROUPS:
        was, has = written_keys(getattr(before, group)), written_keys(getattr(now, group))
        for key in keys_of(GROUPS[group]):
            if was[key] != has[key]:
                yield key if key in LONG_KEYS else f"{key} {shown(was[key])} -> {shown(has[key])}"
