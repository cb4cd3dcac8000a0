"""One turn of a beam search: which texts go on, and which of those that have ended are kept.

Shape legend: N beams, C = 2 N candidates, V vocab, L new_tokens.
"""

from __future__ import annotations

import dataclasses
import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled

# What a score is lowered by so that everything else comes before it. Hugging Face's, so that also the hopeless come in
# its order.
NEG_INF = -1e9


@dataclasses.dataclass(frozen=True)
class Beams:
    """What a search holds; of each beam, likeliest first.

    Attributes:
        n_written: int32 scalar, the length of every open text.
        tokens: int32 [N, L], the open texts.
        log_probs: float32 [N], of them.
        ended_tokens: int32 [N, L], the best texts that have ended, with the eos that ended them, best first.
        ended_lengths: int32 [N]; 0: there is no such text yet.
        ended_scores: float32 [N].
        is_open: bool scalar: an open text may still become better than those that have ended.
    """

    n_written: tf.Tensor
    tokens: tf.Tensor
    log_probs: tf.Tensor
    ended_tokens: tf.Tensor
    ended_lengths: tf.Tensor
    ended_scores: tf.Tensor
    is_open: tf.Tensor

    def tensors(self) -> list[tf.Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """The likeliest continuations of all beams together, likeliest first.

    Attributes:
        log_probs: float32 [C].
        parents: int32 [C], the beam that each continues.
        tokens: int32 [C, L], whole.
        last: int32 [C], the token that each adds.
        has_ended: bool [C].
    """

    log_probs: tf.Tensor
    parents: tf.Tensor
    tokens: tf.Tensor
    last: tf.Tensor
    has_ended: tf.Tensor


def _candidates(beams: Beams, logits: tf.Tensor, n_wanted: tf.Tensor, eos_id: int) -> _Candidates:
    """Twice as many as there are beams: even if each ends one of them, as many go on."""
    n_beams, n_vocab = logits.shape
    continued = tf.nn.log_softmax(tf.cast(logits, tf.float32)) + beams.log_probs[:, None]
    log_probs, places = tf.math.top_k(tf.reshape(continued, [-1]), 2 * n_beams)
    parents, last = places // n_vocab, places % n_vocab
    is_next = tf.range(beams.tokens.shape[1]) == beams.n_written
    tokens = tf.where(is_next, last[:, None], tf.gather(beams.tokens, parents))
    has_ended = (last == eos_id) | (beams.n_written + 1 >= n_wanted)
    return _Candidates(log_probs, parents, tokens, last, has_ended)


def _with_ended(beams: Beams, candidates: _Candidates, length_penalty: tf.Tensor) -> list[tf.Tensor]:
    """The best N of the texts that had ended and those that do now: tokens, lengths and scores.

    Only the likelier half of the candidates may end: the others are there to go on. What continues a beam that does not
    count does not either.
    """
    n_beams = beams.log_probs.shape[0]
    length = beams.n_written + 1
    is_likely = (tf.range(2 * n_beams) < n_beams) & (candidates.log_probs > NEG_INF / 2)
    is_ending = candidates.has_ended & is_likely
    scores = candidates.log_probs / tf.cast(length, tf.float32) ** length_penalty
    held = (beams.ended_tokens, beams.ended_lengths, beams.ended_scores)
    ending = (candidates.tokens, tf.where(is_ending, length, 0), scores + tf.where(is_ending, 0.0, NEG_INF))
    everything = [tf.concat(parts, 0) for parts in zip(held, ending, strict=True)]
    best = tf.math.top_k(everything[-1], n_beams).indices
    return [tf.gather(part, best) for part in everything]


def _may_improve(
    log_probs: tf.Tensor, length: tf.Tensor, ended: list[tf.Tensor], length_penalty: tf.Tensor
) -> tf.Tensor:
    """Whether the likeliest open text would, if it ended now, be better than the worst of those that have ended, or not
    all places for such are taken: bool scalar.
    """
    _, lengths, scores = ended
    worst = tf.where(tf.reduce_all(lengths > 0), tf.reduce_min(scores), NEG_INF)
    return log_probs[0] / tf.cast(length, tf.float32) ** length_penalty > worst


@functools.cache
def turn(eos_id: int) -> Kernel:
    """(logits [N, V], length_penalty, n_wanted int32, those of `Beams`) -> parents int32 [N], the beam that each open
    text continues; last int32 [N], the token that it adds; those of `Beams` after the turn.

    Source: Hugging Face's generate with `early_stopping=False`; the length penalty, Wu et al. 2016, Google's Neural
    Machine Translation System, section 7, in its simpler form.
    """

    def kernel(
        logits: tf.Tensor, length_penalty: tf.Tensor, n_wanted: tf.Tensor, *state: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        beams = Beams(*state)
        candidates = _candidates(beams, logits, n_wanted, eos_id)
        ended = _with_ended(beams, candidates, length_penalty)
        open_log_probs = candidates.log_probs + tf.where(candidates.has_ended, NEG_INF, 0.0)
        log_probs, chosen = tf.math.top_k(open_log_probs, beams.log_probs.shape[0])
        tokens, parents, last = (
            tf.gather(part, chosen) for part in (candidates.tokens, candidates.parents, candidates.last)
        )
        length = beams.n_written + 1
        is_open = _may_improve(log_probs, length, ended, length_penalty) & ~tf.reduce_all(candidates.has_ended)
        return parents, last, *Beams(length, tokens, log_probs, *ended, is_open).tensors()

    return compiled(kernel)


@compiled
def rows_of(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """([rows, ...], int32 [N]) -> [N, ...]."""
    return tf.gather(x, places)
