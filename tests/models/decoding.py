"""Decoding with given tokens instead of sampled ones."""

from __future__ import annotations

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims


def cached_logits(model: ModelConfig, tokens: mtf.Tensor, prompt_length: int) -> list[mtf.Tensor]:
    """Logits after the prompt and after each of the given tokens that follow it, with the cache."""
    mesh, (batch_dim, sequence_dim) = tokens.mesh, tokens.shape.dims

    def each_row(number: int) -> mtf.Tensor:
        return mtf.constant(mesh, number, [batch_dim], tf.int32)

    def context(length: int) -> Context:
        return Context(mesh, model, Dims.of(model, batch_dim.size, length, sequence_dim.size))

    # Padding after the prompt must not change the cache.
    shown = min(prompt_length + 3, sequence_dim.size)
    garbage = mtf.pad(mtf.slice(tokens, 0, prompt_length, "sequence"), [0, shown - prompt_length], "sequence")
    outputs, caches = gpt2.prompt_logits(context(shown), garbage, each_row(prompt_length))
    every = [outputs]
    for position in range(prompt_length, sequence_dim.size):
        token = mtf.reshape(mtf.slice(tokens, position, 1, "sequence"), [batch_dim])
        outputs, caches = gpt2.next_logits(context(1), token, each_row(position), caches)
        every.append(outputs)
    return every
