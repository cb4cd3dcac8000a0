"""Measures how much faster two processes of one core each train than one process of one core.

    python3 benchmarks/scaling.py --set train_batch_size=32 --set tokens_per_mb_per_replica=2048

All processes take batches of `train_batch_size` examples each; the two split theirs over the mesh and add up their
gradients. One process, two separate processes and two that train together are timed in turn, so that a machine that
slows down slows all; processes that are not being timed sleep. The last line is a JSON object with the figures. Linux
only, because it binds each process to a core.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from commands.local_processes import free_ports
from configs.errors import UserError
from configs.load import load_config
from configs.schema import MeshConfig, RunConfig

WARM_UP_STEPS = 2
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        ratio: of the speeds: the median of `ratios`, which are those of each repeat in order.
        apart_ratio: the same for two processes that train separately: the most that this machine allows.
        work_ratio: the same from CPU time: what `ratio` would be if the two never waited for each other.
    """

    model: str
    tokens_per_second_of_one: float
    tokens_per_second_of_two: float
    ratio: float
    ratios: tuple[float, ...]
    apart_ratio: float
    work_ratio: float


def serve_steps(config: RunConfig, hosts: str, index: int) -> None:
    """Runs as many steps as each line of standard input says; prints their wall-clock and CPU seconds."""
    from runtime.cluster.rendezvous import connect  # after the thread counts are set, and not in the parent
    from runtime.cluster.spec import find_cluster

    cluster = find_cluster(hosts, index)
    if cluster is None:
        _serve(config, 0, 1, "/device:CPU:0")
        return
    with connect(cluster, wait_seconds=120.0) as group:
        _serve(config, cluster.index, cluster.size, group.device)


def _serve(config: RunConfig, index: int, n_processes: int, device: str) -> None:
    from runtime.mesh.multi_process import place_process
    from runtime.mesh.placement import place
    from runtime.training.steps import build_train_step

    training = dataclasses.replace(config.training, train_batch_size=n_processes * config.training.train_batch_size)
    config = dataclasses.replace(config, training=training, mesh=MeshConfig(shard=config.mesh.shard))
    placement = (
        place(config.mesh, [device]) if n_processes == 1 else place_process(config.mesh, index, n_processes, device)
    )
    step = build_train_step(config, placement)
    placement.store.initialize(training.seed)
    shape = (len(placement.own_rows(training.train_batch_size)), config.model.n_ctx)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)
    weights = np.full(shape, 1.0 / np.prod(shape), np.float32)
    for line in sys.stdin:
        start, work_start = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step(*ids, weights, np.float32(1e-4), np.int32(0), np.int32(0))
        print(time.perf_counter() - start, time.process_time() - work_start, flush=True)


@contextlib.contextmanager
def started(arguments: argparse.Namespace, cores: Sequence[int]) -> Iterator[list[subprocess.Popen]]:
    """Processes bound to a core each, which wait for a number of steps to run."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(len(cores)))
    command = [sys.executable, __file__, "--model", arguments.model, *(f"--set={value}" for value in arguments.set)]
    processes = []
    try:
        for index, core in enumerate(cores):
            processes.append(
                subprocess.Popen(
                    ["taskset", "-c", str(core), *command, "--hosts", hosts, "--host_index", str(index)],
                    env={**os.environ, **ONE_THREAD},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
        for process in processes:
            process.stdin.close()
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()


def seconds(processes: Sequence[subprocess.Popen], n_steps: int) -> np.ndarray:
    """Returns how long the processes take, and the CPU time of the busiest one."""
    for process in processes:
        print(n_steps, file=process.stdin, flush=True)
    answers = [process.stdout.readline() for process in processes]
    if not all(answers):
        raise SystemExit("a timed process has ended; its output is above")
    return np.max([list(map(float, answer.split())) for answer in answers], axis=0)


def measure(arguments: argparse.Namespace, config: RunConfig) -> Figures:
    """Warms up, and times the one and the two in turn."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with (
        started(arguments, cores[:1]) as one,
        started(arguments, cores[1:]) as other,
        started(arguments, cores) as two,
    ):
        turns = (one, [*one, *other], two)
        for _ in range(WARM_UP_STEPS):
            for processes in turns:
                seconds(processes, 1)
        repeats = [[seconds(processes, arguments.steps) for processes in turns] for _ in range(arguments.repeats)]
    tokens = arguments.steps * config.training.train_batch_size * config.model.n_ctx
    of_one, of_both, of_two = np.swapaxes(repeats, 0, 1)  # each [repeats, (seconds, work)]
    ratios, work_ratios = (2 * of_one / of_two).T
    return Figures(
        model=config.name,
        tokens_per_second_of_one=tokens / statistics.median(of_one[:, 0]),
        tokens_per_second_of_two=2 * tokens / statistics.median(of_two[:, 0]),
        ratio=statistics.median(ratios),
        ratios=tuple(ratios),
        apart_ratio=statistics.median(2 * of_one[:, 0] / of_both[:, 0]),
        work_ratio=statistics.median(work_ratios),
    )


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Compare two processes of one core each with one process of one core.")
    parser.add_argument("--model", default="benchmark_small", help="a name (configs/NAME.json) or a path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--steps", type=int, default=2, help="steps timed at once (default 2)")
    parser.add_argument("--repeats", type=int, default=7, help="times that each is timed (default 7)")
    parser.add_argument("--hosts", help=argparse.SUPPRESS)  # of the timed processes
    parser.add_argument("--host_index", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = parse_arguments()
    try:
        config = load_config(arguments.model, arguments.set)
        if arguments.hosts is not None:
            serve_steps(config, arguments.hosts, arguments.host_index)
            return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    figures = measure(arguments, config)
    print(f"one process    {figures.tokens_per_second_of_one:>10,.0f} tokens/s")
    print(f"two processes  {figures.tokens_per_second_of_two:>10,.0f} tokens/s")
    print(f"ratio          {figures.ratio:>10.2f}   (of {', '.join(f'{ratio:.2f}' for ratio in figures.ratios)})")
    print(f"trained apart  {figures.apart_ratio:>10.2f}")
    print(f"of the work    {figures.work_ratio:>10.2f}")
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
