from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from tests.tracking.runs_on_disk import write_run
from tracking.record.store import Run
from tracking.view.report import evenly_spaced, page_data, read_samples, smooth, visible_points, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title = 'taken'</script><b>&amp;\u2028"


def train(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "split": "train", "time": 1000.0 + 2 * step, **values}


def evaluated(step: int, **values: Any) -> dict[str, Any]:
    return {**train(step, **values), "split": "eval"}


def small_run(store: Path, **config: Any) -> Run:
    lines = [train(step, loss=10.0 / step, lr=0.1, odd=1.0, host_memory_bytes=2**30 * step) for step in range(1, 101)]
    lines[12]["loss"] = "nan"
    lines.insert(50, evaluated(50, loss=0.3))
    restart = {"restart": 1, "time": "1970-01-01T00:17:20+00:00", "furthest_step": 20, "reason": "main.py hangs"}
    settings = {"train_batch_size": 4, "n_ctx": 8, "train_steps": 200, **config}
    return write_run(store, 3, settings, info={"restarts": [restart], "step": 100}, metrics=lines)


def charts(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {chart["title"]: chart for chart in data["charts"]}


def test_every_metric_has_a_curve(tmp_path: Path) -> None:
    data = page_data(small_run(tmp_path))
    found = charts(data)
    assert list(found) == ["Loss", "Learning rate", "Memory", "train.odd"]
    assert [chart["is_other"] for chart in found.values()] == [False, False, False, True]
    measured, smoothed, evaluation = found["Loss"]["curves"]
    assert [curve["name"] for curve in found["Loss"]["curves"]] == ["train.loss", "train.loss", "eval.loss"]
    steps = [step for step in range(1, 101) if step != 13]
    assert (measured["steps"], measured["is_smooth"]) == (steps, False)
    assert measured["values"] == pytest.approx([10.0 / step for step in steps], rel=1e-5)
    assert measured["seconds"] == [2.0 * (step - 1) for step in steps]
    assert measured["not_finite"] == {"steps": [13], "seconds": [24.0]}
    assert smoothed["is_smooth"] and set(smoothed["steps"]) <= set(steps)
    assert smoothed["label"] == "train.loss, mean of the last 4 points"
    assert (evaluation["steps"], evaluation["values"]) == ([50], [0.3])
    assert found["Memory"]["curves"][0]["values"] == [float(step) for step in range(1, 101)]
    assert (data["n_measured"], data["n_drawn"], data["tokens_per_step"]) == (401, 400, 32)


def test_figures_of_tasks_are_a_table_over_steps(tmp_path: Path) -> None:
    lines = [
        evaluated(50, **{"piqa/acc": 0.625, "piqa/acc_stderr": 0.0123, "piqa/acc_bytes": 0.5}),
        evaluated(50, **{"v.1/perplexity": 1234.5}),
        evaluated(100, **{"piqa/acc": 0.75, "piqa/acc_stderr": 0.01, "samples/repetition_4": 0.25}),
        evaluated(100, **{"mmlu/acc": 0.0, "mmlu/stem/acc": 0.3, "loss": 3.0}),
    ]
    data = page_data(write_run(tmp_path, 1, {}, metrics=lines))
    assert data["tasks"] == {
        "steps": [50, 100],
        "rows": [
            ["piqa", "acc", ["0.625 ± 0.012", "0.750 ± 0.010"]],
            ["piqa", "acc_bytes", ["0.5", ""]],
            ["v.1", "perplexity", ["1,234", ""]],
            ["mmlu", "acc", ["", "0"]],
            ["mmlu", "stem/acc", ["", "0.3"]],
        ],
        "n_steps": 2,
    }
    drawn = {title: [curve["name"] for curve in chart["curves"]] for title, chart in charts(data).items()}
    assert drawn == {
        "Loss": ["eval.loss"],
        "Accuracy of tasks": ["fs.piqa.acc", "fs.piqa.acc_bytes"],
        "Generated texts": ["eval.samples/repetition_4"],
        "fs.mmlu.stem/acc": ["fs.mmlu.stem/acc"],
        "fs.v.1.perplexity": ["fs.v.1.perplexity"],
    }
    assert charts(data)["Accuracy of tasks"]["curves"][1]["values"] == [0.5]


def test_metrics_of_earlier_versions_continue_the_same_curves(tmp_path: Path) -> None:
    old = [train(step, **{"data/skipped_share": 0.5, "moe/h0/dropped": 0.25}) for step in (1, 2)]
    new = [train(step, **{"data/skipped_fraction": 0.5, "moe/h0/dropped_fraction": 0.25}) for step in (3, 4)]
    found = charts(page_data(write_run(tmp_path, 1, {}, metrics=[*old, *new])))
    assert list(found) == ["Skipped records", "train.moe/h0/dropped_fraction"]
    assert [chart["curves"][0]["steps"] for chart in found.values()] == [[1, 2, 3, 4], [1, 2, 3, 4]]


def test_the_rest_of_the_page(tmp_path: Path) -> None:
    run = small_run(tmp_path, outer={"inner": [1, 2]})
    (run.folder / "cout.txt").write_text("the last words")
    data = page_data(run)
    assert ["outer.inner", "[1, 2]"] in data["config"]["defaults"]
    tiles = {name: (value, more) for name, value, more in data["tiles"]}
    assert tiles["step"] == ("100", "of 200") and tiles["training loss"] == ("0.1", "lowest 0.1 at step 100")
    assert tiles["took"] == ("1:01:02", "1 restart")
    environment = data["environment"]
    assert ["gpus.count", "2"] in environment["host"] and environment["packages"] == ["numpy==2.4.0"]
    assert ["commit", '"0123456789abcdef"'] in environment["git"] and environment["changed"] == ["main.py"]
    assert (data["output"], data["run"]["command"]) == ("the last words", "python3 run_experiment.py --model tiny")


def started(store: Path, name: str = "trial", **how: Any) -> Run:
    experiment = {"name": name, "base_dir": "/the project"}
    entry = {"experiment": experiment, "meta": {"arguments": ["--model", "m"], **how}}
    return write_run(store, 1, {"lr": 0.1, "seed": 1, "datasets": [{"id": "a", "path": "b"}]}, entry)


@pytest.mark.parametrize("directory", ["/the project", "/my runs"])
def test_a_shell_takes_the_command_as_it_was_given(tmp_path: Path, directory: str) -> None:
    words = ["--model", "my config.json", "--set", 'stop=["a b"]', "--experiment_name", "it's $HOME"]
    command = page_data(started(tmp_path, words=words, directory=directory))["run"]["command"]
    folder, project = ("", "") if directory == "/the project" else ("cd '/my runs' && ", "/the project/")
    assert command.startswith(folder)
    assert shlex.split(command.removeprefix(folder)) == ["python3", f"{project}run_experiment.py", *words]


def test_settings_that_the_user_has_set_come_first(tmp_path: Path) -> None:
    config = page_data(started(tmp_path, keys=["datasets", "lr"]))["config"]
    assert config["given"] == [["lr", "0.1"], ["datasets.0.id", '"a"'], ["datasets.0.path", '"b"']]
    assert config["defaults"] == [["seed", "1"]]


@pytest.mark.parametrize(
    ("lines", "resumed_from"),
    [
        ([train(step, loss=1.0) for step in (20, 40, 60)] + [{**train(80, loss=1.0), "time": 1500.0}], 60),
        ([{**train(20, loss=1.0), "time": 1500.0}], 0),
        ([train(step, loss=1.0) for step in (20, 40)], 40),  # it has not gone on yet
        ([train(20, loss=1.0), evaluated(30, loss=1.0), {**train(40, loss=1.0), "time": 1500.0}], 30),
    ],
)
def test_the_mark_of_a_restart_stands_where_it_went_on(
    tmp_path: Path, lines: list[dict[str, Any]], resumed_from: int
) -> None:
    event = {"restart": 1, "time": "1970-01-01T00:20:00+00:00", "furthest_step": 110, "reason": "killed"}
    (restart,) = page_data(write_run(tmp_path, 1, {}, info={"restarts": [event]}, metrics=lines))["restarts"]
    assert (restart["killed_at"], restart["step"]) == (110, resumed_from)
    assert restart["seconds"] == 1200 - lines[0]["time"]


def test_what_is_always_zero_is_named_and_not_drawn(tmp_path: Path) -> None:
    lines = [train(step, loss=1.0, zero=0.0, **{"data/skipped_fraction": 0.0}) for step in (1, 2)]
    data = page_data(write_run(tmp_path, 1, {}, metrics=lines))
    assert list(charts(data)) == ["Loss"]
    assert data["always_zero"] == ["train.data/skipped_fraction", "train.zero"]
    assert (data["n_measured"], data["n_drawn"]) == (2, 2)


@pytest.mark.parametrize("highest", [0.9, 1.0, 2.57])
def test_no_share_above_the_peak_is_shown(tmp_path: Path, highest: float) -> None:
    lines = [train(step, loss=1.0, mfu=mfu) for step, mfu in ((1, 0.5), (2, highest))]
    data = page_data(write_run(tmp_path, 1, {}, metrics=lines))
    is_shown = highest <= 1
    assert ("Model flops utilisation" in charts(data)) == is_shown
    assert ("flops utilisation" in [name for name, *_ in data["tiles"]]) == is_shown
    assert data["impossible"] == ([] if is_shown else ["train.mfu"])


def test_ranges_begin_at_zero_but_for_losses_and_what_is_unknown(tmp_path: Path) -> None:
    found = charts(page_data(small_run(tmp_path)))
    from_zero = {title: chart["from_zero"] for title, chart in found.items()}
    assert from_zero == {"Loss": False, "Learning rate": True, "Memory": True, "train.odd": False}
    assert all(chart["unit"] for title, chart in found.items() if title != "train.odd")


def test_a_run_that_has_measured_nothing(tmp_path: Path) -> None:
    data = page_data(write_run(tmp_path, 1, {}))
    assert (data["charts"], data["n_measured"], data["tokens_per_step"], data["samples"]["rows"]) == ([], 0, None, [])


def seen(steps: np.ndarray, values: np.ndarray, n_columns: int) -> list[tuple[float, ...]]:
    """Returns what each column of a chart shows: the reference for the points that may be dropped."""
    edges = np.minimum(((steps - steps[0]) / ((steps[-1] - steps[0]) / n_columns or 1.0)).astype(int), n_columns - 1)
    inside = (values[edges == column] for column in range(n_columns))
    return [(v[0], v[-1], v.min(), v.max()) for v in inside if len(v)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.floats(-9, 9)), min_size=1), st.integers(1, 12))
