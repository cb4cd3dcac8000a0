"""Compares what the items of evaluation tasks got in recorded runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from configs.errors import DataError
from tasks.compare import compare, format_comparison, read_records
from tracking.record.store import Run

StepAndFile = tuple[int, Path]


def compared_items(runs: Sequence[Run]) -> Iterator[str]:
    """Yields lines on the tasks that two runs have records of, at the last step of each; the first run with each other.

    Runs have records if `--log_samples` was given.
    """
    first, *others = runs
    known = _last_records(first)
    for other in others:
        found = _last_records(other)
        for task in (name for name in known if name in found):
            yield from _compared(task, (first.id, *known[task]), (other.id, *found[task]))
        for task in sorted(known.keys() ^ found.keys()):
            run, lacking = (first.id, other.id) if task in known else (other.id, first.id)
            yield f"{task}: items of run {run} only; give --log_samples in run {lacking} to compare them"


def _last_records(run: Run) -> Mapping[str, StepAndFile]:
    """Returns the last step and the file of the records of each task."""
    named = re.compile(rf"samples_{run.id}_(.+)_(\d+)\.jsonl")
    matches = [(match, path) for path in run.artifacts if (match := named.fullmatch(path.name))]
    last: dict[str, StepAndFile] = {}
    for match, path in sorted(matches, key=lambda each: int(each[0][2])):
        last[match[1]] = (int(match[2]), path)
    return last


def _compared(task: str, before: tuple[int, int, Path], after: tuple[int, int, Path]) -> Iterator[str]:
    (first, first_step, first_path), (second, second_step, second_path) = before, after
    yield f"run {first} at step {first_step:,} -> run {second} at step {second_step:,}"
    try:
        records = [read_records(str(path))[task] for path in (first_path, second_path)]
        yield from format_comparison(compare(*records))
    except (DataError, KeyError) as error:
        yield str(error) if isinstance(error, DataError) else f"{second_path}: has no record of {task}"
