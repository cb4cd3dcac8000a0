"""Stores that a crash, a full disk or a person has damaged: what can be read is still shown, the rest is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import run_experiment
from configs.errors import DataError
from tests.tracking.runs_on_disk import ENTRY, INFO, write_run
from tracking.record.store import Run, find_run
from tracking.record.validation import find_problem
from tracking.view.queries import all_runs
from tracking.view.report import page_data
from tracking.view.table import comparison, list_table

BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no experiment": ({"experiment": None}, {}, "experiment.name is missing"),
    "no status": ({"status": None}, {}, "status is missing"),
    "a wrong time": ({"start_time": "yesterday"}, {}, "start_time is 'yesterday'"),
    "files of others": ({"artifacts": ["../1/run.json"]}, {}, "artifacts is \"['../1/run.json']\""),
    "packages": ({"experiment": {"name": "x", "dependencies": 7}}, {}, "experiment.dependencies is '7'"),
    "a wrong step": ({}, {"step": "x"}, "step is 'x'"),
    "a wrong measure": ({}, {"latest": {"train": {"loss": "low"}}}, "latest is \"{'train': {'loss': 'low'}}\""),
    "a restart at no time": ({}, {"restarts": [{"restart": 1}]}, "restarts is \"[{'restart': 1}]\""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_run_is_named_and_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    entry, info, problem = BROKEN[case]
    write_run(tmp_path, 1, {})
    with pytest.raises(DataError) as error:
        write_run(tmp_path, 2, {}, entry, info)
    assert str(error.value) == f"run 2 in {tmp_path}: {problem}; fix it, or remove the folder"
    assert run_experiment.main(["--list", "--store", str(tmp_path)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["1"]
    assert last == f"{tmp_path / '2'}: {problem}; is left out; fix or remove it"


@pytest.mark.parametrize("content", ["", "{torn", "[1]", "\ufeff{}"])
def test_a_file_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path, 1, {}).folder
    (folder / "run.json").write_text(content)
    with pytest.raises(DataError, match="run.json is not a JSON object; fix it"):
        find_run(tmp_path, "1")


def test_null_values_count_as_missing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("artifacts", "host", "meta", "start_time", "heartbeat"))
    run = write_run(tmp_path, 1, {}, nothing, dict.fromkeys(INFO))
    assert (run.artifacts, run.time("start_time")) == ([], None)
    assert "COMPLETED" in list_table([run]) and page_data(run)["run"]["status"] == "COMPLETED"


def test_a_run_of_another_program_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run 1: was not recorded by run_experiment.py; only such runs can be"):
        _ = write_run(tmp_path, 1, {}, {"meta": {}}).uid


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(held=st.sampled_from(["entry", "experiment", "info"]), data=st.data(), value=JSON)
def test_every_readable_run_can_be_shown(held: str, data: st.DataObject, value: Any) -> None:
    """A readable run with any one value replaced."""
    entry, info = json.loads(json.dumps(ENTRY)), json.loads(json.dumps(INFO))
    target = {"entry": entry, "experiment": entry["experiment"], "info": info}[held]
    target[data.draw(st.sampled_from(sorted(target)))] = value
    entry = {key: item for key, item in entry.items() if item is not None}
    info = {key: item for key, item in info.items() if item is not None}
    if find_problem(entry, info) is None:
        run = Run(Path("nowhere/1"), entry, {}, info)
        json.dumps(page_data(run))
        assert list_table([run]) and comparison([run, run])


def test_a_store_with_broken_runs_only(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {})
    (tmp_path / "1" / "config.json").write_text("x")
    first, second = all_runs(tmp_path, None).splitlines()
    assert first == f"no run is in {tmp_path}" and second.startswith(f"{tmp_path / '1'}: config.json is not a JSON")
