"""One process of several; tests start it as `python -m tests.runtime.spmd_worker HOSTS INDEX FOLDER JOB...`.

A job is the name of a case, which runs a training step from the checkpoint in FOLDER/start/{model}; `moved`, which runs
all collectives; `ordered`, which runs those that depend on the order of processes; a layout of `SCORED`, which scores
continuations; or, as the only job, `forever`, which trains until it is killed, or `until_stopped`, which trains until a
process receives a signal. The results are written to FOLDER/{index}.npz, and checkpoints to FOLDER/{case}. SIGUSR1
makes a process hang in Python, SIGUSR2 in a call that blocks Python.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import numpy as np

from configs.errors import UserError
from configs.schema import MoeParams, RunConfig
from meshtf import mtf
from models.ops.gradients import ScatteredSum
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import latest_checkpoint, restore
from runtime.checkpoint.writer import CheckpointWriter
from runtime.cluster.process_group import ALONE, ProcessGroup
from runtime.cluster.rendezvous import connect
from runtime.cluster.spec import Cluster
from runtime.generation.scoring import Continuations, build_scorer
from runtime.mesh.multi_process import place_process
from runtime.mesh.placement import Placement
from runtime.training.signals import StopRequest
from runtime.training.steps import build_train_step
from tests import tiny

MIXTURE = MoeParams(moe_num_experts=4, moe_hidden_size=24, moe_gating="top_2", moe_group_size=16)
ONE_LAYER = {"n_layer": 1, "attention_types": ("global",)}
MODELS: dict[str, Mapping[str, object]] = {
    "dense": {},
    "dropout": tiny.ALL_DROPOUTS,
    "recomputed": {"recompute_grad": True},
    "shared": {"recompute": "attention", "share_parameters": True},
    "linear": {"attention_types": ("linear", "global")},
    "grouped": {"n_kv_head": 2, "num_mem_kv": 2, "attention_types": ("linear", "global"), "qk_norm": "projection"},
    "gated": {"gated_mlp": True, "n_inner": 24, "norm": "rmsnorm"},
    "adapted": {"lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.1, "lora_targets": ("q", "v", "c_fc", "c_proj")},
    "mixture": {"moe_layers": (1,), "moe_params": MIXTURE, "recompute_grad": True},
    "segments": {"attention_types": ("linear", "global"), "rotary_emb": True},
    "long": {
        **tiny.ALL_DROPOUTS,
        "n_layer": 3,
        "attention_types": ("global", "local", "linear"),
        "num_mem_kv": 2,
        "n_kv_head": 2,
        "recompute_grad": True,
    },
    "one_mixture": {**ONE_LAYER, "moe_layers": (0,), "moe_params": MIXTURE, "recompute_grad": True},
}
SCORED = ("batch:x,experts:x", "vocab:x,heads:x,expert_hidden:x")
TENSOR_PARALLEL = "batch:x,heads:y,vocab:y,intermediate_expanded:y"
MATRIX = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on a mesh; `tokens_at_once` sets the size of microbatches.

    Cases of one model have one optimiser, since they start from one checkpoint.
    """

    model: str
    mesh_shape: str
    layout: str
    tokens_at_once: int | None = None
    opt_name: str = tiny.TRAINING.opt_name
    shard: str = "off"

    def config(self, mesh_shape: str | None = None) -> RunConfig:
        """Returns the run, on this mesh or on another; an empty one is a single device."""
        mesh = tiny.mesh_config(self.mesh_shape if mesh_shape is None else mesh_shape, self.layout, self.shard)
        data = tiny.MASKED if self.model == "segments" else None
        training = {"tokens_per_mb_per_replica": self.tokens_at_once, "opt_name": self.opt_name}
        return tiny.run_config(mesh, MODELS[self.model], training, data)


