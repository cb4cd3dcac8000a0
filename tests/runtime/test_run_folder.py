"""What belongs to a run, and what may be deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError, UserError
from runtime import run_folder


def test_only_what_training_writes_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["somebody's"]}))
    (tmp_path / "weights.bin").write_text("precious")
    assert not run_folder.is_run(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    assert run_folder.is_run(str(tmp_path))


def test_deleting_leaves_the_lock_of_the_one_who_deletes(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "events").write_text("")
    (tmp_path / "checkpoint").write_text("")
    with run_folder.locked(str(tmp_path)):
        run_folder.delete_contents(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            run_folder.locked(str(tmp_path)),
            pytest.raises(UserError, match="another process trains here"),
            run_folder.locked(str(tmp_path)),
        ):
            pass


@pytest.mark.parametrize("path", ["runs/[a]", "runs/a*", "runs/a?", "runs/a\\b"])
def test_patterns_are_no_paths(path: str) -> None:
    with pytest.raises(ConfigError):
        run_folder.check_path(path)
    run_folder.check_path("runs/a b-{c}")
