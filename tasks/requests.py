"""What a task asks of the scorer: token ids of contexts and continuations, as lm-evaluation-harness cuts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from configs.errors import ConfigError, DataError
from tasks.scorer import Continuations, Tokenizer
from tasks.task import LoadedTask, Question, Text

Ids = tuple[int, ...]


def build_requests(
    loaded: LoadedTask, tokenizer: Tokenizer, start_id: int, n_ctx: int
) -> list[tuple[Continuations, ...]]:
    """Returns what is asked for each item.

    Args:
        loaded: a task of questions or texts.
        tokenizer: of the model.
        start_id: stands for the start of a document, as eos does in training.
        n_ctx: the most tokens that the model reads.

    Returns:
        One entry where choices share a context, one for each context where contexts compete, one for each window of a
        text.

    Raises:
        DataError: a continuation has no token of its own, or does not fit n_ctx.
        ConfigError: the stride does not fit n_ctx.
    """
    questions = [item for item in loaded.items if isinstance(item, Question)]
    if questions:
        asked = _asked_of_questions(questions, tokenizer, start_id)
        for question, each in zip(questions, asked, strict=True):
            _check_lengths(loaded.path, question, each, n_ctx)
        return asked
    _check_stride(loaded, n_ctx)
    return _asked_of_texts(loaded, tokenizer, start_id, n_ctx)


def count_cut(asked: Sequence[Sequence[Continuations]], n_ctx: int) -> int:
    """Returns of how many items a context does not fit beside its continuations, and loses its beginning."""
    longest = ((len(each.context) + max(map(len, each.choices)) for each in item) for item in asked)
    return sum(max(lengths) > n_ctx + 1 for lengths in longest)


def _asked_of_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, start_id: int
) -> list[tuple[Continuations, ...]]:
    pairs = [question.pairs for question in questions]
    encoded = iter(encode_pairs(list(chain.from_iterable(pairs)), tokenizer, start_id))
    return [_group(question, [next(encoded) for _ in each]) for question, each in zip(questions, pairs, strict=True)]


def _asked_of_texts(
    loaded: LoadedTask, tokenizer: Tokenizer, start_id: int, n_ctx: int
) -> list[tuple[Continuations, ...]]:
    texts = [item for item in loaded.items if isinstance(item, Text)]
    encoded = tokenizer.encode_batch([text.text for text in texts])
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            problem = "has no character that the tokenizer knows; leave it out"
            raise DataError(f"{loaded.path}: line {text.line}: text: {problem}")
    stride = loaded.task.stride or n_ctx
    return [tuple(rolling_windows(ids, start_id, n_ctx, stride)) for ids in encoded]


def _group(question: Question, encoded: Sequence[tuple[Ids, Ids]]) -> tuple[Continuations, ...]:
    contexts = dict.fromkeys(context for context, _ in encoded)
    if question.contexts_compete or len(contexts) > 1:  # an empty context takes the start of its continuation
        return tuple(Continuations(context, (continuation,)) for context, continuation in encoded)
    return (Continuations(encoded[0][0], tuple(continuation for _, continuation in encoded)),)


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, start_id: int) -> list[tuple[Ids, Ids]]:
    """Encodes contexts and continuations.

    Both are encoded together and cut where the encoding of the context alone ends. Blanks at the end of a context
    belong to the continuation, so that a word keeps the blank before it. An empty context is the start of a document.
    Source: lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair`.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    different = list(dict.fromkeys(contexts))
    encoded = dict(zip(different, tokenizer.encode_batch(different), strict=True))
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in pairs])
    return [_cut(encoded[context], whole, start_id) for context, whole in zip(contexts, wholes, strict=True)]


def _cut(context: Sequence[int], whole: Sequence[int], start_id: int) -> tuple[Ids, Ids]:
    if context:
        return tuple(context), tuple(whole[len(context) :])
    n_start = int(list(whole[:1]) == [start_id])
    return (start_id,), tuple(whole[n_start:])


def _check_lengths(path: str, question: Question, asked: Sequence[Continuations], n_ctx: int) -> None:
    lengths = [len(choice) for each in asked for choice in each.choices]
    place = f"{path}: line {question.line}"
    if 0 in lengths:
        text = "".join(question.pairs[lengths.index(0)])
        raise DataError(
            f"{place}: continuation {lengths.index(0)}: has no token of its own, since the tokenizer joins it with its "
            f"context ({text[-40:]!r}); put a blank between them"
        )
    if max(lengths) > n_ctx:
        raise DataError(
            f"{place}: continuation {lengths.index(max(lengths))} = {max(lengths):,} tokens: n_ctx is {n_ctx:,}; "
            "leave the item out"
        )


def _check_stride(loaded: LoadedTask, n_ctx: int) -> None:
    stride = loaded.task.stride
    if stride is not None and not 1 <= stride <= n_ctx:
        raise ConfigError(f"{loaded.task.name}: stride = {stride}: the model reads {n_ctx}; give 1 to {n_ctx}")


def rolling_windows(ids: Sequence[int], start_id: int, n_ctx: int, stride: int) -> Iterator[Continuations]:
    """Yields windows in which each token of a text is scored once.

    The first window scores n_ctx tokens, the first of them after the start of a document; each later one scores the
    next `stride` tokens after as many earlier ones as fit, and the last one what is left.
    Source: lm-evaluation-harness 0.4.13, `get_rolling_token_windows`, whose stride is n_ctx.

    Args:
        ids: of the text.
        start_id: stands for the start of a document.
        n_ctx: the most tokens that the model reads.
        stride: 1 to n_ctx.
    """
    if ids:
        yield Continuations((start_id,), (tuple(ids[:n_ctx]),))
    for start in range(n_ctx, len(ids), stride):
        end = min(start + stride, len(ids))
        yield Continuations(tuple(ids[end - n_ctx - 1 : start]), (tuple(ids[start:end]),))