def test_what_is_left_out_cannot_be_seen(points: list[tuple[int, int, float]], n_columns: int) -> None:
    steps, seconds = (np.cumsum([point[i] for point in points]) for i in (0, 1))
    values = np.array([point[2] for point in points])
    kept = visible_points(steps, seconds, values, n_columns)
    assert (np.diff(kept) > 0).all() and len(kept) <= 8 * n_columns
    for places in (steps, seconds):
        assert seen(places[kept], values[kept], n_columns) == seen(places, values, n_columns)


def test_a_million_points_become_some_thousands_and_the_peak_stays() -> None:
    steps = np.arange(10**6)
    values = np.sin(steps / 1e5)
    values[654_321] = 50.0
    kept = visible_points(steps, steps * 0.5, values, 800)
    assert len(kept) <= 8 * 800 and 654_321 in kept and {0, 10**6 - 1} <= set(kept)


def test_no_points() -> None:
    assert len(visible_points(np.zeros(0, int), np.zeros(0), np.zeros(0), 10)) == 0


def test_smoothing_is_the_mean_of_the_last_points() -> None:
    values = np.random.default_rng(1).normal(size=200)
    smoothed = smooth(values)
    for place in (0, 2, 7, 8, 100, 199):
        assert smoothed[place] == pytest.approx(values[max(0, place - 7) : place + 1].mean())


