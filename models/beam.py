"""Beam search: keeps the most likely partial texts, and returns the most likely finished ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.attention_interface import Cache
from models.context import Context
from models.dims import Dims
from models.kernels.beams import NEG_INF, Beams
from models.kernels.vocabulary import Vocabulary
from models.ops.beams import beam_step, gather_rows


@dataclasses.dataclass(frozen=True)
class SearchInputs:
    """The inputs of one search.

    Attributes:
        tokens: int32 [batch, sequence], the prompt in a batch of one row.
        lengths: int32 [batch], the tokens of the prompt, at least 1; what follows them is padding.
        length_penalty: float32 scalar; texts are ranked by log-probability / length ** length_penalty.
        max_new_tokens: int32 scalar, the length at which every text ends; at most the search's n_new_tokens.
    """

    tokens: mtf.Tensor
    lengths: mtf.Tensor
    length_penalty: mtf.Tensor
    max_new_tokens: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class _SearchState:
    """The state of the search loop; `last` int32 [batch] holds the newest token of each beam."""

    beams: Beams[mtf.Tensor]
    last: mtf.Tensor
    caches: Sequence[Cache]

    def tensors(self) -> list[mtf.Tensor]:
        """Returns the fields in order."""
        cached = [cache[name] for cache in self.caches for name in sorted(cache)]
        return [self.last, *self.beams.tensors(), *cached]

    def with_tensors(self, tensors: Sequence[mtf.Tensor]) -> _SearchState:
        remaining = iter(tensors)
        last = next(remaining)
        beams = Beams(*[next(remaining) for _ in self.beams.tensors()])
        return _SearchState(beams, last, [{name: next(remaining) for name in sorted(cache)} for cache in self.caches])


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search with a model.

    Attributes:
        model: its settings.
        vocabulary: the ids that may continue a text.
        n_beams: active beams, and the most finished texts.
        n_new_tokens: the most tokens after the prompt.
        memory_length: positions of the cache; holds every prompt and its new tokens except the last.
        kept_dtype: dtype of the cached keys and values; None: that of the activations.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    n_beams: int
    n_new_tokens: int
    memory_length: int
    kept_dtype: str | None = None

    def run(self, inputs: SearchInputs) -> Beams[mtf.Tensor]:
        """Searches until no active beam is expected to beat the finished texts, and returns the final state."""
        mesh, prompt_dim = inputs.tokens.mesh, inputs.tokens.shape.dims[1]
        prompt_context = self._context(mesh, 1, prompt_dim.size)
        logits, caches = gpt2.prompt_logits(prompt_context, inputs.tokens, inputs.lengths)
        beams = self._initial_beams(mesh)
        # All beams start from the prompt.
        prompt_row = mtf.zeros(mesh, beams.log_probs.shape, tf.int32)
        start = self._after_logits(inputs, beams, gather_rows(logits, prompt_row), _reordered(caches, prompt_row))
        first_position = gather_rows(inputs.lengths, prompt_row)

        def is_open(*tensors: mtf.Tensor) -> mtf.Tensor:
            return start.with_tensors(tensors).beams.is_open

        def step(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
            state = start.with_tensors(tensors)
            position = first_position + (state.beams.length - 1)
            context = self._context(mesh, self.n_beams, 1)
            logits, caches = gpt2.next_logits(context, state.last, position, state.caches)
            return self._after_logits(inputs, state.beams, logits, caches).tensors()

        return start.with_tensors(mtf.while_loop(is_open, step, start.tensors())).beams

    def _context(self, mesh: mtf.Mesh, n_rows: int, length: int) -> Context:
        return Context(mesh, self.model, Dims.of(self.model, n_rows, length, self.memory_length), None, self.kept_dtype)

    def _initial_beams(self, mesh: mtf.Mesh) -> Beams[mtf.Tensor]:
        """Before the first token all beams are equal, so all but one get the score NEG_INF."""
        beams_dim = mtf.Dimension("beams", self.n_beams)
        tokens = [beams_dim, mtf.Dimension("new_tokens", self.n_new_tokens)]
        is_other = mtf.greater(mtf.mtf_range(mesh, beams_dim, tf.int32), mtf.constant(mesh, 0, dtype=tf.int32))
        return Beams(
            length=mtf.constant(mesh, 0, dtype=tf.int32),
            tokens=mtf.constant(mesh, self.vocabulary.eos_id, tokens, tf.int32),
            log_probs=mtf.cast(is_other, tf.float32) * NEG_INF,
            finished_tokens=mtf.constant(mesh, self.vocabulary.eos_id, tokens, tf.int32),
            finished_lengths=mtf.zeros(mesh, [beams_dim], tf.int32),
            finished_scores=mtf.constant(mesh, NEG_INF, [beams_dim], tf.float32),
            is_open=mtf.constant(mesh, True, dtype=tf.bool),
        )

    def _after_logits(
        self, inputs: SearchInputs, beams: Beams[mtf.Tensor], logits: mtf.Tensor, caches: Sequence[Cache]
    ) -> _SearchState:
        parents, last, beams = beam_step(logits, beams, inputs.length_penalty, inputs.max_new_tokens, self.vocabulary)
        return _SearchState(beams, mtf.rename_dimension(last, "beams", "batch"), _reordered(caches, parents))


def _reordered(caches: Sequence[Cache], parents: mtf.Tensor) -> list[Cache]:
    """Returns the caches of the parents of each beam, int32 [beams]."""
    return [{name: gather_rows(tensor, parents) for name, tensor in cache.items()} for cache in caches]
