"""Live parity with Hugging Face's `generate`: the same tokens for the same weights, prompts and settings.

Run it with `make parity`. It needs torch and transformers 5 besides our own packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import logits_process as theirs

from configs.schema import RunConfig
from models.kernels.sampling import SamplingParams
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.weight_sources import StoredTensor
from runtime.generation.beam_search import BeamSearcher
from runtime.generation.engine import Engine, TokenChunk, build_engine
from runtime.generation.requests import GenerationRequest
from runtime.mesh.placement import Placement, VariableSlices, VariableStore, place
from tests import tiny
from tests.models.reference_sampling import Rows, Text

torch.set_num_threads(1)  # the products are too small for two threads

N_VOCAB, N_CTX, N_NEW = 64, 96, 32
SIZES = {"n_vocab": N_VOCAB, "n_ctx": N_CTX, "n_embd": 32, "n_head": 4, "n_layer": 2}
MODELS = {
    "GPT-2": {"qkv_bias": True, "scale_attn_weights": True, "attention_types": ("global", "global")},
    "GPT-Neo": {"attention_types": ("global", "local"), "local_attention_radius": 9},
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model with random weights, in Neomesh and in transformers."""

    config: RunConfig
    placement: Placement
    engine: Engine
    theirs: PreTrainedModel

    @property
    def eos_id(self) -> int:
        return self.config.data.eos_id

    def generated(self, prompt: np.ndarray, **settings: object) -> tuple[list[list[int]], list[float] | None]:
        """The texts that transformers generates after a prompt, each with its eos, and the scores of beams."""
        tokens = torch.from_numpy(prompt[None].astype(np.int64))
        given = {"attention_mask": torch.ones_like(tokens), "eos_token_id": self.eos_id, "pad_token_id": self.eos_id}
        given |= {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        output = self.theirs.generate(tokens, **given, **settings)
        texts = [self._until_eos(row[len(prompt) :].tolist()) for row in output.sequences]
        scores = getattr(output, "sequences_scores", None)
        return texts, None if scores is None else scores.tolist()

    def _until_eos(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(self.eos_id) + 1] if self.eos_id in tokens else tokens


def stored_tensor(stored: VariableSlices) -> StoredTensor:
    return StoredTensor(f"the variable {stored.name}", stored.whole_shape, lambda: tiny.whole_value(stored))


def randomize(store: VariableStore, eos_id: int) -> None:
    """Sets weights that give tokens very different probabilities, and eos a high one."""
    store.initialize(seed=1)
    for seed in range(4):
        tiny.disturb(store, seed)
    variables = {stored.name: stored for stored in store}
    eos, bias = tiny.whole_value(variables["gpt2/wte"])[eos_id], variables["gpt2/ln_f/b"]
    bias.assign_whole(tiny.whole_value(bias) + 2.5 * eos / (eos @ eos))  # the logit of eos rises by 2.5


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, devices: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = tiny.run_config(model=SIZES | MODELS[request.param])
    placement = place(config.mesh, devices[:1])
    engine = build_engine(config, placement, n_rows=8)
    randomize(placement.store, config.data.eos_id)
    folder = tmp_path_factory.mktemp("exported") / "hf"
    weights = {stored.name: stored_tensor(stored) for stored in placement.store}
    write_huggingface_folder(str(folder), config, weights, None)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Pair(config, placement, engine, loaded)


def prompts(count: int) -> list[np.ndarray]:
    """Prompts of lengths from 1 to 64."""
    rng = np.random.default_rng(5)
    lengths = np.linspace(1, N_CTX - N_NEW, count).astype(int)
    return [rng.integers(1, N_VOCAB, length, dtype=np.int32) for length in lengths]


def written(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    """The texts that the engine generates for the requests, with -1 for the eos that ended a text."""
    texts: dict[int, list[int]] = {number: [] for number in range(len(requests))}
    waiting, rows = list(texts), {}
    while waiting or rows:
        free = [row for row in range(engine.n_rows) if row not in rows][: len(waiting)]
        taken = {row: waiting.pop(0) for row in free}
        if taken:
            engine.prefill({row: requests[number] for row, number in taken.items()})
        rows |= taken
        for row, chunk in engine.decode_steps(5).items():
            texts[rows[row]] += ended_by_mark(chunk)
            if chunk.finish_reason:
                engine.release(row)
                del rows[row]
    return list(texts.values())


def ended_by_mark(chunk: TokenChunk) -> list[int]:
    return [*chunk.tokens, -1] if chunk.finish_reason == "stop" else list(chunk.tokens)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (SamplingParams(0.0), {}),
        (SamplingParams(0.0, repetition_penalty=1.4, penalize_end=True), {"repetition_penalty": 1.4}),
        (SamplingParams(0.0, no_repeat_ngram=2, penalize_end=True), {"no_repeat_ngram_size": 2}),
    ],
    ids=["greedy", "repetition penalty", "no repeated pair"],
)
def test_fifty_prompts_have_the_same_continuations(
    pair: Pair, rule: SamplingParams, settings: Mapping[str, object]
) -> None:
    requests = [GenerationRequest(tuple(prompt.tolist()), rule, 0, N_NEW) for prompt in prompts(50)]
    ours = written(pair.engine, requests)
    n_ended = 0
    for request, text in zip(requests, ours, strict=True):
        (expected,), _ = pair.generated(np.array(request.prompt_tokens), max_new_tokens=N_NEW, **settings)
        assert [pair.eos_id if token == -1 else token for token in text] == expected
        n_ended += text[-1] == -1
    print(f"{n_ended} of {len(requests)} ended with eos")
    assert n_ended > 0


