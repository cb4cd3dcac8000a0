"""Where the results of evaluation tasks go: the run's metrics, GPT-Neo's file, records of items, and a table."""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from commands.run_setup import Run
from configs.schema import TASK_ALIASES
from runtime.generation.outputs import ESCAPES
from runtime.run.metrics import MetricsWriter, to_json
from storage.files import check_writable, exists, read_bytes, write_text
from tasks.task import Figure, Task, TaskResult

STDERR = "_stderr"
LAMBADA = tuple(TASK_ALIASES.values())
LARGE = 1e7
COLUMNS = ("task", "figure", "value", "", "items", "n_shot")


@dataclasses.dataclass(frozen=True)
class TaskOutputs:
    """Writes the results of a run's tasks; in one process only.

    Attributes:
        run: whose tasks they are.
        metrics: of the run; None if the weights are not those of the run, or another process writes.
    """

    run: Run
    metrics: MetricsWriter | None

    def write(self, step: int, result: TaskResult) -> None:
        """Writes the result of a task at a step.

        Raises:
            UserError: there is no room, or no permission to write there.
        """
        if self.metrics is not None:
            self.metrics.write("eval", step, metrics_of(result))
            _add_line(self._path(f"eval_{self.run.options.sacred_id}.jsonl"), line_of(step, result))
        if self.run.options.log_samples and self.run.group.is_first:
            name = f"samples_{self.run.options.sacred_id}_{result.name}_{step}.jsonl"
            write_text(self._path(name), "".join(map(_json_line, result.items)))

    def _path(self, name: str) -> str:
        return posixpath.join(self.run.config.model_path, name)


def check_records(run: Run) -> None:
    """Checks that the records of items can be written, before anything is computed, if they are asked for.

    Raises:
        UserError: there is no permission to write there.
    """
    if run.options.log_samples and run.group.is_first:
        check_writable(posixpath.join(run.config.model_path, f"samples_{run.options.sacred_id}.jsonl"))


def metrics_of(result: TaskResult) -> dict[str, float]:
    """Returns the figures by the names that they have in `metrics.jsonl`."""
    return {f"{result.name}/{name}": value for name, value in _values(result.figures).items()}


def line_of(step: int, result: TaskResult) -> dict[str, Any]:
    """Returns the line of `eval_ID.jsonl`, as GPT-Neo writes it; LAMBADA has GPT-Neo's own names besides."""
    values, theirs = _values(result.figures), {}
    if result.name in LAMBADA:
        theirs = {"lambada_acc": values["acc"], "lambada_log_ppl": math.log(values["perplexity"])}
    return {"task": result.name, "current_step": step, **values, **theirs}


def _values(figures: Mapping[str, Figure]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, figure in figures.items():
        values |= {name: figure.value} | ({} if figure.stderr is None else {f"{name}{STDERR}": figure.stderr})
    return values


def _json_line(values: Mapping[str, Any]) -> str:
    finite = {name: _as_json(value) for name, value in values.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).translate(ESCAPES) + "\n"


def _as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return to_json(value) if isinstance(value, float) else value


def _add_line(path: str, line: Mapping[str, Any]) -> None:
    """Appends a line, in place of one of the same task and step: an evaluation that a signal ended is done again."""
    lines = read_bytes(path).decode(errors="replace").split("\n") if exists(path) else []
    key = json.dumps({"task": line["task"], "current_step": line["current_step"]})[:-1] + ","
    kept = [f"{each}\n" for each in lines if each and not each.startswith(key)]
    write_text(path, "".join([*kept, json.dumps({name: to_json(value) for name, value in line.items()}) + "\n"]))


def format_note(step: int, result: TaskResult) -> str:
    """Returns the figures of a task as a line, without those of its parts."""
    whole = {name: figure for name, figure in result.figures.items() if "/" not in name}
    return f"step {step}: {result.name}: " + "  ".join(
        f"{name} {' '.join(cells)}".rstrip() for name, cells in _shown(whole)
    )


def format_table(results: Sequence[tuple[Task, TaskResult]]) -> str:
    """Returns a table with a row for each figure of each task."""
    rows = [COLUMNS, *(row for task, result in results for row in _rows(task, result))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {"task", "figure", ""}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading in left else cell.rjust(width)
            for heading, cell, width in zip(COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _rows(task: Task, result: TaskResult) -> Iterator[tuple[str, ...]]:
    first = (result.name, f"{result.n_items:,}", str(task.n_shot))
    for name, (value, error) in _shown(result.figures):
        task_name, n_items, n_shot = first
        yield task_name, name, value, error, n_items, n_shot
        first = ("", "", "")


def _shown(figures: Mapping[str, Figure]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, figure in figures.items():
        yield name, (_number(figure.value), "" if figure.stderr is None else f"± {_number(figure.stderr)}")


def _number(value: float) -> str:
    return f"{value:,.4f}" if value < LARGE else f"{value:.4g}"  # perplexities of a new model have many digits
