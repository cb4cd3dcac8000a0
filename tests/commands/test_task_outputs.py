"""Where the figures of tasks go, and what people see of them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

from commands.run_setup import Run
from commands.task_outputs import TaskOutputs, format_note, format_table
from runtime.cluster.process_group import ALONE
from runtime.run.metrics import MetricsWriter, read_metrics
from tasks.table import TASKS
from tasks.task import Figure, TaskResult
from tests import tiny

ITEMS = [{"line": 1, "context": "a\u2028b", "acc": 1.0}, {"line": 2, "context": "é", "acc": 0.0}]
LAMBADA = TaskResult("lambada_openai", 1234, {"acc": Figure(0.5, 0.025), "perplexity": Figure(1234.5, 2.0)}, ITEMS)
PIQA = TaskResult("piqa", 3, {"acc": Figure(1 / 3, None), "acc/physics": Figure(1.0, None)}, [])


def outputs(folder: Path, metrics: MetricsWriter | None, log_samples: bool = False) -> TaskOutputs:
    config = dataclasses.replace(tiny.run_config(), model_path=str(folder))
    options = SimpleNamespace(sacred_id="7", log_samples=log_samples)
    return TaskOutputs(Run(config, options, ALONE, None, None), metrics)


def test_figures_are_metrics_and_lines_of_gpt_neos_file(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        for step, result in ((3, LAMBADA), (3, PIQA), (6, PIQA), (3, LAMBADA)):
            outputs(tmp_path, metrics).write(step, result)
    lambada = {"acc": 0.5, "acc_stderr": 0.025, "perplexity": 1234.5, "perplexity_stderr": 2.0}
    measured = [{key: value for key, value in line.items() if key != "time"} for line in read_metrics(str(tmp_path))]
    assert measured[0] == {"step": 3, "split": "eval", **{f"lambada_openai/{key}": lambada[key] for key in lambada}}
    assert measured[1] == {"step": 3, "split": "eval", "piqa/acc": 1 / 3, "piqa/acc/physics": 1.0}
    lines = [json.loads(line) for line in (tmp_path / "eval_7.jsonl").read_text().splitlines()]
    neo = {"lambada_acc": 0.5, "lambada_log_ppl": math.log(1234.5)}
    piqa = {"acc": 1 / 3, "acc/physics": 1.0}
    assert lines == [  # what is evaluated again at a step takes the place of its line
        {"task": "piqa", "current_step": 3, **piqa},
        {"task": "piqa", "current_step": 6, **piqa},
        {"task": "lambada_openai", "current_step": 3, **lambada, **neo},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "eval_7.jsonl", "metrics.jsonl"]


def test_figures_that_are_no_numbers_are_valid_json(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        result = dataclasses.replace(LAMBADA, figures={"acc": Figure(0.0, None), "perplexity": Figure(math.inf, None)})
        outputs(tmp_path, metrics).write(3, result)
    line = json.loads((tmp_path / "eval_7.jsonl").read_text(), parse_constant=lambda name: None)
    assert (line["perplexity"], line["lambada_log_ppl"]) == ("inf", "inf")


def test_records_that_are_no_numbers_are_valid_json(tmp_path: Path) -> None:
    items = [{"acc": math.nan, "log_likelihoods": [-math.inf, -1.0], "answer": "nan"}]
    outputs(tmp_path, None, log_samples=True).write(3, dataclasses.replace(PIQA, items=items))
    assert json.loads((tmp_path / "samples_7_piqa_3.jsonl").read_text()) == {
        "acc": "nan",
        "log_likelihoods": ["-inf", -1.0],
        "answer": "nan",
    }


def test_lines_that_others_wrote_are_kept(tmp_path: Path) -> None:
    (tmp_path / "eval_7.jsonl").write_text('{"task": "lambada", "lambada_acc": 0.1}')  # without an end
    with MetricsWriter(str(tmp_path)) as metrics:
        outputs(tmp_path, metrics).write(3, PIQA)
    lines = [json.loads(line) for line in (tmp_path / "eval_7.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["lambada", "piqa"]


def test_records_of_items_are_one_line_each_and_only_if_asked_for(tmp_path: Path) -> None:
    outputs(tmp_path, None, log_samples=True).write(3, LAMBADA)
    outputs(tmp_path, None).write(6, LAMBADA)
    (path,) = tmp_path.iterdir()
    assert path.name == "samples_7_lambada_openai_3.jsonl"
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == ITEMS


def test_a_table_shows_each_figure_with_its_error() -> None:
    results = [(dataclasses.replace(TASKS["lambada_openai"], n_shot=5), LAMBADA), (TASKS["piqa"], PIQA)]
    assert format_table(results).splitlines() == [
        "task            figure            value            items  n_shot",
        "lambada_openai  acc              0.5000  ± 0.0250  1,234       5",
        "                perplexity   1,234.5000  ± 2.0000",
        "piqa            acc              0.3333                3       0",
        "                acc/physics      1.0000",
    ]
    assert format_note(9, LAMBADA) == "step 9: lambada_openai: acc 0.5000 ± 0.0250  perplexity 1,234.5000 ± 2.0000"
    large = TaskResult("novel", 1, {"perplexity": Figure(math.exp(300), 2e7), "bits": Figure(math.nan, None)}, [])
    assert format_note(9, large) == "step 9: novel: perplexity 1.942e+130 ± 2e+07  bits nan"
    assert format_note(9, PIQA) == "step 9: piqa: acc 0.3333"
