"""Measures how fast batches are read from tfrecords, and how fast a model consumes them.

    python3 benchmarks/input.py --model quickstart

Both are timed alternately on the same cores. The last line is a JSON object with the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from configs.errors import UserError
from configs.load import load_config
from configs.schema import MeshConfig, RunConfig
from data.loading.reader import RecordRules, Records
from data.tfrecord.records import write_examples
from data.tfrecord.shards import Shard
from inputs import training_batches
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step

N_FILES, EXAMPLES_PER_FILE = 8, 1000
N_SIMULATED_FILES = 10_000
FAR_STEP = 10**6


@dataclasses.dataclass(frozen=True)
class Figures:
    """The measurements.

    Attributes:
        ratio: input speed divided by model speed, the median of the repeats.
        seek_seconds: time to the first record of step 10^6 among 10,000 files.
    """

    model: str
    input_tokens_per_second: float
    model_tokens_per_second: float
    ratio: float
    seek_seconds: float


def write_data(folder: str, config: RunConfig) -> str:
    """Writes random examples; returns their glob."""
    generator = np.random.default_rng(0)
    for number in range(N_FILES):
        ids = generator.integers(0, config.model.n_vocab, (EXAMPLES_PER_FILE, config.model.n_ctx + 1))
        write_examples(f"{folder}/a_{number}_{EXAMPLES_PER_FILE}.tfrecords", ids)
    return f"{folder}/*.tfrecords"


def tokens_per_second(action: Callable[[], object], n_batches: int, config: RunConfig) -> float:
    """Returns the speed of an action that handles `n_batches` batches."""
    start_seconds = time.perf_counter()
    action()
    n_tokens = n_batches * config.training.train_batch_size * config.model.n_ctx
    return n_tokens / (time.perf_counter() - start_seconds)


def model_step(config: RunConfig) -> Callable[[], object]:
    """Returns a training step on a fixed batch."""
    config = dataclasses.replace(config, mesh=MeshConfig())
    placement = place(config.mesh, choose_devices(None, None)[:1])
    step = build_train_step(config, placement)
    placement.store.initialize(1)
    ids = np.zeros((2, config.training.train_batch_size, config.model.n_ctx), np.int32)
    weights = np.ones(ids.shape[1:], np.float32)
    return lambda: step(*ids, weights, np.float32(1e-4), np.int32(0), np.int32(0))


def seek_seconds(folder: str, config: RunConfig) -> float:
    """Returns the time to the first record of a distant step; all other files are only counts."""
    rules = RecordRules(config.model.n_ctx, config.model.n_vocab)
    real = f"{folder}/a_0_{EXAMPLES_PER_FILE}.tfrecords"
    shards = [Shard(f"{folder}/none_{number}", EXAMPLES_PER_FILE) for number in range(N_SIMULATED_FILES)]
    first = FAR_STEP * config.training.train_batch_size
    in_epoch = first % (N_SIMULATED_FILES * EXAMPLES_PER_FILE)
    shards[in_epoch // EXAMPLES_PER_FILE] = Shard(real, EXAMPLES_PER_FILE)
    start_seconds = time.perf_counter()
    Records(shards, rules).read(np.array([first]))
    return time.perf_counter() - start_seconds


def measure(config: RunConfig, n_batches: int, repeats: int) -> Figures:
    """Times the input and the model alternately."""
    with tempfile.TemporaryDirectory() as folder:
        batches = training_batches(config, [write_data(folder, config)])
        step = model_step(config)
        step()
        inputs, models = [], []
        for _ in range(repeats):
            inputs.append(tokens_per_second(lambda: consume(batches, n_batches), n_batches, config))
            models.append(tokens_per_second(step, 1, config))
        ratios = [read / consumed for read, consumed in zip(inputs, models, strict=True)]
        seeking = seek_seconds(folder, config)
    return Figures(config.name, *map(statistics.median, (inputs, models, ratios)), seeking)


def consume(batches: itertools.chain, n_batches: int) -> None:
    """Consumes batches; those that were prefetched count once, in the repeat that consumes them."""
    for _ in itertools.islice(batches, n_batches):
        pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Compare how fast batches are read with how fast a model consumes them."
    )
    parser.add_argument("--model", default="quickstart", help="a name (configs/NAME.json) or a path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--batches", type=int, default=100, help="batches per measurement (default 100)")
    parser.add_argument("--repeats", type=int, default=7, help="number of measurements of each (default 7)")
    parsed = parser.parse_args(arguments)
    try:
        config = load_config(parsed.model, parsed.set)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    figures = measure(config, parsed.batches, parsed.repeats)
    print(f"input  {figures.input_tokens_per_second:>12,.0f} tokens/s")
    print(f"model  {figures.model_tokens_per_second:>12,.0f} tokens/s")
    print(f"ratio  {figures.ratio:>12.1f}")
    print(f"seek   {figures.seek_seconds:>12.3f} s")
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
