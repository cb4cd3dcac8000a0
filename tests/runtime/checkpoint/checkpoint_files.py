"""Checkpoints of a small store, and the steps that a folder holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from meshtf import mtf, tf
from models.variables import SlicedVariable, zeros
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import checkpoint_step
from runtime.checkpoint.writer import CheckpointWriter
from runtime.cluster.process_group import ALONE
from runtime.mesh.placement import VariableStore, place
from tests import tiny

POSITION = TrainingPosition(123, 5_000_000_000, {"books": 4_999_999_998, "a/b c": 2})
MODEL = dataclasses.replace(tiny.MODEL, attention_types=("local", "none"))


@dataclasses.dataclass(frozen=True)
class Written:
    """A checkpoint of a model on a 2x2 mesh, and the values that it must hold."""

    path: str
    variables: list[SlicedVariable]
    values: dict[str, np.ndarray]


def store_of(devices: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> VariableStore:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    for name, shape in shapes.items():
        dims = [mtf.Dimension(f"dim{axis}", size) for axis, size in enumerate(shape)]
        variable = SlicedVariable(mesh, name, mtf.Shape(dims), zeros)
        placement.store.slices_of(variable, placement.implementation(1))
    return placement.store


def save_steps(
    model_path: Path,
    store: VariableStore,
    steps: Sequence[int],
    keep_checkpoints: int = 10,
    keep_every_steps: int | None = None,
) -> None:
    writer = CheckpointWriter(str(model_path), store, ALONE, keep_checkpoints, keep_every_steps)
    for step in steps:
        (stored,) = store
        stored.assign_whole(np.full((3, 2), step, np.float32))
        writer.save(TrainingPosition(step, 8 * step))
    writer.finish()


def steps_on_disk(model_path: Path) -> list[int]:
    return sorted(checkpoint_step(str(path.with_suffix(""))) for path in model_path.glob("*.index"))


def steps_in_state(model_path: Path) -> list[int]:
    return [checkpoint_step(path) for path in tf.train.get_checkpoint_state(model_path).all_model_checkpoint_paths]
