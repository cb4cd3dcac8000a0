"""Tensors in blocks, [blocks, rows of a block, ...], of which a loop reads, writes or adds one at a time."""

from __future__ import annotations

from meshtf import enclosing_tpu_context, tf
from models.kernels.order import after


def split(x: tf.Tensor, n_blocks: int, size: int) -> tf.Tensor:
    """[rows, ...] -> [blocks, rows of a block, ...]; zeros fill the last block up."""
    missing = n_blocks * size - x.shape[0]
    padded = tf.pad(x, [[0, missing], *[[0, 0]] * (x.shape.rank - 1)]) if missing else x
    return tf.reshape(padded, [n_blocks, size, *x.shape[1:]])


def joined(x: tf.Tensor, n_rows: int) -> tf.Tensor:
    """[blocks, rows of a block, ...] -> [rows, ...]."""
    return tf.reshape(x, [-1, *x.shape[2:]])[:n_rows]


def write(x: tf.Tensor, index: tf.Tensor | int, block: tf.Tensor) -> tf.Tensor:
    """Returns x with one block replaced, in the memory of x: nothing else may read it."""
    if enclosing_tpu_context() is not None:  # XLA writes in place by itself
        return tf.tensor_scatter_nd_update(x, [[index]], block[None])
    return tf.raw_ops.InplaceUpdate(x=x, i=[index], v=block[None])


def add(x: tf.Tensor, index: tf.Tensor | int, block: tf.Tensor) -> tf.Tensor:
    """Returns x with something added to one block, in the memory of x: nothing else may read it."""
    if enclosing_tpu_context() is not None:
        return tf.tensor_scatter_nd_add(x, [[index]], block[None])
    return tf.raw_ops.InplaceAdd(x=x, i=[index], v=block[None])


def product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """[N, rows], [N, columns] -> float32 [rows, columns], the sum over N."""
    return tf.cast(tf.matmul(left, right, transpose_a=True), tf.float32)


def add_product(x: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Returns x plus the `product`, in the memory of x, which is in blocks; the product is never whole in memory."""
    n_blocks, size, _ = x.shape
    for index in range(n_blocks):
        rows = after(left, x)[:, index * size : (index + 1) * size]  # one after the other, or all would be in memory
        block = tf.pad(product(rows, right), [[0, size - rows.shape[1]], [0, 0]])
        x = add(x, index, block)
    return x
