"""Compares our evaluation tasks with lm-evaluation-harness on the same weights and files, item by item.

    make lm-eval
    .venv-lm-eval/bin/python benchmarks/train_gpt2.py --text "texts/**/*.txt" --out runs/gpt2_of_hf
    python3 benchmarks/evaluation.py --model random runs/quickstart runs/gpt2_of_hf --book book.txt --serve

Every JSON-lines file of --tasks_dir is evaluated on its first --limit items: by our tasks; by the harness with Hugging
Face on the exported weights; and with --serve by the harness's `local-completions` through our server. The server has
to generate a token besides what is scored, so that items longer than its n_ctx - 1 tokens are left out there. --book is
a text that is scored whole.

An item's figure may differ only where the scores of two choices are so close that errors of TOLERANCE swap them. The
exit status is 1 if anything else differs. The last line is a JSON object with the comparisons.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.generate import GPT2, set_weights
from benchmarks.harness import DEFAULT_PYTHON, Harness, check_python, hugging_face, started, train_tokenizer, write_yaml
from configs.errors import UserError
from configs.load import load_config
from configs.schema import RunConfig
from configs.weights import is_huggingface_folder
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.init_from import load_initial_weights
from runtime.checkpoint.weight_sources import StoredTensor
from runtime.generation.scoring import Scorer, build_scorer
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from tasks.evaluate import evaluate_task
from tasks.load import load_task
from tasks.table import TASKS
from tasks.task import CONTINUATION, MULTIPLE_CHOICE, ROLLING, Item, LoadedTask, Question, Task, TaskResult, Text

REPOSITORY = Path(__file__).resolve().parent.parent
LISTENING = re.compile(r"listening on (http://\S+)")
RANDOM = "random"
BOOK = "book"  # the name of its task
BATCH_SIZE = 16
MAX_TOKENS = 8192  # of the tokenizer of random models
RANDOM_KEYS = (*GPT2, "eos_id=0", "padding_id=0")  # its id 0 ends a text
TOLERANCE = 1e-3  # nats, of a log-likelihood
KINDS = {"choices": MULTIPLE_CHOICE, "context_options": MULTIPLE_CHOICE, "continuation": CONTINUATION, "text": ROLLING}
# The accuracies of an item: what the log-likelihood of a choice is divided by.
ACCURACIES: dict[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
# How much perplexities may differ, relative to theirs.
PERPLEXITIES = {"perplexity": 1e-3, **dict.fromkeys(("word_perplexity", "byte_perplexity", "bits_per_byte"), 1e-4)}

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OurSide:
    """A model of ours.

    Attributes:
        tokenizer: of the model.
        scorer: with the model's weights.
    """

    tokenizer: Tokenizer
    scorer: Scorer

    @staticmethod
    def load(folder: Path) -> OurSide:
        """Loads the folder of a run, or one of Hugging Face."""
        config = load_config(str(folder))
        placement = place(config.mesh, choose_devices(None, None))
        scorer = build_scorer(config, placement)
        load_initial_weights(str(folder), placement.store)
        return OurSide(load_tokenizer(str(folder / "tokenizer.json")), scorer)

    def evaluate(self, loaded: LoadedTask) -> TaskResult:
        """Evaluates a task."""
        return evaluate_task(loaded, self.tokenizer, self.tokenizer.eos_id, self.scorer, lambda n_done: None)

    def fits_server(self, item: Mapping[str, Any]) -> bool:
        """Returns whether the requests of an item leave room for a token that is generated."""
        texts = [context + continuation for context, continuation in item["requests"]]
        return max(map(len, self.tokenizer.encode_batch(texts))) < self.scorer.n_ctx


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task on both sides.

    Attributes:
        model: the folder.
        through: hf, or local-completions.
        task: its name.
        n_items: items that were compared.
        n_left_out: items that the server cannot take.
        largest_difference: of a log-likelihood, in nats.
        figures: ours and theirs, by name.
        n_close: items of which a figure differs since two choices are close.
        faults: what must not differ and does.
    """

    model: str
    through: str
    task: str
    n_items: int
    n_left_out: int
    largest_difference: float
    figures: dict[str, tuple[float, float]]
    n_close: int
    faults: list[str]


