"""The order in which kernels run."""

from __future__ import annotations

from meshtf import enclosing_tpu_context, tf, xla_optimization_barrier


def after(own: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """Returns `own`, which is not read before the others are there.

    XLA drops control dependencies, and computes equal operations once; a barrier stops it from both.
    """
    if enclosing_tpu_context() is not None:
        return xla_optimization_barrier([own, *others])[0]
    with tf.control_dependencies(others):
        return tf.identity(own)
