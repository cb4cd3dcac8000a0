"""One step of beam search: which beams stay active, and which finished texts are kept.

Shape legend: N beams, C = 2 N candidates, V vocab, L new_tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Generic, TypeVar

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.vocabulary import Vocabulary

# Added to scores that must come last. Hugging Face's value, so that even these are ordered as there.
NEG_INF = -1e9
Tensor = TypeVar("Tensor")


@dataclasses.dataclass(frozen=True)
class Beams(Generic[Tensor]):
    """The state of a search: the active beams, most likely first, and the best finished texts, best first.

    Attributes:
        length: int32 scalar, tokens of every active beam.
        tokens: int32 [N, L], of the active beams.
        log_probs: float32 [N], of the active beams.
        finished_tokens: int32 [N, L], of the finished texts, with the eos that ended them.
        finished_lengths: int32 [N]; 0: there is no such text yet.
        finished_scores: float32 [N].
        is_open: bool scalar, whether an active beam may still become better than the finished texts.
    """

    length: Tensor
    tokens: Tensor
    log_probs: Tensor
    finished_tokens: Tensor
    finished_lengths: Tensor
    finished_scores: Tensor
    is_open: Tensor

    def tensors(self) -> list[Tensor]:
        """Returns the fields in order."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """The most likely continuations of all beams, most likely first.

    Attributes:
        log_probs: float32 [C].
        parents: int32 [C], the beam that each continues.
        tokens: int32 [C, L], of the whole continuation.
        last: int32 [C], the token that each adds.
        is_finished: bool [C].
    """

    log_probs: tf.Tensor
    parents: tf.Tensor
    tokens: tf.Tensor
    last: tf.Tensor
    is_finished: tf.Tensor


def _candidates(
    beams: Beams[tf.Tensor], logits: tf.Tensor, max_new_tokens: tf.Tensor, vocabulary: Vocabulary
) -> _Candidates:
    """Returns two candidates per beam, so that N stay active even if each beam has one that ends."""
    n_beams, n_vocab = logits.shape
    log_probs = vocabulary.without_unused(tf.nn.log_softmax(tf.cast(logits, tf.float32)))
    continued = log_probs + beams.log_probs[:, None]
    log_probs, indices = tf.math.top_k(tf.reshape(continued, [-1]), 2 * n_beams)
    parents, last = indices // n_vocab, indices % n_vocab
    is_next = tf.range(beams.tokens.shape[1]) == beams.length
    tokens = tf.where(is_next, last[:, None], tf.gather(beams.tokens, parents))
    is_finished = vocabulary.is_end(last) | (beams.length + 1 >= max_new_tokens)
    return _Candidates(log_probs, parents, tokens, last, is_finished)


def _with_finished(beams: Beams[tf.Tensor], candidates: _Candidates, length_penalty: tf.Tensor) -> list[tf.Tensor]:
    """Returns tokens, lengths and scores of the best N texts among those finished before and now.

    Only the more likely half of the candidates may finish; the others are there to stay active. Continuations of a
    placeholder beam, whose score is NEG_INF, never count.
    """
    n_beams = beams.log_probs.shape[0]
    length = beams.length + 1
    may_finish = (tf.range(2 * n_beams) < n_beams) & (candidates.log_probs > NEG_INF / 2)
    is_finishing = candidates.is_finished & may_finish
    scores = candidates.log_probs / tf.cast(length, tf.float32) ** length_penalty
    finished = (beams.finished_tokens, beams.finished_lengths, beams.finished_scores)
    finishing = (candidates.tokens, tf.where(is_finishing, length, 0), scores + tf.where(is_finishing, 0.0, NEG_INF))
    merged = [tf.concat(parts, 0) for parts in zip(finished, finishing, strict=True)]
    best = tf.math.top_k(merged[-1], n_beams).indices
    return [tf.gather(part, best) for part in merged]


def _may_improve(
    log_probs: tf.Tensor, length: tf.Tensor, finished: list[tf.Tensor], length_penalty: tf.Tensor
) -> tf.Tensor:
    """Decides whether the search continues.

    Returns whether the most likely active beam, if it ended now, would beat the worst finished text, or fewer than N
    texts are finished: bool scalar.
    """
    _, lengths, scores = finished
    worst = tf.where(tf.reduce_all(lengths > 0), tf.reduce_min(scores), NEG_INF)
    return log_probs[0] / tf.cast(length, tf.float32) ** length_penalty > worst


@functools.cache
def beam_step(vocabulary: Vocabulary) -> Kernel:
    """Returns the kernel of one step of beam search.

    (logits [N, V], length_penalty, max_new_tokens int32, the fields of `Beams`) -> parents int32 [N], the beam that
    each active beam continues; last int32 [N], the token that it adds; the fields of `Beams` after the step.

    Source: Hugging Face's `generate` with `early_stopping=False`; length penalty: Wu et al. 2016, Google's Neural
    Machine Translation System, section 7, simplified to a power of the length.
    """

    def kernel(
        logits: tf.Tensor, length_penalty: tf.Tensor, max_new_tokens: tf.Tensor, *state: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        beams = Beams(*state)
        candidates = _candidates(beams, logits, max_new_tokens, vocabulary)
        finished = _with_finished(beams, candidates, length_penalty)
        active_log_probs = candidates.log_probs + tf.where(candidates.is_finished, NEG_INF, 0.0)
        log_probs, chosen = tf.math.top_k(active_log_probs, beams.log_probs.shape[0])
        tokens, parents, last = (
            tf.gather(part, chosen) for part in (candidates.tokens, candidates.parents, candidates.last)
        )
        length = beams.length + 1
        is_open = _may_improve(log_probs, length, finished, length_penalty) & ~tf.reduce_all(candidates.is_finished)
        return parents, last, *Beams(length, tokens, log_probs, *finished, is_open).tensors()

    return compiled(kernel)


@compiled
def gather_rows(x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """([B, ...], int32 [N]) -> [N, ...]."""
    return tf.gather(x, rows)
