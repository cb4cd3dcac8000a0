"""Compares generation speed with Hugging Face's `generate`, on the same weights and machine.

    python3 benchmarks/generate.py --hugging_face .venv-parity/bin/python --start

Both sides read prompts of 32 tokens and generate 200 tokens in every row, first greedily and then by sampling; no text
ends early. Hugging Face's library runs in a process of the given Python (`make parity` makes one), on one thread or on
PyTorch's default number of threads, whichever is faster at that batch size. The two sides take turns and idle while
they wait, so that a machine that slows down slows both. The ceiling is the speed of a product with a matrix of as many
weights, timed in the same turns. The last line is a JSON object with the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.first_token import REPOSITORY, format_start, measure_start
from configs.errors import ConfigError, UserError
from configs.load import load_config
from configs.schema import PRECISIONS, RunConfig
from meshtf import tf
from models.kernels.sampling import SamplingParams
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.weight_sources import StoredTensor
from runtime.generation.engine import Engine, build_engine
from runtime.generation.requests import GenerationRequest
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import Placement, VariableSlices, place

N_PROMPT, N_NEW = 32, 200
BATCH_SIZES = (1, 8, 64)
NOISE = 0.05
# Turns the config into a GPT-2, for which Hugging Face's library has fused attention on a CPU; it has none for GPT-Neo.
GPT2 = ("qkv_bias=true", "scale_attn_weights=true")
# The same sampling parameters, as both sides name them.
RULES: dict[str, tuple[SamplingParams, dict[str, object]]] = {
    "greedy": (SamplingParams(temperature=0.0, never_end=True), {"do_sample": False}),
    "sampling": (
        SamplingParams(temperature=1.0, top_k=50, never_end=True),
        {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
    ),
}
HEAD = f"{'':<10}{'rows':>5}{'ours':>10}{'theirs':>10}{'ratio':>8}{'ceiling':>10}{'equal':>8}{'threads':>9}"
CHECK_PACKAGES = """
from importlib.util import find_spec
print(*(name for name in ("torch", "transformers") if find_spec(name) is None))
"""


@dataclasses.dataclass(frozen=True)
class Figures:
    """The measurements at one batch size with one rule.

    Attributes:
        rule: greedy or sampling.
        batch_size: number of rows.
        ours: our speed: median tokens a second of all rows together.
        theirs: that of Hugging Face.
        ratio: the median of `ratios`.
        ratios: our speed divided by theirs in each repeat.
        ceiling: speed of a matrix product with as many weights.
        equal_rows: share of the rows in which both sides generated the same tokens; None when sampling.
        their_threads: the number of threads on which theirs was faster.
    """

    rule: str
    batch_size: int
    ours: float
    theirs: float
    ratio: float
    ratios: tuple[float, ...]
    ceiling: float
    equal_rows: float | None
    their_threads: int


@dataclasses.dataclass(frozen=True)
class Theirs:
    """Hugging Face's `generate` in a process that waits for requests.

    Attributes:
        process: the process.
        default_threads: the number of threads that PyTorch uses by default.
        versions: of its packages.
    """

    process: subprocess.Popen
    default_threads: int
    versions: Mapping[str, str]

    def generate(self, prompts: np.ndarray, rule: str, n_threads: int) -> tuple[float, np.ndarray]:
        """Returns the seconds taken and the new tokens [batch, N_NEW]."""
        settings = RULES[rule][1] | {"max_new_tokens": N_NEW}
        request = {"prompts": prompts.tolist(), "n_threads": n_threads, "settings": settings}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        response = _response_of(self.process)
        return response["seconds"], np.array(response["tokens"])

    def best_threads(self, prompts: np.ndarray, rule: str) -> int:
        """Returns the number of threads on which it is faster; warms up both."""
        seconds = {}
        for n_threads in {1, self.default_threads}:
            self.generate(prompts, rule, n_threads)
            seconds[n_threads] = self.generate(prompts, rule, n_threads)[0]
        return min(seconds, key=seconds.__getitem__)


def _response_of(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    if not line:
        raise SystemExit("Hugging Face's process has ended; its output is above")
    return json.loads(line)


def find_python(name: str) -> str:
    """Returns the path of a Python that can run Hugging Face's library.

    Raises:
        UserError: it does not exist, or lacks the packages.
    """
    remedy = "`make parity` makes .venv-parity; or name the Python of an environment with torch and transformers"
    python = shutil.which(name)
    if python is None:
        raise UserError(f"--hugging_face {name}: is not a program; {remedy}")
    try:
        check = [python, "-c", CHECK_PACKAGES]
        missing = subprocess.run(check, env=_their_environment(), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"--hugging_face {name}: is not a working Python; {remedy}") from None
    if missing := missing.split():
        raise UserError(f"--hugging_face {name}: lacks {' and '.join(missing)}; {remedy}")
    return python


def _their_environment() -> dict[str, str]:
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet


@contextlib.contextmanager
def started(python: str, config: RunConfig, placement: Placement) -> Iterator[Theirs]:
    """Starts Hugging Face's side with our weights; its process ends with the context."""
    with tempfile.TemporaryDirectory() as folder:
        weights = {stored.name: _stored_tensor(stored) for stored in placement.store}
        write_huggingface_folder(f"{folder}/model", config, weights, None)
        command = [python, str(REPOSITORY / "benchmarks" / "hugging_face.py"), f"{folder}/model"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=_their_environment(), **pipes) as process:
            try:
                versions = _response_of(process)
                yield Theirs(process, versions.pop("n_threads"), versions)
            finally:
                process.kill()


