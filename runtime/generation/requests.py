"""Generation requests, which files, the terminal and the server make alike.

The same prompt, settings and seed give the same text in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from configs.errors import ConfigError
from configs.prompts import Prompt
from configs.schema import SAMPLING_KEYS, PredictionConfig
from models.kernels.noise import noise_key
from models.kernels.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """One text to generate.

    Attributes:
        prompt_tokens: at least one and fewer than n_ctx.
        sampling: how tokens are chosen.
        seed: the same seed gives the same text, whatever the row, the other requests or the mesh.
        max_new_tokens: at least 1; prompt and new tokens fit into n_ctx.
        n_top: how many of the most likely tokens to report at each position, at most `MAX_TOP`.
        stop_strings: none of them empty; the text is cut before the first that occurs.
    """

    prompt_tokens: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    max_new_tokens: int
    n_top: int = 0
    stop_strings: tuple[str, ...] = ()

    @property
    def max_length(self) -> int:
        """The most tokens of the text, its prompt included."""
        return len(self.prompt_tokens) + self.max_new_tokens


def sampling_params(settings: PredictionConfig) -> SamplingParams:
    """Returns the sampling parameters that the settings give."""
    return SamplingParams(**{key: getattr(settings, key) for key in SAMPLING_KEYS})


def sample_seed(seed: int, sample: int) -> int:
    """Returns the seed of a prompt's sample, counted from 0.

    It depends on nothing else, so a text stays the same wherever its prompt stands in a file.
    """
    return int(noise_key(seed, sample))


def fit_prompt(
    ids: Sequence[int],
    prompt: Prompt,
    n_ctx: int,
    eos_id: int,
    warn: Callable[[str], None],
    start: Sequence[int] = (),
) -> tuple[int, ...]:
    """Returns the token ids that the model is given for a prompt, with room for at least one new token.

    Args:
        ids: those of the prompt, or the last `n_ctx` of them; if there are none and no start, the model is given eos,
            as at the start of a document.
        prompt: supplies the settings that say how to handle overflow.
        n_ctx: the model's context length.
        eos_id: the id of the end-of-text token.
        warn: called with a message if the prompt is truncated.
        start: what the tokenizer begins every text with; a truncated prompt keeps it.

    Raises:
        ConfigError: the prompt is too long and may not be truncated.
    """
    settings = prompt.settings
    if n_ctx < 2:
        raise ConfigError(f"n_ctx = {n_ctx}: leaves no room for a prompt and a token; use a model with a longer one")
    if len(start) + len(ids) < n_ctx:
        return (*start, *ids) or (eos_id,)
    if settings.prompt_overflow == "refuse":
        raise ConfigError(
            f"{prompt.place}: the prompt has more than {n_ctx - 1} tokens and leaves no room for a new one in n_ctx = "
            f"{n_ctx}; shorten it, or set prompt_overflow to left"
        )
    n_kept = max(1, n_ctx - min(settings.predict_max_steps or n_ctx, n_ctx // 2) - len(start))
    warn(f"{prompt.place}: the prompt does not fit into n_ctx = {n_ctx}: only its last {n_kept} tokens are used")
    return (*start[: n_ctx - n_kept - 1], *ids[-n_kept:])


def max_new_tokens(tokens: Sequence[int], settings: PredictionConfig, n_ctx: int) -> int:
    """Returns how many tokens may follow a prompt: as many as requested, within the context."""
    room = n_ctx - len(tokens)
    return min(settings.predict_max_steps or room, room)


def sample_requests(
    tokens: tuple[int, ...], settings: PredictionConfig, seed: int, n_ctx: int, end_ids: tuple[int, ...] = ()
) -> Iterator[GenerationRequest]:
    """Yields a request for each sample of a prompt, one by one: there may be more than fit into memory."""
    limit = max_new_tokens(tokens, settings, n_ctx)
    sampling = dataclasses.replace(sampling_params(settings), end_ids=end_ids)
    for sample in range(settings.predict_batch_size):
        yield GenerationRequest(tokens, sampling, sample_seed(seed, sample), limit, stop_strings=settings.stop)
