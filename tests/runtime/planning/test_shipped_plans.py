"""The shipped configs of today's models have the published sizes, and fit the devices that their pages name."""

from __future__ import annotations

import dataclasses
import math

import pytest

from configs.layout import parse_mesh_shape
from configs.load import load_config
from runtime.planning.dry_run import build_dry_step, dry_placement
from runtime.planning.memory import estimate_memory

GIB = 2**30
GPU, TPU_V4 = 80e9, 32 * GIB  # bytes of memory
# Parameters as Hugging Face's classes count those of the published configs; llama_125m is our own.
PARAMETERS = {
    "pythia_160m": 162_322_944,
    "llama_125m": 121_228_032,
    "qwen3_0.6b": 596_049_920,
    "llama3_8b": 8_030_261_248,
}
MESHES = [
    ("pythia_160m", "x:8", GPU),
    ("llama_125m", "x:8", GPU),
    ("qwen3_0.6b", "x:4,y:2", GPU),
    ("llama3_8b", "x:1,y:8", GPU),
    ("llama3_8b", "x:2,y:8", TPU_V4),  # v4-32: 16 chips
]


@pytest.mark.slow
@pytest.mark.parametrize("name, mesh_shape, memory", MESHES)
def test_a_shipped_config_has_its_size_and_fits(name: str, mesh_shape: str, memory: float) -> None:
    config = load_config(name)
    shape = parse_mesh_shape(mesh_shape)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, mesh_shape=shape))
    step = build_dry_step(config, dry_placement(config.mesh, math.prod(size for _, size in shape)))
    variables = [variable.shape.size for variable in step.graph.trainable_variables]
    assert sum(variables) == PARAMETERS[name]
    assert estimate_memory(step).total < memory
