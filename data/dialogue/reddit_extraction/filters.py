"""The filters of DialoGPT's extractor and of its paper: what each one drops, and where.

A filter that is not a default is switched on by `--add_filters NAME`, any other off by `--skip_filters NAME`. A filter
of a list does nothing without its list.

Sources: `reddit_extractor/` of DialoGPT; Zhang et al. 2020, "DialoGPT: Large-Scale Generative Pre-training for
Conversational Response Generation", section 3.1, for those that only the paper has.
"""

from __future__ import annotations

import calendar
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.dialogue.reddit_extraction.records import RawComment
from data.dialogue.reddit_extraction.rules.lists import Lists
from data.dialogue.reddit_extraction.rules.normalize import URL
from data.dialogue.reddit_extraction.rules.settings import Rules
from data.dialogue.reddit_extraction.threads import Conversation, Response, is_long

PLACEHOLDERS = ("[deleted]", "[removed]")
MIN_COMMENTS = 2
MIN_WORDS = 2
MAX_WORD_CHARACTERS = 30
MAX_WORDS = 200
MAX_BLAND_SHARE = 0.9
END_MARK = "EOS"  # stands between turns in DialoGPT's TSV

_BRACKET = re.compile(r"[\[\]()]")
_CAPITALS = re.compile(r"[A-Z]{5,}")


@dataclass(frozen=True)
class Filter:
    """A step that drops submissions, comments, responses or conversations.

    Attributes:
        name: what counts are reported under.
        drops: what it drops, in words.
        rejects: whether it drops one; gets the rules and the lists too.
        flag: the setting of the filter; empty: it has none.
        is_default: whether it is on unless it is skipped.
    """

    name: str
    drops: str
    rejects: Callable[[Any, Rules, Lists], bool]
    flag: str = ""
    is_default: bool = True


def _is_outside_dates(comment: RawComment, rules: Rules, lists: Lists) -> bool:
    if rules.since is None and rules.until is None:
        return False
    if comment.created is None:
        return True
    is_early = rules.since is not None and comment.created < month_start(rules.since)
    return is_early or (rules.until is not None and comment.created >= month_start(rules.until, following=1))


