"""Normalising what people write on Reddit, as the data were that DialoGPT was trained on."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from configs.errors import UserError

DIALOGPT, MINIMAL = NORMALIZATIONS = ("dialogpt", "minimal")
URL = "__url__"
Normalize = Callable[[str], str]

_HALF_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape one, UTF-8 has none
_FROM_HTTP = re.compile("http.*", re.IGNORECASE)
_ABBREVIATIONS = {"b/c": "because", "j/k": "just kidding", "w/o": "without", "w/": "with"}
_ABBREVIATION = re.compile(rf"(?<!\w)({'|'.join(_ABBREVIATIONS)})(?!\w)")
_OTHER_CHARACTER = re.compile(r"[^A-Za-z0-9()\[\]:,.!?'“” ]")


def to_one_line(text: str) -> str:
    """Returns a text with HTML's entities decoded, without backslashes (of Markdown), its words one blank apart."""
    return " ".join(_HALF_SURROGATE.sub("\ufffd", html.unescape(text)).replace("\\", "").split())


def make_normalizer(normalization: str) -> Normalize:
    """Returns the function that normalises a text of one line.

    Args:
        normalization: "dialogpt": hashtags go, links become `__url__`, four abbreviations are written out, only
            letters of English, digits and common marks stay, and words and marks are blanks apart; "minimal": the text
            stays.

    Raises:
        UserError: nltk is not installed, whose tokenizer of tweets is the last of the steps.
    """
    if normalization == MINIMAL:
        return str
    try:
        from nltk.tokenize.casual import TweetTokenizer
    except ImportError:
        raise UserError(
            "--normalize dialogpt: needs nltk, which is not installed; pip install -r requirements-tasks.txt, or give "
            "--normalize minimal"
        ) from None
    tokenize = TweetTokenizer(preserve_case=True).tokenize
    return lambda text: " ".join(tokenize(_keep_characters(_write_out(_mark_urls(text)))))


def _mark_urls(text: str) -> str:
    """Leaves hashtags out, and replaces the rest of a word from `http` on."""
    return " ".join(_FROM_HTTP.sub(f" {URL}", word) for word in text.split() if not word.startswith("#"))


def _write_out(text: str) -> str:
    return _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match[1]], text)


def _keep_characters(text: str) -> str:
    return URL.join(_OTHER_CHARACTER.sub(" ", part) for part in text.split(URL))
