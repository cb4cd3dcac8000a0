"""The rules of DialoGPT's extractor once more, written down simply: everything in memory, one loop, no stages.

Written from the description of the rules in docs/dialogue.md; shares nothing with the tool.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections import Counter
from pathlib import Path

import zstandard
from nltk.tokenize.casual import TweetTokenizer

TWEETS = TweetTokenizer(preserve_case=True)
DEFAULTS = {
    "min_depth": 2,
    "max_depth": 5,
    "min_score": 1,
    "max_len": 30,
    "max_len_type": "w",
    "use_title": False,
    "leaves_only": True,
    "bad_words": [],
    "bad_keys": [],
    "bad_subreddits": None,
    "frequent": None,
    "bland": None,
    "repeated_trigram": False,
}


def read(path: Path) -> list[str]:
    with open(path, "rb") as packed:
        stream = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        return io.TextIOWrapper(stream, encoding="utf-8", newline="\n").read().split("\n")[:-1]


def one_line(text: str) -> str:
    text = html.unescape(text).replace("\\", "")
    return " ".join("".join("\ufffd" if 0xD800 <= ord(each) < 0xE000 else each for each in text).split())


def normalized(text: str) -> str:
    words = []
    for word in text.split():
        if word[0] == "#":
            continue
        at = word.lower().find("http")
        words += [word] if at < 0 else [word[:at], "__url__"]
    text = " ".join(words)
    for short, long in {"b/c": "because", "j/k": "just kidding", "w/o": "without", "w/": "with"}.items():
        text = re.sub(rf"(^|\W){re.escape(short)}(?=\W|$)", lambda found, long=long: found[1] + long, text)
    kept = ["".join(c if c.isascii() and (c.isalnum() or c in "()[]:,.!?' ") or c in "“”" else " " for c in part)
            for part in text.split("__url__")]  # fmt: skip
    return " ".join(TWEETS.tokenize("__url__".join(kept)))


def has_bad_word(text: str, words: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


def survivors(folder: Path, month: str, **changes: object) -> tuple[list[str], Counter[str]]:
    """The lines of TSV that are kept, sorted by link, parent and id; and how many comments each rule takes."""
    rules, taken = DEFAULTS | changes, Counter()
    titles, subreddits = {}, {}
    for line in read(folder / f"RS_{month}.zst"):
        values = json.loads(line)
        if int(values["num_comments"]) >= 2:
            titles["t3_" + values["id"]] = one_line(values["title"])
            subreddits["t3_" + values["id"]] = values["permalink"].split("/")[2].lower()
        else:
            taken["few_comments"] += 1
    comments = {}
    for line in read(folder / f"RC_{month}.zst"):
        try:
            values = json.loads(line)
            assert all(isinstance(values[key], str) for key in ("id", "link_id", "parent_id", "body"))
        except (ValueError, KeyError, TypeError, AssertionError):
            taken["damaged_comments"] += 1
            continue
        body = values["body"]
        values["text"] = one_line(body)
        if body in ("[deleted]", "[removed]"):
            taken["deleted"] += 1
        elif ">" in body or "&gt;" in body:
            taken["quote"] += 1
        elif len(values["text"].split()) < 2:
            taken["short_comment"] += 1
        else:
            taken["duplicate"] += ("t1_" + values["id"], values["link_id"]) in comments
            comments["t1_" + values["id"], values["link_id"]] = values
    taken["no_submission"] = sum(link not in titles for _, link in comments)
    comments = {key: values for key, values in comments.items() if key[1] in titles}
    answered = {(values["parent_id"], values["link_id"]) for values in comments.values()}
    kept = []
    for id_, link in comments:
        result = judge(id_, link, comments, answered, titles, subreddits, rules)
        if isinstance(result, tuple):
            kept.append(((link, comments[id_, link]["parent_id"], id_), "\t".join(result)))
        else:
            taken[result] += 1
    return [line for _, line in sorted(kept)], +taken


def is_long(values: dict, rules: dict) -> bool:
    return (len(values["text"].split()) if rules["max_len_type"] == "w" else len(values["body"])) > rules["max_len"]


def judge(id_, link, comments, answered, titles, subreddits, rules):  # noqa: ANN001, ANN201
    """The two columns of a response, or the name of the rule that takes it."""
    values = comments[id_, link]
    if rules["leaves_only"] and (id_, link) in answered:
        return "answered"
    if rules["bad_subreddits"] is not None and subreddits[link] in rules["bad_subreddits"]:
        return "subreddit"
    if int(values["score"] or 0) < rules["min_score"]:
        return "low_score"
    if is_long(values, rules):
        return "long_response"
    texts, at = [], (id_, link)
    while at in comments and len(texts) < rules["max_depth"] and not is_long(comments[at], rules):
        texts.insert(0, comments[at]["text"])
        parent = comments[at]["parent_id"]
        if parent.startswith("t3_") and rules["use_title"]:
            texts.insert(0, "title: " + titles[link])
            break
        at = (parent, link)
    if len(texts) < rules["min_depth"]:
        return "few_turns"
    texts = [normalized(text) for text in texts]
    blocked = [
        has_bad_word(text, rules["bad_words"]) or hashlib.sha224(text.encode()).hexdigest() in rules["bad_keys"]
        for text in texts
    ]
    if reason := flaw(texts, blocked, rules):
        return reason
    if rules["leaves_only"]:
        weights = ["0.0" if each else "1.0" for each in blocked]
    else:
        weights = ["0.0"] * (len(texts) - 1) + ["1.0"]
    turns = [f"{weight} {text}" for weight, text in zip(weights, texts, strict=True)]
    return " EOS ".join(turns[:-1]), turns[-1]


def flaw(texts: list[str], blocked: list[bool], rules: dict) -> str | None:
    words, every = texts[-1].split(), " | ".join(texts)
    threes = [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]
    low = [three.lower() for three in threes]
    reasons = {
        "offensive": blocked[-1] and not rules["leaves_only"],
        "empty_turn": "" in texts,
        "end_mark": re.search(r"(^| )EOS( |$)", every),
        "long_word": max([len(word) for word in words], default=0) > 30,
        "long_conversation": sum(len(text.split()) for text in texts) > 200,
        "url": "__url__" in every,
        "brackets": re.search(r"[][()]", every),
        "capitals": re.search("[A-Z][A-Z][A-Z][A-Z][A-Z]", every),
        "repeated_word": any(len(set(three.split())) == 1 for three in threes),
        "repeated_trigram": rules["repeated_trigram"] and max(Counter(threes).values(), default=0) > 1,
        "no_frequent_word": rules["frequent"] is not None
        and not any(word.lower() in rules["frequent"] for word in words),
        "bland": rules["bland"] is not None and low and sum(three in rules["bland"] for three in low) / len(low) >= 0.9,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
