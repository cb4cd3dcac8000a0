"""Texts generated side by side equal those of the whole model token by token: alone, batched and on meshes."""

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

# Windows of 4 positions, so that texts wrap around the cache of a local layer several times.
MODEL = dataclasses.replace(
    tiny.MODEL, n_layer=3, n_ctx=40, attention_types=("global", "local", "none"), local_attention_radius=4
)
LINEAR = dataclasses.replace(MODEL, attention_types=("linear", "local", "global"))
GREEDY, FREE = SamplingParams(temperature=0.0), SamplingParams()
NO_EOS = MODEL.n_vocab  # an id that is never sampled
PROMPTS = ((3, 1, 4, 15), (9,), tuple(range(1, 34)), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8))


def run_config(mesh: tuple[str, str] = ("", ""), eos_id: int = NO_EOS, **changes: object) -> RunConfig:
    config = tiny.run_config(tiny.mesh_config(*mesh))
    data = dataclasses.replace(config.data, eos_id=eos_id)
    prediction = PredictionConfig(cache_dtype=changes.pop("cache_dtype", None))
    model = dataclasses.replace(MODEL, **changes)
    return dataclasses.replace(config, model=model, data=data, prediction=prediction)


@dataclasses.dataclass(frozen=True)
class EngineWithWeights:
    """An engine with weights, and their values by name."""

    engine: Engine
    values: dict[str, np.ndarray]

    def generate(self, requests: Mapping[int, GenerationRequest], n_steps: int = 100) -> dict[int, TokenChunk]:
        """Generates all requests, each in its row, this many steps at a time."""
        self.engine.prefill(requests)
        chunks: dict[int, list[TokenChunk]] = {row: [] for row in requests}
        while any(not parts or parts[-1].finish_reason is None for parts in chunks.values()):
            for row, chunk in self.engine.decode_steps(n_steps).items():
                chunks[row].append(chunk)
        for row in requests:
            self.engine.release(row)
        return {row: join_chunks(parts) for row, parts in chunks.items()}


def join_chunks(chunks: Sequence[TokenChunk]) -> TokenChunk:
    batched = [sum((getattr(chunk, name) for chunk in chunks), ()) for name in ("tokens", "log_probs", "top")]
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    return TokenChunk(*batched, chunks[-1].finish_reason)


def assert_same(actual: TokenChunk, expected: TokenChunk) -> None:
    """Asserts equal texts; the last bits of probabilities may depend on the row."""
    assert (actual.tokens, actual.finish_reason) == (expected.tokens, expected.finish_reason)
    np.testing.assert_allclose(actual.log_probs, expected.log_probs, 1e-4)
    assert [[one for one, _ in top] for top in actual.top] == [[one for one, _ in top] for top in expected.top]


def build(
    devices: Sequence[str], n_rows: int = 4, mesh: tuple[str, str] = ("", ""), **changes: object
) -> EngineWithWeights:
    config = run_config(mesh, **changes)
    placement = place(config.mesh, devices if mesh[0] else devices[:1])
    engine = build_engine(config, placement, n_rows)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return EngineWithWeights(engine, tiny.values_of(placement.store))


def requests(sampling: SamplingParams, max_new_tokens: int = 7, n_top: int = 0) -> dict[int, GenerationRequest]:
    return {
        row: GenerationRequest(prompt, sampling, 5 + row, max_new_tokens, n_top) for row, prompt in enumerate(PROMPTS)
    }


@pytest.fixture(scope="module")
def on_one_device(devices: tuple[str, ...]) -> EngineWithWeights:
    return build(devices)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_temperature_0_gives_the_most_likely_token_of_the_whole_model(on_one_device: EngineWithWeights) -> None:
    generated = on_one_device.generate(requests(GREEDY, n_top=3))
    for row, prompt in enumerate(PROMPTS):
        text, chunk = list(prompt), generated[row]
        for token, log_prob, top in zip(chunk.tokens, chunk.log_probs, chunk.top, strict=True):
            log_probs = log_softmax(reference.logits(MODEL, on_one_device.values, np.array([text]))[0, -1])
            likeliest = np.argsort(-log_probs)[:3]
            assert token == likeliest[0] and [one for one, _ in top] == likeliest.tolist()
            np.testing.assert_allclose([log_prob, *(value for _, value in top)], log_probs[[token, *likeliest]], 1e-4)
            text.append(token)
        assert (len(chunk.tokens), chunk.finish_reason) == (7, "length")
    assert len({chunk.tokens for chunk in generated.values()}) == 4


