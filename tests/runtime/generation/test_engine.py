"""Texts written side by side, against the whole model one token at a time, alone, in company and on meshes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from configs.schema import PredictionConfig, RunConfig
from models.kernels.sampling import SamplingParams
from runtime.generation.engine import (
    Engine,
    StaticBatchEngine,
    TokenChunk,
    build_engine,
    padded_length,
    prompt_arrays,
)
from runtime.generation.programs import build_generate
from runtime.generation.requests import GenerationRequest
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

# Windows of 4 positions: texts are longer, so that the places of a local layer are used again and again.
MODEL = dataclasses.replace(
    tiny.MODEL, n_layer=3, n_ctx=40, attention_types=("global", "local", "none"), local_attention_radius=4
)
LINEAR = dataclasses.replace(MODEL, attention_types=("linear", "local", "global"))
GREEDY, FREE = SamplingParams(temperature=0.0), SamplingParams()
NO_EOS = MODEL.n_vocab  # an id that is never drawn
PROMPTS = ((3, 1, 4, 15), (9,), tuple(range(1, 34)), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8))


def run_config(mesh: tuple[str, str] = ("", ""), eos_id: int = NO_EOS, **changes: object) -> RunConfig:
    config = tiny.run_config(tiny.mesh_config(*mesh))
    data = dataclasses.replace(config.data, eos_id=eos_id)
    prediction = PredictionConfig(cache_dtype=changes.pop("cache_dtype", None))
    model = dataclasses.replace(MODEL, **changes)
    return dataclasses.replace(config, model=model, data=data, prediction=prediction)


@dataclasses.dataclass(frozen=True)
class Writer:
    """An engine with weights, and their values by name."""

    engine: Engine
    values: dict[str, np.ndarray]

    def write(self, requests: Mapping[int, GenerationRequest], n_steps: int = 100) -> dict[int, TokenChunk]:
        """All that these requests give, in rows of their own, so many turns at a time."""
        self.engine.prefill(requests)
        chunks: dict[int, list[TokenChunk]] = {row: [] for row in requests}
        while any(not parts or parts[-1].finish_reason is None for parts in chunks.values()):
            for row, chunk in self.engine.decode_steps(n_steps).items():
                chunks[row].append(chunk)
        for row in requests:
            self.engine.release(row)
        return {row: join_chunks(parts) for row, parts in chunks.items()}


def join_chunks(chunks: Sequence[TokenChunk]) -> TokenChunk:
    together = [sum((getattr(chunk, name) for chunk in chunks), ()) for name in ("tokens", "log_probs", "top")]
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    return TokenChunk(*together, chunks[-1].finish_reason)


def assert_same(actual: TokenChunk, expected: TokenChunk) -> None:
    """The same text; the last bits of probabilities may depend on the row."""
    assert (actual.tokens, actual.finish_reason) == (expected.tokens, expected.finish_reason)
    np.testing.assert_allclose(actual.log_probs, expected.log_probs, 1e-4)
    assert [[one for one, _ in top] for top in actual.top] == [[one for one, _ in top] for top in expected.top]


def writer_of(devices: Sequence[str], n_rows: int = 4, mesh: tuple[str, str] = ("", ""), **changes: object) -> Writer:
    config = run_config(mesh, **changes)
    placement = place(config.mesh, devices if mesh[0] else devices[:1])
    engine = build_engine(config, placement, n_rows)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return Writer(engine, tiny.values_of(placement.store))


def requests(sampling: SamplingParams, max_new_tokens: int = 7, n_top: int = 0) -> dict[int, GenerationRequest]:
    return {
        row: GenerationRequest(prompt, sampling, 5 + row, max_new_tokens, n_top) for row, prompt in enumerate(PROMPTS)
    }


@pytest.fixture(scope="module")
def on_one_device(devices: tuple[str, ...]) -> Writer:
    return writer_of(devices)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_without_temperature_it_is_the_likeliest_token_of_the_whole_model(on_one_device: Writer) -> None:
    written = on_one_device.write(requests(GREEDY, n_top=3))
    for row, prompt in enumerate(PROMPTS):
        text, chunk = list(prompt), written[row]
        for token, log_prob, top in zip(chunk.tokens, chunk.log_probs, chunk.top, strict=True):
            log_probs = log_softmax(reference.logits(MODEL, on_one_device.values, np.array([text]))[0, -1])
            likeliest = np.argsort(-log_probs)[:3]
            assert token == likeliest[0] and [one for one, _ in top] == likeliest.tolist()
            np.testing.assert_allclose([log_prob, *(value for _, value in top)], log_probs[[token, *likeliest]], 1e-4)
            text.append(token)
        assert (len(chunk.tokens), chunk.finish_reason) == (7, "length")
    assert len({chunk.tokens for chunk in written.values()}) == 4


@pytest.mark.parametrize("n_steps", [1, 3])
def test_texts_do_not_depend_on_how_often_they_are_asked_for(on_one_device: Writer, n_steps: int) -> None:
    often, once = on_one_device.write(requests(FREE), n_steps), on_one_device.write(requests(FREE))
    assert often == once  # to the last bit


def test_a_text_is_the_same_in_any_row_and_company(on_one_device: Writer) -> None:
    together = on_one_device.write(requests(FREE))
    for row, request in requests(FREE).items():
        assert_same(on_one_device.write({3 - row: request})[3 - row], together[row])


def test_texts_come_and_go_while_others_are_written(on_one_device: Writer) -> None:
    together = on_one_device.write(requests(FREE))
    engine, (first, second, third, _) = on_one_device.engine, requests(FREE).values()
    engine.prefill({0: first, 2: third})
    parts = [engine.decode_steps(2)]
    engine.prefill({1: second})
    parts.append(engine.decode_steps(2))
    engine.release(2)  # in its midst
    parts.append(engine.decode_steps(2))
    engine.prefill({2: first})
    parts += [engine.decode_steps(2) for _ in range(4)]
    assert engine.decode_steps(2) == {}
    for row in (0, 1, 2):
        engine.release(row)
    again = [part[2] for part in parts[3:] if 2 in part]
    assert_same(join_chunks([part[0] for part in parts if 0 in part]), together[0])
    assert_same(join_chunks(again), together[0])
    assert_same(join_chunks([part[1] for part in parts if 1 in part]), together[1])
    assert (
        join_chunks([part[2] for part in parts[:2]]).tokens == together[2].tokens[:5]
    )  # one with its prompt, then 2 and 2


def test_seeds_differ(on_one_device: Writer) -> None:
    same_prompt = {row: GenerationRequest(PROMPTS[0], FREE, seed, 20) for row, seed in enumerate((0, 1, 2, 2**31 - 1))}
    assert len({chunk.tokens for chunk in on_one_device.write(same_prompt).values()}) == 4


@pytest.mark.parametrize(
    ("mesh", "n_rows"),
    [
        (("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"), 4),
        pytest.param(("x:4", "batch:x"), 4, marks=pytest.mark.slow),
        pytest.param(("x:2,y:2", "batch:y,embd:x"), 4, marks=pytest.mark.slow),
        pytest.param(("x:2,y:2", "batch:y,sequence:x,memory_length:x"), 4, marks=pytest.mark.slow),
        pytest.param(("x:2,y:2", "batch:x,heads:y"), 5, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_writes_the_texts_of_one_device(
    devices: tuple[str, ...], on_one_device: Writer, mesh: tuple[str, str], n_rows: int
) -> None:
    on_mesh, steered = writer_of(devices, n_rows, mesh), SamplingParams(1.2, 9, 0.9, repetition_penalty=1.3)
    for sampling in (FREE, steered):
        expected, actual = (
            on_one_device.write(requests(sampling, n_top=2)),
            on_mesh.write(requests(sampling, n_top=2), 3),
        )
        for row, chunk in expected.items():
            assert_same(actual[row], chunk)


@pytest.mark.slow
def test_linear_layers_keep_their_sums_only(devices: tuple[str, ...]) -> None:
    changes = {"attention_types": LINEAR.attention_types}
    writer = writer_of(devices, **changes)
    held = {name: slices[0].shape for name, slices in writer.engine._row_state.slices.items()}
    heads, features = MODEL.n_head, MODEL.features_per_head
    assert held["cache_0/context"] == (4, heads, features, features)
    assert held["cache_1/keys_0"] == (4, heads, 4, features)
    assert held["cache_2/keys_0"] == (4, heads, 40, features)
    written = writer.write(requests(GREEDY))
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token in written[row].tokens:
            assert token == reference.logits(LINEAR, writer.values, np.array([text]))[0, -1].argmax()
            text.append(token)


def test_a_cache_of_bfloat16_changes_little(devices: tuple[str, ...], on_one_device: Writer) -> None:
    rough = writer_of(devices, cache_dtype="bfloat16")
    assert rough.engine._row_state.slices["cache_0/keys_0"][0].dtype.name == "bfloat16"
    expected, actual = (writer.write(requests(GREEDY, 2)) for writer in (on_one_device, rough))
    for row, chunk in expected.items():
        np.testing.assert_allclose(actual[row].log_probs[0], chunk.log_probs[0], 1e-4)  # of the prompt alone
        assert actual[row].tokens[0] == chunk.tokens[0]
        if actual[row].tokens[1] == chunk.tokens[1]:
            np.testing.assert_allclose(actual[row].log_probs[1], chunk.log_probs[1], atol=0.05)
    assert any(actual[row].tokens == chunk.tokens for row, chunk in expected.items())


def test_a_row_ends_at_eos_and_the_others_go_on(devices: tuple[str, ...], on_one_device: Writer) -> None:
    endless = on_one_device.write(requests(FREE))
    eos_id = endless[1].tokens[3]  # so that row 1 ends in the midst
    written = writer_of(devices, eos_id=eos_id).write(requests(FREE))
    for row, chunk in endless.items():
        end = chunk.tokens.index(eos_id) if eos_id in chunk.tokens else 7
        assert written[row].tokens == chunk.tokens[:end]
        assert written[row].finish_reason == ("stop" if end < 7 else "length")
    assert written[1].finish_reason == "stop" and any(chunk.finish_reason == "length" for chunk in written.values())


def test_scores_are_those_of_the_whole_model(on_one_device: Writer) -> None:
    for text in (PROMPTS[3], PROMPTS[2], tuple(range(40))):
        chunk = on_one_device.engine.score(text, 2)
        log_probs = log_softmax(reference.logits(MODEL, on_one_device.values, np.array([text]))[0])[:-1]
        assert chunk.tokens == text[1:] and chunk.finish_reason is None
        np.testing.assert_allclose(chunk.log_probs, log_probs[np.arange(len(text) - 1), text[1:]], 1e-3, 1e-5)
        assert [[one for one, _ in top] for top in chunk.top] == np.argsort(-log_probs)[:, :2].tolist()


def test_whole_texts_are_those_that_the_cache_gives(devices: tuple[str, ...], on_one_device: Writer) -> None:
    config = run_config()
    placement = place(config.mesh, devices[:1])
    engine = StaticBatchEngine(40, 4, lambda *size: build_generate(config, placement, *size))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    expected, actual = on_one_device.write(requests(FREE)), Writer(engine, {}).write(requests(FREE))
    for row, chunk in expected.items():
        assert_same(actual[row], chunk)


def test_prompts_are_read_by_few_programs() -> None:
    assert [padded_length(n, 100) for n in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    tokens, row_inputs, floats, integers = prompt_arrays(list(requests(FREE, n_top=1).values())[:3], 40)
    assert (tokens.shape, row_inputs.shape, len(floats), len(integers)) == ((4, 40), (4, 4), 4, 4)
    assert row_inputs.tolist() == [[4, 1, 33, 1], [11, 8, 40, 0], [5, 6, 7, 0], [1, 1, 1, 0]]
