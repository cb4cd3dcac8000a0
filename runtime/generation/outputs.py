"""Generated texts: collected from the scheduler or from beam search, and formatted for people and as JSON lines."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from configs.schema import PredictionConfig
from runtime.generation.beam_search import BeamHypothesis, BeamSearcher
from runtime.generation.detokenizer import Detokenizer, ScoredToken, TextChunk
from runtime.generation.requests import GenerationRequest, max_new_tokens
from runtime.generation.scheduler import Scheduler
from storage.files import write_new

FRAME = "=" * 40
# Characters that JSON leaves unescaped but many programs take for line breaks.
ESCAPES = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """One continuation of a prompt.

    Attributes:
        text: without the prompt.
        tokens: those whose text starts in it.
        log_probs: of each token, under the model itself; None for beam search, which gives a score instead.
        finish_reason: "stop" for an end of text or a stop string, "length" for the token limit.
        score: by which beam search ranked it, before any cut at a stop string; None for a sampled text.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    finish_reason: str
    score: float | None = None


def join_chunks(chunks: Sequence[TextChunk]) -> GeneratedText:
    """Returns the text of all its chunks."""
    return GeneratedText(
        "".join(chunk.text for chunk in chunks),
        tuple(token for chunk in chunks for token in chunk.tokens),
        tuple(log_prob for chunk in chunks for log_prob in chunk.log_probs),
        chunks[-1].finish_reason,
    )


def sampled_texts(scheduler: Scheduler, requests: Iterable[GenerationRequest]) -> Iterator[GeneratedText]:
    """Yields a text for each request, in their order, as soon as it and those before it are finished.

    Requests are taken as rows become free, so there may be any number of them.
    """
    remaining, chunks = iter(requests), collections.deque[list[TextChunk]]()

    def submit_some() -> None:
        for request in itertools.islice(remaining, max(0, scheduler.n_rows - scheduler.n_waiting)):
            chunks.append([])
            scheduler.submit(request, chunks[-1].append)

    submit_some()
    while chunks:
        while not (chunks[0] and chunks[0][-1].finish_reason):
            scheduler.step()
            submit_some()
        yield join_chunks(chunks.popleft())


def beam_search_texts(
    searcher: BeamSearcher,
    tokens: Sequence[int],
    settings: PredictionConfig,
    n_ctx: int,
    bytes_of: Callable[[int], bytes],
) -> list[GeneratedText]:
    """Returns the most likely continuations of a prompt, best first, each cut before the first stop string."""
    limit = max_new_tokens(tokens, settings, n_ctx)
    found = searcher.search(tokens, settings.num_beams, settings.length_penalty, limit, settings.predict_batch_size)
    return [_detokenize(hypothesis, settings.stop, bytes_of) for hypothesis in found]


def _detokenize(found: BeamHypothesis, stops: Sequence[str], bytes_of: Callable[[int], bytes]) -> GeneratedText:
    detokenizer = Detokenizer(stops)
    for token in found.tokens:
        detokenizer.add(ScoredToken(token, 0.0, ()), bytes_of(token))
    whole = detokenizer.take(found.finish_reason)
    return GeneratedText(whole.text, whole.tokens, None, whole.finish_reason, found.score)


def format_samples(texts: Sequence[str]) -> str:
    """Returns all samples, each in GPT-Neo's frame with its number."""
    framed = [f"{FRAME} SAMPLE {number} {FRAME}\n\n{text}\n\n{FRAME * 2}\n" for number, text in enumerate(texts)]
    return "\n".join(framed)


def format_line(
    extra: Mapping[str, Any],
    prompt: str | Sequence[int],
    sample: int,
    generated: GeneratedText,
    ranking: Mapping[str, Any] = {},
) -> str:
    """Returns a generated text as a line of JSON.

    Args:
        extra: keys of the prompt's own line to repeat.
        prompt: as the user gave it.
        sample: number of this sample of the prompt, from 0.
        generated: the text.
        ranking: keys about its choice among candidates.
    """
    known = {"prompt": prompt, "text": generated.text, "tokens": generated.tokens}
    scores = {"log_probs": generated.log_probs} if generated.score is None else {"score": generated.score}
    end = {"reason": generated.finish_reason, "sample": sample}
    return json.dumps({**extra, **known, **scores, **end, **ranking}, ensure_ascii=False).translate(ESCAPES) + "\n"


def write_predictions(model_path: str, sacred_id: str, step: int, ending: str, content: str) -> str:
    """Writes `predictions_{sacred_id}_{step}{ending}` to the run directory, and returns its path.

    If there is such a file, it stays, and the name gets a number from 2 before its ending.
    """
    return write_new(posixpath.join(model_path, f"predictions_{sacred_id}_{step}"), ending, content.encode())
