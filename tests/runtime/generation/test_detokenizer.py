"""Detokenizing texts that are cut into tokens in every way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.generation.detokenizer import Detokenizer, ScoredToken, TextChunk


def token(number: int) -> ScoredToken:
    return ScoredToken(number, -float(number), ((number, -1.0),))


def characters(data: bytes) -> list[int]:
    """Returns the index of the first byte of each character; invalid UTF-8 counts as Unicode recommends."""
    starts, start = [], 0
    while start < len(data):
        starts.append(start)
        for length in range(1, 5):
            try:
                if len(data[start : start + length].decode()) == 1:
                    start += length
                    break
            except UnicodeDecodeError as error:
                broken = error
        else:
            start += broken.end - broken.start
    return starts


def expected(parts: Sequence[bytes], stops: Sequence[str]) -> tuple[str, list[int], bool]:
    """Decodes all bytes at once: text, numbers of its tokens, whether it was cut."""
    data = b"".join(parts)
    text, starts = data.decode("utf-8", "replace"), characters(data)
    assert len(text) == len(starts)
    found = [text.index(stop) for stop in stops if stop in text]
    cut = min(found, default=len(text))
    begins = itertools.accumulate((len(part) for part in parts), initial=0)
    of_character = [sum(start <= begin for start in starts) - 1 for begin in begins]
    numbers = [number for number in range(len(parts)) if of_character[number] < cut or not found]
    return text[:cut], numbers, bool(found)


def streamed(
    parts: Sequence[bytes], stops: Sequence[str], takes: Sequence[int], min_tokens: int = 0
) -> tuple[list[str], list[list[int]], bool]:
    """Returns the released texts and token numbers, taking this many tokens at a time."""
    detokenizer, texts, numbers = Detokenizer(stops, min_tokens), [], []
    remaining = iter(enumerate(parts))
    for n_tokens in [*takes, None]:  # at last, all that is left
        for number, part in itertools.islice(remaining, n_tokens):
            detokenizer.add(token(number), part)
        given = detokenizer.take("length" if n_tokens is None else None)
        texts.append(given.text)
        numbers.append(list(given.tokens))
        if given.finish_reason == "stop":
            return texts, numbers, True
    return texts, numbers, False


def divided(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    starts = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(starts)]


# Few letters, so that stop strings start often; characters of each length in bytes; and invalid bytes.
PARTS = [
    b"a",
    b"b",
    b"c",
    "ä".encode(),
    "€".encode(),
    "😀".encode(),
    b"\xe2\x82",
    b"\x80",
    b"\xf0",
    b"\xff",
    b"\xed\xa0",
]
BYTES = st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join)
STOPS = st.lists(st.text("abcä€😀\ufffd", min_size=1, max_size=4), max_size=3)
NUMBERS = st.lists(st.integers(0, 60), max_size=20)


@settings(max_examples=1000, deadline=None)
@given(data=BYTES, cuts=NUMBERS, stops=STOPS, takes=st.lists(st.integers(0, 3), max_size=10))
def test_any_token_boundaries_give_the_same_text(
    data: bytes, cuts: list[int], stops: list[str], takes: list[int]
) -> None:
    parts = divided(data, cuts)
    text, numbers, is_cut = expected(parts, stops)
    texts, released, was_cut = streamed(parts, stops, takes)
    assert ("".join(texts), sum(released, []), was_cut) == (text, numbers, is_cut)


@settings(max_examples=500, deadline=None)
@given(data=BYTES, cuts=NUMBERS, stops=STOPS)
def test_tokens_are_released_with_the_text_in_which_they_start(data: bytes, cuts: list[int], stops: list[str]) -> None:
    parts = divided(data, cuts)
    begins = [0, *itertools.accumulate(map(len, parts))]
    starts = characters(data)
    texts, released, _ = streamed(parts, stops, [1] * len(parts))
    for n_takes in range(len(texts) - 1):
        n_given = len("".join(texts[: n_takes + 1]))
        begun = [n for n in range(len(parts)) if sum(start <= begins[n] for start in starts) <= n_given]
        assert sum(released[: n_takes + 1], []) == begun


@pytest.mark.parametrize(
    ("parts", "stops", "texts"),
    [
        ([b"ab", b"cd"], ["bc"], ["a", ""]),
        ([b"ab", b"xd"], ["bc"], ["a", "bxd", ""]),
        ([b"a", b"b"], ["ab"], ["", ""]),  # the whole text
        ([b"xa", b"b", b"c"], ["b", "abcd"], ["x", "", "", "a"]),  # the later one counts once the other is ruled out
        ([b"xa", b"b", b"cd"], ["b", "abcd"], ["x", "", ""]),
        ([b"a", b"a", b"b"], ["aab", "ab"], ["", "", ""]),
        ([b"a", b"a", b"a", b"b"], ["aab"], ["", "", "a", ""]),
        ([b"\xe2", b"\x82", b"\xac"], [], ["", "", "€", ""]),
        ([b"\xe2", b"\x82"], [], ["", "", "\ufffd"]),
        ([b"\xe2", b"a"], [], ["", "\ufffda", ""]),
        ([b"x\xe2", b"\x82"], ["x\ufffd"], ["", "", ""]),
        ([b"x", b"\xe2\x82", b"\xacy"], ["€"], ["x", "", ""]),
        ([], ["a"], [""]),
        ([b"", b"a", b""], ["b"], ["", "a", "", ""]),
    ],
)
def test_text_released_after_each_token(parts: list[bytes], stops: list[str], texts: list[str]) -> None:
    assert streamed(parts, stops, [1] * len(parts))[0] == texts


@pytest.mark.parametrize(
    ("parts", "min_tokens", "texts"),
    [
        ([b"xab", b"c", b"xab", b"c"], 0, ["x"]),
        ([b"xab", b"c", b"xab", b"c"], 1, ["xab", "c", "x"]),  # a stop string that has begun before does not count
        ([b"a", b"b", b"a", b"b", b"c"], 3, ["a", "b", "a", "b", "c", ""]),
        ([b"a", b"b", b"a", b"b", b"a", b"b"], 4, ["a", "b", "a", "b", "", ""]),
        ([b"ab", b"ab"], 9, ["ab", "ab", ""]),
        ([b"\xe2", b"\x82", b"\xacab"], 2, ["", "", "\u20ac"]),
    ],
)
def test_no_stop_string_counts_in_the_first_tokens(parts: list[bytes], min_tokens: int, texts: list[str]) -> None:
    assert streamed(parts, ["ab"], [1] * len(parts), min_tokens)[0] == texts


def test_tokens_without_text_are_released_with_the_next_text_or_at_the_end() -> None:
    assert streamed([b"", b"a", b"", b""], [], [1, 1, 1, 1])[1] == [[], [0, 1], [], [], [2, 3]]


def test_a_token_keeps_its_scores() -> None:
    detokenizer = Detokenizer(())
    detokenizer.add(token(7), b"a")
    assert detokenizer.take("length") == TextChunk("a", (7,), (-7.0,), (((7, -1.0),),), "length")
