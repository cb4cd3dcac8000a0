"""Log-probabilities of continuations equal those of the whole model in NumPy, in any batch and on meshes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.generation.scoring import Scorer, build_scorer
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

MODEL = dataclasses.replace(tiny.MODEL, n_ctx=40, attention_types=("global", "local"), local_attention_radius=4)
EOS_ID = 1
TEXT = tuple(np.random.default_rng(3).integers(2, MODEL.n_vocab, 60).tolist())
PAIRS = [
    (TEXT[:4], TEXT[4:9]),
    ((), TEXT[:3]),
    (TEXT[:30], TEXT[30:34]),
    (TEXT[:20], TEXT[20:60]),  # the continuation fills the context but for one token
    (TEXT[:39], TEXT[39:40]),
    (TEXT[:50], TEXT[50:60]),
]


def build(
    devices: tuple[str, ...], n_rows: int = 4, mesh: tuple[str, str] = ("", "")
) -> tuple[Scorer, dict[str, np.ndarray]]:
    config = tiny.run_config(tiny.mesh_config(*mesh))
    data = dataclasses.replace(config.data, eos_id=EOS_ID)
    config = dataclasses.replace(config, model=MODEL, data=data)
    placement = place(config.mesh, devices if mesh[0] else devices[:1])
    scorer = build_scorer(config, placement, n_rows=n_rows)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return scorer, tiny.values_of(placement.store)


def expected(values: dict[str, np.ndarray], context: tuple[int, ...], continuation: tuple[int, ...]) -> np.ndarray:
    """The log-probability of each token of a continuation after the last tokens of its context."""
    text = [*(context or (EOS_ID,)), *continuation][-MODEL.n_ctx - 1 :]
    logits = reference.logits(MODEL, values, np.array([text[:-1]]))[0][-len(continuation) :]
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(continuation)), continuation]


@pytest.mark.parametrize("n_rows", [1, 4])
def test_scores_equal_those_of_the_whole_model(devices: tuple[str, ...], n_rows: int) -> None:
    scorer, values = build(devices, n_rows)
    for pair, actual in zip(PAIRS, scorer.log_probs(PAIRS), strict=True):
        np.testing.assert_allclose(actual, expected(values, *pair), 1e-3, 1e-5)
    assert scorer.log_probs([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("all:4", "batch:all"), ("x:2,y:2", "batch:x,vocab:y,heads:y")])
def test_scores_are_the_same_on_a_mesh(devices: tuple[str, ...], mesh: tuple[str, str]) -> None:
    alone, split = (build(devices, n_rows=4, mesh=each)[0].log_probs(PAIRS) for each in (("", ""), mesh))
    for one, other in zip(alone, split, strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)
