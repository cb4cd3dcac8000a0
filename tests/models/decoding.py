"""Decoding with given tokens in place of drawn ones."""

from __future__ import annotations

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.decode import lengthened
from models.dims import Dims


def cached_logits(model: ModelConfig, tokens: mtf.Tensor, prompt_length: int) -> list[mtf.Tensor]:
    """Logits after the prompt and after each of the given tokens that follow it, with the cache."""
    mesh, (batch_dim, sequence_dim) = tokens.mesh, tokens.shape.dims
    dims = Dims.of(model, batch_dim.size, 1, sequence_dim.size)
    prompt_context = Context(mesh, model, Dims.of(model, batch_dim.size, prompt_length))
    outputs, caches = gpt2.prompt_logits(prompt_context, mtf.slice(tokens, 0, prompt_length, "sequence"))
    every, caches = [outputs], [lengthened(cache, dims.memory_length) for cache in caches]
    for position in range(prompt_length, sequence_dim.size):
        token = mtf.reshape(mtf.slice(tokens, position, 1, "sequence"), [batch_dim])
        place_of_it = mtf.constant(mesh, position, dtype=tf.int32)
        outputs, caches = gpt2.next_logits(Context(mesh, model, dims), token, place_of_it, caches)
        every.append(outputs)
    return every
