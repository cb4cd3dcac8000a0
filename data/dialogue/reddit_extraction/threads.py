"""Threads of comments, and the conversation that leads to each response."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from data.dialogue.reddit_extraction.records import COMMENT_TAG, SUBMISSION_TAG, Comment, Submission
from data.dialogue.reddit_extraction.rules.settings import WORDS, Rules

TITLE = "title: "
CUT_AT_MISSING, CUT_AT_LONG, CUT_AT_DEPTH = CUTS = ("missing_parent", "long_turn", "max_depth")


@dataclass
class Thread:
    """The comments of a submission.

    Attributes:
        link: the tagged id of the submission.
        submission: None if the dump of submissions lacks it, or a filter took it.
        comments: by their tagged ids.
    """

    link: str
    submission: Submission | None = None
    comments: dict[str, Comment] = field(default_factory=dict)

    def responses(self, rules: Rules) -> Iterator[Response]:
        """Yields every comment as a response, sorted by the id of what it answers and by its own."""
        answered = {comment.parent for comment in self.comments.values()}
        for comment in sorted(self.comments.values(), key=lambda comment: (comment.parent, comment.id)):
            yield Response(self, comment, comment.id in answered, rules)


class Context(NamedTuple):
    """The turns up to a response, and why there are no earlier ones: a member of `CUTS`, or None at the top."""

    turns: tuple[str, ...]
    cut: str | None


@dataclass(frozen=True)
class Response:
    """A comment that may end a conversation.

    Attributes:
        thread: what it belongs to.
        comment: what is said.
        is_answered: whether another comment answers it.
        rules: how far its context reaches.
    """

    thread: Thread
    comment: Comment
    is_answered: bool
    rules: Rules

    @property
    def subreddit(self) -> str:
        """The name of the subreddit in lower case; empty if it is not known."""
        return self.thread.submission.subreddit if self.thread.submission else ""

    @functools.cached_property
    def context(self) -> Context:
        """The conversation that the response ends."""
        chain = [self.comment]
        while (parent := self.thread.comments.get(chain[-1].parent)) and len(chain) < self.rules.max_depth:
            if is_long(parent, self.rules):
                break
            chain.append(parent)
        turns = (comment.text for comment in reversed(chain))
        return Context((*self._title_above(chain[-1]), *turns), self._cut(chain[-1], parent))

    def _cut(self, first: Comment, parent: Comment | None) -> str | None:
        if parent is None:
            return CUT_AT_MISSING if first.parent.startswith(COMMENT_TAG) else None
        return CUT_AT_LONG if is_long(parent, self.rules) else CUT_AT_DEPTH

    def _title_above(self, comment: Comment) -> tuple[str, ...]:
        submission = self.thread.submission
        if not self.rules.use_title or submission is None or not comment.parent.startswith(SUBMISSION_TAG):
            return ()
        return (TITLE + submission.title,)


def is_long(comment: Comment, rules: Rules) -> bool:
    """Returns whether a comment is too long for a turn."""
    length = len(comment.text.split()) if rules.max_len_type == WORDS else comment.n_characters
    return length > rules.max_len


@dataclass(frozen=True)
class Conversation:
    """The normalised turns of a conversation, the last of which is the response.

    Attributes:
        turns: the texts.
        are_blocked: whether nobody is to learn to say each.
    """

    turns: tuple[str, ...]
    are_blocked: tuple[bool, ...]

    @property
    def response(self) -> str:
        """The last turn."""
        return self.turns[-1]

    def weights(self, leaves_only: bool) -> tuple[float, ...]:
        """Returns the weights of the turns in the loss: 0 for a blocked turn, and 1 for any other.

        Where every comment is a response of its own, the earlier turns are only read.
        """
        if leaves_only:
            return tuple(float(not is_blocked) for is_blocked in self.are_blocked)
        return (*(0.0 for _ in self.turns[1:]), 1.0)