@pytest.mark.parametrize("n_steps", [1, 3])
def test_texts_do_not_depend_on_the_steps_per_call(on_one_device: EngineWithWeights, n_steps: int) -> None:
    in_steps, at_once = on_one_device.generate(requests(FREE), n_steps), on_one_device.generate(requests(FREE))
    assert in_steps == at_once  # to the last bit


def test_a_text_is_the_same_in_any_row_and_batch(on_one_device: EngineWithWeights) -> None:
    batched = on_one_device.generate(requests(FREE))
    for row, request in requests(FREE).items():
        assert_same(on_one_device.generate({3 - row: request})[3 - row], batched[row])


def test_texts_start_and_end_while_others_are_generated(on_one_device: EngineWithWeights) -> None:
    batched = on_one_device.generate(requests(FREE))
    engine, (first, second, third, _) = on_one_device.engine, requests(FREE).values()
    engine.prefill({0: first, 2: third})
    parts = [engine.decode_steps(2)]
    engine.prefill({1: second})
    parts.append(engine.decode_steps(2))
    engine.release(2)  # unfinished
    parts.append(engine.decode_steps(2))
    engine.prefill({2: first})
    parts += [engine.decode_steps(2) for _ in range(4)]
    assert engine.decode_steps(2) == {}
    for row in (0, 1, 2):
        engine.release(row)
    again = [part[2] for part in parts[3:] if 2 in part]
    assert_same(join_chunks([part[0] for part in parts if 0 in part]), batched[0])
    assert_same(join_chunks(again), batched[0])
    assert_same(join_chunks([part[1] for part in parts if 1 in part]), batched[1])
    assert (
        join_chunks([part[2] for part in parts[:2]]).tokens == batched[2].tokens[:5]
    )  # one with its prompt, then 2 and 2


def test_seeds_differ(on_one_device: EngineWithWeights) -> None:
    same_prompt = {row: GenerationRequest(PROMPTS[0], FREE, seed, 20) for row, seed in enumerate((0, 1, 2, 2**31 - 1))}
    assert len({chunk.tokens for chunk in on_one_device.generate(same_prompt).values()}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "n_rows"),
    [
        (("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"), 4),
        (("x:4", "batch:x"), 4),
        (("x:2,y:2", "batch:y,embd:x"), 4),
        (("x:2,y:2", "batch:y,sequence:x,memory_length:x"), 4),
        (("x:2,y:2", "batch:x,heads:y"), 5),
    ],
    ids=str,
)
def test_a_mesh_generates_the_texts_of_one_device(
    devices: tuple[str, ...], on_one_device: EngineWithWeights, mesh: tuple[str, str], n_rows: int
) -> None:
    on_mesh, filtered = build(devices, n_rows, mesh), SamplingParams(1.2, 9, 0.9, repetition_penalty=1.3)
    for sampling in (FREE, filtered):
        expected, actual = (
            on_one_device.generate(requests(sampling, n_top=2)),
            on_mesh.generate(requests(sampling, n_top=2), 3),
        )
        for row, chunk in expected.items():
            assert_same(actual[row], chunk)


@pytest.mark.slow
def test_linear_layers_cache_their_sums_only(devices: tuple[str, ...]) -> None:
    changes = {"attention_types": LINEAR.attention_types}
    model = build(devices, **changes)
    cached = {name: slices[0].shape for name, slices in model.engine._row_state.slices.items()}
    heads, features = MODEL.n_head, MODEL.features_per_head
    assert cached["cache_0/context"] == (4, heads, features, features)
    assert cached["cache_1/keys_0"] == (4, heads, 4, features)
    assert cached["cache_2/keys_0"] == (4, heads, 40, features)
    generated = model.generate(requests(GREEDY))
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token in generated[row].tokens:
            assert token == reference.logits(LINEAR, model.values, np.array([text]))[0, -1].argmax()
            text.append(token)


