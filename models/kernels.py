"""What one processor computes on its own slices: plain TensorFlow functions, each with its gradient written out,
compiled by XLA.

This file knows nothing of meshes, variables or configs. `models/ops.py` calls these functions on every slice and puts
the collectives between them. XLA fuses the element-wise work here; the large matrix products stay outside, where
TensorFlow's own are faster.

Shape legend: B batch, S sequence (queries), M memory_length (keys and values), H heads, D features_per_head, E embd,
V vocab. All statistics, logits of attention and losses are float32, whatever the dtype of the activations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from meshtf import tf

MASKED_LOGIT = -1e10  # GPT-Neo's causal bias
Kernel = Callable[..., object]


def _compiled(function: Kernel) -> Kernel:
    return tf.function(function, jit_compile=True, autograph=False)


# --------------------------------------------------------------------------------------------------------- random bits


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """The 32-bit finaliser of MurmurHash3 (Austin Appleby, public domain): every input bit changes every output bit
    half the time.
    """
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))
    bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32)))
    bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))


def uniform(key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Uniform numbers in (0, 1) that depend on the key and each element's place in the whole tensor only.

    A slice of the tensor gets the numbers that the whole tensor has there, so that dropout and sampling give the same
    result on any mesh, with any number of microbatches, after a resume, and when a layer is computed again. The hash
    goes over the dimensions one by one, so that no index overflows, whatever the tensor's size.

    Args:
      key: int32 scalar.
      rows: int32 [batch], the place of each row in the whole batch.
      starts: int32 [rank - 1], where this slice begins along the other dimensions.
      shape: of this slice, batch first.

    Returns:
      float32 tensor of that shape.
    """
    indices = [rows] + [starts[axis] + tf.range(size) for axis, size in enumerate(shape[1:])]
    bits = _mix(tf.cast(key, tf.uint32))
    for index in indices:
        bits = _mix(
            bits[..., None]
            + (tf.cast(index, tf.uint32) + tf.constant(1, tf.uint32)) * tf.constant(0x9E3779B9, tf.uint32)
        )
    return (tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) + 0.5) * 2.0**-24


def _dropout_factor(
    key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, shape: tuple[int, ...], rate: float
) -> tf.Tensor:
    return tf.where(uniform(key, rows, starts, shape) >= rate, 1.0 / (1.0 - rate), 0.0)


