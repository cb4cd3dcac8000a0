"""Text tables: a list of runs, and a comparison. They read no metrics, so that long runs are listed fast."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tracking.record.store import STDERR, Run, is_figure

NONE = "-"
MAX_NAME, MAX_REASON, MAX_CELL = 32, 60, 44  # characters
HEADINGS = ("run", "name", "status", "started (UTC)", "took", "step", "train loss", "eval loss", "tokens/s", "why")
RIGHT_ALIGNED = ("run", "took", "step", "train loss", "eval loss", "tokens/s")
HEALTHY = ("COMPLETED", "RUNNING")


def list_table(runs: Sequence[Run]) -> str:
    """Returns a table with a line for each run, the newest last."""
    rows = [_row(run) for run in runs]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    return "\n".join(_line(row, widths) for row in (HEADINGS, tuple("-" * width for width in widths), *rows))


def _row(run: Run) -> tuple[str, ...]:
    why = "" if run.status in HEALTHY else shorten(str(run.info.get("reason") or ""), MAX_REASON)
    started = run.time("start_time")
    return (
        str(run.id),
        shorten(run.name, MAX_NAME),
        run.status,
        started.strftime("%Y-%m-%d %H:%M") if started else NONE,
        duration(run),
        _step(run),
        latest(run, "train", "loss"),
        latest(run, "eval", "loss"),
        latest(run, "train", "tokens_per_second"),
        why,
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if heading in RIGHT_ALIGNED else cell.ljust(width)
        for heading, cell, width in zip(HEADINGS, cells, widths, strict=True)
    )
    return "  ".join(aligned).rstrip()


def comparison(runs: Sequence[Run]) -> str:
    """Returns a table with a column for each run: results first, then the settings that differ."""
    facts = [(name, [of(run) for run in runs]) for name, of in FACTS.items()]
    facts += [(name, [_figure(run, name) for run in runs]) for name in _figure_names(runs)]
    different = [(key, [format_setting(value) for value in values]) for key, values in config_differences(runs)]
    settings = different or [("(the configs are the same)", [""] * len(runs))]
    return "\n".join(_render([*facts, ("", [""] * len(runs)), *settings]))


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Returns the settings that differ, each with its value in each run; MISSING where a run lacks it."""
    configs = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = ((key, [config.get(key, MISSING) for config in configs]) for key in keys)
    return [(key, values) for key, values in rows if len({format_setting(value) for value in values}) > 1]


MISSING = object()  # the value of a setting that a config lacks


def flatten(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flattens nested settings to `outer.inner`; lists stay whole unless they hold settings."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and _holds_settings(value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[before + key] = value
    return flat


def _holds_settings(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(map(_holds_settings, value)))


def format_setting(value: Any) -> str:
    """Returns a setting as in a config file, or a dash if it is missing."""
    return NONE if value is MISSING else json.dumps(value, ensure_ascii=False)


def shorten(text: str, n_characters: int) -> str:
    """Returns the text in one line, cut to `n_characters`."""
    text = " ".join(text.split())
    return text if len(text) <= n_characters else text[: n_characters - 1] + "…"


def latest(run: Run, split: str, name: str) -> str:
    """Returns the last value of a metric, to four digits."""
    value = run.info.get("latest", {}).get(split, {}).get(name)
    return NONE if value is None else format_number(value)


def _figure_names(runs: Sequence[Run]) -> dict[str, None]:
    """Returns the names of the figures of evaluation tasks, such as piqa/acc."""
    measured = (name for run in runs for name in run.info.get("latest", {}).get("eval", {}))
    return dict.fromkeys(name for name in measured if is_figure(name) and not name.endswith(STDERR))


def _figure(run: Run, name: str) -> str:
    """Returns the last value of a figure, and its standard error."""
    values = run.info.get("latest", {}).get("eval", {})
    return format_with_error(values[name], values.get(name + STDERR)) if name in values else NONE


def format_with_error(value: float | str, error: float | str | None) -> str:
    """Formats a figure and its standard error, which has two digits; the figure has as many decimals."""
    if error is None:
        return format_number(value)
    value, error = float(value), float(error)
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{format_number(value)} ± {format_number(error)}"
    n_decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{n_decimals}f} ± {error:,.{n_decimals}f}"


def format_number(value: float | str) -> str:
    """Formats a metric in a few characters; non-finite values come as text."""
    value = float(value)
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(run: Run) -> str:
    """Returns how long the run has taken, in hours, minutes and seconds."""
    start, end = run.time("start_time"), run.time("stop_time") or run.time("heartbeat")
    if start is None or end is None:
        return NONE
    minutes, seconds = divmod(max(0, round((end - start).total_seconds())), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _step(run: Run) -> str:
    step = run.info.get("step")
    return NONE if step is None else f"{int(step):,}"


def _commit(run: Run) -> str:
    """Returns the commit of the run, with a + if there were uncommitted changes."""
    repositories = run.entry["experiment"].get("repositories") or []
    if not repositories or not repositories[0].get("commit"):
        return NONE
    return str(repositories[0]["commit"])[:12] + "+" * bool(repositories[0].get("dirty"))


FACTS = {
    "run": lambda run: str(run.id),
    "name": lambda run: run.name,
    "status": lambda run: run.status,
    "took": duration,
    "step": _step,
    "train loss": lambda run: latest(run, "train", "loss"),
    "eval loss": lambda run: latest(run, "eval", "loss"),
    "tokens/s": lambda run: latest(run, "train", "tokens_per_second"),
    "commit": _commit,
}


def _render(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lays out rows in columns; long texts are wrapped, not cut."""
    cells = [[[name], *(_wrap(text) for text in texts)] for name, texts in rows]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)]
    return [line for row in cells for line in _render_row(row, widths)]


def _render_row(row: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    height = max(map(len, row))
    padded = [[*cell, *[""] * (height - len(cell))] for cell in row]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, MAX_CELL) or [""]
