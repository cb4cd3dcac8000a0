"""Chooses among candidate responses: by how well they tell what they answer, or by models that rank responses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from configs.schema import RunConfig
from data.dialogue.pairs import ranked_ids
from runtime.generation.engine import Step
from runtime.generation.outputs import GeneratedText
from runtime.generation.packed_batches import PackedBatches, PackedText
from runtime.generation.packed_programs import build_packed_batches
from runtime.generation.scoring import Continuations, Scorer
from runtime.mesh.placement import Placement

Ids = Sequence[int]
# From turns, responses, the end of text and n_ctx to what a model is asked.
Ask = Callable[[Sequence[Ids], Sequence[Ids], int, int], list[Continuations]]

# DialogRPT's rankers: of a human response and another one, and of two responses by the reactions to them.
PRIOR = ("human_vs_rand", "human_vs_machine")
FEEDBACK = {"updown": 1.0, "depth": 0.48, "width": -0.5}


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one response; higher is better.

    Attributes:
        score: by which it is ranked.
        parts: what the score is made of, by name.
    """

    score: float
    parts: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A response that was drawn, and its scores."""

    generated: GeneratedText
    scores: Scores


class Ranker(Protocol):
    """Scores responses to a dialogue."""

    def scores(self, turns: Sequence[Ids], responses: Sequence[Ids]) -> list[Scores]:
        """Returns the scores of each response to the turns before it; no ids hold the end of text."""


def turns_of(ids: Ids, eos_id: int) -> list[Ids]:
    """Returns the turns of a dialogue that the end of text joins; empty ones are left out."""
    turns, turn = [], []
    for token in (*ids, eos_id):
        if token != eos_id:
            turn.append(token)
        elif turn:
            turns.append(turn)
            turn = []
    return turns


def rank(candidates: Sequence[GeneratedText], scores: Sequence[Scores]) -> tuple[Candidate, ...]:
    """Returns the candidates in the order of `best_first`."""
    return tuple(Candidate(candidates[i], scores[i]) for i in best_first([each.text for each in candidates], scores))


def best_first(texts: Sequence[str], scores: Sequence[Scores]) -> list[int]:
    """Returns the indices of responses, the best first; those that say nothing come last."""
    return sorted(range(len(texts)), key=lambda i: (bool(texts[i].strip()), scores[i].score), reverse=True)


def ranking_keys(scores: Scores) -> dict[str, Any]:
    """Returns scores as keys of JSON."""
    return {"rank_score": scores.score, "rank_parts": dict(scores.parts)}


def candidate_keys(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as keys of JSON."""
    return {"text": candidate.generated.text, **ranking_keys(candidate.scores)}


