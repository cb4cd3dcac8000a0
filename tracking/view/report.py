"""Writes a run as one self-contained page of HTML: no network, no server, no library.

The data are collected here; `report.html` beside this file draws them. A run may have a million points, and a screen
has a few thousand columns, so each curve keeps only its visible points: in every column the first, the last, the lowest
and the highest. The page says how many are shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from tracking.record.recorder import finite, write_whole
from tracking.record.store import STDERR, TASK_PREFIX, Run, Series, series_of
from tracking.view.table import duration, flatten, format_number, format_setting, format_with_error

PAGE = Path(__file__).with_name("report.html")
REPORT_FILE = "report.html"
DATA_MARK = "RUN_DATA"
MAX_COLUMNS, MIN_COLUMNS, MAX_TOTAL_COLUMNS = 800, 80, 24_000
SMOOTHING_SHARE = 1 / 25
MFU = re.compile(r".*\.(mfu|.*flops_utili[sz]ation)")
MAX_SAMPLE_STEPS, MAX_TASK_STEPS = 8, 10
MAX_SAMPLE, OUTPUT_BYTES = 6_000, 32 * 1024  # characters, bytes
GIB = 2.0**30
NAMED_BY_STEP = re.compile(r"predictions_.*?_(\d+)(?:\.(\d+))?\.(?:txt|jsonl)")  # by step, and by number from 2
SAMPLE_HEAD = re.compile(r"^=+ SAMPLE \d+ =+\n", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Chart:
    """What one chart shows.

    Attributes:
        title: of the chart.
        unit: of the values; empty: none.
        pattern: matches the names of its metrics, such as `train.loss`.
        is_smoothed: whether training metrics also get a smoothed curve.
        from_zero: whether the range of its values begins at 0.
    """

    title: str
    unit: str
    pattern: str
    is_smoothed: bool = False
    from_zero: bool = True


CHARTS = (
    Chart("Loss", "nats a token", r".*\.loss", is_smoothed=True, from_zero=False),
    Chart("Learning rate", "learning rate", r".*\.(lr|learning_rate)"),
    Chart("Gradient norm", "norm", r".*\.(grad|gradient)_norm"),
    Chart("Throughput", "tokens a second", r".*\.tokens_per_second"),
    Chart("Model flops utilisation", "share of the peak", MFU.pattern),
    Chart("Waiting for data", "share of the time", r".*\.data_wait"),
    Chart("Memory", "GiB", r"(train|eval)\..*(memory|_bytes|_gib).*"),
    Chart("Skipped records", "fraction of the examples", r".*\.data/skipped_fraction"),
    Chart("Accuracy of tasks", "fraction of the items", r"fs\.[^/]*\.acc\w*", from_zero=False),
    Chart("Generated texts", "fraction", r"eval\.samples/.*"),
)


def write_report(run: Run) -> Path:
    """Writes the page into the run's folder; returns its path.

    Raises:
        UserError: there is no room, or no permission to write there.
    """
    text = json.dumps(finite(page_data(run)), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    before, after = PAGE.read_text(encoding="utf-8").split(DATA_MARK)
    path = run.folder / REPORT_FILE
    try:
        write_whole(path, f"{before}{text}{after}".encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; make room there") from error
    return path


def page_data(run: Run) -> dict[str, Any]:
    """Returns everything that the page shows."""
    measured = series_of(run.lines())
    drawn = {name: points for name, points in measured.items() if not name.endswith(STDERR)}
    impossible = {name for name, points in drawn.items() if MFU.fullmatch(name) and max(points.values) > 1}
    zero = {name for name, points in drawn.items() if not any(points.values)}
    series = {name: points for name, points in drawn.items() if name not in impossible | zero}
    n_columns = max(MIN_COLUMNS, min(MAX_COLUMNS, MAX_TOTAL_COLUMNS // max(1, len(series))))
    start_seconds = min((s.times_seconds[0] for s in series.values()), default=0.0)
    charts = list(_charts(series, start_seconds, n_columns))
    return {
        "run": _header(run),
        "tiles": list(_tiles(run, series)),
        "tokens_per_step": _tokens_per_step(run.config),
        "charts": charts,
        "always_zero": sorted(zero),
        "impossible": sorted(impossible),
        "n_columns": n_columns,
        "n_measured": sum(len(s.steps) for s in series.values()),
        "n_drawn": sum(len(curve["steps"]) for chart in charts for curve in chart["curves"] if not curve["is_smooth"]),
        "tasks": _tasks(measured),
        "samples": _samples(run.artifacts, str(run.started_with("prompt") or "")),
        "config": _config(run),
        "environment": _environment(run.entry),
        "restarts": _restarts(run, list(series.values()), start_seconds),
        "output": run.output(OUTPUT_BYTES),
    }


def _charts(series: Mapping[str, Series], start_seconds: float, n_columns: int) -> Iterable[dict[str, Any]]:
    """Yields the known charts that have data, then one for each other metric."""
    rest = dict(series)
    for chart in CHARTS:
        names = [name for name in rest if re.fullmatch(chart.pattern, name)]
        curves = [curve for n in names for curve in _curves(n, rest.pop(n), chart, start_seconds, n_columns)]
        if curves:
            yield _chart(chart, curves, is_other=False)
    for name in sorted(rest):
        chart = Chart(name, "", "", from_zero=False)
        yield _chart(chart, _curves(name, rest[name], chart, start_seconds, n_columns), is_other=True)


def _chart(chart: Chart, curves: list[dict[str, Any]], is_other: bool) -> dict[str, Any]:
    known = {"title": chart.title, "unit": chart.unit, "from_zero": chart.from_zero}
    return {**known, "is_other": is_other, "curves": curves}


def _curves(name: str, series: Series, chart: Chart, start_seconds: float, n_columns: int) -> list[dict[str, Any]]:
    """Returns a metric as measured and, if the chart asks for it and there are enough points, smoothed."""
    order = np.argsort(np.asarray(series.steps), kind="stable")
    steps, values = np.asarray(series.steps)[order], np.asarray(series.values)[order]
    seconds = np.maximum.accumulate(np.asarray(series.times_seconds)[order]) - start_seconds
    values = values / GIB if chart.unit == "GiB" and name.endswith("_bytes") else values
    is_finite = np.isfinite(values)
    points = steps[is_finite], seconds[is_finite], values[is_finite]
    lost = np.flatnonzero(~is_finite)[:MAX_COLUMNS]
    not_finite = {"steps": steps[lost].tolist(), "seconds": seconds[lost].round(1).tolist()}
    curve = {"name": name, "label": name, "is_smooth": False, "not_finite": not_finite, **_drawn(points, n_columns)}
    if not (chart.is_smoothed and name.startswith("train.") and is_finite.sum() > 1 / SMOOTHING_SHARE):
        return [curve]
    smoothed = _drawn((*points[:2], smooth(points[2])), n_columns // 4)
    label = f"{name}, mean of the last {smoothing_points(is_finite.sum())} points"
    none = {"steps": [], "seconds": []}
    return [curve, {"name": name, "label": label, "is_smooth": True, "not_finite": none, **smoothed}]


def _drawn(points: tuple[np.ndarray, np.ndarray, np.ndarray], n_columns: int) -> dict[str, list[float]]:
    kept = visible_points(*points, n_columns)
    steps, seconds, values = (of_all[kept] for of_all in points)
    few_digits = [float(f"{value:.6g}") for value in values.tolist()]
    return {"steps": steps.tolist(), "seconds": seconds.round(1).tolist(), "values": few_digits}


def visible_points(steps: np.ndarray, seconds: np.ndarray, values: np.ndarray, n_columns: int) -> np.ndarray:
    """Returns the indices of the visible points [point] on a screen of `n_columns`, over steps or over time."""
    return np.union1d(_extremes(steps, values, n_columns), _extremes(seconds, values, n_columns))


def _extremes(x: np.ndarray, values: np.ndarray, n_columns: int) -> np.ndarray:
    """Returns the first, last, lowest and highest point of each column; `x` [point] is sorted."""
    if len(x) == 0:
        return np.zeros(0, int)
    width = (x[-1] - x[0]) / n_columns or 1.0
    columns = np.minimum(((x - x[0]) / width).astype(int), n_columns - 1)
    firsts = np.flatnonzero(np.diff(columns, prepend=-1))
    lasts = np.append(firsts[1:], len(columns)) - 1
    by_value = np.lexsort((values, columns))  # the columns stay where they are: each is sorted by itself
    return np.unique(np.concatenate([firsts, lasts, by_value[firsts], by_value[lasts]]))


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each of the values [point] and those before it, as far as `smoothing_points` reach back."""
    index = np.arange(len(values))
    starts = np.maximum(index + 1 - smoothing_points(len(values)), 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + 1] - sums[starts]) / (index + 1 - starts)


