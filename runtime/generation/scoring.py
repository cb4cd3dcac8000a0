"""Scores of given texts: log P(continuation | context) under a loaded model, for reranking and evaluation tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from configs.schema import RunConfig
from runtime.generation.engine import Step
from runtime.generation.packed_batches import BATCH_TOKENS, LONGEST_TYPICAL, PackedBatches, PackedText
from runtime.generation.packed_programs import build_packed_batches
from runtime.mesh.placement import Placement


@dataclasses.dataclass(frozen=True)
class Continuations:
    """What is asked: alternatives after one context. Evaluation tasks have an equal class of their own.

    Attributes:
        context: at least one token; eos stands for the start of a document.
        choices: of 1 to n_ctx tokens each.
    """

    context: Sequence[int]
    choices: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The scores of the tokens of one continuation.

    Attributes:
        log_probs: float64 [tokens], in nats; their sum is log P(continuation | context).
        is_greedy: bool [tokens], whether each is the argmax, of equal logits the first, as greedy decoding chooses it.
    """

    log_probs: np.ndarray
    is_greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores continuations of contexts with the current weights of a model.

    Attributes:
        n_ctx: the most tokens that the model reads.
        eos_id: ends the turns of dialogues, and stands for an empty context.
        batches: runs the programs of `build_packed_scores`.
    """

    n_ctx: int
    eos_id: int
    batches: PackedBatches

    def score(
        self, asked: Sequence[Continuations], advance: Callable[[int], None] = lambda n_done: None
    ) -> list[list[TokenScores]]:
        """Returns the scores of each choice after each context.

        They do not depend on what else is asked, nor on the mesh: texts that share a batch do not see one another. A
        context that does not fit before a choice is cut on its left.

        Args:
            asked: contexts and choices.
            advance: called after each batch with the number of `asked` that it has completed.
        """
        texts, owners = [], []
        for number, each in enumerate(asked):
            for text, choices in _texts_of(each, self.n_ctx):
                texts.append(text)
                owners.append((number, choices))
        found: list[dict[int, TokenScores]] = [{} for _ in asked]
        for batch in self.batches.outputs(texts):
            n_completed = 0
            for index, outputs in batch.items():
                number, choices = owners[index]
                found[number] |= zip(choices, _scores_of(texts[index], outputs), strict=True)
                n_completed += len(found[number]) == len(asked[number].choices)
            advance(n_completed)
        return [[scores[choice] for choice in range(len(scores))] for scores in found]


def _texts_of(each: Continuations, n_ctx: int) -> Iterator[tuple[PackedText, list[int]]]:
    """Yields the texts that hold the choices, each with the indices of its choices.

    Choices share a context unless it is cut for some, or unless the text would be longer than rows ought to be.
    """
    longest, by_cut = max(n_ctx, 2 * LONGEST_TYPICAL), {}
    for index, choice in enumerate(each.choices):
        assert 1 <= len(choice) <= n_ctx, "a choice does not fit"
        by_cut.setdefault(min(len(each.context), n_ctx + 1 - len(choice)), []).append(index)
    for n_context, indices in by_cut.items():
        context, own, n_tokens = each.context[-n_context:], [], n_context
        for index in indices:
            n_read = len(each.choices[index]) - 1
            if own and n_tokens + n_read > longest:
                yield _text(each, context, own)
                own, n_tokens = [], n_context
            own.append(index)
            n_tokens += n_read
        yield _text(each, context, own)


def _text(each: Continuations, context: Sequence[int], choices: list[int]) -> tuple[PackedText, list[int]]:
    return PackedText(context, [each.choices[index] for index in choices]), choices


def _scores_of(text: PackedText, outputs: dict[str, np.ndarray]) -> Iterator[TokenScores]:
    """Yields the scores of each continuation of a text."""
    ends = np.cumsum([len(continuation) for continuation in text.continuations])[:-1]
    for log_probs, is_greedy in zip(
        np.split(outputs["log_probs"], ends), np.split(outputs["is_greedy"], ends), strict=True
    ):
        yield TokenScores(log_probs.astype(np.float64), is_greedy.astype(bool))


def build_scorer(
    config: RunConfig,
    placement: Placement,
    synchronized: Callable[[Step], Step] = lambda step: step,
    batch_tokens: int = BATCH_TOKENS,
) -> Scorer:
    """Builds the scorer of a run's model.

    This makes the model's variables if nothing else has, so it must be done before weights are restored.

    Args:
        config: the run.
        placement: the devices and the layout.
        synchronized: see `ProcessGroup.synchronized`.
        batch_tokens: how many tokens are scored at once.
    """
    batches = build_packed_batches(config, placement, synchronized, batch_tokens)
    return Scorer(config.model.n_ctx, config.data.eos_id, batches)
