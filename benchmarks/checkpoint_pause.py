"""Times training steps with a checkpoint against others.

    python3 benchmarks/checkpoint_pause.py --model gpt2_small --set n_ctx=512 --set train_batch_size=2 --saves 20

A step with a checkpoint counts from the call that copies the variables to the end of the step after it. Steps follow
until the checkpoint is written, and then some without anything beside them. The last line is a JSON object with all
figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.train_step import timed
from configs.errors import UserError
from configs.load import load_config
from configs.schema import RunConfig
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import latest_checkpoint
from runtime.checkpoint.writer import CheckpointWriter
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.run.memory import peak_resident_bytes
from runtime.training.steps import build_train_step

STEPS_BETWEEN = 2  # with nothing beside them, after each checkpoint


@dataclasses.dataclass(frozen=True)
class Figures:
    """Medians of seconds; `ratio` is that of steps with a copy to steps with nothing beside them."""

    model: str
    n_saves: int
    checkpoint_bytes: int
    copy_seconds: float
    step_with_copy_seconds: float
    step_beside_writing_seconds: float | None
    step_seconds: float
    ratio: float
    writing_seconds: float
    peak_memory_bytes: int


def training_step(config: RunConfig, device: str) -> tuple[Callable[[], object], CheckpointWriter]:
    """Returns a step that has run once, and the writer of its variables, which keeps one checkpoint."""
    placement = place(config.mesh, [device])
    step = build_train_step(config, placement)
    placement.store.initialize(config.training.seed)
    shape = (config.training.train_batch_size, config.model.n_ctx)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)
    weights = np.full(shape, 1.0 / np.prod(shape), np.float32)
    inputs = (*ids, weights, np.float32(1e-4), np.int32(0), np.int32(0))
    step(*inputs)
    return lambda: step(*inputs), CheckpointWriter(config.model_path, placement.store, keep_checkpoints=1)


def measure(config: RunConfig, device: str, n_saves: int) -> Figures:
    """Builds the step, and times it with a copy, beside writing, and alone, in turn."""
    step, writer = training_step(config, device)
    copies, with_copy, beside, alone, writing = [], [], [], [], []
    for number in range(1, n_saves + 1):
        alone += [timed(step) for _ in range(STEPS_BETWEEN)]
        start = time.perf_counter()
        path = writer.save(TrainingPosition(number, number))
        copies.append(time.perf_counter() - start)
        step()
        with_copy.append(time.perf_counter() - start)
        while latest_checkpoint(config.model_path) != path:
            writer.check()
            beside.append(timed(step))
        writing.append(time.perf_counter() - start)
        writer.wait()
        line = f"checkpoint {number} of {n_saves}: a step with a copy {with_copy[-1]:.2f} s, alone {alone[-1]:.2f} s"
        print(line, file=sys.stderr, flush=True)
    return Figures(
        model=config.name,
        n_saves=n_saves,
        checkpoint_bytes=sum(file.stat().st_size for file in Path(config.model_path).glob("*.data-*")),
        copy_seconds=statistics.median(copies),
        step_with_copy_seconds=statistics.median(with_copy),
        step_beside_writing_seconds=statistics.median(beside) if beside else None,
        step_seconds=statistics.median(alone),
        ratio=statistics.median(with_copy) / statistics.median(alone),
        writing_seconds=statistics.median(writing),
        peak_memory_bytes=peak_resident_bytes(),
    )


def format_table(figures: Figures) -> str:
    """Formats the figures, one per line."""
    beside = figures.step_beside_writing_seconds
    rows = {
        "model": figures.model,
        "checkpoint": f"{figures.checkpoint_bytes / 2**20:,.0f} MiB",
        "copy": f"{figures.copy_seconds * 1e3:,.0f} ms",
        "step with a copy": f"{figures.step_with_copy_seconds * 1e3:,.0f} ms",
        "step beside writing": "none" if beside is None else f"{beside * 1e3:,.0f} ms",
        "step alone": f"{figures.step_seconds * 1e3:,.0f} ms",
        "with a copy / alone": f"{figures.ratio:.2f}",
        "until it is written": f"{figures.writing_seconds:.1f} s",
        "peak memory": f"{figures.peak_memory_bytes / 2**20:,.0f} MiB",
    }
    return "\n".join(f"{name:<22} {value}" for name, value in rows.items())


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time training steps with a checkpoint against others.")
    parser.add_argument("--model", default="gpt2_small", help="a name (configs/NAME.json) or a path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--gpu_ids", nargs=1, metavar="DEVICE", help="one device, as device:GPU:0")
    parser.add_argument("--saves", type=int, default=20, help="checkpoints (default 20)")
    arguments = parser.parse_args()
    if arguments.saves < 1:
        parser.error(f"--saves {arguments.saves}: is not an integer >= 1; give the number of checkpoints")
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(arguments.model, [*arguments.set, f"model_path={folder}/run"])
            figures = measure(config, choose_devices(arguments.gpu_ids, None)[0], arguments.saves)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_table(figures))
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