def smoothing_points(n_points: int) -> int:
    """Returns the length of the window over which a curve of `n_points` is smoothed: SMOOTHING_SHARE of them."""
    return max(1, round(SMOOTHING_SHARE * n_points))


def _tokens_per_step(config: Mapping[str, Any]) -> int | None:
    """Returns the tokens of a step; None if they are unknown, or not the same in all."""
    if config.get("batch_size_warmup"):
        return None
    sizes = config.get("train_batch_size"), config.get("n_ctx")
    return math.prod(sizes) if all(type(size) is int for size in sizes) else None


def _header(run: Run) -> dict[str, Any]:
    started = run.time("start_time")
    return {
        "id": run.id,
        "name": run.name,
        "status": run.status,
        "reason": str(run.info.get("reason") or ""),
        "started": started.strftime("%Y-%m-%d %H:%M:%S UTC") if started else "",
        "took": duration(run),
        "host": str(run.entry.get("host", {}).get("hostname", "")),
        "model_path": str(run.info.get("model_path", "")),
        "command": _command(run),
    }


def _command(run: Run) -> str:
    """Returns the command that starts the same again, as a shell takes it."""
    words = run.started_with("words") or run.started_with("arguments") or []
    folder, project = run.started_with("directory"), str(run.entry["experiment"].get("base_dir") or "")
    if folder in (None, project):
        return shlex.join(["python3", "run_experiment.py", *words])
    return f"cd {shlex.quote(folder)} && {shlex.join(['python3', f'{project}/run_experiment.py', *words])}"


