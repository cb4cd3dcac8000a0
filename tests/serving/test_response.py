"""Choices as OpenAI's clients read them, from deltas cut anywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.generation.engine import TokenChunk
from runtime.generation.scheduler import Delta
from serving.request import Prompt
from serving.response import ChoiceWriter, joined, token_name

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


def bytes_of(token: int) -> bytes:
    return bytes([token])


@given(before=TEXTS, text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_offsets_are_the_characters_in_which_tokens_begin(before: str, text: str, cuts: list[int]) -> None:
    """A byte is a token here, and a delta may end between any two of them."""
    writer = ChoiceWriter(0, bytes_of, 0)
    prompt, written = tuple(before.encode()), tuple(text.encode())
    pieces = [writer.echo(Prompt(before, prompt), TokenChunk(prompt[1:], prompt[1:], ((),) * len(prompt[1:]), None))]
    places = sorted({0, len(written), *(cut for cut in cuts if cut < len(written))})
    for begin, end in zip(places, places[1:] or places, strict=False):
        part = written[begin:end]
        pieces.append(writer.written(Delta("", part, part, ((),) * len(part), None)))
    choice = joined([*pieces, writer.written(Delta(text, (), (), (), "stop"))])
    encoded = before.encode() + text.encode()
    expected = [len(encoded[:place].decode(errors="ignore")) for place in range(len(encoded))]
    assert choice.logprobs is not None and choice.logprobs.text_offset == expected
    assert choice.logprobs.token_logprobs == [None, *encoded[1:]] or not prompt
    assert (choice.text, choice.finish_reason) == (before + text, "stop")


@given(st.binary(min_size=1, max_size=4))
def test_tokens_of_different_bytes_have_different_names(token: bytes) -> None:
    name = token_name(token)
    if name.startswith("bytes:\\x"):
        assert bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) == token
    else:
        assert name.encode() == token


def test_a_piece_without_scores_has_none() -> None:
    writer = ChoiceWriter(3, bytes_of, None)
    choice = joined([writer.written(Delta("ab", (97, 98), (-1.0, -2.0), ((), ()), "length"))])
    assert choice.model_dump() == {"text": "ab", "index": 3, "logprobs": None, "finish_reason": "length"}
