"""NIST and BLEU as NIST's script mteval-v14c counts them.

Papers: Doddington, "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence Statistics" (2002);
Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation" (2002). Why not by libraries: the BLEU
of sacrebleu differs in case beyond ASCII, without any match, and for orders without an n-gram; the NIST of nltk differs
for most texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ORDERS = (1, 2, 3, 4)
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
UPPER_TO_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
# Symbols; a full stop or comma after, or before, anything but a digit; a dash after a digit.
TOKEN_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
# The penalty is 0.5 for hypotheses of two thirds of the references' length.
NIST_BETA = math.log(0.5) / math.log(1.5) ** 2

Ngram = tuple[str, ...]


def tokenize(text: str, is_case_sensitive: bool = False) -> list[str]:
    """Returns the tokens of a text by the rules for Western languages."""
    text = text.replace("<skipped>", "")
    for entity, character in ENTITIES.items():
        text = text.replace(entity, character)
    if not is_case_sensitive:
        text = text.translate(UPPER_TO_LOWER)
    text = f" {text} "
    for pattern, replacement in TOKEN_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def count_ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    """Returns how often each n-gram of 1 to 4 tokens occurs."""
    return Counter(tuple(tokens[start : start + order]) for order in ORDERS for start in range(len(tokens) - order + 1))


@dataclass(frozen=True)
class MatchCounts:
    """What NIST and BLEU need of hypotheses (I) for each order of n-grams (N).

    Attributes:
        matches_IN: n-grams that a reference has too, each at most as often as one reference has it.
        ngrams_IN: all n-grams.
        closest_length_I: tokens of the reference whose length is closest, the shorter of two.
        mean_length_I: mean tokens of the references.
        information_IN: the information of the matches, in bits.
    """

    matches_IN: np.ndarray
    ngrams_IN: np.ndarray
    closest_length_I: np.ndarray
    mean_length_I: np.ndarray
    information_IN: np.ndarray

    def take(self, rows: Sequence[int] | slice) -> MatchCounts:
        """Returns the counts of some of the hypotheses."""
        return MatchCounts(*(array[rows] for array in vars(self).values()))


def count_matches(
    systems: Sequence[Sequence[str]], references: Sequence[Sequence[str]], is_case_sensitive: bool = False
) -> list[MatchCounts]:
    """Counts the matches of each hypothesis of each system with its references.

    Args:
        systems: the hypotheses of each system.
        references: one or more for each hypothesis; the information of an n-gram comes from all of them together.
        is_case_sensitive: tells upper from lower case.
    """
    tokens = [[tokenize(text, is_case_sensitive) for text in texts] for texts in references]
    total_counts: Counter[Ngram] = Counter()
    for reference in (each for texts in tokens for each in texts):
        total_counts.update(count_ngrams(reference))
    n_tokens = sum(len(reference) for texts in tokens for reference in texts)
    rows: list[list[tuple[Any, ...]]] = [[] for _ in systems]
    for item, texts in enumerate(tokens):
        most = _most_counts(texts)
        lengths = [len(reference) for reference in texts]
        for system, hypotheses in enumerate(systems):
            hypothesis = tokenize(hypotheses[item], is_case_sensitive)
            matches, information = _match(hypothesis, most, total_counts, n_tokens)
            rows[system].append((matches, *_lengths(hypothesis, lengths), information))
    return [MatchCounts(*(np.array(column, float) for column in zip(*each, strict=True))) for each in rows]


def _most_counts(references: Sequence[Sequence[str]]) -> dict[Ngram, int]:
    """Returns how often each n-gram occurs in the reference that has it most often."""
    most: dict[Ngram, int] = {}
    for ngram, count in (pair for reference in references for pair in count_ngrams(reference).items()):
        most[ngram] = max(count, most.get(ngram, 0))
    return most


def _match(
    hypothesis: Sequence[str], most: dict[Ngram, int], total_counts: Counter[Ngram], n_tokens: int
) -> tuple[list[int], list[float]]:
    """Returns the matches of each order, and their information in bits."""
    matches, information = [0] * len(ORDERS), [0.0] * len(ORDERS)
    for ngram, count in count_ngrams(hypothesis).items():
        clipped = min(count, most.get(ngram, 0))
        if clipped:
            matches[len(ngram) - 1] += clipped
            information[len(ngram) - 1] += clipped * _information(ngram, total_counts, n_tokens)
    return matches, information


def _lengths(hypothesis: Sequence[str], lengths: Sequence[int]) -> tuple[list[int], int, float]:
    """Returns the number of n-grams of a hypothesis, and the closest and the mean length of its references."""
    ngrams = [max(0, len(hypothesis) - order + 1) for order in ORDERS]
    closest = min(lengths, key=lambda length: (abs(length - len(hypothesis)), length))
    return ngrams, closest, sum(lengths) / len(lengths)


def _information(ngram: Ngram, total_counts: Counter[Ngram], n_tokens: int) -> float:
    """Returns the information of the last word after the others, in bits."""
    is_first = ngram[:-1] in ((), ("0",))  # in Perl the text "0" is false, as the empty text is
    return math.log2((n_tokens if is_first else total_counts[ngram[:-1]]) / total_counts[ngram])


def bleu(counts: MatchCounts) -> list[float]:
    """Returns cumulative BLEU of orders 1 to 4; each order without matches counts half as much as the one before."""
    matches_N, ngrams_N = counts.matches_IN.sum(0), counts.ngrams_IN.sum(0)
    if ngrams_N[0] == 0:
        return [0.0] * len(ORDERS)
    brevity = min(0.0, 1 - counts.closest_length_I.sum() / ngrams_N[0])
    logs, smoothing = [], 1.0
    for n_matches, n_ngrams in zip(matches_N, ngrams_N, strict=True):
        if n_matches == 0:
            smoothing *= 2
        logs.append(math.log((n_matches or 1 / smoothing) / n_ngrams) if n_ngrams else 0.0)
    return [math.exp(sum(logs[:order]) / order + brevity) for order in ORDERS]


def nist(counts: MatchCounts) -> list[float]:
    """Returns cumulative NIST of orders 1 to 4."""
    information_N = counts.information_IN.sum(0) / np.maximum(counts.ngrams_IN.sum(0), 1)
    penalty = _length_penalty(counts.ngrams_IN[:, 0].sum(), counts.mean_length_I.sum())
    return [float(value) * penalty for value in information_N.cumsum()]


def _length_penalty(hypothesis_tokens: float, reference_tokens: float) -> float:
    if hypothesis_tokens >= reference_tokens:
        return 1.0
    return math.exp(NIST_BETA * math.log(hypothesis_tokens / reference_tokens) ** 2) if hypothesis_tokens else 0.0