def _config(run: Run) -> dict[str, list[list[str]]]:
    """Returns the settings, those that the user has set apart from the others."""
    given = set(run.started_with("keys") or [])
    parts: dict[str, list[list[str]]] = {"given": [], "defaults": []}
    for key, value in flatten(run.config).items():
        part = "given" if key.split(".")[0] in given else "defaults"
        parts[part].append([key, format_setting(value)])
    return parts


def _tiles(run: Run, series: Mapping[str, Series]) -> Iterable[list[str]]:
    """Yields the figures at the head of the page: name, value, remark."""
    yield ["step", f"{int(run.info.get('step') or 0):,}", _share_of_steps(run)]
    for name, title in (("train.loss", "training loss"), ("eval.loss", "evaluation loss")):
        if len(values := _finite_values(series.get(name))):
            yield [title, format_number(float(values[-1])), _lowest(series[name])]
    speeds = _finite_values(series.get("train.tokens_per_second"))
    if len(speeds):
        yield ["tokens a second", format_number(float(np.median(speeds))), "median"]
    shares = _finite_values(series.get("train.mfu"))
    if len(shares):
        yield ["flops utilisation", f"{float(np.median(shares)):.1%}", "median"]
    n_restarts = len(run.info.get("restarts") or [])
    yield ["took", duration(run), f"{n_restarts} restart{'s' * (n_restarts != 1)}"]


def _share_of_steps(run: Run) -> str:
    n_steps = run.config.get("train_steps")
    return f"of {n_steps:,}" if type(n_steps) is int else ""


def _lowest(series: Series) -> str:
    finite = [(value, step) for value, step in zip(series.values, series.steps, strict=True) if math.isfinite(value)]
    value, step = min(finite)
    return f"lowest {format_number(value)} at step {step:,}"


def _finite_values(series: Series | None) -> np.ndarray:
    values = np.asarray(series.values if series else [], float)
    return values[np.isfinite(values)]


def _tasks(measured: Mapping[str, Series]) -> dict[str, Any]:
    """Returns the figures of evaluation tasks: a column for each step, a row for each figure."""
    latest = {
        name: dict(zip(series.steps, series.values, strict=True))
        for name, series in measured.items()
        if name.startswith(TASK_PREFIX)
    }
    steps = sorted({step for values in latest.values() for step in values})
    chosen = [steps[index] for index in evenly_spaced(len(steps), MAX_TASK_STEPS)]
    rows = [
        [*name.split(".", 1)[1].rsplit(".", 1), [_with_error(values, latest.get(name + STDERR, {}), s) for s in chosen]]
        for name, values in latest.items()
        if not name.endswith(STDERR)
    ]
    return {"steps": chosen, "rows": rows, "n_steps": len(steps)}


