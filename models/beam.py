"""Beam search: the texts of the highest probability that a few open texts at a time lead to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.attention_kind import Cache
from models.context import Context
from models.dims import Dims
from models.kernels.beams import NEG_INF
from models.ops.beams import Beams, rows_of, take_turn


@dataclasses.dataclass(frozen=True)
class Wish:
    """What to search for.

    Attributes:
        tokens: int32 [batch, sequence], the prompt in a batch of one row.
        lengths: int32 [batch], how many of them are the prompt, at least 1.
        length_penalty: float32 scalar; texts are compared by their log-probability / their length ** length_penalty.
        n_wanted: int32 scalar; at so many new tokens every text ends; 1 ... n_new_tokens of the search.
    """

    tokens: mtf.Tensor
    lengths: mtf.Tensor
    length_penalty: mtf.Tensor
    n_wanted: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries from turn to turn; `last` are the newest tokens of the open texts, [batch]."""

    beams: Beams
    last: mtf.Tensor
    caches: Sequence[Cache]

    def tensors(self) -> list[mtf.Tensor]:
        kept = [cache[name] for cache in self.caches for name in sorted(cache)]
        return [self.last, *self.beams.tensors(), *kept]

    def with_tensors(self, tensors: Sequence[mtf.Tensor]) -> _State:
        remaining = iter(tensors)
        last = next(remaining)
        beams = Beams(*[next(remaining) for _ in self.beams.tensors()])
        return _State(beams, last, [{name: next(remaining) for name in sorted(cache)} for cache in self.caches])


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """A model that searches.

    Attributes:
        model: its settings.
        eos_id: ends a text.
        n_beams: how many open texts there are at a time, and ended ones at most.
        n_new_tokens: the most that a text may have after its prompt.
        memory_length: of the cache; every prompt with its new tokens fits in, the last of them apart.
        kept_dtype: of keys and values in the cache; None: that of the activations.
    """

    model: ModelConfig
    eos_id: int
    n_beams: int
    n_new_tokens: int
    memory_length: int
    kept_dtype: str | None = None

    def run(self, wish: Wish) -> Beams:
        """Searches until no open text can become better than those that have ended, as far as can be told."""
        mesh, prompt_dim = wish.tokens.mesh, wish.tokens.shape.dims[1]
        prompt_context = self._context(mesh, 1, prompt_dim.size)
        logits, caches = gpt2.prompt_logits(prompt_context, wish.tokens, wish.lengths)
        beams = self._no_texts(mesh)
        # Every beam begins with the prompt.
        first = mtf.zeros(mesh, beams.log_probs.shape, tf.int32)
        start = self._after_logits(wish, beams, rows_of(logits, first), _reordered(caches, first))
        first_position = rows_of(wish.lengths, first)

        def is_open(*tensors: mtf.Tensor) -> mtf.Tensor:
            return start.with_tensors(tensors).beams.is_open

        def turn(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
            state = start.with_tensors(tensors)
            position = first_position + (state.beams.n_written - 1)
            context = self._context(mesh, self.n_beams, 1)
            logits, caches = gpt2.next_logits(context, state.last, position, state.caches)
            return self._after_logits(wish, state.beams, logits, caches).tensors()

        return start.with_tensors(mtf.while_loop(is_open, turn, start.tensors())).beams

    def _context(self, mesh: mtf.Mesh, n_rows: int, length: int) -> Context:
        return Context(mesh, self.model, Dims.of(self.model, n_rows, length, self.memory_length), None, self.kept_dtype)

    def _no_texts(self, mesh: mtf.Mesh) -> Beams:
        """Before the first token all open texts are the same: only one of them counts."""
        beams_dim = mtf.Dimension("beams", self.n_beams)
        tokens = [beams_dim, mtf.Dimension("new_tokens", self.n_new_tokens)]
        is_other = mtf.greater(mtf.mtf_range(mesh, beams_dim, tf.int32), mtf.constant(mesh, 0, dtype=tf.int32))
        return Beams(
            n_written=mtf.constant(mesh, 0, dtype=tf.int32),
            tokens=mtf.constant(mesh, self.eos_id, tokens, tf.int32),
            log_probs=mtf.cast(is_other, tf.float32) * NEG_INF,
            ended_tokens=mtf.constant(mesh, self.eos_id, tokens, tf.int32),
            ended_lengths=mtf.zeros(mesh, [beams_dim], tf.int32),
            ended_scores=mtf.constant(mesh, NEG_INF, [beams_dim], tf.float32),
            is_open=mtf.constant(mesh, True, dtype=tf.bool),
        )

    def _after_logits(self, wish: Wish, beams: Beams, logits: mtf.Tensor, caches: Sequence[Cache]) -> _State:
        turn = take_turn(logits, beams, wish.length_penalty, wish.n_wanted, self.eos_id)
        last = mtf.rename_dimension(turn.last, "beams", "batch")
        return _State(turn.beams, last, _reordered(caches, turn.parents))


def _reordered(caches: Sequence[Cache], parents: mtf.Tensor) -> list[Cache]:
    """The caches of other rows, int32 [beams]."""
    return [{name: rows_of(tensor, parents) for name, tensor in cache.items()} for cache in caches]
