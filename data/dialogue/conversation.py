"""Conversations: turns with roles, and the weights of their tokens in the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """What one side says at a time.

    Attributes:
        role: a member of `ROLES`.
        text: what is said, not empty.
        weight: of its tokens in the loss, and of the token that ends it; 0 for a turn that is only read; None: 1 for
            a turn of the assistant, else 0.
    """

    role: str
    text: str
    weight: float | None = None


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class TurnRules:
    """Which turns of a conversation are used, and in which order.

    Attributes:
        reverse: the last turn comes first, for a model that says what a response answers.
        two_turn: only the first two turns, after they are reversed.
        max_turns: only the last turns, this many, system turns aside; None: all.
    """

    reverse: bool = False
    two_turn: bool = False
    max_turns: int | None = None

    def apply(self, turns: Turns) -> Turns:
        """Returns the turns that are used, with their weights; the first one answers nothing, so its weight is 0."""
        system = [turn for turn in turns if turn.role == SYSTEM]
        said = [turn for turn in turns if turn.role != SYSTEM]
        if self.max_turns is not None:
            said = said[-self.max_turns :]
        if self.reverse:
            said = [replace(turn, role=_OTHER_ROLE[turn.role]) for turn in reversed(said)]
        if self.two_turn:
            said = said[:2]
        return (*(_weighted(turn, 0.0) for turn in (*system, *said[:1])), *map(_weighted, said[1:]))


_OTHER_ROLE = {USER: ASSISTANT, ASSISTANT: USER}


def _weighted(turn: Turn, weight: float | None = None) -> Turn:
    weight = turn.weight if weight is None else weight
    return replace(turn, weight=float(turn.role == ASSISTANT) if weight is None else weight)


def alternating(texts: Sequence[str], weights: Sequence[float] | None = None) -> Turns:
    """Returns the turns of two who talk by turns, every one of weight 1 unless weights are given.

    Source: DialoGPT, whose model is trained on all turns after the first.
    """
    weights = [1.0] * len(texts) if weights is None else weights
    return tuple(Turn((USER, ASSISTANT)[i % 2], text, weights[i]) for i, text in enumerate(texts))


def to_text(turns: Turns) -> str:
    """Returns the turns as one line of JSON, the form in which the pipeline passes conversations on."""
    return json.dumps([[turn.role, turn.text, turn.weight] for turn in turns], ensure_ascii=False)


def from_text(text: str) -> Turns:
    """Inverts `to_text`."""
    return tuple(Turn(*values) for values in json.loads(text))
