"""Orthogonalisation of matrices that are split over the mesh.

The result is that of the whole matrices. Each iteration needs their Gram matrices, which are small on the shorter side:
every processor has that side whole and a part of the longer one, and the Gram matrices of the parts are added by an
all-reduce. Where the layout splits the shorter side, an all-to-all over that mesh axis splits the longer side in its
place, and another one goes back. Only where the longer side cannot be divided further, the shorter one is gathered, and
the processors of that axis do the same work.
"""

from __future__ import annotations

import dataclasses

from meshtf import LaidOut, mtf, tf
from models.kernels import newton_schulz as kernels


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a stack of matrices [matrices, rows, columns] is laid out while it is orthogonalised.

    Attributes:
        side: the shorter side, `ROWS` or `COLUMNS`, whole on each processor.
        axis: the mesh axis over which the layout splits that side; None: it is whole as it is.
        exchanges: whether the longer side takes the split over `axis`; otherwise the shorter side is gathered.
        sum_axes: the mesh axes that the longer side is then split over.
        layout_slice: the rows and columns of a processor in the layout.
        own_slice: those that it works on.
    """

    side: int
    axis: int | None
    exchanges: bool
    sum_axes: tuple[int, ...]
    layout_slice: tuple[int, int]
    own_slice: tuple[int, int]

    @property
    def flops(self) -> float:
        """The floating-point operations of one processor for one matrix."""
        short, long = self.own_slice[self.side], self.own_slice[1 - self.side]
        return kernels.N_STEPS * (4.0 * short * short * long + 2.0 * short**3)


def arrange(mesh_impl: mtf.MeshImpl, rows: mtf.Dimension, columns: mtf.Dimension) -> Arrangement:
    """Returns the arrangement for matrices of these dimensions; of a square one, a side that is whole is taken."""
    dims, sizes = (rows, columns), tuple(mesh_impl.slice_shape(mtf.Shape([rows, columns])))
    axes = [mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims]
    side = min((kernels.ROWS, kernels.COLUMNS), key=lambda index: (dims[index].size, axes[index] is not None))
    short, long, axis = dims[side].size, sizes[1 - side], axes[side]
    sum_axes = {axes[1 - side]} - {None}
    exchanges = axis is not None and long % mesh_impl.shape[axis].size == 0
    if exchanges:
        long //= mesh_impl.shape[axis].size
        sum_axes.add(axis)
    own = (short, long) if side == kernels.ROWS else (long, short)
    return Arrangement(side, axis, exchanges, tuple(sorted(sum_axes)), layout_slice=sizes, own_slice=own)


def orthogonalized(mesh_impl: mtf.MeshImpl, stack: LaidOut, rows: mtf.Dimension, columns: mtf.Dimension) -> LaidOut:
    """Replaces the singular values of matrices by values near 1, about 0.7 to 1.2; those near 0 grow 485-fold at most.

    Args:
        mesh_impl: the mesh.
        stack: laid-out float32 [matrices, rows, columns], each processor's slices of whole matrices.
        rows: the dimension of the rows, which may be split.
        columns: of the columns, which may be split.

    Returns:
        Laid out like the input.

    Source: Jordan 2024, Muon: an optimizer for hidden layers in neural networks; Bernstein & Newhouse 2024, Old
    Optimizer, New Norm, appendix A.
    """
    arrangement = arrange(mesh_impl, rows, columns)
    side, sum_axes = arrangement.side, list(arrangement.sum_axes)
    stack = _with_whole_side(mesh_impl, stack, arrangement)
    squares = mesh_impl.allreduce(mesh_impl.slicewise(kernels.squares_of_matrices, stack), sum_axes, "SUM")
    stack = mesh_impl.slicewise(kernels.normalized, stack, squares)
    for _ in range(kernels.N_STEPS):
        gram = mesh_impl.allreduce(mesh_impl.slicewise(kernels.gram(side), stack), sum_axes, "SUM")
        stack = mesh_impl.slicewise(kernels.quintic(side), stack, gram)
    return _as_laid_out(mesh_impl, stack, arrangement)


def _with_whole_side(mesh_impl: mtf.MeshImpl, stack: LaidOut, arrangement: Arrangement) -> LaidOut:
    if arrangement.axis is None:
        return stack
    whole, other = 1 + arrangement.side, 2 - arrangement.side
    if not arrangement.exchanges:
        return mesh_impl.allconcat(stack, arrangement.axis, whole)
    return _exchange(mesh_impl, stack, arrangement.axis, (other, whole), arrangement.own_slice)


def _as_laid_out(mesh_impl: mtf.MeshImpl, stack: LaidOut, arrangement: Arrangement) -> LaidOut:
    if arrangement.axis is None:
        return stack
    whole, other = 1 + arrangement.side, 2 - arrangement.side
    if arrangement.exchanges:
        return _exchange(mesh_impl, stack, arrangement.axis, (whole, other), arrangement.layout_slice)
    size = arrangement.layout_slice[arrangement.side]

    def own_part(stack: tf.Tensor, coordinate: int | tf.Tensor) -> tf.Tensor:
        start = [0, 0, 0]
        start[whole] = coordinate * size
        return tf.slice(stack, start, [stack.shape[0], *arrangement.layout_slice])

    return mesh_impl.slicewise(own_part, stack, mesh_impl.laid_out_pcoord(arrangement.axis))


def _exchange(
    mesh_impl: mtf.MeshImpl, stack: LaidOut, axis: int, dims: tuple[int, int], slice_shape: tuple[int, int]
) -> LaidOut:
    """Splits the first of the two dimensions over the mesh axis and joins the second."""
    n_matrices = stack.to_laid_out_tensor().all_slices[0].shape[0]
    moved = mesh_impl.alltoall(stack, axis, *dims)
    # TensorFlow does not know the shapes of its parts statically.
    return mesh_impl.slicewise(lambda part: tf.reshape(part, [n_matrices, *slice_shape]), moved)
