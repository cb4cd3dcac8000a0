"""Grouped queries: several heads share one head of keys and values.

Nothing is sent: kv_heads is whole, or split over the axis of heads, so that a slice of heads finds its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from meshtf import LaidOut, mtf
from models.kernels import grouping as kernels
from models.kernels.compile import Kernel
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes, slice_size, slice_starts


def groups_of(mesh_impl: mtf.MeshImpl, heads_dim: mtf.Dimension, kv_dim: mtf.Dimension) -> kernels.Groups:
    """Returns the groups of a processor's slices."""
    n_heads, n_kv_heads = (slice_size(mesh_impl, [dim]) for dim in (heads_dim, kv_dim))
    return kernels.Groups(n_heads, n_kv_heads, heads_dim.size // kv_dim.size)


@dataclasses.dataclass(frozen=True)
class SharedHeads:
    """Which heads of queries share each head of keys and values, on a mesh.

    Attributes:
        mesh_impl: how they are laid out.
        heads: the dimension of queries.
        kv_heads: that of keys and values; the same one if no head is shared.
    """

    mesh_impl: mtf.MeshImpl
    heads: mtf.Dimension
    kv_heads: mtf.Dimension

    def repeated(self, x: LaidOut) -> LaidOut:
        """[..., kv_heads, features_per_head] -> [..., heads, features_per_head]."""
        return self._of_groups(kernels.repeat_heads, x)

    def summed(self, dy: LaidOut) -> LaidOut:
        """[..., heads, features_per_head] -> [..., kv_heads, features_per_head], of the heads of a slice alone."""
        return self._of_groups(kernels.sum_of_groups, dy)

    def total(self, sums: LaidOut, dims: Sequence[mtf.Dimension] = ()) -> LaidOut:
        """Adds up the `summed` of all slices of heads, if each has all kv_heads, and of all slices of dims."""
        is_whole = self.heads != self.kv_heads and not mesh_axes(self.mesh_impl, [self.kv_heads])
        return lazy_sum(self.mesh_impl, sums, [*dims, self.heads] if is_whole else dims)

    def _of_groups(self, kernel: Callable[[kernels.Groups], Kernel], x: LaidOut) -> LaidOut:
        if self.heads == self.kv_heads:
            return x
        groups, starts = groups_of(self.mesh_impl, self.heads, self.kv_heads), [self.heads]
        return self.mesh_impl.slicewise(kernel(groups), x, slice_starts(self.mesh_impl, starts))


class RepeatHeads(MeshOperation):
    """x [..., kv_heads, features_per_head] -> [..., heads, features_per_head]."""

    def __init__(self, x: mtf.Tensor, heads_dim: mtf.Dimension) -> None:
        *other_dims, self._kv_dim, features_dim = x.shape.dims
        self._heads_dim = heads_dim
        super().__init__([x], [(mtf.Shape([*other_dims, heads_dim, features_dim]), x.dtype)], "repeat_heads")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return [SharedHeads(mesh_impl, self._heads_dim, self._kv_dim).repeated(x)]

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradient of the input."""
        return SumOfGroups(grad_ys[0], self._kv_dim).outputs


class SumOfGroups(MeshOperation):
    """dy [..., heads, features_per_head] -> [..., kv_heads, features_per_head]."""

    def __init__(self, dy: mtf.Tensor, kv_dim: mtf.Dimension) -> None:
        *other_dims, self._heads_dim, features_dim = dy.shape.dims
        self._kv_dim = kv_dim
        super().__init__([dy], [(mtf.Shape([*other_dims, kv_dim, features_dim]), dy.dtype)], "sum_of_groups")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, dy: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        shared = SharedHeads(mesh_impl, self._heads_dim, self._kv_dim)
        return [shared.total(shared.summed(dy))]


def repeat_heads(x: mtf.Tensor, heads_dim: mtf.Dimension) -> mtf.Tensor:
    """Repeats each head of keys or values for the heads of queries that use it.

    Args:
        x: [..., kv_heads, features_per_head]; returned as it is if it has heads.
        heads_dim: head h uses the key and value head h // (heads / kv_heads).

    Returns:
        [..., heads, features_per_head].

    Source: Ainslie et al. 2023, GQA: Training Generalized Multi-Query Transformer Models, section 2.2.
    """
    return x if x.shape.dims[-2] == heads_dim else RepeatHeads(x, heads_dim).outputs[0]
