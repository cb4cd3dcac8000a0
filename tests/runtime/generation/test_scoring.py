"""Scores of continuations equal those of the whole model in NumPy, in any company and on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import MoeParams
from runtime.generation.engine import Step
from runtime.generation.packed_batches import LONGEST_TYPICAL
from runtime.generation.scoring import Continuations, Scorer, TokenScores, build_scorer
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

N_CTX, EOS_ID = 40, 1
TEXT = tuple(np.random.default_rng(3).integers(2, tiny.MODEL.n_vocab, 100).tolist())
ASKED = [
    Continuations(TEXT[:4], (TEXT[4:9], TEXT[20:22], TEXT[9:10])),
    Continuations((EOS_ID,), (TEXT[:3],)),
    Continuations(TEXT[:30], (TEXT[30:34], TEXT[30:32], TEXT[50:65])),  # the context is cut for the last
    Continuations(TEXT[:20], (TEXT[20:60],)),  # only one token of the context is left
    Continuations(TEXT[:39], (TEXT[39:40], TEXT[40:41], TEXT[41:43])),
    Continuations(TEXT[:50], (TEXT[50:60], TEXT[60:70])),
    Continuations(TEXT[60:90], tuple(TEXT[n : n + 2] for n in range(0, 80, 2))),
]
THREE_KINDS = {"n_layer": 3, "attention_types": ("global", "local", "linear")}
EXPERTS = MoeParams(moe_num_experts=4, moe_group_size=6, moe_capacity_factor_eval=0.8, moe_hidden_size=16)
MODELS = {
    "learned": THREE_KINDS,
    "rotary": {**THREE_KINDS, "rotary_emb": True, "linear_attention_normalization": "feature"},
    "axial": {**THREE_KINDS, "axial_pos_emb": (4, 10)},
    "memory": {"num_mem_kv": 3, "no_weight_tie": True},
    "grouped": {
        **THREE_KINDS,
        "n_kv_head": 2,
        "num_mem_kv": 2,
        "attention_softcap": 1.5,
        "qk_norm": "head",
        "rotary_emb": True,
        "rotary_style": "interleaved",
    },
    "experts": {"moe_layers": (0, 1), "moe_params": EXPERTS},
    "one expert": {"moe_layers": (1,), "moe_params": dataclasses.replace(EXPERTS, moe_gating="top_1")},
    "shared": {"share_parameters": True, "rezero": True, "macaron": True, "attention_types": ("global", "none")},
}
Mesh = tuple[str, str]
ALONE: Mesh = ("", "")


@functools.cache
def build(
    devices: tuple[str, ...],
    name: str = "learned",
    batch_tokens: int = 2048,
    mesh: Mesh = ALONE,
    precision: str = "float32",
) -> tuple[Scorer, dict[str, np.ndarray]]:
    """A scorer and its weights, which are large enough for tokens of very different probabilities."""
    sizes = {"n_ctx": N_CTX, "local_attention_radius": 4, "precision": precision}
    config = tiny.run_config(tiny.mesh_config(*mesh), model=sizes | MODELS[name])
    placement = place(config.mesh, devices if mesh != ALONE else devices[:1])
    scorer = build_scorer(config, placement, batch_tokens=batch_tokens)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return scorer, tiny.values_of(placement.store)


def expected(
    model: Mapping[str, object], values: dict[str, np.ndarray], context: Sequence[int], choice: Sequence[int]
) -> TokenScores:
    """From one pass over the context, cut on its left, and the choice alone."""
    text = [*context, *choice][-N_CTX - 1 :]
    config = dataclasses.replace(tiny.MODEL, n_ctx=N_CTX, local_attention_radius=4, **model)
    logits = reference.logits(config, values, np.array([text[:-1]]))[0][-len(choice) :]
    of_choice = logits[np.arange(len(choice)), choice]
    largest = logits.max(-1)
    log_z = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    return TokenScores(of_choice - log_z, logits.argmax(-1) == choice)


def assert_same(actual: list[list[TokenScores]], wanted: list[list[TokenScores]], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(actual, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=tolerance, atol=tolerance / 10)
            np.testing.assert_array_equal(one.is_greedy, other.is_greedy)


def likely_asked(values: dict[str, np.ndarray], name: str) -> list[Continuations]:
    """ASKED, and a context with its most likely continuation."""
    config = dataclasses.replace(tiny.MODEL, n_ctx=N_CTX, local_attention_radius=4, **MODELS[name])
    text = list(TEXT[:10])
    for _ in range(5):
        text.append(int(reference.logits(config, values, np.array([text]))[0, -1].argmax()))
    return [*ASKED, Continuations(TEXT[:10], (tuple(text[10:]), (*text[10:13], 2, text[14])))]


@pytest.mark.parametrize(
    "name", ["learned", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "learned")]
)
def test_scores_equal_those_of_the_whole_model(name: str, devices: tuple[str, ...]) -> None:
    scorer, values = build(devices, name)
    asked = likely_asked(values, name)
    wanted = [[expected(MODELS[name], values, each.context, choice) for choice in each.choices] for each in asked]
    assert wanted[-1][0].is_greedy.all() and not all(scores.is_greedy.any() for scores in wanted[0])
    assert_same(scorer.score(asked), wanted, 1e-4)


@pytest.mark.parametrize("name", ["experts", pytest.param("learned", marks=pytest.mark.slow)])
def test_scores_do_not_depend_on_what_else_is_asked(name: str, devices: tuple[str, ...]) -> None:
    scorer, _ = build(devices, name)
    together = scorer.score(ASKED)
    alone = [[scorer.score([Continuations(each.context, [choice])])[0][0] for choice in each.choices] for each in ASKED]
    assert_same(alone, together)
    assert_same(scorer.score(ASKED[::-1] * 3), together[::-1] * 3)
    assert scorer.score([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_size(n_rows: int, devices: tuple[str, ...]) -> None:
    draw = np.random.default_rng(5)
    asked = [
        Continuations(TEXT[begin : begin + 12], [TEXT[end : end + 6] for end in draw.integers(0, 90, 4)])
        for begin in draw.integers(0, 80, 100)
    ]
    wanted = build(devices, "experts")[0].score(asked)
    assert_same(build(devices, "experts", batch_tokens=n_rows * LONGEST_TYPICAL)[0].score(asked), wanted)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 6), min_size=1, max_size=4)), max_size=2), st.data()
)
@settings(max_examples=15, deadline=None)
def test_any_lengths(devices: tuple[str, ...], lengths: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    def drawn(n_tokens: int) -> tuple[int, ...]:
        begin = data.draw(st.integers(0, len(TEXT) - n_tokens))
        return TEXT[begin : begin + n_tokens]

    scorer, values = build(devices, "rotary")
    asked = [Continuations(drawn(context), [drawn(choice) for choice in choices]) for context, choices in lengths]
    wanted = [[expected(MODELS["rotary"], values, each.context, choice) for choice in each.choices] for each in asked]
    assert_same(scorer.score(asked), wanted, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("learned", ("all:4", "batch:all")),
        ("rotary", ("x:2,y:2", "batch:x,vocab:y,heads:y,intermediate_expanded:y")),
        ("memory", ("x:2,y:2", "batch:x,embd:y")),
        ("grouped", ("x:2,y:2", "batch:x,heads:y,kv_heads:y")),
        ("axial", ("x:2,y:2", "sequence:x,memory_length:y,vocab:y")),
        ("experts", ("x:2,y:2", "batch:x,experts:x,expert_hidden:y,vocab:y")),
    ],
)
def test_scores_are_the_same_on_a_mesh(name: str, mesh: Mesh, devices: tuple[str, ...]) -> None:
    asked = likely_asked(build(devices, name)[1], name)
    assert_same(build(devices, name, mesh=mesh)[0].score(asked), build(devices, name)[0].score(asked))


@pytest.mark.parametrize("mesh", [ALONE, ("y:4", "vocab:y")], ids=str)
@pytest.mark.parametrize("weight", [0.0, np.nan])
def test_of_equal_logits_the_first_is_greedy_and_nan_is_not(
    weight: float, mesh: Mesh, devices: tuple[str, ...]
) -> None:
    config = tiny.run_config(tiny.mesh_config(*mesh), model={"n_ctx": N_CTX})
    placement = place(config.mesh, devices if mesh != ALONE else devices[:1])
    scorer = build_scorer(config, placement)
    for stored in placement.store:
        stored.assign_whole(np.full(stored.whole_shape, weight, np.float32))
    ((scores,),) = scorer.score([Continuations((EOS_ID,), [(0, 1, 0, config.model.n_vocab - 1)])])
    np.testing.assert_allclose(scores.log_probs, -np.log(config.model.n_vocab) + weight, rtol=1e-6)
    assert scores.is_greedy.tolist() == [weight == 0.0, False, weight == 0.0, False]


@pytest.mark.slow
def test_bfloat16(devices: tuple[str, ...]) -> None:
    scorer, values = build(devices, "memory", precision="bfloat16")
    for each, choices in zip(ASKED, scorer.score(ASKED), strict=True):
        for choice, scores in zip(each.choices, choices, strict=True):
            wanted = expected(MODELS["memory"], values, each.context, choice)
            np.testing.assert_allclose(scores.log_probs, wanted.log_probs, rtol=0.05, atol=0.05)
            assert (scores.log_probs <= 0.0).all()


def test_progress_counts_what_is_done(devices: tuple[str, ...]) -> None:
    scorer, _ = build(devices, "experts", batch_tokens=1)
    advances: list[int] = []
    scorer.score(ASKED * 3, advances.append)
    assert sum(advances) == 3 * len(ASKED) and len(advances) > 2


def test_each_batch_is_a_step_that_a_signal_can_stop(devices: tuple[str, ...]) -> None:
    n_steps = 0

    def stopped(step: Step) -> Step:
        def stopped_step(*arrays: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal n_steps
            n_steps += 1
            if n_steps == 2:
                raise KeyboardInterrupt
            return step(*arrays)

        return stopped_step

    config = tiny.run_config(model={"n_ctx": N_CTX})
    scorer = build_scorer(config, place(config.mesh, devices[:1]), stopped, batch_tokens=1)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(ASKED * 3)
    assert n_steps == 2
