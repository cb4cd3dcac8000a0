"""Grouped queries: several heads share one head of keys and values.

Nothing is sent: kv_heads is whole, or split over the axis of heads, so that a slice of heads finds its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf
from models.kernels import grouping as kernels
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes, slice_size, slice_starts


def groups_of(mesh_impl: mtf.MeshImpl, heads_dim: mtf.Dimension, kv_dim: mtf.Dimension) -> kernels.Groups:
    """Returns the groups of a processor's slices."""
    n_heads, n_kv_heads = (slice_size(mesh_impl, [dim]) for dim in (heads_dim, kv_dim))
    return kernels.Groups(n_heads, n_kv_heads, heads_dim.size // kv_dim.size)


class RepeatHeads(MeshOperation):
    """x [..., kv_heads, features_per_head] -> [..., heads, features_per_head]."""

    def __init__(self, x: mtf.Tensor, heads_dim: mtf.Dimension) -> None:
        *other_dims, self._kv_dim, features_dim = x.shape.dims
        self._heads_dim = heads_dim
        super().__init__([x], [(mtf.Shape([*other_dims, heads_dim, features_dim]), x.dtype)], "repeat_heads")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        kernel = kernels.repeat_heads(groups_of(mesh_impl, self._heads_dim, self._kv_dim))
        return [mesh_impl.slicewise(kernel, x, slice_starts(mesh_impl, [self._heads_dim]))]

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
        kernel = kernels.sum_of_groups(groups_of(mesh_impl, self._heads_dim, self._kv_dim))
        sums = mesh_impl.slicewise(kernel, dy, slice_starts(mesh_impl, [self._heads_dim]))
        is_split = mesh_axes(mesh_impl, [self._kv_dim])
        return [sums if is_split else lazy_sum(mesh_impl, sums, [self._heads_dim])]


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
