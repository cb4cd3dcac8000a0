"""What of a conversation a model is given for its next answer, so that it fits into the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import DataError
from data.dialogue.conversation import SYSTEM, USER, Turn
from data.dialogue.templates import ChatTemplate


@dataclass(frozen=True)
class FittedTurns:
    """The end of a conversation, as a model is given it.

    Attributes:
        ids: of the turns, and of what begins the answer.
        n_left_out: the oldest turns, which do not fit.
    """

    ids: tuple[int, ...]
    n_left_out: int


def fit_turns(template: ChatTemplate, turns: Sequence[Turn], max_tokens: int) -> FittedTurns:
    """Leaves out whole turns, the oldest first, until the others fit.

    System lines stay. The rest begins with a turn of the user, since many templates require it.

    Args:
        template: of the conversation.
        turns: those before the answer; the last one is the user's.
        max_tokens: room for all of them.

    Raises:
        DataError: the last turn does not fit alone, or the template refuses the turns.
    """
    system = [turn for turn in turns if turn.role == SYSTEM]
    said = [turn for turn in turns if turn.role != SYSTEM]
    ids: list[int] = []
    for first in dict.fromkeys([0, *(number for number, turn in enumerate(said) if turn.role == USER)]):
        ids = template.prompt_ids([*system, *said[first:]])
        if len(ids) <= max_tokens:
            return FittedTurns(tuple(ids), first)
    raise DataError(
        f"the message: makes {len(ids)} tokens, and there is room for {max_tokens} beside the answer; shorten it, or "
        "lower max_new_tokens"
    )
