"""Compares a plan's memory estimate with the peak resident memory of training on one CPU device.

    python3 benchmarks/plan.py

Each config is estimated, and then trained for a few steps in a separate process. The estimate is that of
`runtime.planning.plan.resident_bytes`, which counts the program itself as a constant; the error without the constant is
shown too. The measurement is the peak resident memory that the operating system reports (VmHWM). The last line is a
JSON object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MIXTURE = '{"moe_num_experts": 8, "moe_hidden_size": 1024}'
CASES: dict[str, tuple[str, ...]] = {
    "quickstart": ("quickstart",),
    "benchmark_small": ("benchmark_small",),
    "batch of 32": ("benchmark_small", "train_batch_size=32"),
    "batch of 32, recomputed": ("benchmark_small", "train_batch_size=32", "recompute_grad=true"),
    "batch of 32, 4 microbatches": ("benchmark_small", "train_batch_size=32", "tokens_per_mb_per_replica=2048"),
    "adafactor, twice as wide": ("benchmark_small", "n_embd=512", "opt_name=adafactor"),
    "mixture of experts": ("benchmark_small", "moe_layers=[1,3,5]", f"moe_params={MIXTURE}"),
    "bfloat16": ("benchmark_small", "train_batch_size=16", "precision=bfloat16"),
}
N_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one config, in bytes; `error` is the fraction by which the estimate is too high."""

    estimated: int
    measured: int
    program: int

    @property
    def error(self) -> float:
        """Relative error of the whole estimate."""
        return self.estimated / self.measured - 1.0

    @property
    def error_of_tensors(self) -> float:
        """Relative error without the program itself."""
        return (self.estimated - self.program) / (self.measured - self.program) - 1.0


def estimate(model: str, overrides: Sequence[str]) -> dict[str, int]:
    """Returns the plan's estimate for one CPU device."""
    from configs.load import load_config
    from runtime.planning.dry_run import dry_placement
    from runtime.planning.plan import make_plan, resident_bytes

    config = load_config(model, overrides)
    plan = make_plan(config, dry_placement(config.mesh, 1))
    return {"estimated": resident_bytes(plan), "program": plan.program_bytes}


def train(model: str, overrides: Sequence[str]) -> dict[str, int]:
    """Trains for a few steps; returns the peak memory of this process."""
    import numpy as np

    from configs.load import load_config
    from runtime.mesh.placement import place
    from runtime.run.memory import peak_resident_bytes
    from runtime.training.steps import build_train_step

    config = load_config(model, overrides)
    placement = place(config.mesh, ["/device:CPU:0"])
    step = build_train_step(config, placement)
    placement.store.initialize(config.training.seed)
    shape = (config.training.train_batch_size, config.model.n_ctx)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)
    weights = np.full(shape, 1.0 / np.prod(shape), np.float32)
    for number in range(N_STEPS):
        step(*ids, weights, np.float32(1e-4), np.int32(number), np.int32(number))
    return {"measured": peak_resident_bytes()}


PARTS = {"estimate": estimate, "train": train}


def in_child(part: str, case: Sequence[str]) -> dict[str, int]:
    """Runs one of PARTS in a separate process; returns its result."""
    command = [sys.executable, __file__, "--part", part, *case]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare a plan's memory with what training takes.")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), help="which configs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("case", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        model, *overrides = arguments.case
        print(json.dumps(PARTS[arguments.part](model, overrides)))
        return 0
    results = {}
    for name in arguments.only:
        figures = Figures(**in_child("estimate", CASES[name]), **in_child("train", CASES[name]))
        results[name] = dataclasses.asdict(figures) | {
            "error": figures.error,
            "error_of_tensors": figures.error_of_tensors,
        }
        print(
            f"{name:<28} {figures.estimated / 2**20:7,.0f} MiB estimated {figures.measured / 2**20:7,.0f} measured"
            f" {figures.error:+7.1%}   tensors alone {figures.error_of_tensors:+7.1%}",
            flush=True,
        )
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
