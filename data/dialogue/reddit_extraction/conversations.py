"""The conversations of a partition: its threads are put together in memory, filtered and written."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterator

from data.dialogue.reddit_extraction.filters import (
    CONVERSATION_FILTERS,
    END_MARK,
    RESPONSE_FILTERS,
    THREAD_FILTERS,
    first_rejecting,
)
from data.dialogue.reddit_extraction.partitions import lines_of_partition
from data.dialogue.reddit_extraction.records import COMMENTS, SUBMISSIONS, comment_of, submission_of
from data.dialogue.reddit_extraction.rules.lists import ListPaths, Lists, load_lists
from data.dialogue.reddit_extraction.rules.normalize import Normalize, make_normalizer
from data.dialogue.reddit_extraction.rules.settings import TSV, Rules
from data.dialogue.reddit_extraction.threads import Conversation, Response, Thread
from storage.files import write_bytes

SPEAKERS = ("user", "assistant")  # by turns
DUPLICATE, KEPT, BLOCKED_TURNS, CUT = "duplicate", "conversations", "blocked_turns", "cut_at_"


def build_partition(folder: str, number: int, rules: Rules, paths: ListPaths, output_format: str) -> dict[str, int]:
    """Writes the conversations of a partition to a file in the folder of partitions.

    Returns:
        how many comments each filter has dropped, and what else is counted.
    """
    counts, lists = collections.Counter(), load_lists(paths)
    normalize = make_normalizer(rules.normalize)
    lines = []
    for thread in threads_of(folder, number, counts):
        if reason := first_rejecting(THREAD_FILTERS, thread, rules, lists):
            counts[reason] += len(thread.comments)
            continue
        for response in thread.responses(rules):
            conversation = _keep(response, normalize, lists, counts)
            if conversation is not None:
                lines.append(format_line(response, conversation, output_format))
    write_bytes(output_path(folder, number), "".join(lines).encode())
    return dict(counts)


def output_path(folder: str, number: int) -> str:
    """Returns where the conversations of a partition are."""
    return f"{folder}/{number}.out"


def threads_of(folder: str, number: int, counts: collections.Counter[str]) -> Iterator[Thread]:
    """Yields the threads of a partition, sorted by their ids. Of comments with the same id, the last one counts."""
    threads: dict[str, Thread] = {}
    for line in lines_of_partition(folder, COMMENTS, number):
        link, comment = comment_of(line)
        thread = threads.setdefault(link, Thread(link))
        counts[DUPLICATE] += comment.id in thread.comments
        thread.comments[comment.id] = comment
    for line in lines_of_partition(folder, SUBMISSIONS, number):
        submission = submission_of(line)
        if submission.link in threads:
            threads[submission.link].submission = submission
    yield from (threads[link] for link in sorted(threads))


def _keep(
    response: Response, normalize: Normalize, lists: Lists, counts: collections.Counter[str]
) -> Conversation | None:
    """Returns the conversation that a response ends; None, and counts the filter, if one drops it."""
    reason = first_rejecting(RESPONSE_FILTERS, response, response.rules, lists)
    if reason is None:
        turns = tuple(map(normalize, response.context.turns))
        conversation = Conversation(turns, tuple(map(lists.block, turns)))
        reason = first_rejecting(CONVERSATION_FILTERS, conversation, response.rules, lists)
    if reason is not None:
        counts[reason] += 1
        return None
    counts[KEPT] += 1
    counts[BLOCKED_TURNS] += sum(conversation.are_blocked)
    if response.context.cut:
        counts[CUT + response.context.cut] += 1
    return conversation


def format_line(response: Response, conversation: Conversation, output_format: str) -> str:
    """Returns a conversation as a line of DialoGPT's TSV, or of JSON with the ids and the score of the response."""
    weights = conversation.weights(response.rules.leaves_only)
    if output_format == TSV:
        turns = [f"{weight} {text}" for weight, text in zip(weights, conversation.turns, strict=True)]
        return f"{f' {END_MARK} '.join(turns[:-1])}\t{turns[-1]}\n"
    values = {
        "link": response.thread.link,
        "parent": response.comment.parent,
        "comment": response.comment.id,
        "score": response.comment.score,
        "turns": [
            {"role": role, "content": text, "weight": weight}
            for role, text, weight in zip(itertools.cycle(SPEAKERS), conversation.turns, weights, strict=False)
        ],
    }
    return json.dumps(values, ensure_ascii=False) + "\n"
