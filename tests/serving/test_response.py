"""Choices as OpenAI's clients read them, from chunks cut anywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from serving.request import EncodedPrompt
from serving.response import ChoiceBuilder, join_choices, token_name

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


def bytes_of(token: int) -> bytes:
    return bytes([token])


@given(before=TEXTS, text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_text_offsets_are_the_characters_in_which_tokens_start(before: str, text: str, cuts: list[int]) -> None:
    """Each byte is a token, and a chunk may end between any two of them."""
    builder = ChoiceBuilder(0, bytes_of, 0)
    prompt, written = tuple(before.encode()), tuple(text.encode())
    parts = [
        builder.opening(
            EncodedPrompt(before, prompt), TokenChunk(prompt[1:], prompt[1:], ((),) * len(prompt[1:]), None)
        )
    ]
    ends = sorted({0, len(written), *(cut for cut in cuts if cut < len(written))})
    for begin, end in zip(ends, ends[1:] or ends, strict=False):
        tokens = written[begin:end]
        parts.append(builder.generated(TextChunk("", tokens, tokens, ((),) * len(tokens), None)))
    choice = join_choices(0, [*parts, builder.generated(TextChunk(text, (), (), (), "stop"))])
    encoded = before.encode() + text.encode()
    expected = [len(encoded[:end].decode(errors="ignore")) for end in range(len(encoded))]
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


def test_a_chunk_without_scores_has_none() -> None:
    builder = ChoiceBuilder(3, bytes_of, None)
    choice = join_choices(3, [builder.generated(TextChunk("ab", (97, 98), (-1.0, -2.0), ((), ()), "length"))])
    assert choice.model_dump() == {"text": "ab", "index": 3, "logprobs": None, "finish_reason": "length"}
