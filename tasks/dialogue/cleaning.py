"""DialoGPT's cleaning of responses before they are measured."""

from __future__ import annotations

import re
from collections.abc import Callable

from configs.errors import UserError

URL = "__url__"
# A link that leads to a URL: its text stays.
MARKDOWN_LINK = re.compile(rf"\[([^\]]*)\] \( *{URL} *\)")
OTHER_CHARACTER = re.compile(r"[^a-z0-9():,.!?\"']")
IRREGULAR = {" won't ": " will n't ", " can't ": " can n't "}
ENDINGS = ("'s", "'m", "'re", "n't", "'ll", "'ve", "'d", "'em")


def make_cleaner() -> Callable[[str], str]:
    """Returns the function that cleans a text.

    Raises:
        UserError: nltk is not installed, whose tokenizer of tweets is one of the steps.
    """
    try:
        from nltk.tokenize.casual import TweetTokenizer
    except ImportError:
        raise UserError("--clean: needs nltk, which is not installed; pip install -r requirements-tasks.txt") from None
    tokenize = TweetTokenizer(preserve_case=False).tokenize
    return lambda text: _split_contractions(" ".join(tokenize(_keep_letters(_mark_urls(text.lower())))))


def _mark_urls(text: str) -> str:
    """Replaces the rest of each word from `http` on, and Markdown links by their texts."""
    words = (word.partition("http") for word in text.split())
    marked = " ".join(f"{before} {URL}".lstrip() if http else before for before, http, _ in words)
    return MARKDOWN_LINK.sub(r"\1", marked)


def _keep_letters(text: str) -> str:
    """Replaces what is no letter of English, digit or common mark by blanks."""
    return URL.join(OTHER_CHARACTER.sub(" ", part) for part in text.split(URL))


def _split_contractions(text: str) -> str:
    text = f" {text} "
    for whole, split in IRREGULAR.items():
        text = text.replace(whole, split)
    for ending in ENDINGS:
        text = text.replace(f"{ending} ", f" {ending} ")
    return " ".join(text.split())