CASES = {
    "data": Case("recomputed", "x:2", "batch:x", 2 * tiny.MODEL.n_ctx),
    "model": Case("dropout", "x:2", "heads:x,vocab:x,intermediate_expanded:x"),
    "experts": Case("one_mixture", "x:2", "batch:x,experts:x", 2 * tiny.MODEL.n_ctx),
    "embd": Case("dense", "x:2", "embd:x"),
    "memory": Case("dense", "x:2", "memory_length:x"),
    "sequence": Case("linear", "x:2", "sequence:x", 2 * tiny.MODEL.n_ctx),
    "shared": Case("shared", "x:2", "heads:x,vocab:x"),
    "groups": Case("grouped", "x:2", "heads:x,kv_heads:x"),
    "groups_whole": Case("grouped", "x:2", "heads:x"),
    "matrices": Case("gated", "x:2", "heads:x,vocab:x,intermediate_expanded:x", opt_name="muon"),
    "adapters": Case("adapted", "x:2", "heads:x,vocab:x,intermediate_expanded:x"),
    "segments": Case("segments", "x:2", "batch:x", 2 * tiny.MODEL.n_ctx),
    "mixed": Case("recomputed", "x:2,y:2", TENSOR_PARALLEL, 2 * tiny.MODEL.n_ctx),
    "mixed_experts": Case("mixture", "x:2,y:2", "batch:x,experts:x,expert_hidden:y"),
    "mixed_matrices": Case("gated", "x:2,y:2", "embd:x,heads:y,vocab:y,intermediate_expanded:y", opt_name="muon"),
    "mixed_adapters": Case("adapted", "x:2,y:2", TENSOR_PARALLEL, 2 * tiny.MODEL.n_ctx),
    "mixed_embd": Case("dropout", "x:2,y:2", "batch:x,embd:y"),
    "ring": Case("long", "x:2", "sequence:x", 2 * tiny.MODEL.n_ctx),
    "four_ring": Case("long", "x:4", "sequence:x", 2 * tiny.MODEL.n_ctx),
    "mixed_ring": Case("long", "x:2,y:2", "sequence:x,heads:y,vocab:y,intermediate_expanded:y"),
    "whole_sequence": Case("dense", "x:2,y:2", "sequence:x,memory_length:y,embed_sequence:x,vocab:y"),
    "four_data": Case("dropout", "x:4", "batch:x"),
    "shard": Case("recomputed", "x:2", "batch:x", shard="optimizer"),
    "shard_mixed": Case("recomputed", "x:2,y:2", TENSOR_PARALLEL, 2 * tiny.MODEL.n_ctx, shard="optimizer"),
    "shard_experts": Case("mixture", "x:2,y:2", "batch:x,experts:y", shard="optimizer"),
    "parameters": Case("dropout", "x:2", "batch:x", 2 * tiny.MODEL.n_ctx, shard="parameters"),
    "parameters_mixed": Case("recomputed", "x:2,y:2", TENSOR_PARALLEL, shard="parameters"),
    "parameters_experts": Case("mixture", "x:2,y:2", "batch:x,experts:y", shard="parameters"),
    "four_parameters": Case("dropout", "x:4", "batch:x", shard="parameters"),
    "four_shard": Case("dropout", "x:4", "batch:x", shard="optimizer"),
}


def own_inputs(placement: Placement, has_segments: bool) -> tuple:
    """Returns the inputs of a training step, with only this process's own rows of the batch."""
    rows = placement.own_rows(tiny.BATCH_SIZE)
    *of_batch, rate, number, key = tiny.step_inputs(has_segments=has_segments)
    return *[whole[rows.start : rows.stop] for whole in of_batch], rate, number, key


def train_once(name: str, group: ProcessGroup, folder: Path) -> dict[str, np.ndarray]:
    """Trains one step from the checkpoint and saves the result; returns its outputs and the loss of the next step."""
    case = CASES[name]
    config = case.config()
    placement = place_process(config.mesh, group.index, group.size, group.device)
    step = build_train_step(config, placement)
    restore(latest_checkpoint(f"{folder}/start/{case.model}"), placement.store, tiny.BATCH_SIZE)
    inputs = own_inputs(placement, config.data.has_segments)
    outputs = step(*inputs)
    tiny.save(CheckpointWriter(f"{folder}/{name}", placement.store, group), TrainingPosition(1, tiny.BATCH_SIZE))
    return {**outputs, "next_loss": step(*inputs)["loss"]}


def moved(x: mtf.Tensor) -> list[mtf.Tensor]:
    """Applies every operation that moves slices to x [batch, columns]; the layout splits batch and heads."""
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
        ScatteredSum(mtf.reduce_sum(x, reduced_dim=rows), columns, "heads").outputs[0],
    ]


def move(group: ProcessGroup) -> dict[str, np.ndarray]:
    """Returns the outputs of `moved`."""
    mesh = tiny.mesh_config(f"x:{group.size}", "batch:x,heads:x")
    placement = place_process(mesh, group.index, group.size, group.device)
    outputs = tiny.evaluate(moved, placement, ("batch columns", MATRIX))
    return {str(index): output for index, output in enumerate(outputs)}


