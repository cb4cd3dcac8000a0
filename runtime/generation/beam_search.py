"""Beam search: the most likely texts that follow a prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from configs.schema import RunConfig
from meshtf import mtf, tf
from models.beam import BeamSearch, SearchInputs
from models.kernels.vocabulary import IdRanges, Vocabulary
from runtime.generation.engine import Step, padded_length
from runtime.mesh.lowering import LoweredStep, compile_step, id_spec, lower, new_mesh
from runtime.mesh.placement import Placement


@dataclasses.dataclass(frozen=True)
class BeamHypothesis:
    """One text that beam search has found.

    Attributes:
        tokens: without the eos that ends it.
        score: its log-probability, that of the eos included, / its length ** length_penalty.
        finish_reason: "stop" for eos, "length" for the token limit.
    """

    tokens: tuple[int, ...]
    score: float
    finish_reason: str


def build_beam_search(search: BeamSearch, placement: Placement, prompt_length: int) -> LoweredStep:
    """Builds the program that searches for the continuations of one prompt.

    Returns:
        A step from the fields of `SearchInputs` (tokens int32 [1, sequence], lengths int32 [1], length_penalty float32,
        max_new_tokens int32) to tokens int32 [beams, new_tokens], lengths int32 [beams] and scores float32 [beams] of
        the finished texts, best first. If there are fewer, the remaining lengths are 0.
    """
    # Every step reorders the beams of the prompt, so they are not split over processors.
    placement = placement.without("batch", "sequence", "memory_length")
    mesh_impl = placement.implementation(search.n_beams)

    def step(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        batch_dim, prompt_dim = mtf.Dimension("batch", 1), mtf.Dimension("sequence", prompt_length)
        shapes = [mtf.Shape(dims) for dims in ([batch_dim, prompt_dim], [batch_dim], [], [])]
        imported = (mtf.import_tf_tensor(mesh, x, shape) for x, shape in zip(inputs, shapes, strict=True))
        found = search.run(SearchInputs(*imported))
        outputs = {"tokens": found.finished_tokens, "lengths": found.finished_lengths, "scores": found.finished_scores}
        return lower(graph, mesh, mesh_impl, outputs)

    scalar = tf.TensorSpec((), tf.float32)
    signature = (id_spec(1, prompt_length), id_spec(1), scalar, id_spec())
    return compile_step(step, *signature, by_xla=placement.shape.size == 1)


def _hypothesis(tokens: list[int], score: float, ends: Sequence[int]) -> BeamHypothesis:
    has_stopped = tokens[-1] in ends
    return BeamHypothesis(tuple(tokens[:-1] if has_stopped else tokens), score, "stop" if has_stopped else "length")


class BeamSearcher:
    """Runs beam search with a run's model. A program is built once for all prompts of similar length."""

    def __init__(
        self,
        config: RunConfig,
        placement: Placement,
        synchronized: Callable[[Step], Step] = lambda step: step,
        unused: IdRanges = (),
    ) -> None:
        """Builds nothing yet; the arguments are those of `build_engine`."""
        self._config, self._placement, self._synchronized = config, placement, synchronized
        self._vocabulary = Vocabulary(config.data.eos_id, unused, config.data.end_ids)

    @functools.cache  # noqa: B019 -- a searcher lives as long as its programs
    def _program(self, prompt_length: int, n_beams: int, n_new_tokens: int) -> Step:
        model, n_ctx = self._config.model, self._config.model.n_ctx
        memory_length, cache_dtype = min(n_ctx, prompt_length + n_new_tokens), self._config.prediction.cache_dtype
        search = BeamSearch(model, self._vocabulary, n_beams, n_new_tokens, memory_length, cache_dtype)
        return self._synchronized(build_beam_search(search, self._placement, prompt_length))

    def program(self, n_prompt_tokens: int, n_beams: int, n_new_tokens: int) -> Step:
        """Returns the program for a prompt.

        The first one makes the model's variables, so it must be built before weights are restored.
        """
        n_ctx = self._config.model.n_ctx
        return self._program(padded_length(n_prompt_tokens, n_ctx), n_beams, padded_length(n_new_tokens, n_ctx))

    def search(
        self, tokens: Sequence[int], n_beams: int, length_penalty: float, n_new_tokens: int, n_best: int
    ) -> list[BeamHypothesis]:
        """Returns the best continuations of a prompt, best first.

        Args:
            tokens: the prompt, at least one token.
            n_beams: how many unfinished texts are followed at a time.
            length_penalty: texts are ranked by log-probability / length ** length_penalty.
            n_new_tokens: the most tokens of a continuation, at least 1; prompt and new tokens fit into n_ctx.
            n_best: how many to return; at most n_beams.
        """
        program = self.program(len(tokens), n_beams, n_new_tokens)
        padded = np.zeros((1, padded_length(len(tokens), self._config.model.n_ctx)), np.int32)
        padded[0, : len(tokens)] = tokens
        found = program(padded, np.array([len(tokens)], np.int32), np.float32(length_penalty), np.int32(n_new_tokens))
        ended = zip(found["tokens"].tolist(), found["lengths"].tolist(), found["scores"].tolist(), strict=True)
        ends = (self._vocabulary.eos_id, *self._vocabulary.other_ends)
        return [_hypothesis(whole[:length], score, ends) for whole, length, score in ended if length][:n_best]
