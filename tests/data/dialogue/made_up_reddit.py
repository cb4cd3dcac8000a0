"""Made-up dumps of Reddit: every rule of the extractor meets comments that it keeps and comments that it drops."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import zstandard

MONTH_START = 1483228800  # January 2017
COMMON = "the of a and to in is it you that for on with as this was be are not but they have at from or we do so if"
OTHERS = """cat dog house river money train music film game phone street winter coffee teacher doctor village plan
don't it's we're b/c w/o w/ j/k naïve, well. really! what? ok (maybe) [sic] EOS b\\/c now/then URL “quoted” nice: x
&amp; &lt;3 #blessed #1 😀 http://example.com/a see:HTTPS://x.y SHOUTS SHOUTING a_b 3.5 badword &nbsp;
pneumonoultramicroscopicsilicovolcano"""
WORDS = [*COMMON.split() * 3, *OTHERS.split(), "very bad thing", "\u2028", "\ud83d"]
BODIES = ["[deleted]", "[removed]", "", "ok", ":)", "# #", "no no no", "no no no no", "\\", "tab\there", "a new\nline"]
SUBREDDITS = ["AskReddit", "cats", "Banned", "funny"]
TOPIC_COMMENTS = 12


def body_of(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.04:
        return draw.choice(BODIES)
    words = draw.choices(WORDS, k=draw.choice((1, 2, 3, 5, 8, 13, 29, 30, 31, 45)))
    if kind < 0.5:  # of plain words only
        words = [word for word in words if word.isalpha() and word.islower()] or ["so", "what"]
    if kind > 0.97:
        words.insert(0, draw.choice((">", "&gt;")))
    return " ".join(words)


def comments_of(draw: random.Random, link: str, subreddit: str, n_comments: int) -> Iterator[dict]:
    """A thread, mostly in the order of time; some parents are missing, some ids come twice."""
    ids = []
    for number in range(n_comments):
        id_ = f"{link}c{number}"
        parent = draw.choice([f"t1_{each}" for each in ids[-6:]] + [f"t3_{link}"] * (1 + (len(ids) < 3)))
        if draw.random() < 0.02:
            parent = "t1_elsewhere"
        values = {
            "id": draw.choice(ids) if ids and draw.random() < 0.01 else id_,
            "link_id": f"t3_{link}",
            "parent_id": parent,
            "body": body_of(draw),
            "score": draw.choice((-3, 0, 1, 2, 5, 100, None)),
            "created_utc": MONTH_START + number if number % 2 else str(MONTH_START + number),
            "subreddit": subreddit,
            "author": f"u{draw.randrange(1000)}",
            "controversiality": 0,
            "distinguished": None,
        }
        ids.append(id_)
        yield values


def submission_of(draw: random.Random, link: str, subreddit: str) -> dict:
    values = {
        "id": link,
        "score": draw.randrange(100),
        "num_comments": draw.choice((1, 2, 9, 12, 50, "7")),
        "domain": f"self.{subreddit}",
        "permalink": f"/r/{subreddit}/comments/{link}/title/",
        "title": f"{draw.choice(WORDS)} title\nof it",
    }
    return values | ({"subreddit": subreddit} if draw.random() < 0.5 else {})


def lines_of(seed: int, n_comments: int) -> Iterator[tuple[str, str]]:
    """The lines of the dumps, with their kinds ("S" or "C"); damaged ones too. Topics take turns."""
    draw, topic = random.Random(seed), 0
    written = 0
    while written < n_comments:
        topics = []
        for _ in range(20):
            link, subreddit = f"s{topic:x}", draw.choice(SUBREDDITS)
            topic += 1
            if draw.random() < 0.95:
                yield "S", json.dumps(submission_of(draw, link, subreddit))
            topics.append(comments_of(draw, link, subreddit, draw.randrange(2 * TOPIC_COMMENTS)))
        while topics and written < n_comments:
            comment = next(one := draw.choice(topics), None)
            if comment is None:
                topics.remove(one)
                continue
            written += 1
            yield "C", damaged(draw, comment) if draw.random() < 0.002 else json.dumps(comment)


def damaged(draw: random.Random, comment: dict) -> str:
    key = draw.choice(("id", "link_id", "parent_id", "body"))
    others = {name: value for name, value in comment.items() if name != key}
    return draw.choice(("{", "null", "[]", json.dumps(others), json.dumps(others | {key: 3})))


def write_dumps(folder: Path, n_comments: int, seed: int = 1, month: str = "2017-01") -> None:
    """Writes RS_ and RC_ of a month, each of several frames."""
    folder.mkdir(parents=True, exist_ok=True)
    compressor = zstandard.ZstdCompressor()
    with open(folder / f"RS_{month}.zst", "wb") as submissions, open(folder / f"RC_{month}.zst", "wb") as comments:
        files, waiting = {"S": submissions, "C": comments}, {"S": [], "C": []}
        for kind, line in lines_of(seed, n_comments):
            waiting[kind].append(line)
            if len(waiting[kind]) == 10_000:
                files[kind].write(compressor.compress("".join(f"{each}\n" for each in waiting[kind]).encode()))
                waiting[kind].clear()
        for kind, lines in waiting.items():
            files[kind].write(compressor.compress("".join(f"{each}\n" for each in lines).encode()))