@pytest.mark.parametrize(("n_beams", "length_penalty"), [(4, 1.0), (3, 0.0), (5, -0.5), (2, 2.0)])
def test_twenty_prompts_have_the_same_beams(pair: Pair, n_beams: int, length_penalty: float) -> None:
    writer, ends = BeamSearcher(pair.config, pair.placement), []
    for prompt in prompts(20):
        expected, scores = pair.generated(
            prompt,
            max_new_tokens=N_NEW,
            num_beams=n_beams,
            num_return_sequences=n_beams,
            length_penalty=length_penalty,
            early_stopping=False,
        )
        answers = writer.search(prompt.tolist(), n_beams, length_penalty, N_NEW, n_beams)
        ends += [answer.finish_reason for answer in answers]
        texts = [
            [*answer.tokens, pair.eos_id] if answer.finish_reason == "stop" else list(answer.tokens)
            for answer in answers
        ]
        assert texts == expected
        np.testing.assert_allclose([answer.score for answer in answers], scores, rtol=1e-4)
    print({end: ends.count(end) for end in set(ends)})
    assert "stop" in ends


def their_probabilities(rule: SamplingParams, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[B, V], [B, M] -> [B, V], by transformers' own classes in its own order."""
    processors = [
        theirs.RepetitionPenaltyLogitsProcessor(rule.repetition_penalty),
        theirs.NoRepeatNGramLogitsProcessor(rule.no_repeat_ngram) if rule.no_repeat_ngram else None,
        theirs.TemperatureLogitsWarper(rule.temperature),
        theirs.TopKLogitsWarper(rule.top_k) if rule.top_k else None,
        theirs.TopPLogitsWarper(rule.top_p) if rule.top_p < 1.0 else None,
        theirs.MinPLogitsWarper(rule.min_p),
        theirs.TypicalLogitsWarper(rule.typical_p) if rule.typical_p < 1.0 else None,
    ]
    scores, ids = torch.from_numpy(logits.copy()), torch.from_numpy(tokens)
    for processor in filter(None, processors):
        scores = processor(ids, scores)
    return torch.softmax(scores, -1).numpy()


def test_filters_and_penalties_leave_the_same_probabilities() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        logits, tokens = rng.normal(0.0, 2.0, (64, 50)).astype(np.float32), rng.integers(0, 6, (64, 12))
        rule = SamplingParams(
            temperature=rng.uniform(0.3, 2.0),
            top_k=int(rng.integers(0, 40)),
            top_p=rng.choice([1.0, rng.uniform(0.1, 1.0)]),
            typical_p=rng.choice([1.0, rng.uniform(0.1, 1.0)]),
            min_p=rng.choice([0.0, rng.uniform(0.0, 0.3)]),
            repetition_penalty=rng.uniform(0.5, 2.0),
            no_repeat_ngram=int(rng.integers(0, 4)),
            penalize_end=True,
        )
        texts = [Text(tuple(row.tolist()), 5) for row in tokens]
        ours = Rows(logits, [rule] * 64, texts, np.arange(64, dtype=np.int32)).probabilities()
        np.testing.assert_allclose(ours, their_probabilities(rule, logits, tokens), rtol=1e-3, atol=1e-5)
