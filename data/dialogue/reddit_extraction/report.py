"""What became of the submissions and comments of dumps, as a table and as JSON."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from data.dialogue.reddit_extraction.conversations import BLOCKED_TURNS, CUT, DUPLICATE, KEPT
from data.dialogue.reddit_extraction.extraction import DumpReport
from data.dialogue.reddit_extraction.filters import (
    COMMENT_FILTERS,
    CONVERSATION_FILTERS,
    FILTERS,
    RESPONSE_FILTERS,
    SUBMISSION_FILTERS,
    THREAD_FILTERS,
    Filter,
)
from data.dialogue.reddit_extraction.partitions import DAMAGED_LINE
from data.dialogue.reddit_extraction.records import COMMENTS, SUBMISSIONS
from data.dialogue.reddit_extraction.threads import CUTS

DAMAGED = {kind: f"{DAMAGED_LINE}_{kind}" for kind in (SUBMISSIONS, COMMENTS)}
DROPPED = {DAMAGED[SUBMISSIONS]: "a damaged line", DAMAGED[COMMENTS]: "a damaged line"}
DROPPED |= {each.name: each.drops for each in FILTERS} | {DUPLICATE: "a comment whose id comes again"}
NOTES = {
    BLOCKED_TURNS: "turns with a listed word or key",
    **{f"{CUT}{cut}": f"conversations that begin after a cut: {cut.replace('_', ' ')}" for cut in CUTS},
}


def total(reports: Sequence[DumpReport]) -> dict[str, int]:
    """Returns the counts of all dumps together, in the order of the steps, each of which is there."""
    counts = collections.Counter()
    for report in reports:
        counts.update(report.counts)
    comments = [DAMAGED[COMMENTS], *_names(COMMENT_FILTERS), DUPLICATE]
    steps = [SUBMISSIONS, DAMAGED[SUBMISSIONS], *_names(SUBMISSION_FILTERS), COMMENTS, *comments]
    steps += [*_names(THREAD_FILTERS), *_names(RESPONSE_FILTERS), *_names(CONVERSATION_FILTERS), KEPT, *NOTES]
    return {step: counts[step] for step in steps}


def _names(filters: Sequence[Filter]) -> list[str]:
    return [each.name for each in filters]


def describe(reports: Sequence[DumpReport]) -> str:
    """Returns the report as text: the table, damage, and where the conversations are."""
    lines = list(_table(total(reports)))
    for report in reports:
        lines += [f"damaged line {problem}" for problem in report.problems]
        lines += [f"damaged file {damage}" for damage in report.damage]
        lines.append(f"{report.path}: {report.counts.get(KEPT, 0):,} conversations, {report.bytes:,} bytes")
    # Names of files need not be UTF-8.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _table(counts: dict[str, int]) -> Iterator[str]:
    for step, count in counts.items():
        if step in DROPPED:
            yield f"  {-count:>15,}  {step:19} {DROPPED[step]}"
        elif step in NOTES:
            yield f"  {count:>15,}  {NOTES[step]}"
        else:
            yield f"{count:>17,}  {step}"


def to_json(reports: Sequence[DumpReport]) -> str:
    """Returns the report as one line of JSON."""
    return json.dumps({"counts": total(reports), "dumps": [asdict(report) for report in reports]})