@functools.lru_cache(maxsize=2)
def month_start(month: str, following: int = 0) -> int:
    """Returns when a month begins, or a following one, in seconds since 1970."""
    year, number = map(int, month.split("-"))
    return calendar.timegm((year + (number - 1 + following) // 12, (number - 1 + following) % 12 + 1, 1, 0, 0, 0))


def _is_not_listed(comment: RawComment, rules: Rules, lists: Lists) -> bool:
    return lists.keep_keys is not None and f"{comment.link}\t{comment.id}\tdep" not in lists.keep_keys


def _is_not_kept(response: Response, rules: Rules, lists: Lists) -> bool:
    key = f"{response.thread.link}\t{response.comment.id}\tkeep"
    return lists.keep_keys is not None and key not in lists.keep_keys


def _is_in_bad_subreddit(response: Response, rules: Rules, lists: Lists) -> bool:
    return lists.bl_subreddits is not None and (not response.subreddit or response.subreddit in lists.bl_subreddits)


def _repeats_word(words: Sequence[str]) -> bool:
    return any(first == second == third for first, second, third in trigrams(words))


def trigrams(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yields each three words in a row."""
    return zip(words, words[1:], words[2:], strict=False)


def _is_bland(conversation: Conversation, rules: Rules, lists: Lists) -> bool:
    found = [" ".join(trigram) for trigram in trigrams(conversation.response.lower().split())]
    if lists.bland_trigrams is None or not found:
        return False
    return sum(trigram in lists.bland_trigrams for trigram in found) >= MAX_BLAND_SHARE * len(found)


def _repeats_trigram(conversation: Conversation, rules: Rules, lists: Lists) -> bool:
    found = list(trigrams(conversation.response.split()))
    return len(set(found)) < len(found)


def _lacks_frequent_word(conversation: Conversation, rules: Rules, lists: Lists) -> bool:
    return lists.freq_words is not None and lists.freq_words.isdisjoint(conversation.response.lower().split())


def _is_long_conversation(conversation: Conversation, rules: Rules, lists: Lists) -> bool:
    return sum(len(turn.split()) for turn in conversation.turns) > MAX_WORDS


def _has_url(conversation: Conversation, rules: Rules, lists: Lists) -> bool:
    return any(URL in turn or "http" in turn.lower() for turn in conversation.turns)


SUBMISSION_FILTERS = (
    Filter("few_comments", "a submission with fewer than 2 comments", lambda each, *_: each.n_comments < MIN_COMMENTS),
)
COMMENT_FILTERS = (
    Filter("outside_dates", "a comment of another month", _is_outside_dates, "--since, --until"),
    Filter("not_listed", "a comment whose key is not listed as `dep`", _is_not_listed, "--keep_keys"),
    Filter("deleted", "a comment that was deleted or removed", lambda each, *_: each.body in PLACEHOLDERS),
    Filter("quote", "a comment with `>`, which quotes", lambda each, *_: ">" in each.body or "&gt;" in each.body),
    Filter("short_comment", "a comment of fewer than 2 words", lambda each, *_: len(each.text.split()) < MIN_WORDS),
)
THREAD_FILTERS = (
    Filter("no_submission", "a comment whose submission is not in the dump", lambda each, *_: each.submission is None),
)
RESPONSE_FILTERS = (
    Filter("not_kept", "a response whose key is not listed as `keep`", _is_not_kept, "--keep_keys"),
    Filter(
        "answered",
        "a response that has an answer, which holds it as a turn",
        lambda each, rules, _: rules.leaves_only and each.is_answered,
        "--leaves_only",
    ),
    Filter("subreddit", "a response in a listed subreddit, or in none", _is_in_bad_subreddit, "--bl_subreddits"),
    Filter(
        "low_score",
        "a response of a low score",
        lambda each, rules, _: each.comment.score < rules.min_score,
        "--min_score",
    ),
    Filter(
        "long_response",
        "a response that is too long",
        lambda each, rules, _: is_long(each.comment, rules),
        "--max_len, --max_len_type",
    ),
    Filter(
        "few_turns",
        "a conversation of too few turns",
        lambda each, rules, _: len(each.context.turns) < rules.min_depth,
        "--min_depth",
    ),
)
CONVERSATION_FILTERS = (
    Filter(
        "offensive",
        "a response with a listed word or key; with `--leaves_only` a turn with one gets the weight 0",
        lambda each, rules, _: not rules.leaves_only and each.are_blocked[-1],
        "--bl_words, --discard_tgt_keys",
    ),
    Filter("empty_turn", "a turn of which normalising leaves nothing", lambda each, *_: not all(each.turns)),
    Filter("end_mark", "a turn with the word EOS", lambda each, *_: END_MARK in " ".join(each.turns).split()),
    Filter(
        "long_word",
        "a response with a word of more than 30 characters",
        lambda each, *_: any(len(word) > MAX_WORD_CHARACTERS for word in each.response.split()),
    ),
    Filter("long_conversation", "more than 200 words in all", _is_long_conversation),
    Filter("url", "a turn with a link", _has_url),
    Filter("brackets", "a turn with a bracket", lambda each, *_: any(map(_BRACKET.search, each.turns))),
    Filter("capitals", "a turn with 5 capitals in a row", lambda each, *_: any(map(_CAPITALS.search, each.turns))),
    Filter(
        "repeated_word",
        "a response with the same word three times in a row",
        lambda each, *_: _repeats_word(each.response.split()),
    ),
    Filter("repeated_trigram", "a response with the same three words twice", _repeats_trigram, is_default=False),
    Filter("no_frequent_word", "a response without one of the first 50 words", _lacks_frequent_word, "--freq_words"),
    Filter("bland", "a response with 90 % of its trigrams listed", _is_bland, "--bland_trigrams"),
)
FILTERS = (
    *SUBMISSION_FILTERS,
    *COMMENT_FILTERS,
    *THREAD_FILTERS,
    *RESPONSE_FILTERS,
    *CONVERSATION_FILTERS,
)


def first_rejecting(filters: Sequence[Filter], candidate: object, rules: Rules, lists: Lists) -> str | None:
    """Returns the name of the first filter that is on and drops a candidate; None: it stays."""
    found = (each.name for each in filters if is_on(each, rules) and each.rejects(candidate, rules, lists))
    return next(found, None)


def is_on(each: Filter, rules: Rules) -> bool:
    """Returns whether a filter is used."""
    return each.name not in rules.skip_filters and (each.is_default or each.name in rules.add_filters)
