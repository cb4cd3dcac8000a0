"""Measures how much memory `shard` saves: processes that share a batch train with and without it.

    python3 benchmarks/sharding_memory.py

The processes run on this machine, a few steps of a model whose state is far larger than its activations. Of each the
peak resident memory (VmHWM) is taken, less what it had before any variable was made, and compared with the plan's
estimate of the same. The last line is a JSON object with the figures of the largest process. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from commands.local_processes import free_ports
from configs.layout import parse_layout, parse_mesh_shape
from configs.load import load_config
from configs.schema import SHARDINGS, MeshConfig, RunConfig

MODEL = ("n_embd=1280", "n_head=8", "n_layer=8", "n_vocab=1024", "n_ctx=64", 'attention_types=[[["global"],8]]')
N_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Figures:
    """The memory of a process in bytes, and the seconds of its last step.

    Attributes:
        base: before any variable was made.
        peak: the peak.
        planned: the peak by the plan.
    """

    base: int
    peak: int
    planned: int
    seconds: float

    @property
    def above_base(self) -> int:
        """What training took."""
        return self.peak - self.base

    @property
    def error(self) -> float:
        """The fraction by which the plan is too high, above the base."""
        return (self.planned - self.base) / self.above_base - 1.0


def run_config(n_processes: int, shard: str, overrides: list[str]) -> RunConfig:
    """Returns the run: one row of the batch for each process."""
    config = load_config("benchmark_small", [*MODEL, f"train_batch_size={n_processes}", *overrides])
    mesh = MeshConfig(mesh_shape=parse_mesh_shape(f"x:{n_processes}"), layout=parse_layout("batch:x"), shard=shard)
    return dataclasses.replace(config, mesh=mesh)


def train(config: RunConfig, hosts: str, index: int) -> dict[str, float]:
    """Trains for a few steps; returns the memory and the seconds of the last step."""
    from runtime.cluster.rendezvous import connect
    from runtime.cluster.spec import Cluster
    from runtime.mesh.multi_process import place_process
    from runtime.run.memory import peak_resident_bytes
    from runtime.training.steps import build_train_step

    with connect(Cluster(tuple(hosts.split(",")), index), wait_seconds=120.0) as group:
        base = peak_resident_bytes()
        placement = place_process(config.mesh, index, group.size, group.device)
        step = build_train_step(config, placement)
        placement.store.initialize(config.training.seed)
        shape = (1, config.model.n_ctx)
        ids = np.random.default_rng(index).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)
        weights = np.full(shape, 1.0 / group.size / config.model.n_ctx, np.float32)
        for number in range(N_STEPS):
            start = time.perf_counter()
            step(*ids, weights, np.float32(1e-4), np.int32(number), np.int32(number))
        return {"base": base, "peak": peak_resident_bytes(), "seconds": time.perf_counter() - start}


def plan(config: RunConfig, n_processes: int) -> dict[str, int]:
    """Returns the plan's estimate of the peak."""
    from runtime.planning.dry_run import dry_placement
    from runtime.planning.plan import make_plan, resident_bytes

    return {"planned": resident_bytes(make_plan(config, dry_placement(config.mesh, n_processes)))}


def in_children(arguments: argparse.Namespace, shard: str) -> Figures:
    """Trains in processes of their own, and plans in another; returns the figures of the largest process."""
    count = arguments.processes
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(count))
    command = [sys.executable, __file__, "--shard", shard, "--processes", str(count)]
    command += [f"--set={value}" for value in arguments.set]
    children = [
        subprocess.Popen([*command, "--hosts", hosts, "--host_index", str(index)], stdout=subprocess.PIPE, text=True)
        for index in range(count)
    ]
    outputs = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    planned = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return Figures(**max(outputs, key=lambda output: output["peak"]), **planned)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the memory of processes that share a batch.")
    parser.add_argument("--processes", type=int, default=4, help="how many (default 4)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--shard", choices=SHARDINGS, help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--hosts", help=argparse.SUPPRESS)
    parser.add_argument("--host_index", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shard:
        config = run_config(arguments.processes, arguments.shard, arguments.set)
        if arguments.hosts is None:
            print(json.dumps(plan(config, arguments.processes)))
        else:
            print(json.dumps(train(config, arguments.hosts, arguments.host_index)))
        return 0
    figures = {shard: in_children(arguments, shard) for shard in SHARDINGS}
    for shard, own in figures.items():
        print(
            f"shard {shard:<10} {own.above_base / 2**20:8,.0f} MiB above {own.base / 2**20:,.0f}, by the plan "
            f"{own.error:+.1%}; {own.above_base / figures['off'].above_base:.2f} of unsharded; "
            f"{own.seconds:.2f} s a step"
        )
    print(json.dumps({shard: dataclasses.asdict(own) for shard, own in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
