"""Normalising comments of Reddit: pairs made by hand from DialoGPT's rules and from where they are not kept."""

from __future__ import annotations

import sys

import pytest

from configs.errors import UserError
from data.dialogue.reddit_extraction.rules.normalize import make_normalizer, to_one_line

ONE_LINE = {
    "a\tb\nc\r\nd  e": "a b c d e",
    "b\\/c \\*it\\*": "b/c *it*",
    "rock &amp; roll &lt;3 &quot;x&quot;": 'rock & roll <3 "x"',
    "&amp;gt; once": "&gt; once",
    "a\u2028b\u00a0c\x1cd": "a b c d",
    "half \ud83d of one": "half \ufffd of one",
    " \n ": "",
}
DIALOGPT = {
    "Well, I don't know...": "Well , I don't know ...",
    "#blessed it is #1": "it is",
    "see http://a.b/c?d and xHTTP://y": "see __url__ and x __url__",
    "b/c I do w/o it w/ you, j/k": "because I do without it with you , just kidding",
    "ab/c xw/o": "ab c xw o",
    "now/then": "now then",  # not "nowiththen"
    "the URL and a MENTION": "the URL and a MENTION",  # not "__url__"
    "naïve 100% café_x": "na ve 100 caf x",
    "“so” (it) [is]: 'x'!?": "“ so ” ( it ) [ is ]: ' x ' ! ?",
    "it's   3.5 :)": "it's 3.5 :)",
    "😀": "",
}


@pytest.mark.parametrize("text", ONE_LINE)
def test_one_line(text: str) -> None:
    assert to_one_line(text) == ONE_LINE[text]


@pytest.mark.parametrize("text", DIALOGPT)
def test_as_dialogpt(text: str) -> None:
    assert make_normalizer("dialogpt")(text) == DIALOGPT[text]


def test_minimal_leaves_text_as_it_is() -> None:
    assert make_normalizer("minimal")("Naïve, isn't it? #1") == "Naïve, isn't it? #1"


def test_without_nltk_a_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize.casual", None)
    with pytest.raises(UserError, match="--normalize dialogpt: needs nltk.*--normalize minimal"):
        make_normalizer("dialogpt")
    assert make_normalizer("minimal")("a b") == "a b"
