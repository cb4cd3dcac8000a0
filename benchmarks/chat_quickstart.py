"""Compares the model of `make chat-quickstart` with a trigram model, and with itself trained without loss weights.

    python3 benchmarks/chat_quickstart.py

All figures are perplexities of the same held-out tokens: those of responses, each with what comes before it. The
trigram model is interpolated Kneser-Ney (Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for
Language Modeling", section 4.1.6), with a discount for each order estimated from the counts of counts. It learns the
tokens that count in the model's loss, and sees two tokens before each of them, context included.

Without loss weights, the same model is trained in two ways: on the same conversations as plain text, in as many passes,
so that it learns each token as often; and on the same examples, in as many steps, so that it learns more tokens: turns
that begin an example only to give context, a second time.

What `make chat-quickstart` has prepared and trained is used; else it is done first. The last line is a JSON object with
the results.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from commands.run_data import RunData
from configs.errors import UserError
from configs.load import load_config
from configs.schema import DatasetConfig, RunConfig
from data.dialogue.conversation import from_text
from data.dialogue.readers import conversations_of
from data.preprocessing.prepare import PreparedDataset
from data.preprocessing.splits import TRAIN, DocumentOptions
from data.text.documents import TextFormat, identity_digest
from data.text.files import find_files
from data.tfrecord.records import Record, decode_records, write_examples
from data.tfrecord.shards import list_shards
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from runtime.run.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = "chat_quickstart"
LINES = "Hi!\nHow are you?\nWhat do you do for fun?\n"
MINIMUM_DISCOUNT = 0.1

# Maps n-grams, and the probability of the last id of each by the model of the order below, to probabilities, [n-grams].
Interpolate = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Results:
    """The measured figures.

    Attributes:
        perplexity: of the held-out tokens of responses, by the model of the quickstart.
        kneser_ney_perplexity: by the trigram model.
        plain_text_perplexity: by the model trained on the same text without loss weights, in as many passes.
        unweighted_perplexity: by the model trained on the same examples without loss weights, in as many steps.
        held_out_tokens: how many these are.
        training_tokens: tokens of responses to train on.
        seconds: of each command, where it ran.
    """

    perplexity: float
    kneser_ney_perplexity: float
    plain_text_perplexity: float
    unweighted_perplexity: float
    held_out_tokens: int
    training_tokens: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Quickstart:
    """What `make chat-quickstart` trains.

    Attributes:
        config: the run.
        ready: its prepared dataset.
    """

    config: RunConfig
    ready: PreparedDataset

    @staticmethod
    def of(config: RunConfig) -> Quickstart:
        """Prepares the dataset unless it is prepared."""
        (ready,) = RunData.of(config).prepared
        return Quickstart(config, ready)

    @property
    def dataset(self) -> DatasetConfig:
        """Its only dataset."""
        return self.config.data.datasets[0].dataset

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the dataset."""
        return load_tokenizer(self.ready.tokenizer_path)

    @property
    def folder(self) -> str:
        """Where other records of the same conversations are written."""
        return self.dataset.cache_dir

    @property
    def n_examples(self) -> int:
        """Number of the examples to train on."""
        return sum(shard.n_examples for shard in list_shards(self.ready.train_pattern))

    @property
    def evaluation(self) -> dict[str, object]:
        """The keys of a dataset config with the same held-out responses."""
        keys = {key: getattr(self.dataset, key) for key in ("n_vocab", "eos_id", "padding_id")}
        return keys | {"eval_path": self.ready.eval_pattern, "tokenizer_path": self.ready.tokenizer_path}


def weighted_trigrams(records: Iterator[Record], start_id: int) -> np.ndarray:
    """Returns each token that counts in the loss after the two before it in its segment, [tokens, 3].

    Args:
        records: with weights and segments.
        start_id: stands for a token before the first of a segment.
    """
    found = []
    for record in records:
        ids = np.concatenate([[start_id] * 2, record.ids_L])
        segments = np.concatenate([[0] * 2, record.segments_L])
        before = [np.where(segments[n : n - 2] == record.segments_L, ids[n : n - 2], start_id) for n in (0, 1)]
        found.append(np.stack([*before, record.ids_L], axis=1)[record.loss_weights_L > 0])
    return np.concatenate(found)


def absolute_discount(counts: np.ndarray) -> float:
    """Returns n1 / (n1 + 2 n2), where nk is how many of the counts are k (Ney, Essen and Kneser 1994)."""
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return max(once / max(once + 2 * twice, 1), MINIMUM_DISCOUNT)


