"""Compares the speed of our evaluation tasks with lm-evaluation-harness and Hugging Face, on the same random weights.

    python3 benchmarks/evaluation_speed.py --tasks_dir datasets/tasks

Both sides tokenize and score the first --items items of LAMBADA and PIQA, in float32 on the same machine, at 6 layers x
256 with a vocabulary of 8,192 and with one of GPT-2's size, and at the size of GPT-2 small. The harness runs in a
process of its own, at whichever of the batch sizes 1, 16 and 64 is fastest, on one thread or on PyTorch's default
number of threads. The two sides take turns and idle while they wait, so that a machine that slows down slows both.
Where other programs run, threads that wait for one another lose most: give both sides one core and OMP_NUM_THREADS=1.
The last line is a JSON object with the figures.
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
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.evaluation import RANDOM_KEYS, OurSide, find_tasks, texts_of, write_random_model
from benchmarks.generate import parse_count
from benchmarks.harness import DEFAULT_PYTHON, Harness, check_python, hugging_face, started, write_yaml
from configs.errors import UserError
from configs.load import load_config
from tasks.load import load_task
from tasks.task import LoadedTask

TASKS = ("lambada_openai", "piqa")
BATCH_SIZES = (1, 16, 64)
GPT2_VOCABULARY = "n_vocab=50257"
SIZES = {
    "6x256-8k": (),  # a vocabulary of 8,192
    "6x256": (GPT2_VOCABULARY,),
    "gpt2": (
        *("n_layer=12", "n_embd=768", "n_head=12", "n_ctx=1024", GPT2_VOCABULARY),
        'attention_types=[[["global"], 12]]',
    ),
}
HEAD = f"{'size':<10}{'task':<16}{'ours':>10}{'theirs':>10}{'ratio':>8}{'batch':>7}{'threads':>9}"


@dataclasses.dataclass(frozen=True)
class Figures:
    """The measurements of a task at one size.

    Attributes:
        size: of the model.
        task: the task.
        ours: median items a second.
        theirs: the same of the harness.
        ratio: the median of `ratios`.
        ratios: our speed divided by theirs in each repeat.
        batch_size: at which the harness was fastest.
        n_threads: on which it was.
        their_seconds: of the harness at each batch size and number of threads, in one run.
    """

    size: str
    task: str
    ours: float
    theirs: float
    ratio: float
    ratios: tuple[float, ...]
    batch_size: int
    n_threads: int
    their_seconds: dict[str, float]


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def race(size: str, loaded: LoadedTask, ours: OurSide, theirs: Harness, repeats: int) -> Figures:
    """Warms up both sides, finds the harness's best batch size, and times both in turn."""
    name, n_items = loaded.task.name, len(loaded.items)

    def their_seconds(batch_size: int, n_threads: int) -> float:
        return theirs.evaluate([name], batch_size, n_items, n_threads).seconds

    ours.evaluate(loaded)
    ways = list(itertools.product(BATCH_SIZES, sorted({1, theirs.default_threads})))
    their_seconds(*ways[-1])
    tried = {way: their_seconds(*way) for way in ways}
    best = min(tried, key=tried.__getitem__)
    turns = [(timed(lambda: ours.evaluate(loaded)), their_seconds(*best)) for _ in range(repeats)]
    speeds = [n_items / statistics.median(column) for column in zip(*turns, strict=True)]
    ratios = tuple(their / our for our, their in turns)
    named = {f"batch {batch}, {n_threads} threads": seconds for (batch, n_threads), seconds in tried.items()}
    return Figures(size, name, *speeds, statistics.median(ratios), ratios, *best, named)


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Yields the figures of each task at each size."""
    tasks = [task for task in find_tasks(Path(arguments.tasks_dir), arguments.items) if task.name in TASKS]
    if not tasks:
        raise UserError(f"--tasks_dir {arguments.tasks_dir}: holds none of {', '.join(TASKS)}; --fetch_tasks gets them")
    for task in tasks:
        write_yaml(folder, task.name, Path(task.file), task.cue)
    loaded = [load_task(task, "") for task in tasks]
    for size in arguments.sizes:
        write_random_model(
            folder / size, load_config("benchmark_small", [*RANDOM_KEYS, *SIZES[size]]), texts_of(loaded)
        )
        ours = OurSide.load(folder / size)
        with started(arguments.lm_eval, "hf", hugging_face(folder / size), folder) as theirs:
            for task in loaded:
                yield race(size, task, ours, theirs, arguments.repeats)


def format_row(figures: Figures) -> str:
    """Returns a line of the table under HEAD; speeds are in items a second."""
    return (
        f"{figures.size:<10}{figures.task:<16}{figures.ours:>10.1f}{figures.theirs:>10.1f}{figures.ratio:>8.2f}"
        f"{figures.batch_size:>7}{figures.n_threads:>9}"
    )


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks_dir", default="datasets/tasks", help="with lambada_openai.jsonl and piqa.jsonl")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--items", type=parse_count, default=150, help="of each task (default: 150)")
    parser.add_argument("--repeats", type=parse_count, default=5, help="measurements of each side (default: 5)")
    parser.add_argument("--lm_eval", default=DEFAULT_PYTHON, help=f"Python with lm_eval (default: {DEFAULT_PYTHON})")
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, results = parse_arguments(), []
    try:
        check_python(arguments.lm_eval)
        with tempfile.TemporaryDirectory() as folder:
            print(HEAD)
            for figures in measure(arguments, Path(folder)):
                print(format_row(figures), flush=True)
                results.append(dataclasses.asdict(figures))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
