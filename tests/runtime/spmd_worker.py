"""One process of several; tests start it as `python -m tests.runtime.spmd_worker HOSTS INDEX FOLDER JOB...`.

A job is the name of a case, which takes a training step from the checkpoint in FOLDER/start/{model}, or `moved`, which
moves slices about, or `forever` alone, which trains until it is ended. What comes out is written to FOLDER/{index}.npz,
and checkpoints to FOLDER/{case}.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.schema import MoeParams, RunConfig
from meshtf import mtf
from runtime.checkpoints import CheckpointWriter, Writers, latest_checkpoint, restore
from runtime.cluster import Cluster, Membership, joined
from runtime.graph import build_train_step
from runtime.loop import TrainingPosition
from runtime.spmd import place_process
from tests import tiny

MIXTURE = MoeParams(moe_num_experts=4, moe_hidden_size=24, moe_gating="top_2", moe_group_size=16)
ONE_LAYER = {"n_layer": 1, "attention_types": ("global",)}
MODELS: dict[str, Mapping[str, object]] = {
    "dense": {},
    "dropout": tiny.ALL_DROPOUTS,
    "recomputed": {"recompute_grad": True},
    "shared": {"recompute_grad": True, "share_parameters": True},
    "linear": {"attention_types": ("linear", "global")},
    "mixture": {"moe_layers": (1,), "moe_params": MIXTURE, "recompute_grad": True},
    "one_mixture": {**ONE_LAYER, "moe_layers": (0,), "moe_params": MIXTURE, "recompute_grad": True},
}
MATRIX = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on a mesh; with `tokens_at_once` in microbatches."""

    model: str
    mesh_shape: str
    layout: str
    tokens_at_once: int | None = None

    def config(self, mesh_shape: str | None = None) -> RunConfig:
        """The run, on this mesh or on another: an empty text is one device."""
        mesh = tiny.mesh_config(self.mesh_shape if mesh_shape is None else mesh_shape, self.layout)
        return tiny.run_config(mesh, MODELS[self.model], {"tokens_per_mb_per_replica": self.tokens_at_once})


CASES = {
    "data": Case("recomputed", "x:2", "batch:x", 2 * tiny.MODEL.n_ctx),
    "model": Case("dropout", "x:2", "heads:x,vocab:x,intermediate_expanded:x"),
    "experts": Case("one_mixture", "x:2", "batch:x,experts:x", 2 * tiny.MODEL.n_ctx),
    "embd": Case("dense", "x:2", "embd:x"),
    "memory": Case("dense", "x:2", "memory_length:x"),
    "sequence": Case("linear", "x:2", "sequence:x", 2 * tiny.MODEL.n_ctx),
    "shared": Case("shared", "x:2", "heads:x,vocab:x"),
    "mixed": Case("recomputed", "x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y", 2 * tiny.MODEL.n_ctx),
    "mixed_experts": Case("mixture", "x:2,y:2", "batch:x,experts:x,expert_hidden:y"),
    "mixed_embd": Case("dropout", "x:2,y:2", "batch:x,embd:y"),
    "whole_sequence": Case("dense", "x:2,y:2", "sequence:x,memory_length:y,embed_sequence:x,vocab:y"),
    "four_data": Case("dropout", "x:4", "batch:x"),
}


def train_once(name: str, membership: Membership, folder: Path) -> dict[str, np.ndarray]:
    """One update from the checkpoint, a checkpoint of what it made, and the loss of the next."""
    case, cluster = CASES[name], membership.cluster
    config = case.config()
    placement = place_process(config.mesh, cluster.index, cluster.size, membership.device)
    step = build_train_step(config, placement)
    restore(latest_checkpoint(f"{folder}/start/{case.model}"), placement.store, tiny.BATCH_SIZE)
    outputs = step(*tiny.step_inputs())
    writers = Writers(cluster.index, cluster.size, membership.barrier)
    CheckpointWriter(f"{folder}/{name}", placement.store, writers).save(TrainingPosition(1, tiny.BATCH_SIZE))
    return {**outputs, "next_loss": step(*tiny.step_inputs())["loss"]}


def moved(x: mtf.Tensor) -> list[mtf.Tensor]:
    """All that makes a mesh move slices; x is [batch, columns], and the layout splits batch and heads."""
    rows, columns = x.shape.dims
    joined = mtf.rename_dimension(x, "batch", "joined")
    exchanged = mtf.reshape(x, mtf.Shape([mtf.Dimension("joined", rows.size), mtf.Dimension("heads", columns.size)]))
    reductions = (mtf.reduce_sum, mtf.reduce_max, mtf.reduce_min)
    return [
        joined,
        exchanged,
        mtf.rename_dimension(joined, "columns", "heads"),
        *[reduction(x, reduced_dim=rows) for reduction in reductions],
        mtf.shift(x, 1, rows, wrap=True),
        mtf.shift(x, -3, rows, wrap=False),
    ]


def move(membership: Membership) -> dict[str, np.ndarray]:
    """What `moved` gives."""
    cluster = membership.cluster
    mesh = tiny.mesh_config(f"x:{cluster.size}", "batch:x,heads:x")
    placement = place_process(mesh, cluster.index, cluster.size, membership.device)
    outputs = tiny.evaluate(moved, placement, ("batch columns", MATRIX))
    return {str(index): output for index, output in enumerate(outputs)}


def train_forever(membership: Membership) -> None:
    """Says when each step is done."""
    cluster = membership.cluster
    config = dataclasses.replace(CASES["data"], mesh_shape=f"x:{cluster.size}").config()
    placement = place_process(config.mesh, cluster.index, cluster.size, membership.device)
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    for number in itertools.count():
        step(*tiny.step_inputs())
        print("step", number, flush=True)


def main() -> int:
    """Does the jobs; returns the exit status."""
    hosts, index, folder, *jobs = sys.argv[1:]
    try:
        with joined(Cluster(tuple(hosts.split(",")), int(index)), wait_seconds=60.0) as membership:
            if jobs == ["forever"]:
                train_forever(membership)
            results = {"moved": move(membership)} if "moved" in jobs else {}
            results |= {name: train_once(name, membership, Path(folder)) for name in jobs if name in CASES}
            arrays = {f"{job}/{key}": value for job, values in results.items() for key, value in values.items()}
            np.savez(f"{folder}/{index}.npz", **arrays)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
