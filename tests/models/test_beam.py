"""Beam search: its steps against a search in plain Python, and whole searches against the model in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import MoeParams
from meshtf import tf
from models.kernels import beams as kernels
from models.kernels.vocabulary import IdRanges, Vocabulary
from runtime.generation.beam_search import BeamHypothesis, BeamSearcher
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

Ended = tuple[float, tuple[int, ...]]  # score and text, the eos included
EOS = tiny.run_config().data.eos_id
PROMPT = (3, 1, 4, 15)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


def search(
    next_logits: Callable[[tuple[int, ...]], np.ndarray], eos_id: int, n_beams: int, penalty: float, max_new_tokens: int
) -> list[Ended]:
    """The finished texts of a search, best first."""
    open_texts, ended = [(0.0, ())], []
    for length in range(1, max_new_tokens + 1):
        continued = [
            (log_prob + step, (*text, token))
            for log_prob, text in open_texts
            for token, step in enumerate(log_softmax(next_logits(text)))
        ]
        most_likely = sorted(continued, reverse=True)[: 2 * n_beams]
        is_finished = [text[-1] == eos_id or length == max_new_tokens for _, text in most_likely]
        ended += [(most_likely[i][0] / length**penalty, most_likely[i][1]) for i in range(n_beams) if is_finished[i]]
        ended = sorted(ended, reverse=True)[:n_beams]
        open_texts = [most_likely[i] for i in range(2 * n_beams) if not is_finished[i]][:n_beams]
        if len(ended) == n_beams and open_texts and open_texts[0][0] / length**penalty <= ended[-1][0]:
            break
    return ended


N_BEAMS, N_VOCAB, N_NEW = 3, 7, 6


def turns(table: np.ndarray, penalty: float, max_new_tokens: int, unused: IdRanges = ()) -> list[Ended]:
    """A search with the kernels, where logits depend on the position and the previous token, at first 0.

    The table is [position, V, V].
    """
    texts, last = np.zeros((N_BEAMS, N_NEW), np.int32), np.zeros(N_BEAMS, np.int32)
    placeholder = np.full(N_BEAMS, kernels.NEG_INF, np.float32)
    state = [
        np.int32(0),
        texts,
        np.where(np.arange(N_BEAMS), placeholder, np.float32(0.0)),
        texts,
        last,
        placeholder,
        np.bool_(True),
    ]
    while state[-1]:
        inputs = [table[state[0], last], np.float32(penalty), np.int32(max_new_tokens), *state]
        _, last, *state = (x.numpy() for x in kernels.beam_step(Vocabulary(2, unused))(*map(tf.constant, inputs)))
    return [
        (score, tuple(text[:length].tolist()))
        for text, length, score in zip(state[3], state[4], state[5], strict=True)
        if length
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1.0, 2.0), st.integers(1, N_NEW), st.floats(-2.0, 3.0))
def test_steps_find_the_same_texts_as_a_plain_search(
    seed: int, penalty: float, max_new_tokens: int, eos_bias: float
) -> None:
    table = np.random.default_rng(seed).normal(0.0, 1.5, (N_NEW, N_VOCAB, N_VOCAB)).astype(np.float32)
    table[..., 2] += np.float32(eos_bias)
    exact = table.astype(np.float64)
    expected = search(lambda text: exact[len(text), text[-1] if text else 0], 2, N_BEAMS, penalty, max_new_tokens)
    actual = turns(table, penalty, max_new_tokens)
    np.testing.assert_allclose([score for score, _ in actual], [score for score, _ in expected], rtol=1e-5)
    assert [text for _, text in actual] == [text for _, text in expected]


@pytest.mark.parametrize(("penalty", "best"), [(-1.0, (2,)), (0.0, (2,)), (0.5, (2,)), (1.0, (0, 0, 0, 0, 0, 0))])
def test_the_length_penalty_by_hand(penalty: float, best: tuple[int, ...]) -> None:
    """After each 0 comes another 0 with probability .6, or the end with .4."""
    table = np.full((N_NEW, N_VOCAB, N_VOCAB), -30.0, np.float32)
    table[..., 0], table[..., 2] = np.log(0.6), np.log(0.4)
    found = {text: score for score, text in turns(table, penalty, N_NEW)}
    assert max(found, key=found.get) == best
    log_prob = sum(np.log({0: 0.6, 2: 0.4}[token]) for token in best)
    np.testing.assert_allclose(found[best], log_prob / len(best) ** penalty, rtol=1e-5)


def test_ids_that_are_no_token_continue_no_text() -> None:
    table = np.random.default_rng(0).normal(0.0, 1.5, (N_NEW, N_VOCAB, N_VOCAB)).astype(np.float32)
    table[..., 5:] += 20.0
    texts = [text for _, text in turns(table, 0.0, N_NEW, unused=((0, 1), (5, N_VOCAB)))]
    assert len(texts) == N_BEAMS and {token for text in texts for token in text} <= {1, 2, 3, 4}


def test_a_search_finds_at_most_one_text_per_first_token() -> None:
    table = np.full((N_NEW, 2, 2), 0.0, np.float32)
    assert sorted(text for _, text in turns(table, 1.0, 1)) == [(0,), (1,)]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A model that searches, and its variables."""

    writer: BeamSearcher
    values: Mapping[str, np.ndarray]


