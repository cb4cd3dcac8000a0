"""The items of tasks in two recorded runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import run_experiment
from commands.compare_items import compared_items
from tests.tracking.runs_on_disk import write_run
from tracking.record.store import Run
from tracking.view import queries


def recorded(store: Path, number: int, files: dict[str, list[float]]) -> Run:
    """A run whose files hold, for each item of piqa, whether it was right."""
    run = write_run(
        store, number, {"lr": 0.1}, entry={"artifacts": [f"samples_{number}_{name}.jsonl" for name in files]}
    )
    for name, items in files.items():
        task = name.rpartition("_")[0]
        records = [
            {"task": task, "doc_id": item, "contexts": ["q"], "continuations": [" a", " b"], "gold": 1, "acc": acc}
            | {"log_likelihoods": [-2.0, acc - 2.5]}
            for item, acc in enumerate(items)
        ]
        (run.folder / f"samples_{number}_{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


def test_the_last_records_of_each_task_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path, 3, {"piqa_9": [1.0] * 8, "piqa_100": [0.0] * 8, "mine_50": [1.0], "sciq_50": [0.0]})
    recorded(tmp_path, 4, {"piqa_50": [1.0] * 7 + [0.0], "sciq_50": [0.0, 1.0]})
    assert run_experiment.main(["--compare", "3", "4", "--store", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[table.index("(the configs are the same)") + 1 :] == [
        "run 3 at step 100 -> run 4 at step 50",
        "piqa: 8 items",
        "  acc            0.0000 -> 0.8750  +0.8750 ± 0.125  p = 0.016, significant",  # 2 / 2^7
        "  log_likelihood -2.5000 -> -1.6250  +0.8750 ± 0.125  p = 0.016, significant",
        "  acc gained: 7 items: 0, 1, 2, 3, 4, 5, 6",
        "run 3 at step 50 -> run 4 at step 50",
        "sciq: 1 items; 1 in one run only, left out",
        "  acc            0.0000 -> 0.0000  +0.0000  p = 1, may be chance",
        "  log_likelihood -2.5000 -> -2.5000  +0.0000  p = 1, may be chance",
        "mine: items of run 3 only; give --log_samples in run 4 to compare them",
    ]


def test_what_cannot_be_compared_is_said_and_the_rest_is_compared(tmp_path: Path) -> None:
    runs = [recorded(tmp_path, number, {"piqa_5": [1.0], "sciq_5": [1.0], "arc_5": [0.0]}) for number in (1, 2)]
    damaged = tmp_path / "2" / "samples_2_piqa_5.jsonl"
    damaged.write_text('{"task": "pi')
    (tmp_path / "2" / "samples_2_sciq_5.jsonl").write_text("")
    lines = list(compared_items(runs))
    assert len(lines) == 8 and lines[1] == "arc: 1 items"
    assert lines[5].startswith(f"{damaged}: line 1, column 10: is not JSON")
    assert lines[7] == f"{tmp_path / '2' / 'samples_2_sciq_5.jsonl'}: has no record of sciq"


def test_a_comparison_in_mongodb_says_that_it_has_no_items(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queries, "compared", lambda run_ids, store, url: f"{run_ids} of {url}")
    assert run_experiment.main(["--compare", "1", "2", "--mongo", "mongodb://h/sacred"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "['1', '2'] of mongodb://h/sacred",
        "items of tasks are not in MongoDB; leave out --mongo to compare those of the store",
    ]


def test_runs_without_records_say_nothing(tmp_path: Path) -> None:
    assert list(compared_items([recorded(tmp_path, number, {}) for number in (1, 2)])) == []
