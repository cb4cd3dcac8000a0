from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError, UserError
from tests.tracking.experiments import Experiments, MongoServer
from tests.tracking.runs_on_disk import write_run
from tracking.mongodb import runs, upload
from tracking.record.store import find_run, list_runs
from tracking.view.table import (
    MISSING,
    comparison,
    config_differences,
    duration,
    flatten,
    format_number,
    format_setting,
    format_with_error,
    list_table,
)


def test_runs_are_listed_with_results(tmp_path: Path) -> None:
    write_run(tmp_path, 9, {})
    why = "step 5: loss = nan: training has diverged; checkpoints of before stay; lower lr"
    write_run(tmp_path, 10, {}, {"status": "FAILED", "start_time": None}, {"reason": why, "latest": {}, "step": 0})
    heading, rule, first, second = list_table(list_runs(tmp_path)).splitlines()
    assert " ".join(heading.split()) == "run name status started (UTC) took step train loss eval loss tokens/s why"
    assert set(rule) == {"-", " "} and len(rule) >= len(heading)
    assert " ".join(first.split()) == "9 trial COMPLETED 2026-01-02 03:04 1:01:02 12,345 3.142 nan 12,346"
    assert second.split()[:8] == ["10", "trial", "FAILED", "-", "-", "0", "-", "-"]
    assert second.endswith(" step 5: loss = nan: training has diverged; checkpoints of b…")


def test_columns_are_aligned(tmp_path: Path) -> None:
    for number, name in ((1, "short"), (200, "a longer name of a run")):
        write_run(tmp_path, number, {}, {"experiment": {"name": name}})
    heading, _, *rows = list_table(list_runs(tmp_path)).splitlines()
    place = heading.index("status")
    assert [row[place:].split()[0] for row in rows] == ["COMPLETED", "COMPLETED"]
    assert [row[: heading.index("run") + 3] for row in rows] == ["  1", "200"]


def test_no_runs_give_a_heading_only(tmp_path: Path) -> None:
    assert len(list_table(list_runs(tmp_path)).splitlines()) == 2


def test_only_differences_are_compared(tmp_path: Path) -> None:
    same = {"n_ctx": 128, "datasets": [[{"id": "a", "n_vocab": 10}, 1.0]]}
    write_run(tmp_path, 1, {**same, "lr": 0.1, "layers": ["global", "local"], "z_loss": None})
    other = {**same, "lr": 0.2, "layers": ["global"], "datasets": [[{"id": "b", "n_vocab": 10}, 1.0]]}
    write_run(tmp_path, 2, other)
    runs = list_runs(tmp_path)
    assert config_differences(runs) == [
        ("datasets.0.0.id", ["a", "b"]),
        ("lr", [0.1, 0.2]),
        ("layers", [["global", "local"], ["global"]]),
        ("z_loss", [None, MISSING]),
    ]
    facts, settings = (part.splitlines() for part in comparison(runs).split("\n\n"))
    assert [line.split() for line in settings] == [
        ["datasets.0.0.id", '"a"', '"b"'],
        ["lr", "0.1", "0.2"],
        ["layers", '["global",', '"local"]', '["global"]'],
        ["z_loss", "null", "-"],
    ]
    assert ["run", "1", "2"] in [line.split() for line in facts]
    assert ["commit", "0123456789ab+", "0123456789ab+"] in [line.split() for line in facts]


def test_the_last_figures_of_tasks_are_compared(tmp_path: Path) -> None:
    first = {"piqa/acc": 0.625, "piqa/acc_stderr": 0.0123, "loss": 3.0, "samples/distinct_1": 0.5}
    write_run(tmp_path, 1, {}, info={"latest": {"eval": first}})
    write_run(tmp_path, 2, {}, info={"latest": {"eval": {"piqa/acc": "nan", "mmlu/stem/acc": 0.25}}})
    rows = {line[:14].strip(): line[14:].split("  ") for line in comparison(list_runs(tmp_path)).splitlines()}
    shown = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in rows.items() if "/" in name}
    assert shown == {"piqa/acc": ["0.625 ± 0.012", "nan"], "mmlu/stem/acc": ["-", "0.25"], "tokens/s": ["-", "-"]}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.4, 0.09097, "0.400 ± 0.091"),
        (73.936, 1.7696, "73.9 ± 1.8"),
        (1234.5, 99.6, "1,234 ± 100"),
        (0.5, None, "0.5"),
        (0.0, 0.0, "0 ± 0"),
        ("inf", "nan", "inf ± nan"),
    ],
)
def test_a_figure_has_as_many_decimals_as_its_error(value: float | str, error: float | str | None, text: str) -> None:
    assert format_with_error(value, error) == text