def write_samples(run: Run, step: int, texts: list[str]) -> str:
    frame = "=" * 40
    framed = [f"{frame} SAMPLE {number} {frame}\n\n{text}\n\n{frame * 2}\n" for number, text in enumerate(texts)]
    (run.folder / f"predictions_3_{step}.txt").write_text("\n".join(framed))
    return f"predictions_3_{step}.txt"


def test_samples_are_side_by_side_by_step(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    texts = {20: ["  a\n\nb", "c == d\n=="], 5: ["first"], 100: [HOSTILE, "", "x"]}
    names = [write_samples(run, step, of_step) for step, of_step in texts.items()]
    run = Run(run.folder, {**run.entry, "artifacts": [*names, "loss.png", "predictions_3_7.txt"]}, run.config, run.info)
    assert page_data(run)["samples"] == {
        "steps": [5, 7, 20, 100],
        "rows": [
            [("", "first"), ("", ""), ("", "  a\n\nb"), ("", HOSTILE)],
            [("", ""), ("", ""), ("", "c == d\n=="), ("", "")],
            [("", ""), ("", ""), ("", ""), ("", "x")],
        ],
        "n_steps": 4,
    }


def test_all_files_of_a_step_are_shown_the_first_first(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    names = ["predictions_3_20.10.txt", "predictions_3_20.2.txt", "predictions_3_20.txt", "predictions_3_20.3.jsonl"]
    for name in names:
        text = json.dumps({"prompt": "", "text": name}) if name.endswith("l") else name
        (run.folder / name).write_text(text)
    run = Run(run.folder, {**run.entry, "artifacts": names}, run.config, run.info)
    rows = [[("", f"predictions_3_20{ending}")] for ending in (".txt", ".2.txt", ".3.jsonl", ".10.txt")]
    assert page_data(run)["samples"] == {"steps": [20], "rows": rows, "n_steps": 1}


@pytest.mark.parametrize(
    ("prompt", "cell"),
    [
        ("def main", ("def main", "():\n    pass")),
        ("\ndef main", ("def main", "():\n    pass")),
        ("", ("", "def main():\n    pass")),
        ("other", ("", "def main():\n    pass")),
    ],
)
def test_the_prompt_is_apart_from_the_answer(tmp_path: Path, prompt: str, cell: tuple[str, str]) -> None:
    run = started(tmp_path, prompt=prompt)
    name = write_samples(run, 5, ["def main():\n    pass"])
    run = Run(run.folder, {**run.entry, "artifacts": [name]}, run.config, run.info)
    assert page_data(run)["samples"]["rows"] == [[cell]]


def test_text_without_separators_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("just text\n")
    assert read_samples(tmp_path / "a.txt") == [("", "just text")]


def test_answers_as_lines_of_json_are_samples(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    lines = [
        {"id": 7, "prompt": "def main", "text": "():\n", "tokens": [1]},
        {"prompt": [5, 6], "text": HOSTILE},
    ]
    name = "predictions_3_20.jsonl"
    (run.folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '["torn\n')
    run = Run(run.folder, {**run.entry, "artifacts": [name]}, run.config, run.info)
    rows = [[("def main", "():\n")], [("", HOSTILE)], [("", '["torn')]]
    assert page_data(run)["samples"] == {"steps": [20], "rows": rows, "n_steps": 1}


@given(st.integers(0, 500), st.integers(2, 20))
def test_some_of_many_steps_are_shown_evenly_spaced(n_all: int, n_chosen: int) -> None:
    places = evenly_spaced(n_all, n_chosen)
    assert len(places) == min(n_all, n_chosen) and places == sorted(set(places))
    if n_all:
        gaps = np.diff(places)
        assert (places[0], places[-1]) == (0, n_all - 1)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = write_report(small_run(tmp_path)).read_text()
    addresses = set(re.findall(r"\w+://[^\s\"'`]*", page)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    assert not re.search(r"<(link|img|iframe)\b|@import|\bsrc=|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_output_of_a_run_is_escaped(tmp_path: Path) -> None:
    page = write_report(small_run(tmp_path, name=HOSTILE)).read_text()
    assert page.count("</script>") == 2
    assert ["name", json.dumps(HOSTILE, ensure_ascii=False)] in embedded(page)["config"]["defaults"]


def test_the_page_is_in_the_folder_of_the_run_and_replaced(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    first = write_report(run)
    assert first == run.folder / "report.html"
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train(101, loss="inf")) + "\n")
    assert embedded(write_report(run).read_text())["n_measured"] == 402
    assert [path.name for path in run.folder.iterdir() if ".part" in path.name] == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    (run.folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report.html: cannot be written: .*; make room there"):
        write_report(run)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    lines = [train(step, loss=3 + 5 * math.exp(-step / 1e4), grad_norm=1.0 / step) for step in range(1, 100_001)]
    lines.append(evaluated(100_000, **{"piqa/acc": 0.625, "piqa/acc_stderr": 0.0123}))
    run = write_run(tmp_path, 3, {"train_batch_size": 4, "n_ctx": 8, "name": HOSTILE}, metrics=lines)
    run = Run(run.folder, {**run.entry, "artifacts": [write_samples(run, 5, [HOSTILE])]}, run.config, run.info)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    flags.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([CHROMIUM, *flags, write_report(run).as_uri()], capture_output=True, text=True, timeout=120)
    drawn = done.stdout
    assert "<title>Run 3: trial</title>" in drawn and 'data-drawn="yes"' in drawn
    assert drawn.count(">nats a token</text>") == 1 and drawn.count(">step</text>") == 3  # labels of the axes
    assert drawn.count("<svg") == 3 and drawn.count('<path d="M') == 4  # the loss has a calm line beside
    assert '>piqa</td><td>acc</td><td class="number">0.625 ± 0.012</td>' in drawn
    assert re.search(r"200,001 points were measured and [\d,]+ are drawn", drawn)
    assert "&lt;/script&gt;&lt;script&gt;document.title" in drawn.split("<script")[0]
