"""From what somebody asks for to what the engine is told: the same for files, the terminal and the server, so that the
same prompt, settings and seed give the same text in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from configs.errors import ConfigError
from configs.prompts import Prompt
from configs.schema import PredictionConfig
from models.kernels.sampling import SamplingParams
from runtime.generation.engine import ActiveSequence
from runtime.generation.scheduler import GenerationRequest
from runtime.training.multi_step import noise_key


def rule_of(settings: PredictionConfig) -> SamplingParams:
    """How each token is chosen."""
    return SamplingParams(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        typical_p=settings.typical_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        no_repeat_ngram=settings.no_repeat_ngram,
        entmax=settings.entmax_sampling,
        never_end=settings.never_end,
    )


def sample_seed(seed: int, sample: int) -> int:
    """The seed of a prompt's sample of this number, from 0: of nothing else, so that it stays the same wherever the
    prompt stands, and in whatever company.
    """
    return int(noise_key(seed, sample))


def fit_prompt(
    ids: Sequence[int], prompt: Prompt, n_ctx: int, eos_id: int, warn: Callable[[str], None]
) -> tuple[int, ...]:
    """The ids of a prompt that the model is given, with room for at least one more.

    Args:
        ids: of the prompt, or the last `n_ctx` of them; none: eos, which every text follows.
        prompt: where they come from, and what to do where they are too many.
        n_ctx: of the model.
        eos_id: of its tokens.
        warn: is told of what is left out.

    Raises:
        ConfigError: they are too many, and are not to be cut.
    """
    settings = prompt.settings
    if n_ctx < 2:
        raise ConfigError(f"n_ctx = {n_ctx}: has no room for a prompt and a token; give a model with a longer one")
    if len(ids) < n_ctx:
        return tuple(ids) or (eos_id,)
    if settings.prompt_overflow == "refuse":
        raise ConfigError(
            f"{prompt.place}: the prompt has more than the {n_ctx - 1} tokens that leave room for one in n_ctx = "
            f"{n_ctx}; shorten it, or set prompt_overflow to left"
        )
    n_kept = n_ctx - min(settings.predict_max_steps or n_ctx, n_ctx // 2)
    warn(f"{prompt.place}: the prompt fills the context of {n_ctx} tokens: its last {n_kept} are kept")
    return tuple(ids[-n_kept:])


def n_new_tokens(tokens: Sequence[int], settings: PredictionConfig, n_ctx: int) -> int:
    """How many tokens may follow a prompt: as many as are asked for and have room."""
    room = n_ctx - len(tokens)
    return min(settings.predict_max_steps or room, room)


def asks_of(tokens: tuple[int, ...], settings: PredictionConfig, seed: int, n_ctx: int) -> Iterator[GenerationRequest]:
    """The samples of one prompt, of which there may be more than memory holds."""
    rule, limit = rule_of(settings), n_new_tokens(tokens, settings, n_ctx)
    for number in range(settings.predict_batch_size):
        yield GenerationRequest(ActiveSequence(tokens, rule, sample_seed(seed, number), limit), settings.stop)
