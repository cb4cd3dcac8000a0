"""Evaluating a task: what is asked, and the figures and records of the answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from tasks.figures import mean_figure, perplexity_figure, rolling_figures
from tasks.requests import build_requests
from tasks.scorer import Continuations, Scorer, Tokenizer, TokenScores
from tasks.task import (
    CONTINUATION,
    MULTIPLE_CHOICE,
    ROLLING,
    Figure,
    Item,
    LoadedTask,
    Question,
    Task,
    TaskResult,
    Text,
)

Scores = Sequence[TokenScores]
ACCURACIES = ("acc", "acc_norm", "acc_bytes")


def evaluate_task(
    loaded: LoadedTask, tokenizer: Tokenizer, start_id: int, scorer: Scorer, advance: Callable[[int], None]
) -> TaskResult:
    """Scores a task's items and measures them.

    Args:
        loaded: a task of any kind but dialogue, whose answers `tasks.dialogue` measures.
        tokenizer: of the model.
        start_id: stands for the start of a document, as eos does in training.
        scorer: the model.
        advance: is called with a number n when n of the entries of `build_requests` are done.

    Raises:
        DataError: an item does not fit the tokenizer or the model.
        ConfigError: the stride does not fit n_ctx.
    """
    return score_requests(loaded, build_requests(loaded, tokenizer, start_id, scorer.n_ctx), scorer, advance)


def score_requests(
    loaded: LoadedTask,
    requests: Sequence[tuple[Continuations, ...]],
    scorer: Scorer,
    advance: Callable[[int], None],
) -> TaskResult:
    """Scores what `build_requests` has built of a task, which can be kept between evaluations, and measures it."""
    scores = iter(scorer.score(list(chain.from_iterable(requests)), advance))
    by_item = [list(chain.from_iterable(islice(scores, len(asked)))) for asked in requests]
    return measure(loaded, by_item)


def measure(loaded: LoadedTask, scores: Sequence[Scores]) -> TaskResult:
    """Returns the figures and records of a task.

    Args:
        loaded: the task.
        scores: for each item those of its choices, or of the windows of its text.
    """
    task = loaded.task
    records = [
        {"task": task.name, "doc_id": number, "line": item.line, **_RECORDS[task.kind](item, each)}
        for number, (item, each) in enumerate(zip(loaded.items, scores, strict=True))
    ]
    return TaskResult(task.name, len(records), _figures(task, records), records)


def _log_likelihood(scores: TokenScores) -> float:
    return float(np.sum(scores.log_probs, dtype=np.float64))


def _continuation_record(item: Item, scores: Scores) -> dict[str, Any]:
    assert isinstance(item, Question)
    ((context, continuation),), (only,) = item.pairs, scores
    log_likelihood = _log_likelihood(only)
    return {
        "context": context,
        "continuation": continuation,
        "log_likelihood": log_likelihood,
        "n_tokens": len(only.log_probs),
        "acc": _accuracy(bool(np.all(only.is_greedy)), [log_likelihood]),
    }


def _accuracy(is_right: bool, log_likelihoods: Sequence[float]) -> float:
    """Returns 1 or 0; NaN where a log-likelihood is, as of a model that has diverged: it has chosen nothing."""
    return math.nan if any(map(math.isnan, log_likelihoods)) else float(is_right)


def _choice_record(item: Item, scores: Scores) -> dict[str, Any]:
    assert isinstance(item, Question)
    sums = [_log_likelihood(each) for each in scores]
    return {
        **({"subject": item.subject} if item.subject else {}),
        "contexts": list(item.contexts),
        "continuations": [item.delimiter + choice for choice in item.choices],
        "gold": item.gold,
        "log_likelihoods": sums,
        "n_tokens": [len(each.log_probs) for each in scores],
        **{name: _accuracy(best == item.gold, sums) for name, best in _best_choices(item, sums).items()},
    }


def _best_choices(item: Question, sums: Sequence[float]) -> dict[str, int]:
    """Returns the choice of the highest sum, of the highest by character, and of the highest by byte.

    Lengths are those of the choices without the delimiter. Contexts that compete have one continuation, and one figure.
    """
    if item.contexts_compete:
        return {"acc": int(np.argmax(sums))}
    lengths = {
        "acc": [1] * len(sums),
        "acc_norm": list(map(len, item.choices)),
        "acc_bytes": [len(choice.encode("utf-8")) for choice in item.choices],
    }
    with np.errstate(divide="ignore"):  # a choice may be empty without its marks
        return {name: int(np.argmax(np.divide(sums, each))) for name, each in lengths.items()}


def _text_record(item: Item, scores: Scores) -> dict[str, Any]:
    assert isinstance(item, Text)
    sums = [_log_likelihood(each) for each in scores]
    return {
        "text": item.text[:_SHOWN],
        "words": len(re.split(r"\s+", item.counted)),  # blanks at an end count as one more, as in the harness
        "bytes": len(item.counted.encode("utf-8")),
        "log_likelihood": sum(sums),
        "window_log_likelihoods": sums,
        "window_tokens": [len(each.log_probs) for each in scores],
    }


_SHOWN = 200  # characters of a text that its record holds
_RECORDS: Mapping[str, Callable[[Item, Scores], dict[str, Any]]] = {
    CONTINUATION: _continuation_record,
    ROLLING: _text_record,
    MULTIPLE_CHOICE: _choice_record,
}


def _figures(task: Task, records: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    if task.kind == CONTINUATION:
        perplexity = perplexity_figure([record["log_likelihood"] for record in records])
        return {"acc": mean_figure([record["acc"] for record in records]), "perplexity": perplexity}
    if task.kind == ROLLING:
        return _rolling_figures(task, records)
    subjects = [record.get("subject", "") for record in records]
    names = [name for name in ACCURACIES if all(name in record for record in records)]
    whole = {name: mean_figure([record[name] for record in records], subjects) for name in names}
    return whole | dict(_subject_figures(task, records, subjects))


def _rolling_figures(task: Task, records: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    windows = [list(zip(record["window_log_likelihoods"], record["window_tokens"], strict=True)) for record in records]
    figures = rolling_figures(windows, [record["words"] for record in records], [record["bytes"] for record in records])
    suffix = "" if task.stride is None else f"_stride_{task.stride}"
    return {f"{name}{suffix}": figure for name, figure in figures.items()}


def _subject_figures(
    task: Task, records: Sequence[Mapping[str, Any]], subjects: Sequence[str]
) -> Iterator[tuple[str, Figure]]:
    """Yields the accuracy of each group of subjects, and of each subject; a dot separates task and figure in Sacred."""
    names = {name: (name,) for name in sorted(set(subjects) - {""})}
    for name, members in (dict(task.groups) | names).items():
        chosen = [
            (record["acc"], subject) for record, subject in zip(records, subjects, strict=True) if subject in members
        ]
        if chosen:
            yield f"{name.replace('.', '_')}/acc", mean_figure(*zip(*chosen, strict=True))
