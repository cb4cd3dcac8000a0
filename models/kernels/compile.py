"""Compilation of kernels: what one processor computes on its slices, as TensorFlow functions compiled by XLA.

Kernels know no mesh, variable or config, and have explicit gradients. `models/ops/` calls them on every slice, with
collectives between them. XLA fuses the element-wise work here; the large matrix products stay outside, where
TensorFlow's own are faster.

Shape legend: B batch, S sequence (queries), M memory_length (keys and values), H heads, D features_per_head, E embd,
V vocab. All statistics, logits of attention and losses are float32, whatever the dtype of the activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from meshtf import enclosing_tpu_context, tf

Kernel = Callable[..., object]


def compiled(function: Kernel) -> Kernel:
    """Returns the function compiled by XLA, once for each combination of shapes."""
    alone = tf.function(function, jit_compile=True, autograph=False)
    # On a TPU the whole step is compiled, so its functions need not ask for it again.
    as_a_part = tf.function(function, autograph=False)

    @functools.wraps(function)
    def kernel(*inputs: object, **settings: object) -> object:
        return (alone if enclosing_tpu_context() is None else as_a_part)(*inputs, **settings)

    return kernel


@functools.cache
def in_place(kernel: Kernel, shapes: tuple[tuple[int, ...], ...]) -> Kernel:
    """Returns an update of variables in their own memory: (scalars, states, others) -> new values of some states.

    A state is the handle of a variable, which is set, or a value, whose new value is returned. XLA gives a result the
    memory of the variable that it is assigned to, where nothing else holds that. New values beside the old ones would
    take as much memory, and writing to new memory takes half as long again.

    Args:
        kernel: (*scalars, *values of the states, *others) -> their new values, in order.
        shapes: of the states, which are float32.
    """

    def update(scalars: list[tf.Tensor], states: list[tf.Tensor], others: list[tf.Tensor]) -> list[tf.Tensor]:
        values = [_read(state) if _is_handle(state) else state for state in states]
        for value, shape in zip(values, shapes, strict=True):
            value.set_shape(shape)
        new = kernel.__wrapped__(*scalars, *values, *others)
        for state, value in zip(states, new, strict=True):
            if _is_handle(state):
                tf.raw_ops.AssignVariableOp(resource=state, value=value)
        return [value for state, value in zip(states, new, strict=True) if not _is_handle(state)]

    # Handles and not variables: a function holds on to the variables that it has first seen.
    return tf.function(update, jit_compile=True, autograph=False)


@compiled
def overwrite(state: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor]:
    """Sets a state to a value of its shape, as a kernel of `in_place`."""
    assert state.shape == value.shape
    return (value,)


def _is_handle(state: tf.Tensor) -> bool:
    return state.dtype == tf.resource


def _read(handle: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