@pytest.mark.slow
def test_a_cache_of_bfloat16_changes_little(devices: tuple[str, ...], on_one_device: EngineWithWeights) -> None:
    bfloat16 = build(devices, cache_dtype="bfloat16")
    assert bfloat16.engine._row_state.slices["cache_0/keys_0"][0].dtype.name == "bfloat16"
    expected, actual = (model.generate(requests(GREEDY, 2)) for model in (on_one_device, bfloat16))
    for row, chunk in expected.items():
        np.testing.assert_allclose(actual[row].log_probs[0], chunk.log_probs[0], 1e-4)  # of the prompt alone
        assert actual[row].tokens[0] == chunk.tokens[0]
        if actual[row].tokens[1] == chunk.tokens[1]:
            np.testing.assert_allclose(actual[row].log_probs[1], chunk.log_probs[1], atol=0.05)
    assert any(actual[row].tokens == chunk.tokens for row, chunk in expected.items())


def test_a_row_ends_at_eos_and_the_others_continue(devices: tuple[str, ...], on_one_device: EngineWithWeights) -> None:
    endless = on_one_device.generate(requests(FREE))
    eos_id = endless[1].tokens[3]  # so that row 1 ends before its limit
    generated = build(devices, eos_id=eos_id).generate(requests(FREE))
    for row, chunk in endless.items():
        end = chunk.tokens.index(eos_id) if eos_id in chunk.tokens else 7
        assert generated[row].tokens == chunk.tokens[:end]
        assert generated[row].finish_reason == ("stop" if end < 7 else "length")
    assert generated[1].finish_reason == "stop" and any(chunk.finish_reason == "length" for chunk in generated.values())


def test_a_row_ends_at_its_own_ends(devices: tuple[str, ...], on_one_device: EngineWithWeights) -> None:
    endless = on_one_device.generate(requests(FREE))
    ends = {row: chunk.tokens[2 + row % 2] for row, chunk in endless.items() if row != 1}
    ending = {
        row: dataclasses.replace(each, sampling=SamplingParams(end_ids=(90, ends[row]) if row in ends else ()))
        for row, each in requests(FREE).items()
    }
    for row, chunk in on_one_device.generate(ending).items():
        if row in ends:
            end = endless[row].tokens.index(ends[row])
            assert (chunk.tokens, chunk.finish_reason) == (endless[row].tokens[:end], "stop")
        else:
            assert_same(chunk, endless[row])


def test_scores_equal_those_of_the_whole_model(on_one_device: EngineWithWeights) -> None:
    for text in (PROMPTS[3], PROMPTS[2], tuple(range(40))):
        chunk = on_one_device.engine.score(text, 2)
        log_probs = log_softmax(reference.logits(MODEL, on_one_device.values, np.array([text]))[0])[:-1]
        assert chunk.tokens == text[1:] and chunk.finish_reason is None
        np.testing.assert_allclose(chunk.log_probs, log_probs[np.arange(len(text) - 1), text[1:]], 1e-3, 1e-5)
        assert [[one for one, _ in top] for top in chunk.top] == np.argsort(-log_probs)[:, :2].tolist()


def test_a_token_has_one_log_probability(on_one_device: EngineWithWeights) -> None:
    """Clients see by it whether a token of the prompt is the most likely one."""
    chunk = on_one_device.engine.score(tuple(range(40)), 20)
    pairs = [
        (dict(top).get(token), own) for token, own, top in zip(chunk.tokens, chunk.log_probs, chunk.top, strict=True)
    ]
    found = [(among_top, own) for among_top, own in pairs if among_top is not None]
    assert len(found) > 3 and all(among_top == own for among_top, own in found)


def test_static_and_continuous_batching_give_the_same_texts(
    devices: tuple[str, ...], on_one_device: EngineWithWeights
) -> None:
    config = run_config()
    placement = place(config.mesh, devices[:1])
    engine = StaticBatchEngine(40, 4, lambda *size: build_generate(config, placement, *size))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    expected, actual = on_one_device.generate(requests(FREE)), EngineWithWeights(engine, {}).generate(requests(FREE))
    for row, chunk in expected.items():
        assert_same(actual[row], chunk)


def test_prompt_lengths_are_padded_so_that_few_programs_are_built() -> None:
    assert [padded_length(n, 100) for n in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    tokens, row_inputs, floats, integers = prompt_arrays(list(requests(FREE, n_top=1).values())[:3], 40)
    assert (tokens.shape, row_inputs.shape, len(floats), len(integers)) == ((4, 40), (4, 4), 4, 4)
    assert row_inputs.tolist() == [[4, 1, 33, 1], [11, 8, 40, 0], [5, 6, 7, 0], [1, 1, 1, 0]]
