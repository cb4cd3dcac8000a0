"""Writing text: one pass over the prompt, then one compiled loop that adds a token to every row in each turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.attention import Cache
from models.context import Context
from models.dims import Dims
from models.kernels.sampling import SamplingRule
from models.ops.dropout import Noise
from models.ops.mesh_operation import write_at
from models.ops.sampling import sample

# Keys of successive positions lie this far apart (the golden ratio of 2^31), so that runs with seeds next to each
# other share none.
KEY_STRIDE = 1327217885


@dataclasses.dataclass(frozen=True)
class Request:
    """What to write.

    Attributes:
      rule: how each token is drawn.
      n_new_tokens: most tokens after the prompt, at least 1; with the prompt they must fit into n_ctx.
      eos_id: ends a row.
    """

    rule: SamplingRule
    n_new_tokens: int
    eos_id: int


@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries from turn to turn; `written` is [batch, new_tokens], `token` and `ended` are [batch]."""

    n_written: mtf.Tensor
    token: mtf.Tensor
    ended: mtf.Tensor
    written: mtf.Tensor
    caches: Sequence[Cache]

    def tensors(self) -> list[mtf.Tensor]:
        held = [cache[name] for cache in self.caches for name in sorted(cache)]
        return [self.n_written, self.token, self.ended, self.written, *held]

    def with_tensors(self, tensors: Sequence[mtf.Tensor]) -> _State:
        n_written, token, ended, written, *held = tensors
        remaining = iter(held)
        caches = [{name: next(remaining) for name in sorted(cache)} for cache in self.caches]
        return _State(n_written, token, ended, written, caches)


def lengthened(cache: Cache, memory_dim: mtf.Dimension) -> Cache:
    """A cache with room for the tokens to come: sums and counts need none."""

    def with_room(tensor: mtf.Tensor) -> mtf.Tensor:
        lengths = [dim.size for dim in tensor.shape.dims if dim.name == memory_dim.name]
        return mtf.pad(tensor, [0, memory_dim.size - lengths[0]], memory_dim.name) if lengths else tensor

    return {name: with_room(tensor) for name, tensor in cache.items()}


def _add_token(state: _State, logits: mtf.Tensor, noise: Noise, request: Request) -> _State:
    """Draws the next token of every row and writes it down; a row that has ended writes eos."""
    noise = Noise(noise.key + state.n_written * KEY_STRIDE, noise.rows)
    drawn = sample(logits, noise, request.rule)
    token = mtf.cwise(
        lambda ended, drawn: tf.where(ended, request.eos_id, drawn), [state.ended, drawn], output_dtype=tf.int32
    )
    ended = mtf.logical_or(state.ended, mtf.equal(token, mtf.constant(token.mesh, request.eos_id, dtype=tf.int32)))
    written = write_at(state.written, state.written.shape.dims[1], state.n_written, token)
    return _State(state.n_written + 1, token, ended, written, state.caches)


def generate(model: ModelConfig, prompt: mtf.Tensor, noise: Noise, request: Request) -> mtf.Tensor:
    """Continues a prompt.

    Args:
      model: the model's settings.
      prompt: int32 [batch, sequence], no padding.
      noise: for sampling.
      request: what to write.

    Returns:
      int32 [batch, new_tokens]; after a row's end, eos_id.
    """
    mesh, (batch_dim, prompt_dim) = prompt.mesh, prompt.shape.dims
    total = prompt_dim.size + request.n_new_tokens
    logits, caches = gpt2.prompt_logits(Context(mesh, model, Dims.of(model, batch_dim.size, prompt_dim.size)), prompt)
    step_context = Context(mesh, model, Dims.of(model, batch_dim.size, 1, total))
    start = _State(
        n_written=mtf.constant(mesh, 0, dtype=tf.int32),
        token=mtf.zeros(mesh, [batch_dim], tf.int32),
        ended=mtf.constant(mesh, False, [batch_dim], tf.bool),
        written=mtf.constant(
            mesh, request.eos_id, [batch_dim, mtf.Dimension("new_tokens", request.n_new_tokens)], tf.int32
        ),
        caches=[lengthened(cache, step_context.dims.memory_length) for cache in caches],
    )
    first = _add_token(start, logits, noise, request)

    def is_unfinished(*tensors: mtf.Tensor) -> mtf.Tensor:
        state = first.with_tensors(tensors)
        n_going = mtf.reduce_sum(mtf.cast(mtf.logical_not(state.ended), tf.int32))
        has_room = mtf.less(state.n_written, mtf.constant(mesh, request.n_new_tokens, dtype=tf.int32))
        return mtf.logical_and(has_room, mtf.greater(n_going, mtf.constant(mesh, 0, dtype=tf.int32)))

    def turn(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        state = first.with_tensors(tensors)
        position = state.n_written + (prompt_dim.size - 1)
        logits, caches = gpt2.next_logits(step_context, state.token, position, state.caches)
        return _add_token(dataclasses.replace(state, caches=caches), logits, noise, request).tensors()

    return first.with_tensors(mtf.while_loop(is_unfinished, turn, first.tensors())).written
