"""Comparing the items of two runs: which ones changed, and whether the difference of a figure may be chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.errors import DataError
from tasks.evaluate import ACCURACIES
from tasks.files import read_rows
from tasks.rows import Row

Record = Mapping[str, Any]
LOG_LIKELIHOOD = "log_likelihood"
SIGNIFICANT = 0.05
PERMUTATIONS = 9999
MOST_EXACT = 13  # pairs of which all changes of signs are tried
_BLOCK = 1 << 22  # signs in memory
_SHOWN = 10  # numbers of items in a line
_SAME = ("continuation", "continuations", "gold", "text", "words", "bytes", "references")
_LISTS = ("log_likelihoods", "window_log_likelihoods")
_NUMBERS = (*ACCURACIES, LOG_LIKELIHOOD, *_LISTS)


@dataclass(frozen=True)
class PairedTest:
    """The difference of a figure between two runs.

    Attributes:
        figure: its name; `LOG_LIKELIHOOD` is that of the right continuation or of the text, in nats.
        before: the mean over the pairs in the first run.
        after: the same in the second run.
        stderr: the standard error of the difference; None: of a single pair.
        p_value: how likely a difference is at least as large if the runs are alike; two-sided.
    """

    figure: str
    before: float
    after: float
    stderr: float | None
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """The items of a task in two runs.

    Attributes:
        task: its name.
        n_pairs: number of items that are compared.
        n_unpaired: number of items that only one has.
        n_not_finite: number of items that both have and that are NaN or infinite in one, as of a model that diverged.
        n_other_prompts: number of pairs whose contexts differ, as with other few-shot examples.
        gained: for each accuracy the numbers of the items that became right.
        lost: the same of those that became wrong.
        tests: one for each figure.
    """

    task: str
    n_pairs: int
    n_unpaired: int
    n_not_finite: int
    n_other_prompts: int
    gained: dict[str, list[int]]
    lost: dict[str, list[int]]
    tests: list[PairedTest]


def read_records(path: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of a file by their task.

    Raises:
        DataError: it cannot be read, or a line is no record.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        row.count("doc_id")
        record = {**row.values, **{name: _read_numbers(row, name) for name in _NUMBERS if name in row}}
        if "log_likelihoods" in row:
            row.index("gold", len(record["log_likelihoods"]))
        by_task.setdefault(row.filled_text("task"), []).append(record)
    return by_task


def _read_numbers(row: Row, name: str) -> float | list[float]:
    """Returns a number or a list of them, of which some may be written as "nan" or "-inf"."""
    try:
        numbers = np.array(row.values[name], np.float64)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != (name in _LISTS):
        expected = "a list of numbers" if name in _LISTS else "a number"
        raise row.error(name, f"is not {expected}", "compare files that --log_samples has written")
    return numbers.tolist()


def compare(before: Sequence[Record], after: Sequence[Record]) -> Comparison:
    """Compares the records of one task.

    Raises:
        DataError: an item is another one in the second run.
    """
    first, second = ({record["doc_id"]: record for record in records} for records in (before, after))
    numbers = sorted(first.keys() & second.keys())
    task = before[0]["task"]
    for number in numbers:
        _check_same(task, first[number], second[number])
    both = [(first[number], second[number]) for number in numbers]
    pairs = [pair for pair in both if all(map(_is_finite, pair))]
    names = [name for name in ACCURACIES if pairs and all(name in record for pair in pairs for record in pair)]
    return Comparison(
        task,
        len(pairs),
        len(first.keys() ^ second.keys()),
        len(both) - len(pairs),
        sum(_contexts(a) != _contexts(b) for a, b in pairs),
        {name: [a["doc_id"] for a, b in pairs if a[name] < b[name]] for name in names},
        {name: [a["doc_id"] for a, b in pairs if a[name] > b[name]] for name in names},
        [*(_accuracy_test(name, pairs) for name in names), *_likelihood_tests(pairs)],
    )


def _is_finite(record: Record) -> bool:
    return all(np.all(np.isfinite(record[name])) for name in _NUMBERS if name in record)


def _contexts(record: Record) -> Any:
    return record.get("contexts", record.get("context"))


def _check_same(task: str, before: Record, after: Record) -> None:
    if changed := [key for key in _SAME if before.get(key) != after.get(key)]:
        raise DataError(
            f"{task}: item {before['doc_id']}: {changed[0]}: differs between the runs; compare runs on one file"
        )


def _accuracy_test(name: str, pairs: Sequence[tuple[Record, Record]]) -> PairedTest:
    values = np.array([(before[name], after[name]) for before, after in pairs], np.float64)
    difference = values[:, 1] - values[:, 0]
    p_value = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return _test(name, values, p_value)


def _likelihood_tests(pairs: Sequence[tuple[Record, Record]]) -> Iterator[PairedTest]:
    values = np.array(list(itertools.chain.from_iterable(itertools.starmap(_likelihoods, pairs))), np.float64)
    if len(values):
        yield _test(LOG_LIKELIHOOD, values, sign_permutation(values[:, 1] - values[:, 0]))


def _likelihoods(before: Record, after: Record) -> list[tuple[float, float]]:
    """Returns pairs of the right continuation, or of the windows of a text, or of the text if its windows differ."""
    if "log_likelihoods" in before:
        gold = before["gold"]
        return [(before["log_likelihoods"][gold], after["log_likelihoods"][gold])]
    if "window_tokens" in before and before["window_tokens"] == after["window_tokens"]:
        return list(zip(before["window_log_likelihoods"], after["window_log_likelihoods"], strict=True))
    return [(before[LOG_LIKELIHOOD], after[LOG_LIKELIHOOD])] if LOG_LIKELIHOOD in before else []


def _test(name: str, values: np.ndarray, p_value: float) -> PairedTest:
    difference = values[:, 1] - values[:, 0]
    stderr = float(difference.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    before, after = values.mean(axis=0)
    return PairedTest(name, float(before), float(after), stderr, p_value)


def mcnemar(n_gained: int, n_lost: int) -> float:
    """Returns the two-sided p-value of the exact test of McNemar.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947, in its exact
    form: of the items that changed, each became right or wrong by the toss of a coin.
    """
    n_changed = n_gained + n_lost
    ways = tail = 1  # binomial coefficients one after another: anew they would take a minute for 20,000 items
    for k in range(min(n_gained, n_lost)):
        ways = ways * (n_changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n_changed)


def sign_permutation(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of a mean difference of pairs, if each sign could as well be the other.

    All changes of signs count where the pairs are few, and else `PERMUTATIONS` of them, which are always the same.
    Source: Fisher, "The Design of Experiments", 1935, section 21.
    """
    size = len(differences)
    observed = abs(float(differences.sum())) * (1 - 1e-12)  # sums in another order differ in their last bits
    if size <= MOST_EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=size)))
        return float((np.abs(signs @ differences) >= observed).mean())
    generator, n_extreme = np.random.default_rng(0), 0
    for start in range(0, PERMUTATIONS, max(1, _BLOCK // size)):
        n_rows = min(max(1, _BLOCK // size), PERMUTATIONS - start)
        signs = generator.integers(0, 2, (n_rows, size), np.int8) * 2.0 - 1.0
        n_extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + n_extreme) / (1 + PERMUTATIONS)


def format_comparison(comparison: Comparison) -> Iterator[str]:
    """Yields the lines that tell of a comparison."""
    notes = [f"{comparison.n_pairs:,} items"]
    notes += [f"{comparison.n_unpaired:,} in one run only, left out"] if comparison.n_unpaired else []
    notes += [f"{comparison.n_not_finite:,} without finite figures, left out"] if comparison.n_not_finite else []
    notes += [f"{comparison.n_other_prompts:,} with other prompts"] if comparison.n_other_prompts else []
    yield f"{comparison.task}: {'; '.join(notes)}"
    for test in comparison.tests:
        error = "" if test.stderr is None else f" ± {test.stderr:.4g}"
        verdict = "significant" if test.p_value < SIGNIFICANT else "may be chance"
        yield (
            f"  {test.figure:<14} {test.before:.4f} -> {test.after:.4f}  {test.after - test.before:+.4f}{error}  "
            f"p = {test.p_value:.2g}, {verdict}"
        )
    for word, by_figure in (("gained", comparison.gained), ("lost", comparison.lost)):
        yield from (f"  {name} {word}: {_listed(numbers)}" for name, numbers in by_figure.items() if numbers)


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    return f"{len(numbers):,} items: {', '.join(map(str, numbers[:_SHOWN]))}{more}"
