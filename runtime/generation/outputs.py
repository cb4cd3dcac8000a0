"""Answers, gathered from a scheduler and written down: framed for people, and as JSON lines for programs."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from configs.schema import PredictionConfig
from runtime.generation.beam_search import BeamAnswer, BeamWriter
from runtime.generation.detokenizer import AnswerText, Token
from runtime.generation.requests import n_new_tokens
from runtime.generation.scheduler import Delta, GenerationRequest, Scheduler
from storage.files import write_text

FRAME = "=" * 40
# Characters that JSON leaves as they are, and that many programs take for the end of a line.
ESCAPES = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One text that was written after a prompt.

    Attributes:
        text: without the prompt.
        tokens: those whose text begins in it.
        log_probs: of each of them, under the model itself; None: it was searched for, and has a score.
        reason: why it ends: "stop", at an end of text or a stop string, or "length".
        score: by which it was found to be among the best, before a stop string cut it; None: it was drawn.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    reason: str
    score: float | None = None


def joined(deltas: Sequence[Delta]) -> Answer:
    """All that was told of one answer, to its end."""
    return Answer(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.tokens),
        tuple(log_prob for delta in deltas for log_prob in delta.log_probs),
        deltas[-1].end,
    )


def written_answers(scheduler: Scheduler, asks: Iterable[GenerationRequest]) -> Iterator[Answer]:
    """Yields the answers in the order of the asks, each as soon as it and those before it are there.

    Asks are taken as rows become free, and not all at once: there may be any number of them.
    """
    coming, told = iter(asks), collections.deque[list[Delta]]()

    def submit_some() -> None:
        for ask in itertools.islice(coming, max(0, scheduler.n_rows - scheduler.n_waiting)):
            told.append([])
            scheduler.submit(ask, told[-1].append)

    submit_some()
    while told:
        while not (told[0] and told[0][-1].end):
            scheduler.turn()
            submit_some()
        yield joined(told.popleft())


def searched_answers(
    beams: BeamWriter, tokens: Sequence[int], settings: PredictionConfig, n_ctx: int, bytes_of: Callable[[int], bytes]
) -> list[Answer]:
    """The likeliest texts that a search finds after a prompt, best first, each cut before the first stop string."""
    limit = n_new_tokens(tokens, settings, n_ctx)
    found = beams.answers(tokens, settings.num_beams, settings.length_penalty, limit, settings.predict_batch_size)
    return [_as_text(answer, settings.stop, bytes_of) for answer in found]


def _as_text(found: BeamAnswer, stops: Sequence[str], bytes_of: Callable[[int], bytes]) -> Answer:
    text = AnswerText(stops)
    for token in found.tokens:
        text.add(Token(token, 0.0, ()), bytes_of(token))
    given = text.take(is_last=True)
    ids = tuple(token.id for token in given.tokens)
    return Answer(given.text, ids, None, "stop" if given.is_cut else found.end, found.score)


def format_samples(texts: Sequence[str]) -> str:
    """All samples, each under a line with its number; GPT-Neo's frame."""
    framed = [f"{FRAME} SAMPLE {number} {FRAME}\n\n{text}\n\n{FRAME * 2}\n" for number, text in enumerate(texts)]
    return "\n".join(framed)


def format_line(own: Mapping[str, Any], prompt: str | Sequence[int], sample: int, answer: Answer) -> str:
    """One answer as a line of JSON.

    Args:
        own: what the prompt's own line says that is given back.
        prompt: as it was given.
        sample: which of its answers this is, from 0.
        answer: to it.
    """
    known = {"prompt": prompt, "text": answer.text, "tokens": answer.tokens}
    likely = {"log_probs": answer.log_probs} if answer.score is None else {"score": answer.score}
    line = json.dumps({**own, **known, **likely, "reason": answer.reason, "sample": sample}, ensure_ascii=False)
    return line.translate(ESCAPES) + "\n"


def write_predictions(model_path: str, sacred_id: str, step: int, ending: str, content: str) -> str:
    """Writes `predictions_{sacred_id}_{step}{ending}` under the model path; returns its path."""
    path = posixpath.join(model_path, f"predictions_{sacred_id}_{step}{ending}")
    write_text(path, content)
    return path