def _with_error(values: Mapping[int, float], errors: Mapping[int, float], step: int) -> str:
    """Returns a figure at a step and its standard error; empty if it was not measured there."""
    return format_with_error(values[step], errors.get(step)) if step in values else ""


def _samples(artifacts: Sequence[Path], prompt: str) -> dict[str, Any]:
    """Returns the samples, each as prompt and answer: a column for each step, a row for each sample of its files."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in artifacts:
        if named := NAMED_BY_STEP.fullmatch(path.name):
            found.setdefault(int(named[1]), []).append((int(named[2] or 1), path))
    chosen = [sorted(found)[index] for index in evenly_spaced(len(found), MAX_SAMPLE_STEPS)]
    columns = [[one for _, path in sorted(found[step]) for one in read_samples(path, prompt)] for step in chosen]
    n_rows = max(map(len, columns), default=0)
    rows = [[column[row] if row < len(column) else ("", "") for column in columns] for row in range(n_rows)]
    return {"steps": chosen, "rows": rows, "n_steps": len(found)}


def evenly_spaced(n_all: int, n_chosen: int) -> list[int]:
    """Returns at most `n_chosen` indices of `n_all`, evenly spaced, with both ends."""
    if n_all <= n_chosen:
        return list(range(n_all))
    return [round(index * (n_all - 1) / (n_chosen - 1)) for index in range(n_chosen)]


def read_samples(path: Path, prompt: str = "") -> list[tuple[str, str]]:
    """Returns prompt and answer of each text in a file of samples, without separators; none if it cannot be read.

    Args:
        path: the file.
        prompt: of a file of plain texts, which run on from it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    if path.suffix == ".jsonl":
        return [_shortened(*_answer(line)) for line in text.split("\n") if line.strip()]
    texts = SAMPLE_HEAD.split(text)
    texts = texts[1:] if len(texts) > 1 else texts
    stripped = (re.sub(r"\n=+\s*$", "", one).strip("\n") for one in texts)
    return [_shortened(*_parted(one, prompt.lstrip("\n"))) for one in stripped]


def _shortened(prompt: str, answer: str) -> tuple[str, str]:
    return prompt[-MAX_SAMPLE:], answer[:MAX_SAMPLE]


def _parted(text: str, prompt: str) -> tuple[str, str]:
    return (prompt, text.removeprefix(prompt)) if text.startswith(prompt) else ("", text)


def _answer(line: str) -> tuple[str, str]:
    """Returns prompt and text of a line of JSON; the line itself as the text if it has none."""
    try:
        answer = json.loads(line)
        prompt, text = answer["prompt"], answer["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", line
    return (prompt if isinstance(prompt, str) else "", str(text))


def _environment(entry: Mapping[str, Any]) -> dict[str, Any]:
    experiment = entry["experiment"]
    repositories = experiment.get("repositories") or []
    return {
        "host": [[key, format_setting(value)] for key, value in flatten(entry.get("host", {})).items()],
        "git": [[key, format_setting(value)] for one in repositories for key, value in one.items() if key != "changed"],
        "changed": [str(name) for one in repositories for name in one.get("changed") or []],
        "packages": [str(package) for package in experiment.get("dependencies") or []],
        "sources": [str(name) for name, *_ in experiment.get("sources") or []],
    }


def _restarts(run: Run, series: Sequence[Series], start_seconds: float) -> list[dict[str, Any]]:
    times, steps = ([np.asarray(getattr(one, name)) for one in series] for name in ("times_seconds", "steps"))
    return [
        {
            "number": event.get("restart"),
            "time": str(event.get("time")),
            "killed_at": event.get("furthest_step"),
            "step": _resumed_from(times, steps, seconds := datetime.datetime.fromisoformat(event["time"]).timestamp()),
            "seconds": round(seconds - start_seconds, 1),
            "reason": str(event.get("reason")),
        }
        for event in run.info.get("restarts") or []
    ]


def _resumed_from(times: Sequence[np.ndarray], steps: Sequence[np.ndarray], seconds: float) -> int:
    """Returns the step that a run went on from: the last one measured before, as later ones were measured again."""
    earlier = [of_one[at < seconds + 1] for at, of_one in zip(times, steps, strict=True)]
    return max((int(of_one.max()) for of_one in earlier if len(of_one)), default=0)