def compare(ours: Sequence[Record], theirs: Sequence[Record], items: Sequence[Item]) -> tuple[float, int, list[str]]:
    """Compares the records of the same items.

    Returns:
        The largest difference of a log-likelihood in nats, the number of items of which a figure differs since two
        choices are close, and what must not differ and does.
    """
    largest, n_close, faults = 0.0, 0, []
    for our, their, item in zip(ours, theirs, items, strict=True):
        sums = log_likelihoods(our)
        difference = float(np.abs(np.subtract(sums, their["log_likelihoods"])).max())
        largest = max(largest, difference)
        if difference > TOLERANCE and not isinstance(item, Text):
            faults.append(f"item {their['doc_id']}: log-likelihood: {sums}, {their['log_likelihoods']}")
        differing = [name for name in ACCURACIES if name in our and our[name] != their["figures"].get(name, our[name])]
        far = [name for name in differing if not is_close(name, sums, item)]
        n_close += bool(differing) and not far
        faults += [f"item {their['doc_id']}: {name}: {our[name]}, {their['figures'][name]}" for name in far]
    return largest, n_close, faults


def log_likelihoods(record: Record) -> list[float]:
    """Returns those of one of our records."""
    return record["log_likelihoods"] if "log_likelihoods" in record else [record["log_likelihood"]]


