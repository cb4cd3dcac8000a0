"""One update is the same on one, four and eight devices, in any layout and with every feature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.runtime.eight_devices import CASES

REPOSITORY = Path(__file__).parents[2]
MIX = "batch:x,heads:y,intermediate_expanded:y,vocab:y"
EVERYTHING = {**tiny.ALL_DROPOUTS, "recompute_grad": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        ("x:4", "batch:x"),
        ("x:2,y:2", "embd:x,memory_length:y"),
        ("x:4", "embd:x"),
        ("x:4", "heads:x"),
        ("x:4", "vocab:x"),
        ("x:4", "intermediate_expanded:x"),
        ("x:4", "memory_length:x"),
        ("x:4", "sequence:x"),
        ("x:4", "embed_sequence:x"),
        ("x:4", "heads:x,intermediate_expanded:x,vocab:x"),
        ("x:2,y:2", "sequence:x,memory_length:y"),
        ("x:2,y:2", "batch:x,embd:y"),
        ("x:2,y:2", "batch:x,sequence:y"),
        ("x:2,y:2", "heads:x,embd:y"),
        ("x:2,y:2", "vocab:x,embd:y,memory_length:x"),
        ("x:2,y:2", MIX),
    ],
)
def test_any_layout_gives_the_update_of_one_device(devices: tuple[str, ...], mesh_shape: str, layout: str) -> None:
    config = tiny.run_config(tiny.mesh_config(mesh_shape, layout))
    tiny.assert_same_update(tiny.one_update(config, devices), tiny.one_device_update(devices, has_dropout=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        ("x:2,y:2", MIX),
        ("x:4", "batch:x"),
        ("x:4", "heads:x,intermediate_expanded:x,vocab:x"),
        ("x:4", "memory_length:x"),
        ("x:2,y:2", "batch:x,embd:y"),
        ("x:2,y:2", "sequence:x,memory_length:y"),
        ("x:2,y:2", "heads:x,embd:y"),
    ],
)
def test_any_layout_with_every_feature_gives_the_update_of_one_device(
    devices: tuple[str, ...], mesh_shape: str, layout: str
) -> None:
    mesh = tiny.mesh_config(mesh_shape, layout)
    config = tiny.run_config(mesh, model=EVERYTHING, training={"tokens_per_mb_per_replica": 16})
    tiny.assert_same_update(tiny.one_update(config, devices), tiny.one_device_update(devices, has_dropout=True))


@pytest.mark.slow
@pytest.mark.processes
def test_eight_devices_give_the_update_of_one() -> None:
    run = subprocess.run([sys.executable, "-m", "tests.runtime.eight_devices"], cwd=REPOSITORY, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-3000:]
    assert len(run.stdout.splitlines()) == len(CASES)
