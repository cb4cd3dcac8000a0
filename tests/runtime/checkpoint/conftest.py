"""A small model, its checkpoint and a small store."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.checkpoint.writer import CheckpointWriter
from runtime.mesh.placement import VariableStore, place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.runtime.checkpoint import graphs
from tests.runtime.checkpoint.checkpoint_files import MODEL, POSITION, Written, store_of

EVERYTHING_SPLIT = ("x:2,y:2", "embd:x,heads:y,vocab:y,intermediate_expanded:y")


@pytest.fixture(scope="package")
def graph(devices: tuple[str, ...]) -> graphs.Graph:
    return graphs.Graph.of(graphs.MODEL, devices)


@pytest.fixture(scope="package")
def written(devices: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Written:
    config = dataclasses.replace(tiny.run_config(tiny.mesh_config(*EVERYTHING_SPLIT)), model=MODEL)
    placement = place(config.mesh, devices)
    build_train_step(config, placement)
    random = np.random.default_rng(5)
    values = {stored.name: random.normal(size=stored.whole_shape).astype(np.float32) for stored in placement.store}
    for stored in placement.store:
        stored.assign_whole(values[stored.name])
    writer = CheckpointWriter(f"{tmp_path_factory.mktemp('run')}/deeper", placement.store)
    path = tiny.save(writer, POSITION)
    return Written(path, [stored.variable for stored in placement.store], values)


@pytest.fixture
def small(devices: tuple[str, ...]) -> VariableStore:
    return store_of(devices, {"gpt2/wte": [3, 2]})
