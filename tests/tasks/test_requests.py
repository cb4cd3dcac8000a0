"""What is asked of the scorer, against rules that are spelled out here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from configs.errors import ConfigError, DataError
from tasks.requests import build_requests, count_cut, rolling_windows
from tasks.scorer import Continuations
from tasks.task import CONTINUATION, MULTIPLE_CHOICE, ROLLING, LoadedTask, Question, Task, Text

START = 0
PIECES = ["<start>", "the", " cat", " cats", "cat", "s", " ", "\n", "  ", " sat", "a", "b", "ab"]


class LongestMatch:
    """A tokenizer that takes the longest of its pieces at each place."""

    _pattern = re.compile("|".join(map(re.escape, sorted(PIECES, key=len, reverse=True))))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[PIECES.index(piece) for piece in self._pattern.findall(text)] for text in texts]


def asked(*questions: Question, n_ctx: int = 8) -> list[tuple[Continuations, ...]]:
    loaded = LoadedTask(Task("mine", MULTIPLE_CHOICE, "mine.jsonl"), "mine.jsonl", questions)
    return build_requests(loaded, LongestMatch(), START, n_ctx)


def ids(*pieces: str) -> tuple[int, ...]:
    return tuple(map(PIECES.index, pieces))


def test_choices_share_their_context() -> None:
    question = Question(("the",), ("cat", "sat"), 1)
    assert asked(question) == [(Continuations(ids("the"), (ids(" cat"), ids(" sat"))),)]


def test_contexts_that_compete_are_asked_one_by_one() -> None:
    question = Question(("the", "the cat"), ("sat",))
    expected = [Continuations(ids(*context), (ids(" sat"),)) for context in (["the"], ["the", " cat"])]
    assert asked(question) == [tuple(expected)]


@pytest.mark.parametrize("blanks", [" ", "  ", "\n"])
def test_blanks_at_the_end_of_the_context_belong_to_the_continuation(blanks: str) -> None:
    (question,) = asked(Question((f"the{blanks}",), ("cat",), delimiter=""))
    (whole,) = LongestMatch().encode_batch([f"the{blanks}cat"])
    assert question == (Continuations(ids("the"), (tuple(whole[1:]),)),)


@pytest.mark.parametrize(("n_ctx", "n_cut"), [(6, 0), (5, 1), (4, 2), (3, 2)])
def test_items_whose_context_is_cut_are_counted(n_ctx: int, n_cut: int) -> None:
    # 5 and 4 tokens before a choice; the last token of the longer choice of two is not read.
    items = [
        Question(("the cat" + " cat" * 3,), ("cat", "sat sat")),
        Question(("the cat" + " cat" * 2,), ("cat", "sat sat")),
    ]
    assert count_cut(asked(*items, n_ctx=n_ctx), n_ctx) == n_cut


@pytest.mark.parametrize("n_tokens", [1, 8, 9, 30])
def test_windows_of_texts_are_not_cut(n_tokens: int) -> None:
    assert count_cut([list(rolling_windows(range(n_tokens), START, 8, 3))], 8) == 0


def test_the_cut_is_where_the_context_alone_would_end() -> None:
    (question,) = asked(Question(("the cat",), ("s sat",), delimiter=""))
    # Together they are encoded as "the", " cats", " sat": the first two tokens count as the context.
    assert question == (Continuations(ids("the", " cat"), (ids(" sat"),)),)


@pytest.mark.parametrize("context", ["", " ", "\n"])
def test_an_empty_context_is_the_start_of_a_document(context: str) -> None:
    (question,) = asked(Question((context,), ("cat",), delimiter=""))
    (whole,) = LongestMatch().encode_batch([f"{context}cat"])
    assert question == (Continuations((START,), (tuple(whole),)),)


def test_a_document_that_spells_its_start_has_one_start() -> None:
    (question,) = asked(Question(("",), ("<start>the", "cat"), delimiter=""))
    assert question == (Continuations((START,), (ids("the"), ids("cat"))),)


def test_a_continuation_without_a_token_is_named_with_its_line() -> None:
    question = Question(("a",), ("a", "b"), delimiter="", line=7)
    expected = r"mine.jsonl: line 7: continuation 1: has no token of its own.*context \('ab'\); put a blank between"
    with pytest.raises(DataError, match=expected):
        asked(question)


def test_a_continuation_that_does_not_fit_is_named_with_its_line() -> None:
    question = Question(("the",), ("a", "a" * 9), delimiter="", line=3)
    with pytest.raises(
        DataError, match=r"mine.jsonl: line 3: continuation 1 = 9 tokens: n_ctx is 8; leave the item out"
    ):
        asked(question)
    assert asked(question, n_ctx=9)


def windows_by_hand(tokens: Sequence[int], n_ctx: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """What a model reads in each window, and what of it is scored."""
    text, scored, found = [START, *tokens], 0, []
    while scored < len(tokens):
        size = min(n_ctx if scored == 0 else stride, len(tokens) - scored)
        read = text[max(0, scored + size - n_ctx) : scored + size]
        found.append((read, text[scored + 1 : scored + size + 1]))
        scored += size
    return found


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
def test_windows_score_each_token_once_after_as_many_as_fit(n_tokens: int, stride: int) -> None:
    tokens = list(range(100, 100 + n_tokens))
    windows = list(rolling_windows(tokens, START, 8, stride))
    assert [token for window in windows for choice in window.choices for token in choice] == tokens
    read = [([*window.context, *window.choices[0]][:-1], list(window.choices[0])) for window in windows]
    assert read == windows_by_hand(tokens, 8, stride)


def rolling(text: str, stride: int | None) -> LoadedTask:
    return LoadedTask(Task("book", ROLLING, "book.txt", stride=stride), "book.txt", (Text(text, text, line=2),))


def test_texts_are_asked_in_windows() -> None:
    (windows,) = build_requests(rolling("the cat sat", None), LongestMatch(), START, 2)
    assert windows == (
        Continuations((START,), (ids("the", " cat"),)),
        Continuations(ids("the", " cat"), (ids(" sat"),)),
    )


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_beyond_the_context_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"book: stride = {stride}: the model reads 8; give 1 to 8"):
        build_requests(rolling("the", stride), LongestMatch(), START, 8)


def test_a_text_without_a_token_is_named_with_its_line() -> None:
    with pytest.raises(DataError, match=r"book.txt: line 2: text: has no character that the tokenizer knows; leave it"):
        build_requests(rolling("語", None), LongestMatch(), START, 8)


def test_the_kind_continuation_is_a_question_of_one_choice() -> None:
    loaded = LoadedTask(Task("l", CONTINUATION, "l.jsonl"), "l.jsonl", (Question(("the",), (" cat",), delimiter=""),))
    assert build_requests(loaded, LongestMatch(), START, 8) == [(Continuations(ids("the"), (ids(" cat"),)),)]