def interpolated(keys: np.ndarray, counts: np.ndarray, n_ids: int) -> Interpolate:
    """Returns the model of one order.

    Args:
        keys: distinct n-grams as numbers in base n_ids, ascending, [n-grams].
        counts: how often each occurs, or after how many ids, [n-grams].
        n_ids: ids lie in [0, n_ids).
    """
    discount = absolute_discount(counts)
    contexts, rows = np.unique(keys // n_ids, return_inverse=True)
    totals, n_followers = np.bincount(rows, counts), np.bincount(rows)

    def probabilities(asked: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        count = np.where(keys[at] == asked, counts[at], 0)
        row = np.minimum(np.searchsorted(contexts, asked // n_ids), len(contexts) - 1)
        own = (np.maximum(count - discount, 0) + discount * n_followers[row] * shorter) / totals[row]
        return np.where(contexts[row] == asked // n_ids, own, shorter)

    return probabilities


def kneser_ney(trigrams: np.ndarray, n_vocab: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the model of trigrams [tokens, 3]: a function from others to the probabilities of their last ids."""
    n_ids = n_vocab + 1
    powers = n_ids ** np.arange(3)
    keys, counts = np.unique(trigrams @ powers[::-1], return_counts=True)
    models = []
    for power in (n_ids**2, n_ids, 1):
        models.append(interpolated(keys, counts, n_ids))
        keys, counts = np.unique(keys % power, return_counts=True)  # an n-gram counts once for each id before it

    def probabilities(asked: np.ndarray) -> np.ndarray:
        found = np.full(len(asked), 1 / n_vocab)
        for model, power in zip(reversed(models), n_ids * powers, strict=True):
            found = model(asked @ powers[::-1] % power, found)
        return found

    return probabilities


def kneser_ney_perplexity(train: np.ndarray, held_out: np.ndarray, n_vocab: int) -> float:
    """Returns the perplexity of the last ids of held-out trigrams, [tokens, 3]."""
    return math.exp(-np.log(kneser_ney(train, n_vocab)(held_out)).mean())


def records_of(pattern: str) -> Iterator[Record]:
    """Yields the records of the files that a glob matches."""
    for path in sorted(glob.glob(pattern)):
        yield from decode_records(path)


def without_weights(pattern: str) -> Iterator[Record]:
    """Yields the records of a glob without loss weights: every token counts, those of context and padding too."""
    return (replace(record, loss_weights_L=None) for record in records_of(pattern))


def plain_text(dataset: DatasetConfig, tokenizer: Tokenizer, length: int) -> Iterator[Record]:
    """Yields the answered training conversations as one stream, each token once, cut anywhere into examples.

    Args:
        dataset: of raw conversations.
        tokenizer: encodes them.
        length: ids of an example.
    """
    options = DocumentOptions(
        TextFormat(convert=conversations_of), eval_fraction=dataset.eval_fraction, split_digest=identity_digest
    )
    documents = itertools.chain.from_iterable(map(options.read, find_files(dataset.dialogue)))
    texts = (document.text for document, split in documents if split == TRAIN and document.text)
    turns = itertools.chain.from_iterable(turns for turns in map(from_text, texts) if len(turns) > 1)
    stream = itertools.chain.from_iterable((*tokenizer.encode(turn.text), dataset.eos_id) for turn in turns)
    while len(ids := list(itertools.islice(stream, length))) == length:
        yield Record(np.array(ids), None, np.ones(length, np.int64))


def run_seconds(*arguments: str, lines: str = "") -> float:
    """Runs main.py, and returns how long it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "main.py", *arguments], cwd=REPOSITORY, input=lines, text=True, check=True)
    return time.perf_counter() - started


def evaluated(model_path: str) -> float:
    """Returns the perplexity that the last evaluation of a run has measured."""
    return next(line["perplexity"] for line in reversed(read_metrics(model_path)) if line["split"] == "eval")


def train_on(records: Iterable[Record], quickstart: Quickstart, name: str, steps: int | None = None) -> float:
    """Trains the quickstart's model on other records; returns its perplexity of the held-out responses.

    Args:
        records: to train on.
        quickstart: what to train and to evaluate.
        name: ends the names of the folders.
        steps: how many; None: as many as make the same number of passes over the records as the quickstart's.
    """
    folder, model_path = f"{quickstart.folder}/{name}", f"{quickstart.config.model_path}_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    n_examples = write_examples(f"{folder}/{name}.tfrecords", records)
    steps = steps or round(quickstart.config.training.train_steps * n_examples / quickstart.n_examples)
    dataset = {"id": name, "path": f"{folder}/*.tfrecords", "packing": "masked"} | quickstart.evaluation
    overrides = {"datasets": json.dumps([dataset]), "model_path": model_path, "train_steps": steps}
    flags = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    run_seconds("--model", MODEL, *flags)
    run_seconds("--model", MODEL, "--eval", *flags)
    return evaluated(model_path)


def measure() -> Results:
    """Trains and measures everything that is not there yet."""
    seconds = {
        "train": run_seconds("--model", MODEL),
        "eval": run_seconds("--model", MODEL, "--eval"),
        "chat": run_seconds("--model", MODEL, "--chat", lines=LINES),
    }
    quickstart = Quickstart.of(load_config(MODEL))
    config, ready, tokenizer = quickstart.config, quickstart.ready, quickstart.tokenizer
    splits = (ready.train_pattern, ready.eval_pattern)
    train, held_out = (weighted_trigrams(records_of(pattern), tokenizer.n_vocab) for pattern in splits)
    text = plain_text(quickstart.dataset, tokenizer, config.model.n_ctx + 1)
    unweighted, steps = without_weights(ready.train_pattern), config.training.train_steps
    return Results(
        perplexity=evaluated(config.model_path),
        kneser_ney_perplexity=kneser_ney_perplexity(train, held_out, tokenizer.n_vocab),
        plain_text_perplexity=train_on(text, quickstart, "plain_text"),
        unweighted_perplexity=train_on(unweighted, quickstart, "unweighted", steps),
        held_out_tokens=len(held_out),
        training_tokens=len(train),
        seconds=seconds,
    )


def main(arguments: Sequence[str]) -> int:
    """Prints the results; returns the exit status."""
    if arguments:
        print(f"{arguments[0]}: this benchmark takes no arguments; leave it out", file=sys.stderr)
        return 2
    try:
        results = measure()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
