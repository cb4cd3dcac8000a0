"""What of a conversation is kept for the next answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError
from data.dialogue.context import fit_turns
from data.dialogue.conversation import SYSTEM, Turn, alternating
from data.dialogue.templates import load_template
from tests.data.dialogue.test_templates import CHAT, EOS, PLAIN

WORDS = st.text("abc", max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=9).filter(lambda texts: len(texts) % 2), st.integers(0, 40))
def test_the_longest_end_that_fits_and_begins_with_the_user(texts: list[str], max_tokens: int) -> None:
    """A letter is a token, and so is the end of each turn."""
    ends = [texts[first:] for first in range(0, len(texts), 2)]
    fitting = [end for end in ends if sum(len(text) + 1 for text in end) <= max_tokens]
    template = load_template("dialogpt", PLAIN, EOS)
    if not fitting:
        with pytest.raises(DataError, match="^the message: makes .* tokens, and there is room for .*; shorten it, or"):
            fit_turns(template, alternating(texts), max_tokens)
        return
    fitted = fit_turns(template, alternating(texts), max_tokens)
    kept = max(fitting, key=len)
    assert PLAIN.decode_marked(list(fitted.ids)) == "".join(f"{text}⟦<|endoftext|>⟧" for text in kept)
    assert fitted.n_left_out == len(texts) - len(kept)


def test_a_conversation_that_the_model_began_is_kept_whole_if_it_fits() -> None:
    template, turns = load_template("dialogpt", PLAIN, EOS), [Turn("assistant", "a"), Turn("user", "b")]
    assert (len(fit_turns(template, turns, 4).ids), fit_turns(template, turns, 4).n_left_out) == (4, 0)
    assert (len(fit_turns(template, turns, 3).ids), fit_turns(template, turns, 3).n_left_out) == (2, 1)


def test_the_system_line_stays() -> None:
    template = load_template("chatml", CHAT, EOS)
    turns = [Turn(SYSTEM, "be kind"), *alternating(["hi", "yo", "ok"])]
    whole = fit_turns(template, turns, 1000)
    shorter = fit_turns(template, turns, len(whole.ids) - 1)
    assert (whole.n_left_out, shorter.n_left_out) == (0, 2)
    assert CHAT.decode_marked(list(shorter.ids)) == (
        "⟦<|im_start|>⟧system\nbe kind⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\nok⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n"
    )