def order(group: ProcessGroup) -> dict[str, np.ndarray]:
    """Returns a matrix of one row per process gathered, exchanged and summed by the collectives."""
    mesh = tiny.mesh_config(f"x:{group.size}", "batch:x,heads:x")
    placement = place_process(mesh, group.index, group.size, group.device)
    numbers = np.arange(group.size**2, dtype=np.float32).reshape(group.size, group.size)
    gathered, exchanged, *_, summed = tiny.evaluate(moved, placement, ("batch columns", numbers))
    return {"gathered": gathered, "exchanged": exchanged, "summed": summed}


def score(placement: Placement, group: ProcessGroup = ALONE) -> dict[str, np.ndarray]:
    """Returns the scores of continuations under a model with experts, in more texts than fit one batch."""
    config = Case("mixture", "", "").config()
    scorer = build_scorer(config, placement, group.synchronized, batch_tokens=1)
    placement.store.initialize(seed=1)
    ids = np.random.default_rng(2).integers(0, tiny.MODEL.n_vocab, (60, 16)).tolist()
    scores = scorer.score([Continuations(row[:9], (row[9:12], row[12:])) for row in ids])
    found = [choice for choices in scores for choice in choices]
    return {name: np.concatenate([getattr(each, name) for each in found]) for name in ("log_probs", "is_greedy")}


def score_together(group: ProcessGroup, layout: str) -> dict[str, np.ndarray]:
    """Returns the scores of `score` by all processes."""
    mesh = tiny.mesh_config(f"x:{group.size}", layout)
    return score(place_process(mesh, group.index, group.size, group.device), group)


def build_steps(group: ProcessGroup) -> tuple[Placement, Callable[[], object]]:
    """Returns the placement of a small model over all processes, and a function that trains it by one step."""
    config = dataclasses.replace(CASES["data"], mesh_shape=f"x:{group.size}").config()
    placement = place_process(config.mesh, group.index, group.size, group.device)
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    return placement, lambda: step(*own_inputs(placement, has_segments=False))


def train_forever(group: ProcessGroup) -> None:
    """Trains until the process is killed; prints each finished step."""
    _, step = build_steps(group)
    with group.timeout():
        for number in itertools.count():
            group.synchronize()
            step()
            print("step", number, flush=True)
            if hang_asked_for:
                hang_in_python()


def train_until_stopped(group: ProcessGroup, folder: Path) -> None:
    """Trains until one of the processes receives a signal, then saves a checkpoint."""
    placement, step = build_steps(group)
    with StopRequest() as stop:
        for number in itertools.count():
            if group.all_reduce_max(stop.signal_number or 0):
                break
            step()
            print("step", number, flush=True)
        tiny.save(CheckpointWriter(f"{folder}/stopped", placement.store, group), TrainingPosition(number, 0))
    print("saved", number, flush=True)


hang_asked_for = []


def ask_for_hang(number: int, frame: FrameType | None) -> None:
    """A signal handler after which the process hangs between two steps, where the others wait for it."""
    hang_asked_for.append(number)


def hang_in_python() -> None:
    """Never returns."""
    while True:
        time.sleep(0.1)


def hang_with_python(number: int, frame: FrameType | None) -> None:
    """A signal handler that never returns, and keeps every thread from running Python."""
    ctypes.PyDLL(None).sleep(1000)


def main() -> int:
    """Runs the jobs; returns the exit status."""
    hosts, index, folder, *jobs = sys.argv[1:]
    signal.signal(signal.SIGUSR1, ask_for_hang)
    signal.signal(signal.SIGUSR2, hang_with_python)
    try:
        with connect(Cluster(tuple(hosts.split(",")), int(index)), wait_seconds=60.0) as group:
            if jobs == ["forever"]:
                train_forever(group)
            if jobs == ["until_stopped"]:
                train_until_stopped(group, Path(folder))
            results = {"moved": move(group)} if "moved" in jobs else {}
            results |= {"ordered": order(group)} if "ordered" in jobs else {}
            results |= {layout: score_together(group, layout) for layout in SCORED if layout in jobs}
            results |= {name: train_once(name, group, Path(folder)) for name in jobs if name in CASES}
            arrays = {f"{job}/{key}": value for job, values in results.items() for key, value in values.items()}
            np.savez(f"{folder}/{index}.npz", **arrays)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
