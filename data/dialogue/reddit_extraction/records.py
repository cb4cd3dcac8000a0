"""Submissions and comments: read from a line of a dump, and kept in a line of a partition."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from data.dialogue.reddit_extraction.rules.normalize import to_one_line

SUBMISSIONS, COMMENTS = "submissions", "comments"
SUBMISSION_TAG, COMMENT_TAG = "t3_", "t1_"


@dataclass(frozen=True)
class Submission:
    """A submission, which begins a thread.

    Attributes:
        link: its id with its tag, the `link_id` of its comments.
        n_comments: as the dump says.
        subreddit: its name in lower case; empty if the dump lacks it.
        title: of one line.
    """

    link: str
    n_comments: int
    subreddit: str
    title: str

    def to_fields(self) -> tuple[object, ...]:
        """Returns what a partition keeps."""
        return self.link, self.n_comments, self.subreddit, self.title


@dataclass(frozen=True)
class RawComment:
    """A comment as a dump has it.

    Attributes:
        link: the tagged id of its submission.
        id: its own, tagged.
        parent: the tagged id of the comment or submission that it answers.
        score: 0 if the dump has none.
        created: seconds since 1970; None if the dump lacks it.
        body: what it says.
    """

    link: str
    id: str
    parent: str
    score: int
    created: int | None
    body: str

    @functools.cached_property
    def text(self) -> str:
        """The body in one line."""
        return to_one_line(self.body)

    def to_fields(self) -> tuple[object, ...]:
        """Returns what a partition keeps."""
        return self.link, self.id, self.parent, self.score, len(self.body), self.text


class Comment(NamedTuple):
    """A comment as a partition keeps it: of many in memory, so it is small; `link` is kept by its thread."""

    id: str
    parent: str
    score: int
    n_characters: int
    text: str


def parse_submission(line: bytes) -> Submission:
    """Reads a line of a dump of submissions.

    Raises:
        ValueError: it is not JSON, or lacks something.
    """
    values = _object(line)
    title = values.get("title") or ""
    return Submission(
        link=SUBMISSION_TAG + _text(values, "id"),
        n_comments=_integer(values, "num_comments"),
        subreddit=_subreddit_of(values).lower(),
        title=to_one_line(title) if isinstance(title, str) else "",
    )


def _subreddit_of(values: dict[str, Any]) -> str:
    """The name of a subreddit; early dumps have it in the permalink only."""
    name = values.get("subreddit")
    if isinstance(name, str):
        return name
    permalink = values.get("permalink")
    return permalink.partition("/r/")[2].partition("/")[0] if isinstance(permalink, str) else ""


def parse_comment(line: bytes) -> RawComment:
    """Reads a line of a dump of comments.

    Raises:
        ValueError: it is not JSON, or lacks something.
    """
    values = _object(line)
    return RawComment(
        link=_text(values, "link_id"),
        id=COMMENT_TAG + _text(values, "id"),
        parent=_text(values, "parent_id"),
        score=_integer(values, "score") if values.get("score") is not None else 0,
        created=_integer(values, "created_utc") if values.get("created_utc") is not None else None,
        body=_text(values, "body"),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise ValueError(f"no text under {key!r}")
    return value


def _integer(values: dict[str, Any], key: str) -> int:
    try:
        return int(values.get(key))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"no number under {key!r}") from None


def to_line(fields: tuple[object, ...]) -> bytes:
    """Returns the line of a partition for the fields of a submission or comment, none of which has a tab."""
    return ("\t".join(map(str, fields)) + "\n").encode()


def submission_of(line: bytes) -> Submission:
    """Inverts `to_line`."""
    link, n_comments, subreddit, title = line.decode().rstrip("\n").split("\t")
    return Submission(link, int(n_comments), subreddit, title)


def comment_of(line: bytes) -> tuple[str, Comment]:
    """Inverts `to_line`; returns the link too."""
    link, id_, parent, score, n_characters, text = line.decode().rstrip("\n").split("\t")
    return link, Comment(id_, parent, int(score), int(n_characters), text)