def is_close(name: str, sums: Sequence[float], item: Item) -> bool:
    """Returns whether errors of TOLERANCE can make another choice the best one by `name`."""
    if not isinstance(item, Question) or len(sums) == 1:
        return False
    lengths = np.array([ACCURACIES[name](choice) for choice in item.choices] * (len(sums) // len(item.choices)))
    scores, errors = np.array(sums) / lengths, TOLERANCE / lengths
    best = int(scores.argmax())
    return any(scores[best] - errors[best] <= scores[j] + errors[j] for j in range(len(sums)) if j != best)


def compare_figures(figures: Mapping[str, tuple[float, float]], share_close: float) -> Iterator[str]:
    """Yields a line for each figure of a task that differs by more than it may.

    Args:
        figures: ours and theirs.
        share_close: of the items, those of which a figure differs since two choices are close.
    """
    for name, (our, their) in figures.items():
        allowed = share_close if name in ACCURACIES else abs(their) * PERPLEXITIES[name]
        if abs(our - their) > allowed + 1e-9:
            yield f"{name}: {our}, {their}"


def write_random_model(folder: Path, config: RunConfig, texts: Sequence[str]) -> None:
    """Writes a Hugging Face folder with noisy initial weights and a tokenizer of the texts."""
    placement = place(config.mesh, choose_devices(None, None))
    build_scorer(config, placement)
    set_weights(placement)
    weights = {
        stored.name: StoredTensor(stored.name, stored.whole_shape, lambda stored=stored: stored.slices[0].numpy())
        for stored in placement.store
    }
    write_huggingface_folder(str(folder), config, weights, train_tokenizer(texts, MAX_TOKENS))


def find_tasks(folder: Path, limit: int) -> list[Task]:
    """Returns a task for each file of a folder; a task of the table with this file says what follows a query."""
    cues = {Path(task.file).name: task.cue for task in TASKS.values()}
    return [
        Task(file.stem, kind_of(file), str(file), limit=limit, cue=cues.get(file.name, ""))
        for file in sorted(folder.resolve().glob("*.jsonl"))
    ]


def kind_of(file: Path) -> str:
    """Returns the kind of task that the fields of a file are for."""
    with open(file, encoding="utf-8") as lines:
        fields = json.loads(next(lines)).keys()
    return next(kind for field, kind in KINDS.items() if field in fields)


def book_task(file: str, folder: Path) -> Task:
    """Returns the task of a text, whose file is written into the folder."""
    path = folder / f"{BOOK}.jsonl"
    path.write_text(json.dumps({"text": Path(file).read_text(encoding="utf-8")}) + "\n")
    return Task(BOOK, ROLLING, str(path))


@contextlib.contextmanager
def serving(folder: Path, log: Path) -> Iterator[dict[str, Any]]:
    """Serves a model; yields the harness's settings of `local-completions`, without the tokenizer."""
    command = [sys.executable, str(REPOSITORY / "main.py"), "--model", str(folder), "--serve", "0", "--rows", "16"]
    with (
        open(log, "w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            found = next(filter(None, map(LISTENING.search, process.stdout)), None)
            if found is None:
                raise SystemExit(log.read_text()[-3000:])
            with urllib.request.urlopen(f"{found[1]}/v1/models") as answer:
                name = json.load(answer)["data"][0]["id"]
            yield {"model": name, "base_url": f"{found[1]}/v1/completions", "tokenizer_backend": "huggingface"}
        finally:
            process.terminate()


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is compared of every model.

    Attributes:
        python: of the harness's environment.
        folder: for files that are made on the way.
        tasks: by name, with their items.
    """

    python: str
    folder: Path
    tasks: Mapping[str, LoadedTask]

    def measure(self, model: Path, exported: Path, is_served: bool) -> Iterator[Comparison]:
        """Yields the comparisons of a model.

        Args:
            model: the folder of a run, or of Hugging Face.
            exported: the same weights as a Hugging Face folder.
            is_served: the harness scores through our server as well.
        """
        side = OurSide.load(model)
        ours = {name: side.evaluate(loaded) for name, loaded in self.tasks.items()}
        with started(self.python, "hf", hugging_face(exported), self.folder) as harness:
            yield from self._compare(model, "hf", harness, ours, lambda item: True)
        if not is_served:
            return
        ours.pop(BOOK, None)  # the server's windows are shorter
        with serving(model, self.folder / "server.log") as settings:
            settings |= {"tokenizer": str(exported), "max_length": side.scorer.n_ctx, "num_concurrent": 2}
            with started(self.python, "local-completions", settings, self.folder) as harness:
                yield from self._compare(model, "local-completions", harness, ours, side.fits_server)

    def _compare(
        self,
        model: Path,
        through: str,
        harness: Harness,
        ours: Mapping[str, TaskResult],
        is_kept: Callable[[Record], bool],
    ) -> Iterator[Comparison]:
        for name, our in ours.items():
            loaded = self.tasks[name]
            theirs = harness.evaluate([name], BATCH_SIZE, loaded.task.limit)
            rows = list(zip(our.items, theirs.items[name], loaded.items, strict=True))
            kept = [row for row in rows if is_kept(row[1])]
            largest, n_close, faults = compare(*zip(*kept, strict=True))
            figures, n_left_out = {}, len(rows) - len(kept)
            if not n_left_out:
                known = {key.partition(",")[0]: value for key, value in theirs.figures[name].items()}
                figures = {key: (figure.value, known[key]) for key, figure in our.figures.items() if key in known}
                faults += compare_figures(figures, n_close / len(rows))
            yield Comparison(str(model), through, name, len(kept), n_left_out, largest, figures, n_close, faults)


def export(model: Path, folder: Path) -> Path:
    """Returns a Hugging Face folder with the weights of a run, which is written unless the model is one."""
    if is_huggingface_folder(str(model)):
        return model
    command = [sys.executable, str(REPOSITORY / "main.py"), "--model", str(model), "--export", "--export_format", "hf"]
    subprocess.run([*command, "--export_dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


def format_row(each: Comparison) -> str:
    """Returns a comparison as a line."""
    figures = "  ".join(f"{name} {our:.4f} {their:.4f}" for name, (our, their) in each.figures.items())
    state = "differs" if each.faults else "equal"
    return (
        f"{each.through:<18}{each.task:<16}{each.n_items:>6} items  {each.n_left_out} left out  {state:<8}"
        f"{each.largest_difference:.1e} nats  {each.n_close} close  {figures}"
    )


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[Comparison]:
    """Yields all comparisons; prints each, and what differs."""
    tasks = find_tasks(Path(arguments.tasks_dir), arguments.limit)
    tasks += [book_task(arguments.book, folder)] if arguments.book else []
    if not tasks:
        raise UserError(f"--tasks_dir {arguments.tasks_dir}: holds no .jsonl file; give a folder of evaluation sets")
    for task in tasks:
        write_yaml(folder, task.name, Path(task.file), task.cue)
    bench = Bench(arguments.lm_eval, folder, {task.name: load_task(task, "") for task in tasks})
    for number, name in enumerate(arguments.model):
        model = Path(name)
        if name == RANDOM:
            model = folder / RANDOM
            write_random_model(model, load_config("benchmark_small", RANDOM_KEYS), texts_of(bench.tasks.values()))
        print(name)
        for comparison in bench.measure(model, export(model, folder / f"exported_{number}"), arguments.serve):
            print("\n".join([format_row(comparison), *comparison.faults[:5]]), flush=True)
            yield comparison


def texts_of(tasks: Iterable[LoadedTask]) -> Iterator[str]:
    """Yields texts for a tokenizer."""
    for loaded in tasks:
        for item in loaded.items:
            yield item.text if isinstance(item, Text) else " ".join((*item.contexts, *item.choices))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[RANDOM], help="folders of runs or of Hugging Face; or random")
    parser.add_argument("--tasks_dir", default="datasets/tasks", help="evaluation sets in the form of llm-foundry")
    parser.add_argument("--limit", type=int, default=300, help="items of each file (default: 300)")
    parser.add_argument("--book", help="a text, UTF-8")
    parser.add_argument("--serve", action="store_true", help="compare through our server as well")
    parser.add_argument("--lm_eval", default=DEFAULT_PYTHON, help=f"Python with lm_eval (default: {DEFAULT_PYTHON})")
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = parse_arguments()
    try:
        check_python(arguments.lm_eval)
        with tempfile.TemporaryDirectory() as folder:
            comparisons = list(measure(arguments, Path(folder)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps([dataclasses.asdict(each) for each in comparisons]))
    return int(any(each.faults for each in comparisons))


if __name__ == "__main__":
    sys.exit(main())