@functools.cache
def dropout(rate: float) -> Kernel:
    """(x, key, rows, starts) -> x with a share `rate` of its elements zeroed, the others divided by 1 - rate; also
    its gradient, given dy.
    """

    def kernel(x: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        return x * tf.cast(_dropout_factor(key, rows, starts, tuple(x.shape), rate), x.dtype)

    return _compiled(kernel)


# ------------------------------------------------------------------------------------------------------- normalisation


def _sum_of_last(x: tf.Tensor) -> tf.Tensor:
    """float32 [..., E] -> [...]. As a product with ones, since XLA does not vectorise sums of short rows on CPUs."""
    size = x.shape[-1]
    return tf.reshape(tf.matmul(tf.reshape(x, [-1, size]), tf.ones([size, 1])), x.shape[:-1])


def _normalize(x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor) -> tf.Tensor:
    return (tf.cast(x, tf.float32) - mean[..., None]) * inverse_std[..., None]


@_compiled
def sum_of_embd(x: tf.Tensor) -> tf.Tensor:
    """[B, S, E] -> float32 [B, S]."""
    return _sum_of_last(tf.cast(x, tf.float32))


@_compiled
def sum_of_squares_about(x: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """[B, S, E], [B, S] -> float32 [B, S], the sum of squared differences from the mean."""
    return _sum_of_last(tf.square(tf.cast(x, tf.float32) - mean[..., None]))


@_compiled
def scale_and_shift(
    x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """Applies the affine part of a normalisation whose statistics are known. [B, S, E] -> [B, S, E]."""
    return tf.cast(_normalize(x, mean, inverse_std) * tf.cast(gain, tf.float32) + tf.cast(bias, tf.float32), x.dtype)


@functools.cache
def layer_norm(epsilon: float) -> Kernel:
    """(x [B, S, E], gain [E], bias [E]) -> (y [B, S, E], mean [B, S], inverse_std [B, S]); embd whole on this
    processor.
    """

    def kernel(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mean = sum_of_embd(x) / x.shape[-1]
        inverse_std = tf.math.rsqrt(sum_of_squares_about(x, mean) / x.shape[-1] + epsilon)
        return scale_and_shift(x, mean, inverse_std, gain, bias), mean, inverse_std

    return _compiled(kernel)


@_compiled
def layer_norm_gradient_sums(
    x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor, gain: tf.Tensor, dy: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The two sums over embd that the gradient needs, each float32 [B, S]."""
    normalized = _normalize(x, mean, inverse_std)
    d_normalized = tf.cast(dy, tf.float32) * tf.cast(gain, tf.float32)
    return _sum_of_last(d_normalized), _sum_of_last(d_normalized * normalized)


@functools.cache
def layer_norm_gradient(whole_embd_size: int) -> Kernel:
    """(x, mean, inverse_std, gain, dy, sum_d, sum_d_normalized) -> (dx [B, S, E], d_gain [E], d_bias [E])."""

    def kernel(
        x: tf.Tensor,
        mean: tf.Tensor,
        inverse_std: tf.Tensor,
        gain: tf.Tensor,
        dy: tf.Tensor,
        sum_d: tf.Tensor,
        sum_d_normalized: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        normalized = _normalize(x, mean, inverse_std)
        dy = tf.cast(dy, tf.float32)
        centered = (
            dy * tf.cast(gain, tf.float32)
            - (sum_d[..., None] + normalized * sum_d_normalized[..., None]) / whole_embd_size
        )
        summed_axes = list(range(x.shape.rank - 1))
        d_gain = tf.reduce_sum(dy * normalized, summed_axes)
        d_bias = tf.reduce_sum(dy, summed_axes)
        return (
            tf.cast(centered * inverse_std[..., None], x.dtype),
            tf.cast(d_gain, gain.dtype),
            tf.cast(d_bias, gain.dtype),
        )

    return _compiled(kernel)


# ---------------------------------------------------------------------------------------------------------- activation


@_compiled
def sum_of_rows(x: tf.Tensor) -> tf.Tensor:
    """[..., F] -> [F], summed in float32."""
    return tf.cast(tf.reduce_sum(tf.cast(x, tf.float32), list(range(x.shape.rank - 1))), x.dtype)


@functools.cache
def biased_activation(activation: Callable[[tf.Tensor], tf.Tensor]) -> Kernel:
    """(x [..., F], bias [F]) -> activation(x + bias)."""
    return _compiled(lambda x, bias: activation(x + bias))


@functools.cache
def biased_activation_gradient(activation: Callable[[tf.Tensor], tf.Tensor]) -> Kernel:
    """(x [..., F], bias [F], dy [..., F]) -> (dx [..., F], d_bias [F])."""

    def kernel(x: tf.Tensor, bias: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        biased = x + bias
        with tf.GradientTape() as tape:
            tape.watch(biased)
            y = activation(biased)
        dx = tape.gradient(y, biased, output_gradients=dy)
        return dx, tf.cast(tf.reduce_sum(tf.cast(dx, tf.float32), list(range(x.shape.rank - 1))), bias.dtype)

    return _compiled(kernel)


# ------------------------------------------------------------------------------------------------------- cross-entropy


@_compiled
def largest_logit(logits: tf.Tensor) -> tf.Tensor:
    """[B, S, V] -> float32 [B, S]."""
    return tf.cast(tf.reduce_max(logits, -1), tf.float32)


@_compiled
def exponential_sum_and_label_logit(
    logits: tf.Tensor, labels: tf.Tensor, largest: tf.Tensor, vocab_start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of exp(logit - largest) over this slice of the vocabulary, and the label's logit, or 0 where the label lies
    in another slice.

    [B, S, V], [B, S], [B, S], scalar -> float32 [B, S] twice.
    """
    logits = tf.cast(logits, tf.float32)
    local, is_here = labels_in_slice(labels, vocab_start, logits.shape[-1])
    label_logit = tf.where(is_here, tf.gather(logits, local, batch_dims=2), 0.0)
    return tf.reduce_sum(tf.exp(logits - largest[..., None]), -1), label_logit


def labels_in_slice(labels: tf.Tensor, start: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels counted from the slice's start, clipped into it, and whether each lies in it."""
    local = labels - start
    return tf.clip_by_value(local, 0, size - 1), (local >= 0) & (local < size)


@_compiled
def cross_entropy_gradient(
    logits: tf.Tensor,
    labels: tf.Tensor,
    log_z: tf.Tensor,
    d_log_z: tf.Tensor,
    d_label_logit: tf.Tensor,
    vocab_start: tf.Tensor,
) -> tf.Tensor:
    """d_logits [B, S, V] = softmax * d_log_z + one_hot(label) * d_label_logit, without the one-hot."""
    softmax = tf.exp(tf.cast(logits, tf.float32) - log_z[..., None])
    is_label = vocab_start + tf.range(logits.shape[-1]) == labels[..., None]
    return tf.cast(softmax * d_log_z[..., None] + tf.where(is_label, d_label_logit[..., None], 0.0), logits.dtype)


# ----------------------------------------------------------------------------------------------------------- attention


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What is fixed when the attention is compiled.

    Attributes:
      radius: position p sees (p - radius, p]; None: all of [0, p].
      dropout_rate: of the attention weights.
      aligned: queries and keys both begin at position 0 and are equally many, so that blocks above the diagonal can
        be left out.
    """

    radius: int | None
    dropout_rate: float
    aligned: bool


@dataclasses.dataclass(frozen=True)
class _Block:
    """Queries [begin, end) and the keys [key_begin, key_end) that any of them may see."""

    begin: int
    end: int
    key_begin: int
    key_end: int


def _blocks(kind: AttentionKind, n_queries: int, n_keys: int) -> Iterator[_Block]:
    """Cuts aligned attention into blocks of queries, each with only the keys it can see: half the work of the full
    square, or less.
    """
    if not kind.aligned:
        yield _Block(0, n_queries, 0, n_keys)
        return
    size = max(64, -(-n_queries // 8))
    for begin in range(0, n_queries, size):
        end = min(begin + size, n_queries)
        yield _Block(begin, end, 0 if kind.radius is None else max(0, begin - kind.radius + 1), end)


def _heads_first(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [0, 2, 1, 3])


def _sum_blocks(parts: list[tuple[_Block, tf.Tensor]], n_keys: int) -> tf.Tensor:
    """Adds [B, H, keys of the block, D] parts into [B, H, M, D]."""
    return tf.add_n(
        [tf.pad(part, [[0, 0], [0, 0], [block.key_begin, n_keys - block.key_end], [0, 0]]) for block, part in parts]
    )


def _masked_logits(
    kind: AttentionKind, queries: tf.Tensor, keys: tf.Tensor, starts: tf.Tensor, block: _Block
) -> tf.Tensor:
    """[B, H, S, D], [B, H, M, D] -> float32 [B, H, S of block, M of block]."""
    logits = tf.matmul(
        queries[:, :, block.begin : block.end], keys[:, :, block.key_begin : block.key_end], transpose_b=True
    )
    position = (starts[1] + tf.range(block.begin, block.end))[:, None]
    key_position = (starts[2] + tf.range(block.key_begin, block.key_end))[None, :]
    visible = key_position <= position
    if kind.radius is not None:
        visible &= key_position > position - kind.radius
    return tf.where(visible, tf.cast(logits, tf.float32), MASKED_LOGIT)


def _weights_dropout(
    kind: AttentionKind, weights: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, block: _Block
) -> tf.Tensor:
    if not kind.dropout_rate:
        return weights
    block_starts = starts + tf.constant([0, block.begin, block.key_begin])
    return weights * _dropout_factor(key, rows, block_starts, tuple(weights.shape), kind.dropout_rate)


@functools.cache
def attention_largest_logit(kind: AttentionKind) -> Kernel:
    """(queries [B, S, H, D], keys [B, M, H, D], starts) -> float32 [B, H, S]; for keys split over the mesh."""

    def kernel(queries: tf.Tensor, keys: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        block = _Block(0, queries.shape[1], 0, keys.shape[1])
        return tf.reduce_max(_masked_logits(kind, _heads_first(queries), _heads_first(keys), starts, block), -1)

    return _compiled(kernel)


@functools.cache
def attention_sums(kind: AttentionKind) -> Kernel:
    """(queries, keys, values, starts, key, rows, largest [B, H, S]) -> (sum of exponentials [B, H, S], weighted
    values float32 [B, S, H, D]).
    """

    def kernel(
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        starts: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
        largest: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        block = _Block(0, queries.shape[1], 0, keys.shape[1])
        logits = _masked_logits(kind, _heads_first(queries), _heads_first(keys), starts, block)
        exponentials = tf.exp(logits - largest[..., None])
        dropped = _weights_dropout(kind, exponentials, key, rows, starts, block)
        weighted = tf.matmul(dropped, tf.cast(_heads_first(values), tf.float32))
        return tf.reduce_sum(exponentials, -1), _heads_first(weighted)

    return _compiled(kernel)


@functools.cache
def attention(kind: AttentionKind) -> Kernel:
    """(queries [B, S, H, D], keys, values [B, M, H, D], starts int32 [3], key, rows) -> (outputs [B, S, H, D], log_z
    float32 [B, H, S]).

    `starts` are the places where this slice begins in the whole [heads, sequence, memory_length]. The logits are not
    divided by sqrt(D): GPT-Neo folds that into the initial queries.
    """

    def kernel(
        queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, starts: tf.Tensor, key: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        dtype = queries.dtype
        queries, keys, values = _heads_first(queries), _heads_first(keys), _heads_first(values)
        outputs, log_zs = [], []
        for block in _blocks(kind, queries.shape[2], keys.shape[2]):
            logits = _masked_logits(kind, queries, keys, starts, block)
            largest = tf.reduce_max(logits, -1, keepdims=True)
            exponentials = tf.exp(logits - largest)
            total = tf.reduce_sum(exponentials, -1, keepdims=True)
            weights = _weights_dropout(kind, exponentials, key, rows, starts, block)
            weighted = tf.matmul(tf.cast(weights, dtype), values[:, :, block.key_begin : block.key_end])
            outputs.append(tf.cast(tf.cast(weighted, tf.float32) / total, dtype))
            log_zs.append((largest + tf.math.log(total))[..., 0])
        return _heads_first(tf.concat(outputs, 2)), tf.concat(log_zs, 2)

    return _compiled(kernel)


@functools.cache
def attention_gradient(kind: AttentionKind) -> Kernel:
    """(queries, keys, values, starts, key, rows, outputs, log_z, d_outputs) -> (d_queries, d_keys, d_values), the
    weights computed again.

    Source: Dao et al. 2022, FlashAttention, section 3.1: only log_z of each row is kept from the forward pass.
    """

    def kernel(
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        starts: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
        outputs: tf.Tensor,
        log_z: tf.Tensor,
        d_outputs: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dtype, n_keys = queries.dtype, keys.shape[1]
        queries, keys, values, d_outputs = map(_heads_first, (queries, keys, values, d_outputs))
        row_sums = tf.reduce_sum(tf.cast(d_outputs, tf.float32) * tf.cast(_heads_first(outputs), tf.float32), -1)
        d_queries, d_keys, d_values = [], [], []
        for block in _blocks(kind, queries.shape[2], n_keys):
            own, seen = slice(block.begin, block.end), slice(block.key_begin, block.key_end)
            weights = tf.exp(_masked_logits(kind, queries, keys, starts, block) - log_z[:, :, own, None])
            d_dropped = tf.matmul(d_outputs[:, :, own], values[:, :, seen], transpose_b=True)
            d_weights = _weights_dropout(kind, tf.cast(d_dropped, tf.float32), key, rows, starts, block)
            d_logits = tf.cast(weights * (d_weights - row_sums[:, :, own, None]), dtype)
            dropped = tf.cast(_weights_dropout(kind, weights, key, rows, starts, block), dtype)
            d_queries.append(tf.matmul(d_logits, keys[:, :, seen]))
            d_keys.append((block, tf.matmul(d_logits, queries[:, :, own], transpose_a=True)))
            d_values.append((block, tf.matmul(dropped, d_outputs[:, :, own], transpose_a=True)))
        return (
            _heads_first(tf.concat(d_queries, 2)),
            _heads_first(_sum_blocks(d_keys, n_keys)),
            _heads_first(_sum_blocks(d_values, n_keys)),
        )

    return _compiled(kernel)


# ------------------------------------------------------------------------------------------------------------ sampling


@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """How the next token is chosen from its logits.

    Attributes:
      temperature: divides the logits; 0: the likeliest token.
      top_k: only the k likeliest tokens; 0: all.
      top_p: only the likeliest tokens that together hold this probability; 1: all.
    """

    temperature: float
    top_k: int
    top_p: float


def filtered_logits(rule: SamplingRule, logits: tf.Tensor) -> tf.Tensor:
    """Logits divided by the temperature, with those of tokens that may not be drawn at -inf. float32 [B, V] -> [B, V].

    Source: top-k, Fan et al. 2018, Hierarchical Neural Story Generation, section 5; top-p, Holtzman et al. 2020, The
    Curious Case of Neural Text Degeneration, section 3.1.
    """
    logits = logits / rule.temperature
    if 0 < rule.top_k < logits.shape[-1]:
        smallest = tf.math.top_k(logits, rule.top_k).values[:, -1:]
        logits = tf.where(logits < smallest, -float("inf"), logits)
    if rule.top_p < 1.0:
        descending = tf.sort(logits, axis=-1, direction="DESCENDING")
        before = tf.cumsum(tf.nn.softmax(descending), axis=-1, exclusive=True)
        smallest = tf.reduce_min(tf.where(before < rule.top_p, descending, float("inf")), -1, keepdims=True)
        logits = tf.where(logits < smallest, -float("inf"), logits)
    return logits


@functools.cache
def sample(rule: SamplingRule) -> Kernel:
    """(logits [B, V], key, rows [B]) -> int32 [B], drawn by the Gumbel-max trick: a function of key and row."""

    def kernel(logits: tf.Tensor, key: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(logits, tf.float32)
        if rule.temperature:
            noise = uniform(key, rows, tf.constant([0]), tuple(logits.shape))
            logits = filtered_logits(rule, logits) - tf.math.log(-tf.math.log(noise))
        return tf.argmax(logits, -1, output_type=tf.int32)

    return _compiled(kernel)


# ----------------------------------------------------------------------------------------------------------- optimiser


def sum_of_squares(*tensors: tf.Tensor) -> tf.Tensor:
    """Tensors of any shapes -> float32 scalar. Not compiled: TensorFlow's own sum is several times faster on CPUs."""
    return 2.0 * tf.add_n([tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors])


@dataclasses.dataclass(frozen=True)
class AdamConstants:
    """The numbers of one Adam update that do not change from step to step."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


@functools.cache
def adam(constants: AdamConstants) -> Kernel:
    """Updates one or more variables at once, to save a call for each small one.

    (gradient_scale, learning_rate, then n values, n ms, n vs, n gradients) -> n values, n ms, n vs; each of its
    variable's shape, float32.

    Source: GPT-Neo's AdamWeightDecayOptimizer, kept for its checkpoints: no bias correction, epsilon outside the root,
    decay times the rate.
    """

    def update(
        scale: tf.Tensor, rate: tf.Tensor, value: tf.Tensor, m: tf.Tensor, v: tf.Tensor, gradient: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        gradient = gradient * scale
        m = constants.beta1 * m + (1.0 - constants.beta1) * gradient
        v = constants.beta2 * v + (1.0 - constants.beta2) * tf.square(gradient)
        return value - rate * (m / (tf.sqrt(v) + constants.epsilon) + constants.weight_decay * value), m, v

    def kernel(scale: tf.Tensor, rate: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        n_variables = len(tensors) // 4
        columns = [tensors[start : start + n_variables] for start in range(0, len(tensors), n_variables)]
        values, ms, vs = zip(*(update(scale, rate, *row) for row in zip(*columns, strict=True)), strict=True)
        return (*values, *ms, *vs)

    return _compiled(kernel)
