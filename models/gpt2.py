"""The transformer: token ids in, logits out. Pre-norm GPT-2 blocks with GPT-Neo's variables and numerics.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3; GPT-Neo for names and
first values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshtf import mtf
from models import positions, variables
from models.attention import Cache, one_position_attention, whole_sequence_attention
from models.context import Context
from models.feed_forward import feed_forward
from models.norms import layer_norm
from models.ops.embedding import embedding_lookup

TOKEN_STD = 0.02
Attend = Callable[[mtf.Tensor], tuple[mtf.Tensor, Cache]]


def _token_table(context: Context) -> mtf.Tensor:
    return context.variable("wte", [context.dims.vocab, context.dims.embd], variables.normal(TOKEN_STD))


def _embedded(context: Context, tokens: mtf.Tensor, embedded_positions: mtf.Tensor) -> mtf.Tensor:
    """Sum of token and position embeddings: [..., embd]; each has its own dropout, as in GPT-Neo."""
    rate = context.model.embed_dropout
    x = context.dropout(embedding_lookup(_token_table(context), tokens), rate, "wte")
    if not (rate and context.is_training):
        return x + embedded_positions
    return x + context.dropout(mtf.broadcast(embedded_positions, x.shape), rate, "wpe")


def _logits(context: Context, x: mtf.Tensor) -> mtf.Tensor:
    """Final norm and the output layer, tied to the token table: [..., embd] -> [..., vocab]."""
    x = layer_norm(context, x, "ln_f")
    return mtf.einsum([x, _token_table(context)], output_shape=x.shape.dims[:-1] + [context.dims.vocab])


def _block(context: Context, x: mtf.Tensor, layer: int, attend: Attend) -> tuple[mtf.Tensor, Cache | None]:
    """One pre-norm block; a layer of type "none" is its feed-forward half alone."""
    cache = None
    if context.model.attention_types[layer] != "none":
        attended, cache = attend(layer_norm(context, x, f"h{layer}/norm_1"))
        x = x + attended
    return x + feed_forward(context, layer_norm(context, x, f"h{layer}/norm_2"), f"h{layer}/mlp"), cache


def _training_block(context: Context, x: mtf.Tensor, layer: int) -> mtf.Tensor:
    def block(x: mtf.Tensor) -> mtf.Tensor:
        return _block(context, x, layer, lambda h: whole_sequence_attention(context, h, layer))[0]

    return mtf.recompute_grad(block, [x]) if context.model.recompute_grad and context.is_training else block(x)


def logits(context: Context, tokens: mtf.Tensor) -> mtf.Tensor:
    """Logits of every position.

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      [batch, sequence, vocab]; row t depends on tokens 0 ... t only.
    """
    x = _embedded(context, tokens, positions.embedded_positions(context))
    for layer in range(context.model.n_layer):
        x = _training_block(context, x, layer)
    return _logits(context, x)


def prompt_logits(context: Context, tokens: mtf.Tensor) -> tuple[mtf.Tensor, list[Cache | None]]:
    """Logits after a prompt.

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      [batch, vocab], and each layer's keys and values; None where a layer has none.
    """
    x = _embedded(context, tokens, positions.embedded_positions(context))
    caches = []
    for layer in range(context.model.n_layer):
        x, cache = _block(context, x, layer, lambda h, layer=layer: whole_sequence_attention(context, h, layer))
        caches.append(cache)
    last = mtf.slice(x, context.dims.sequence.size - 1, 1, "sequence")
    return _logits(context, mtf.reshape(last, mtf.Shape([context.dims.batch, context.dims.embd]))), caches


def next_logits(
    context: Context, tokens: mtf.Tensor, position: mtf.Tensor, caches: Sequence[Cache | None]
) -> tuple[mtf.Tensor, list[Cache | None]]:
    """Logits after one more token.

    Args:
      tokens: int32 [batch], at `position`.
      position: int32 scalar.
      caches: of each layer, valid before `position`.

    Returns:
      [batch, vocab], and the caches with this position added.
    """
    x = _embedded(context, tokens, positions.embedded_position(context, position))
    new_caches = []
    for layer, cache in enumerate(caches):
        x, cache = _block(
            context,
            x,
            layer,
            lambda h, layer=layer, cache=cache: one_position_attention(context, h, layer, cache, position),
        )
        new_caches.append(cache)
    return _logits(context, x), new_caches