def format_candidates(candidates: Sequence[Candidate]) -> str:
    """Returns a line for each candidate: its score, what that is made of, and the text with escaped line breaks."""
    lines = []
    for each in candidates:
        parts = ", ".join(f"{name} {value:.4f}" for name, value in each.scores.parts.items())
        lines.append(f"{each.scores.score:10.4f}  ({parts})  {json.dumps(each.generated.text, ensure_ascii=False)}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class MutualInformation:
    """Ranks responses by how well they tell what they answer, and optionally by how likely they are.

    The score is log P(source | response) + forward_weight * log P(response | source), in nats.

    Attributes:
        backward: scores by a model that was trained on reversed conversations.
        forward: scores by the model that draws the responses; None if it has no weight.
        forward_weight: of the forward score.
        normalize: divides each log-probability by the tokens that it is of.

    Source: Zhang et al. 2020, DialoGPT, section 3.2, which uses the first term alone.
    """

    backward: Scorer
    forward: Scorer | None
    forward_weight: float
    normalize: bool

    def scores(self, turns: Sequence[Ids], responses: Sequence[Ids]) -> list[Scores]:
        """See `Ranker.scores`."""
        named = {"backward": self._log_p(self.backward, backward_continuations, turns, responses)}
        total = named["backward"]
        if self.forward is not None:
            named["forward"] = self._log_p(self.forward, forward_continuations, turns, responses)
            total = [b + self.forward_weight * f for b, f in zip(*named.values(), strict=True)]
        parts = [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]
        return [Scores(*each) for each in zip(total, parts, strict=True)]

    def _log_p(self, scorer: Scorer, ask: Ask, turns: Sequence[Ids], responses: Sequence[Ids]) -> list[float]:
        asked = ask(turns, responses, scorer.eos_id, scorer.n_ctx)
        log_probs = [choice.log_probs for choices in scorer.score(asked) for choice in choices]
        return [float(each.mean() if self.normalize else each.sum()) for each in log_probs]


@dataclasses.dataclass(frozen=True)
class ResponseScorer:
    """Scores responses by a ranking model with its current weights.

    Attributes:
        n_ctx: the most tokens that the model reads.
        eos_id: the end of text.
        batches: runs the programs of `build_packed_scores`.
    """

    n_ctx: int
    eos_id: int
    batches: PackedBatches

    def scores(self, turns: Sequence[Ids], responses: Sequence[Ids]) -> list[float]:
        """Returns the score of each response to the turns, before the sigmoid."""
        # The score after the last token stands where that of a next token would.
        texts = [PackedText(ranked_ids(turns, each, self.eos_id, self.n_ctx), [[0]]) for each in responses]
        found = {index: outputs["scores"] for batch in self.batches.outputs(texts) for index, outputs in batch.items()}
        return [float(found[index][0]) for index in range(len(texts))]


def build_response_scorer(
    config: RunConfig, placement: Placement, synchronized: Callable[[Step], Step] = lambda step: step
) -> ResponseScorer:
    """Builds the scorer of a ranking model; see `build_scorer`."""
    batches = build_packed_batches(config, placement, synchronized)
    return ResponseScorer(config.model.n_ctx, config.data.eos_id, batches)


@dataclasses.dataclass(frozen=True)
class RankerEnsemble:
    """Ranks responses by one ranker, or by several of DialogRPT's.

    The score of several is the mean of those that tell whether a response is human and fits (`PRIOR`), times the
    weighted sum of those of people's votes and replies (`FEEDBACK`); each is the sigmoid of the model's score. Where
    all of a kind are missing, 1 takes their place.

    Attributes:
        rankers: by name; several have names of DialogRPT's.

    Source: Gao et al. 2020, and the ensemble of their program, which also divides by the sum of the weights.
    """

    rankers: Mapping[str, ResponseScorer]

    def scores(self, turns: Sequence[Ids], responses: Sequence[Ids]) -> list[Scores]:
        """See `Ranker.scores`."""
        named = {name: ranker.scores(turns, responses) for name, ranker in self.rankers.items()}
        parts = [dict(zip(named, map(_sigmoid, values), strict=True)) for values in zip(*named.values(), strict=True)]
        return [Scores(_ensemble_score(each), each) for each in parts]


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _ensemble_score(parts: Mapping[str, float]) -> float:
    if len(parts) == 1:
        return next(iter(parts.values()))
    prior = [parts[name] for name in PRIOR if name in parts]
    feedback = [weight * parts[name] for name, weight in FEEDBACK.items() if name in parts]
    return (sum(prior) / len(prior) if prior else 1.0) * (sum(feedback) if feedback else 1.0)


def backward_continuations(
    turns: Sequence[Ids], responses: Sequence[Ids], eos_id: int, n_ctx: int
) -> list[Continuations]:
    """Returns what a backward model is asked: after each response, the turns before it, the last first.

    Each turn ends with the end of text, as in records that are made with `reverse`. Where the longest response leaves
    no room for the earliest turns, these are left out for all responses.
    """
    room = n_ctx - max(map(len, responses), default=0)
    source = _last_first(turns, max(room, n_ctx // 2), eos_id)
    return [Continuations([*response, eos_id], [source]) for response in responses]


def _last_first(turns: Sequence[Ids], n_tokens: int, eos_id: int) -> list[int]:
    """Returns the turns, the last first and each with its end, as far as whole turns fit; at least part of the last."""
    source: list[int] = []
    for turn in reversed(turns):
        if source and len(source) + len(turn) + 1 > n_tokens:
            break
        source += [*turn, eos_id]
    return source[:n_tokens]


def forward_continuations(
    turns: Sequence[Ids], responses: Sequence[Ids], eos_id: int, n_ctx: int
) -> list[Continuations]:
    """Returns what a forward model is asked: after the turns, each response, all with their ends."""
    context = [token for turn in turns for token in (*turn, eos_id)]
    return [Continuations(context or [eos_id], [[*response, eos_id][:n_ctx] for response in responses])]
