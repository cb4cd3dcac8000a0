"""The mixture of experts in NumPy and float64: token by token with a capacity, and dense without one.

Shape legend: B batch, T tokens, E embd, X experts, H expert_hidden, K choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Weights:
    """router [E, X], wi [X, E, H], wo [X, H, E]."""

    router: np.ndarray
    wi: np.ndarray
    wo: np.ndarray

    def expert(self, index: int, x: np.ndarray) -> np.ndarray:
        """One expert with relu on [..., E]."""
        return np.maximum(x @ self.wi[index], 0.0) @ self.wo[index]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How tokens choose experts.

    Attributes:
        sends_second: whether the second choice counts, given the row, the token and the second gate.
    """

    n_choices: int
    group_size: int
    capacity: int
    sends_second: Callable[[int, int, float], bool] = lambda row, token, gate: True


@dataclasses.dataclass(frozen=True)
class Routed:
    """The routing of one row's tokens, best choice first.

    Attributes:
        places: [T, K], how many earlier tokens of the group were sent to the expert; -1: does not count.
        counts: [X], in the group of the last token.
    """

    experts: np.ndarray
    gates: np.ndarray
    places: np.ndarray
    counts: np.ndarray


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def best(logits: np.ndarray, n_choices: int) -> tuple[np.ndarray, np.ndarray]:
    """The best experts and their gates, both [..., K]; a single gate is a probability, two gates sum to 1."""
    experts = np.argsort(-logits, -1, kind="stable")[..., :n_choices]
    gates = np.take_along_axis(softmax(logits), experts, -1)
    return experts, gates / gates.sum(-1, keepdims=True) if n_choices == 2 else gates


def routed(logits: np.ndarray, row: int, rule: Rule) -> Routed:
    """Routes the tokens of one row in order, from logits [T, X]."""
    experts, gates = best(logits, rule.n_choices)
    places = np.full(experts.shape, -1)
    for token, choices in enumerate(experts):
        if token % rule.group_size == 0:
            counts = np.zeros(logits.shape[-1], int)
        for choice, expert in enumerate(choices):
            if choice == 0 or rule.sends_second(row, token, gates[token, 1]):
                places[token, choice] = counts[expert]
                counts[expert] += 1
    return Routed(experts, gates, places, counts)


def mixture(x: np.ndarray, weights: Weights, rule: Rule) -> tuple[np.ndarray, float]:
    """Outputs [B, T, E], and the fraction of assignments that are dropped, averaged over the rows."""
    outputs = np.zeros_like(x)
    dropped = []
    for row, tokens in enumerate(x):
        routes = routed(tokens @ weights.router, row, rule)
        dropped.append((routes.places >= rule.capacity).sum() / (routes.places >= 0).sum())
        for token, choice in zip(*np.where((routes.places >= 0) & (routes.places < rule.capacity)), strict=True):
            expert = weights.expert(routes.experts[token, choice], tokens[token])
            outputs[row, token] += routes.gates[token, choice] * expert
    return outputs, float(np.mean(dropped))


def dense_mixture(x: np.ndarray, weights: Weights, n_choices: int) -> np.ndarray:
    """Runs all experts on all tokens, then selects those that were chosen."""
    experts, gates = best(x @ weights.router, n_choices)
    every = np.stack([weights.expert(index, x) for index in range(len(weights.wi))], -2)
    return (gates[..., None] * np.take_along_axis(every, experts[..., None], -2)).sum(-2)


def load(x: np.ndarray, weights: Weights) -> np.ndarray:
    """[B, X], the fraction of each row's tokens whose first choice is each expert."""
    return np.eye(len(weights.wi))[(x @ weights.router).argmax(-1)].mean(1)


def aux_loss(x: np.ndarray, weights: Weights, coefficient: float, z_coefficient: float) -> float:
    """Load-balance loss of the mean row, and the mean square of the log-partition, each with its coefficient."""
    logits = x @ weights.router
    balance = len(weights.wi) * (load(x, weights) * softmax(logits).mean(1)).sum(-1).mean()
    return coefficient * balance + z_coefficient * (np.log(np.exp(logits).sum(-1)) ** 2).mean()
