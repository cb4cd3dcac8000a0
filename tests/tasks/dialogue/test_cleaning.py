"""DialoGPT's cleaning: a hundred texts, and what the rules make of each, written by hand."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from configs.errors import UserError
from tasks.dialogue.cleaning import make_cleaner

CLEANED = {
    # lower case
    "Hello there": "hello there",
    "NASA AND ESA": "nasa and esa",
    "iPhone": "iphone",
    "ok": "ok",
    "What A Day": "what a day",
    # blanks are joined, and go at the ends
    "": "",
    "   ": "",
    "  a  b  ": "a b",
    "a\tb": "a b",
    "a\u00a0b": "a b",
    "a\u3000b": "a b",
    " one two": "one two",
    "one two ": "one two",
    # a word with http is its beginning and __url__
    "see http://x.org now": "see __url__ now",
    "https://example.com": "__url__",
    "HTTP://EXAMPLE.COM": "__url__",
    "look:https://a.b/c?d=e": "look : __url__",
    "this?https://github.com": "this ? __url__",
    "xhttpy z": "x __url__ z",
    "http": "__url__",
    "http http": "__url__ __url__",
    "(https://a.b)": "( __url__",
    "a https://a.b b https://c.d c": "a __url__ b __url__ c",
    "www.example.com": "www.example.com",
    "__url__": "__url__",
    "go to __url__ please": "go to __url__ please",
    # a Markdown link to a URL keeps its text
    "[ GitHub ] ( https://github.com )": "github",
    "please try [ this ] ( http://x )": "please try this",
    "[ two words ] ( http://x.y/z ) here": "two words here",
    "[ ] ( http://x )": "",
    "[ a ] ( http://x ) and [ b ] ( http://y )": "a and b",
    "[ a ] ( __url__ )": "a",
    "[a] ( http://x )": "a",
    "[ a ]( http://x )": "a ( __url__ )",
    "[a](http://x)": "a ( __url__",
    "[ a ] ( nothing )": "a ( nothing )",
    "[ a ] ( http://x y )": "a ( __url__ y )",
    # other characters are blanks
    "a+b": "a b",
    "a-b": "a b",
    "a/b": "a b",
    "a_b": "a b",
    "_": "",
    "50%": "50",
    "$5": "5",
    "a & b": "a b",
    "<b>": "b",
    "#tag": "tag",
    "@user hi": "user hi",
    "caf\u00e9": "caf",
    "na\u00efve": "na ve",
    "\u00fcber": "ber",
    "\u4f60\u597d": "",
    "ok \U0001f600": "ok",
    "it\u2019s": "it s",
    "\u201cquoted\u201d": "quoted",
    "a*b^c=d~e|f": "a b c d e f",
    "x; y": "x y",
    "{a} [b]": "a b",
    "back\\slash": "back slash",
    # marks that stay are words of their own
    "Wait, what?": "wait , what ?",
    "yes!": "yes !",
    "no.": "no .",
    "a: b": "a : b",
    "(aside)": "( aside )",
    'say "hi"': 'say " hi "',
    "what?!": "what ? !",
    "!!!": "! ! !",
    "well...": "well ...",
    "hm....": "hm ...",
    "a,b": "a , b",
    "don't know:).": "do n't know :) .",
    # what the tokenizer of tweets keeps together
    ":)": ":)",
    ":(": ":(",
    "nice :)": "nice :)",
    "sad :'(": "sad :'(",
    "8)": "8)",
    "3:30": "3:30",
    "1,000": "1,000",
    "google.com": "google.com",
    "rock'n'roll": "rock'n'roll",
    "o'clock": "o'clock",
    # won't and can't
    "I won't": "i will n't",
    "I can't": "i can n't",
    "Won't you?": "will n't you ?",
    "you can't.": "you can n't .",
    "can't won't": "can n't will n't",
    "won't won't": "will n't wo n't",  # the first takes the blank between them
    # a blank before 's 'm 're n't 'll 've 'd 'em
    "it's": "it 's",
    "James's book": "james 's book",
    "I'm": "i 'm",
    "we're here": "we 're here",
    "don't": "do n't",
    "isn't it?": "is n't it ?",
    "he'll go": "he 'll go",
    "they've": "they 've",
    "I'd": "i 'd",
    "I'd've": "i 'd 've",
    "couldn't've": "couldn't 've",
    "y'all": "y'all",
    "the dogs' bowl": "the dogs ' bowl",
    "IT'S": "it 's",
    "ain't": "ai n't",
}


def test_a_hundred_texts_are_cleaned_by_the_rules() -> None:
    clean = make_cleaner()
    assert len(CLEANED) >= 100
    assert {text: clean(text) for text in CLEANED} == CLEANED


def test_the_example_of_the_challenge() -> None:
    text = " I don't know:). how about this?https://github.com/golsun/deep-RL-time-series"
    assert make_cleaner()(text) == "i do n't know :) . how about this ? __url__"


def test_without_nltk_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without_nltk(name: str, *others: Any) -> Any:
        if name.startswith("nltk"):
            raise ImportError(name)
        return find(name, *others)

    monkeypatch.setattr(builtins, "__import__", without_nltk)
    with pytest.raises(UserError, match="--clean: needs nltk, .*; pip install -r requirements-tasks.txt"):
        make_cleaner()
