"""Building generation requests from prompts and settings."""

from __future__ import annotations

import dataclasses

import pytest

from configs.errors import ConfigError
from configs.prompts import Prompt
from configs.schema import SAMPLING_KEYS, PredictionConfig
from models.kernels.sampling import SamplingParams
from runtime.generation.requests import fit_prompt, sample_requests, sample_seed, sampling_params

EOS = 9


def fitted(n_ids: int, n_ctx: int = 16, **settings: object) -> tuple[tuple[int, ...], list[str]]:
    """Returns the ids that are kept, and the warnings."""
    warnings: list[str] = []
    prompt = Prompt("here", "", PredictionConfig(**settings), {})
    return fit_prompt(range(100, 100 + n_ids), prompt, n_ctx, EOS, warnings.append), warnings


def test_what_a_text_begins_with_stays_when_a_prompt_is_truncated() -> None:
    def begun(n_ids: int) -> tuple[int, ...]:
        prompt = Prompt("here", "", PredictionConfig(predict_max_steps=4), {})
        return fit_prompt(range(100, 100 + n_ids), prompt, 16, EOS, lambda _: None, start=(1, 2))

    assert begun(0) == (1, 2)
    assert begun(13) == (1, 2, *range(100, 113))
    assert begun(14) == (1, 2, *range(104, 114))
    assert begun(16) == (1, 2, *range(106, 116))


def test_every_sampling_setting_is_passed_on() -> None:
    settings = PredictionConfig(
        temperature=0.3,
        top_k=5,
        top_p=0.8,
        typical_p=0.7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        no_repeat_ngram=4,
        entmax_sampling=True,
        never_end=True,
        penalize_end=True,
    )
    sampling = sampling_params(settings)
    assert sampling == SamplingParams(0.3, 5, 0.8, 0.7, 0.1, 1.5, -0.5, 0.25, 4, True, True, True)
    defaults = sampling_params(PredictionConfig(temperature=1.0))
    assert defaults == SamplingParams()
    changed = {
        field.name
        for field in dataclasses.fields(sampling)
        if getattr(sampling, field.name) != getattr(defaults, field.name)
    }
    of_requests_alone = {"min_tokens", "logit_bias", "end_ids"}
    assert changed == set(SAMPLING_KEYS) == {field.name for field in dataclasses.fields(sampling)} - of_requests_alone


def test_a_prompt_is_kept_whole_if_it_leaves_room_for_a_token() -> None:
    assert fitted(15) == (tuple(range(100, 115)), [])
    assert fitted(1, predict_max_steps=1000) == ((100,), [])
    assert fitted(0) == ((EOS,), [])


@pytest.mark.parametrize(("limit", "n_kept"), [(None, 8), (3, 13), (8, 8), (100, 8), (1, 15)])
def test_a_longer_prompt_keeps_its_end_and_leaves_room_for_new_tokens_up_to_half(
    limit: int | None, n_kept: int
) -> None:
    ids, warnings = fitted(16, predict_max_steps=limit)
    assert ids == tuple(range(116 - n_kept, 116))
    assert warnings == [f"here: the prompt does not fit into n_ctx = 16: only its last {n_kept} tokens are used"]


def test_a_longer_prompt_may_be_refused() -> None:
    assert fitted(15, prompt_overflow="refuse")[0] == tuple(range(100, 115))
    with pytest.raises(
        ConfigError, match=r"^here: the prompt has more than 15 tokens and leaves no room for a new one in"
    ):
        fitted(16, prompt_overflow="refuse")


def test_a_context_of_one_token_has_no_room() -> None:
    assert fitted(1, n_ctx=2) == ((100,), [])
    with pytest.raises(ConfigError, match="^n_ctx = 1: leaves no room for a prompt and a token"):
        fitted(1, n_ctx=1)


def test_samples_of_a_prompt_differ_in_their_seeds_only() -> None:
    settings = PredictionConfig(predict_batch_size=3, predict_max_steps=5, stop=("a", "b"), temperature=0.5)
    requests = list(sample_requests((1, 2), settings, seed=7, n_ctx=16))
    assert [request.stop_strings for request in requests] == [("a", "b")] * 3
    assert [request.seed for request in requests] == [sample_seed(7, number) for number in range(3)]
    assert {dataclasses.replace(request, seed=0) for request in requests} == {dataclasses.replace(requests[0], seed=0)}
    assert (requests[0].prompt_tokens, requests[0].sampling, requests[0].max_new_tokens) == (
        (1, 2),
        sampling_params(settings),
        5,
    )


@pytest.mark.parametrize(("limit", "max_new_tokens"), [(None, 14), (14, 14), (15, 14), (1, 1)])
def test_new_tokens_are_limited_by_the_context(limit: int | None, max_new_tokens: int) -> None:
    (request,) = sample_requests((1, 2), PredictionConfig(predict_max_steps=limit), seed=0, n_ctx=16)
    assert request.max_new_tokens == max_new_tokens


def test_seeds_of_samples_never_change() -> None:
    """Users keep seeds to reproduce a text."""
    assert [sample_seed(0, 0), sample_seed(0, 1), sample_seed(1, 0), sample_seed(2**31 - 1, 10)] == [
        1877947459,
        417858773,
        1848467060,
        1909764006,
    ]
    assert len({sample_seed(seed, sample) for seed in range(100) for sample in range(100)}) == 10_000