def searcher_of(
    devices: Sequence[str], mesh: tuple[str, str] = ("", ""), model: Mapping[str, object] = {}, n_beams: int = 3
) -> Searcher:
    """Its variables are the same on any mesh."""
    config = tiny.run_config(tiny.mesh_config(*mesh), model=model)
    placement = place(config.mesh, devices if mesh[0] else devices[:1])
    writer = BeamSearcher(config, placement)
    writer.program(len(PROMPT), n_beams, n_new_tokens=10)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return Searcher(writer, tiny.values_of(placement.store))


@pytest.fixture(scope="module")
def on_one_device(devices: tuple[str, ...]) -> Searcher:
    return searcher_of(devices)


def expected_answers(
    searcher: Searcher, model: Mapping[str, object], prompt: tuple[int, ...], penalty: float, n_new_tokens: int
) -> list[BeamHypothesis]:
    config = tiny.run_config(model=model).model

    def next_logits(text: tuple[int, ...]) -> np.ndarray:
        return reference.logits(config, searcher.values, np.array([prompt + text]))[0, -1]

    return [
        BeamHypothesis(text[:-1], score, "stop") if text[-1] == EOS else BeamHypothesis(text, score, "length")
        for score, text in search(next_logits, EOS, 3, penalty, n_new_tokens)
    ]


def assert_same(actual: Sequence[BeamHypothesis], expected: Sequence[BeamHypothesis]) -> None:
    assert [(answer.tokens, answer.finish_reason) for answer in actual] == [
        (answer.tokens, answer.finish_reason) for answer in expected
    ]
    np.testing.assert_allclose([answer.score for answer in actual], [answer.score for answer in expected], rtol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "penalty", "n_new_tokens"),
    [(PROMPT, 1.0, 10), (PROMPT, 0.0, 10), (PROMPT, -1.0, 1), ((7,), 2.0, 10), (tuple(range(20, 32)), 1.5, 4)],
    ids=str,
)
def test_beams_are_those_of_the_reference_model(
    on_one_device: Searcher, prompt: tuple[int, ...], penalty: float, n_new_tokens: int
) -> None:
    expected = expected_answers(on_one_device, {}, prompt, penalty, n_new_tokens)
    assert_same(on_one_device.writer.search(prompt, 3, penalty, n_new_tokens, 3), expected)
    assert_same(on_one_device.writer.search(prompt, 3, penalty, n_new_tokens, 1), expected[:1])


# A capacity for every token, so that no assignment is dropped.
MIXTURE = MoeParams(moe_num_experts=4, moe_hidden_size=16, moe_group_size=16, moe_capacity_factor_eval=4.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"attention_types": ("linear", "global"), "rotary_emb": True},
        {"num_mem_kv": 2, "macaron": True},
        {"moe_layers": (1,), "moe_params": MIXTURE},
    ],
    ids=str,
)
def test_every_kind_of_cache_follows_the_beams(devices: tuple[str, ...], model: Mapping[str, object]) -> None:
    searcher = searcher_of(devices, model=model)
    expected = expected_answers(searcher, model, PROMPT, 1.0, 10)
    assert_same(searcher.writer.search(PROMPT, 3, 1.0, 10, 3), expected)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("batch:x,heads:y,vocab:y,intermediate_expanded:y", marks=pytest.mark.slow),
        pytest.param("heads:x,vocab:y,memory_length:y,sequence:y", marks=pytest.mark.slow),
        pytest.param("batch:y,embd:x", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_finds_the_same_beams_as_one_device(
    devices: tuple[str, ...], on_one_device: Searcher, layout: str
) -> None:
    on_mesh = searcher_of(devices, ("x:2,y:2", layout)).writer
    for prompt in (PROMPT, PROMPT[:2]):
        actual, expected = (writer.search(prompt, 3, 1.0, 8, 3) for writer in (on_mesh, on_one_device.writer))
        assert_same(actual, expected)


@pytest.mark.slow
def test_one_beam_is_greedy_decoding(devices: tuple[str, ...]) -> None:
    searcher = searcher_of(devices, n_beams=1)
    text = list(PROMPT)
    while len(text) < len(PROMPT) + 8 and text[-1] != EOS:
        logits = reference.logits(tiny.MODEL, searcher.values, np.array([text]))
        text.append(int(logits[0, -1].argmax()))
    (answer,) = searcher.writer.search(PROMPT, 1, 1.0, 8, 1)
    assert list(answer.tokens) == [token for token in text[len(PROMPT) :] if token != EOS]


def test_one_program_serves_prompts_of_any_length(on_one_device: Searcher) -> None:
    writer = on_one_device.writer
    assert writer.program(4, 3, 10) is writer.program(9, 3, 2)