def test_a_setting_that_differs_in_one_of_three_runs(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.2, 0.1), start=1):
        write_run(tmp_path, number, {"lr": rate})
    assert config_differences(list_runs(tmp_path)) == [("lr", [0.1, 0.2, 0.1])]


def test_runs_of_one_config(tmp_path: Path) -> None:
    for number in (1, 2):
        write_run(tmp_path, number, {"lr": 0.1})
    assert comparison(list_runs(tmp_path)).endswith("\n(the configs are the same)")


def test_long_settings_are_wrapped(tmp_path: Path) -> None:
    words = [" ".join(f"word{number}" for number in range(30)), "x" * 200]
    for number, text in enumerate(words, start=1):
        write_run(tmp_path, number, {"text": text})
    shown_rows = comparison(list_runs(tmp_path)).split("\n\n")[1]
    assert max(map(len, shown_rows.splitlines())) < 120
    assert all(f"word{number}" in shown_rows for number in range(30)) and shown_rows.count("x") == 201  # of "text", one


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("xyz", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=4))
def test_flat_settings_hold_no_settings(config: dict[str, object]) -> None:
    for value in flatten(config).values():
        assert not isinstance(value, dict) and "{" not in format_setting(value)


@pytest.mark.parametrize(
    "value, text",
    [(0.0001234567, "0.0001235"), (999.96, "1000"), (12345.6, "12,346"), ("inf", "inf"), (0, "0"), (-2500, "-2,500")],
)
def test_numbers(value: float | str, text: str) -> None:
    assert format_number(value) == text


def test_the_duration_of_a_running_run_ends_at_its_heartbeat(tmp_path: Path) -> None:
    assert duration(write_run(tmp_path, 1, {}, {"stop_time": "2026-01-03T04:04:05"})) == "25:00:00"
    assert duration(write_run(tmp_path, 2, {}, {"status": "RUNNING"})) == "1:01:02"
    assert duration(write_run(tmp_path, 3, {}, {"start_time": "2026-01-02T04:05:08"})) == "0:00:00"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    with MongoServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_the_database_gives_the_same_tables_as_the_folder(tmp_path: Path, server: MongoServer) -> None:
    here = Experiments(tmp_path, mongo_url=server.url)
    here.run("--steps", "12")
    here.run("--steps", "7", "--fail", "crash:3:9", model="other")
    server.database().runs.insert_one({"_id": "by hand", "experiment": {"name": "of somebody else"}})
    from_folder, from_mongo = list_runs(here.store), runs.list_runs(server.url)
    assert [run.status for run in from_mongo] == ["COMPLETED", "FAILED"]
    assert list_table(from_mongo) == list_table(from_folder)
    assert runs.find_run(server.url, "2").info["reason"] == find_run(here.store, "2").info["reason"]
    two = [runs.find_run(server.url, run_id) for run_id in ("1", "2")]
    assert comparison(two) == comparison(from_folder)


@pytest.mark.parametrize("run_id", ["77", "last", "9" * 40, "²"])
def test_a_run_that_is_not_in_the_database(server: MongoServer, run_id: str) -> None:
    with pytest.raises(DataError, match=rf"run {run_id}: is not among the \d+ of MongoDB at .*; list their numbers"):
        runs.find_run(server.url, run_id)


def test_a_database_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upload.TIMEOUTS_MS, "serverSelectionTimeoutMS", 100)
    with pytest.raises(UserError, match=r"MongoDB at 127.0.0.1:1/trials: .*; start it, or check its permissions"):
        runs.list_runs("mongodb://name:secret@127.0.0.1:1/trials")