def _stored_tensor(stored: VariableSlices) -> StoredTensor:
    """Returns a variable of one device."""
    return StoredTensor(f"the variable {stored.name}", stored.whole_shape, lambda: stored.slices[0].numpy())


def generate(engine: Engine, prompts: np.ndarray, rule: str) -> np.ndarray:
    """Returns the tokens that our side generates, [batch, N_NEW]."""
    requests = {
        row: GenerationRequest(tuple(prompt), RULES[rule][0], row, N_NEW) for row, prompt in enumerate(prompts.tolist())
    }
    engine.prefill(requests)
    chunks = engine.decode_steps(N_NEW)
    for row in requests:
        engine.release(row)
    return np.array([chunks[row].tokens for row in requests])


def products(config: RunConfig, device: str, batch_size: int) -> Callable[[], object]:
    """Returns a function that does the matrix products of generation with all weights, and no attention."""
    model = config.model
    n_attention = sum(kind != "none" for kind in model.attention_types)
    feed_forward = (3 if model.is_gated else 2) * model.feed_forward_width
    n_columns = 4 * n_attention * model.n_embd + model.n_layer * feed_forward + model.n_vocab
    with tf.device(device):
        rows, matrix = tf.random.normal([batch_size, model.n_embd]), tf.random.normal([model.n_embd, n_columns])

    def multiply() -> object:
        for _ in range(N_NEW):
            product = tf.matmul(rows, matrix)
        return product[0, 0].numpy()

    return multiply


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def set_weights(placement: Placement) -> None:
    """Initializes the variables and adds noise, so that the next token depends on all before it."""
    placement.store.initialize(seed=1)
    rng = np.random.default_rng(1)
    for stored in placement.store:
        noise = rng.normal(0.0, NOISE, stored.whole_shape).astype(np.float32)
        stored.assign_whole(stored.slices[0].numpy() + noise)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The two sides: an engine of one batch size, and Hugging Face's process."""

    config: RunConfig
    device: str
    engine: Engine
    theirs: Theirs

    def measure(self, rule: str, n_repeats: int) -> Figures:
        """Warms up both sides and times them in turn."""
        batch_size = self.engine.n_rows
        prompts = np.random.default_rng(0).integers(0, self.config.model.n_vocab, (batch_size, N_PROMPT))
        multiply = products(self.config, self.device, batch_size)
        multiply()
        our_tokens = generate(self.engine, prompts, rule)
        n_threads = self.theirs.best_threads(prompts, rule)
        turns = []
        for _ in range(n_repeats):
            our_seconds = timed(lambda: generate(self.engine, prompts, rule))
            their_seconds, their_tokens = self.theirs.generate(prompts, rule, n_threads)
            turns.append((our_seconds, their_seconds, timed(multiply)))
        equal_rows = float((our_tokens == their_tokens).all(1).mean()) if rule == "greedy" else None
        return figures_of(turns, rule, batch_size, equal_rows, n_threads)


