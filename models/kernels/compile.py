"""What one processor computes on its own slices: plain TensorFlow functions, each with its gradient written out,
compiled by XLA.

These files know nothing of meshes, variables or configs. `models/ops/` calls these functions on every slice and puts
the collectives between them. XLA fuses the element-wise work here; the large matrix products stay outside, where
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
    """The function compiled by XLA for each new combination of shapes."""
    alone = tf.function(function, jit_compile=True, autograph=False)
    # On a TPU the whole step is compiled; a function in it that asks for the same again need not be understood there.
    as_a_part = tf.function(function, autograph=False)

    @functools.wraps(function)
    def kernel(*inputs: object) -> object:
        return (alone if enclosing_tpu_context() is None else as_a_part)(*inputs)

    return kernel
