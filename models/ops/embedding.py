"""Embedding lookup."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import cross_entropy as kernels
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes, slice_start


class EmbeddingLookup(MeshOperation):
    """table [vocab, embd], ids [...] -> [..., embd]."""

    def __init__(self, table: mtf.Tensor, ids: mtf.Tensor) -> None:
        super().__init__([table, ids], [(ids.shape + [table.shape.dims[1]], table.dtype)], "embedding_lookup")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, table: LaidOut, ids: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        vocab_dim = self.inputs[0].shape.dims[0]
        axes = mesh_axes(mesh_impl, [vocab_dim])
        if not axes:
            return (mesh_impl.slicewise(tf.gather, table, ids),)
        partial = mesh_impl.slicewise(_gather_own_rows, table, ids, slice_start(mesh_impl, vocab_dim))
        return (mtf.LazyAllreduceSum(mesh_impl, partial, axes),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        table, ids = self.inputs
        return [EmbeddingGradient(ids, grad_ys[0], table.shape).outputs[0], None]


class EmbeddingGradient(MeshOperation):
    """ids [...], d_embedded [..., embd] -> [vocab, embd]: each row the sum over its lookups."""

    def __init__(self, ids: mtf.Tensor, d_embedded: mtf.Tensor, table_shape: mtf.Shape) -> None:
        super().__init__([ids, d_embedded], [(table_shape, d_embedded.dtype)], "embedding_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, ids: LaidOut, d_embedded: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        table_shape = self.outputs[0].shape
        n_rows = mesh_impl.slice_shape(table_shape)[0]

        def sum_rows(ids: tf.Tensor, d_embedded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
            local, is_here = kernels.labels_in_slice(tf.reshape(ids, [-1]), start, n_rows)
            # A negative segment is skipped: a row in the slice of another processor.
            return tf.math.unsorted_segment_sum(
                tf.reshape(d_embedded, [-1, d_embedded.shape[-1]]), tf.where(is_here, local, -1), n_rows
            )

        partial = mesh_impl.slicewise(sum_rows, ids, d_embedded, slice_start(mesh_impl, table_shape.dims[0]))
        return (lazy_sum(mesh_impl, partial, self.inputs[0].shape.dims),)


def _gather_own_rows(table: tf.Tensor, ids: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    local, is_here = kernels.labels_in_slice(ids, start, table.shape[0])
    return tf.gather(table, local) * tf.cast(is_here, table.dtype)[..., None]


def embedding_lookup(table: mtf.Tensor, ids: mtf.Tensor) -> mtf.Tensor:
    """Looks up rows of a table, with a gradient that sums rows.

    Args:
        table: [vocab, embd]; vocab, embd or neither may be split.
        ids: int32 [...], each in [0, vocab).

    Returns:
        [..., embd] in the table's dtype.
    """
    return EmbeddingLookup(table, ids).outputs[0]