def figures_of(
    turns: Sequence[tuple[float, float, float]], rule: str, batch_size: int, equal_rows: float | None, n_threads: int
) -> Figures:
    """Returns the figures, from the seconds of our side, theirs and the product in each repeat."""
    ours, theirs, ceiling = (batch_size * N_NEW / statistics.median(column) for column in zip(*turns, strict=True))
    ratios = tuple(their_seconds / our_seconds for our_seconds, their_seconds, _ in turns)
    return Figures(rule, batch_size, ours, theirs, statistics.median(ratios), ratios, ceiling, equal_rows, n_threads)


def measure(config: RunConfig, device: str, python: str, arguments: argparse.Namespace) -> Iterator[Figures]:
    """Yields the figures of both sides with the same weights, for each rule at each batch size."""
    placement = place(config.mesh, [device])
    engines = [build_engine(config, placement, batch_size) for batch_size in arguments.batch_sizes]
    set_weights(placement)
    with started(python, config, placement) as theirs:
        print(f"theirs: {', '.join(f'{name} {version}' for name, version in theirs.versions.items())}\n{HEAD}")
        for rule in RULES:
            for engine in engines:
                yield Bench(config, device, engine, theirs).measure(rule, arguments.repeats)


def format_row(figures: Figures) -> str:
    """Returns a line of the table under HEAD; speeds are in tokens a second."""
    equal = "" if figures.equal_rows is None else f"{figures.equal_rows:.0%}"
    return (
        f"{figures.rule:<10}{figures.batch_size:>5}{figures.ours:>10,.0f}{figures.theirs:>10,.0f}"
        f"{figures.ratio:>8.2f}{figures.ceiling:>10,.0f}{equal:>8}{figures.their_threads:>9}"
    )


def parse_count(text: str) -> int:
    """Parses a value of --repeats or --batch_sizes, a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1; give a whole number above 0")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Compare generation speed with Hugging Face's generate.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--gpu_ids", nargs=1, metavar="DEVICE", help="one device for our side, as device:GPU:0")
    parser.add_argument("--cache_dtype", choices=PRECISIONS, help="type of our KV cache")
    parser.add_argument("--batch_sizes", type=parse_count, nargs="+", default=BATCH_SIZES, metavar="N")
    parser.add_argument("--repeats", type=parse_count, default=5, help="measurements of each side (default 5)")
    parser.add_argument(
        "--hugging_face",
        default=str(REPOSITORY / ".venv-parity" / "bin" / "python"),
        metavar="PYTHON",
        help="with torch and transformers (default .venv-parity/bin/python, which `make parity` makes)",
    )
    parser.add_argument("--start", action="store_true", help="also measure the time to the first token")
    return parser.parse_args()


def report(config: RunConfig, device: str, python: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Measures and prints everything; returns the figures."""
    results: dict[str, object] = {"written": []}
    for figures in measure(config, device, python, arguments):
        print(format_row(figures), flush=True)
        results["written"].append(dataclasses.asdict(figures))
    if arguments.start:
        start = measure_start()
        print(format_start(start))
        results["start"] = dataclasses.asdict(start)
    return results


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = parse_arguments()
    cache_dtype = [f"cache_dtype={arguments.cache_dtype}"] if arguments.cache_dtype else []
    try:
        python = find_python(arguments.hugging_face)
        config = load_config("benchmark_small", [*GPT2, *cache_dtype, *arguments.set])
        check_length(config)
        results = report(config, choose_devices(arguments.gpu_ids, None)[0], python, arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(results))
    return 0


def check_length(config: RunConfig) -> None:
    """Checks that prompt and new tokens fit into the context.

    Raises:
        ConfigError: they do not.
    """
    if config.model.n_ctx < N_PROMPT + N_NEW:
        raise ConfigError(f"n_ctx = {config.model.n_ctx}: is too short; set it to {N_PROMPT + N_NEW} or more")


if __name__ == "__main__":
    sys.exit(main())
