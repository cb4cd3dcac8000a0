"""Routing of tokens to experts, dispatch of their rows, and combination of the results.

Rows are gathered: every slot of an expert has at most one source, so that dispatch and combine are each other's
gradient. GPT-Neo multiplies by one-hot tensors [tokens, experts, slots], which costs more than the experts themselves
when there are many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from meshtf import LaidOut, mtf, tf
from models.kernels import routing as kernels
from models.kernels.compile import Kernel
from models.kernels.routing import RoutingParams
from models.ops.dropout import Noise
from models.ops.mesh_operation import MeshOperation, SliceKernel, lazy_sum, slice_start
from models.ops.packing import Packing


@dataclasses.dataclass(frozen=True)
class DispatchIndices:
    """Where rows are sent, and what fills each slot; both int32.

    Attributes:
        destinations: [batch, rows, copies], expert * slots + slot; -1: nowhere.
        sources: [all_experts, batch, slots], row * copies + copy; -1: an empty slot.
    """

    destinations: mtf.Tensor
    sources: mtf.Tensor

    def of_copies(self) -> DispatchIndices:
        """Returns the same indices for copies as rows of their own: destinations [batch, rows * copies, 1]."""
        batch_dim, rows_dim, copies_dim = self.destinations.shape.dims
        dims = [batch_dim, mtf.Dimension("copies", rows_dim.size * copies_dim.size), mtf.Dimension("one", 1)]
        return DispatchIndices(mtf.reshape(self.destinations, dims), self.sources)


class ExpertCounts(NamedTuple):
    """How many tokens each expert has been sent before those to be routed.

    Attributes:
        sent: int32 [batch, all_experts], by the tokens before `positions` in their group; 0 for whole sequences.
        positions: int32 [batch], of each row's first token; 0 for whole sequences.
        lengths: int32 [batch], the tokens of each row; what follows them is padding.
    """

    sent: mtf.Tensor
    positions: mtf.Tensor
    lengths: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class Routing:
    """The decisions of the router.

    Attributes:
        experts: int32 [batch, tokens, choices], the choices of each token, best first.
        routes: where the tokens are sent.
        expert_counts: int32 [batch, all_experts], tokens of the last token's group that were sent to each expert.
        dropped_fraction: float32 [batch], the fraction of the assignments that exceed the capacity.
    """

    experts: mtf.Tensor
    routes: DispatchIndices
    expert_counts: mtf.Tensor
    dropped_fraction: mtf.Tensor


def route(logits: mtf.Tensor, counts: ExpertCounts, params: RoutingParams, noise: Noise) -> Routing:
    """Decides which tokens are sent to which experts.

    Tokens are assigned in order, and assignments beyond an expert's capacity are dropped. The decisions have no
    gradient.

    Args:
        logits: of the router, float32 [batch, tokens, all_experts]; tokens and all_experts are not split.
        counts: how many tokens each expert has been sent before.
        params: how to choose.
        noise: for the policy `random`.
    """
    inputs, n_slots = [logits, *counts, *noise], params.n_slots(logits.shape.dims[1].size)
    return _routed(kernels.route(params), inputs, params.n_choices, n_slots)


def route_packed(logits: mtf.Tensor, packing: Packing, params: RoutingParams, noise: Noise) -> Routing:
    """Decides which tokens of packed texts are sent to which experts, as if each text were alone; see `route`."""
    inputs, n_slots = [logits, *noise, *packing], logits.shape.dims[1].size
    return _routed(kernels.route_packed(params), inputs, params.n_choices, n_slots)


def _routed(kernel: Kernel, inputs: Sequence[mtf.Tensor], n_choices: int, n_slots: int) -> Routing:
    """Runs a kernel of routing; its first input are the logits."""
    batch_dim, tokens_dim, experts_dim = inputs[0].shape.dims
    choices = mtf.Shape([batch_dim, tokens_dim, mtf.Dimension("choices", n_choices)])
    slots, counts = mtf.Shape([experts_dim, batch_dim, mtf.Dimension("slots", n_slots)]), [batch_dim, experts_dim]
    outputs = [(shape, tf.int32) for shape in (choices, choices, slots, mtf.Shape(counts))]
    outputs.append((mtf.Shape([batch_dim]), tf.float32))
    routed = SliceKernel("route", kernel, inputs, outputs, lambda *_: [None] * len(inputs)).outputs
    experts, destinations, sources, expert_counts, dropped_fraction = routed
    return Routing(experts, DispatchIndices(destinations, sources), expert_counts, dropped_fraction)


def first_choices(experts: mtf.Tensor, experts_dim: mtf.Dimension) -> mtf.Tensor:
    """Returns the fraction of each row's tokens whose first choice is each expert: float32 [batch, all_experts]."""
    fractions = (mtf.Shape([experts.shape.dims[0], experts_dim]), tf.float32)
    return SliceKernel("first_choices", kernels.first_choices(experts_dim.size), [experts], [fractions]).outputs[0]


def chosen_logits(logits: mtf.Tensor, experts: mtf.Tensor) -> mtf.Tensor:
    """Gathers the logits [batch, tokens, choices] of the chosen experts from [batch, tokens, all_experts]."""

    def gradient(operation: mtf.Operation, d_chosen: mtf.Tensor) -> list[mtf.Tensor | None]:
        kernel = kernels.chosen_logits_gradient(logits.shape.dims[-1].size)
        d_logits = (logits.shape, logits.dtype)
        inputs = [operation.inputs[1], d_chosen]
        return [SliceKernel("chosen_logits_gradient", kernel, inputs, [d_logits]).outputs[0], None]

    chosen = (experts.shape, logits.dtype)
    return SliceKernel("chosen_logits", kernels.chosen_logits, [logits, experts], [chosen], gradient).outputs[0]


def _exchange_axis(mesh_impl: mtf.MeshImpl, batch_dim: mtf.Dimension, experts_dim: mtf.Dimension) -> int | None:
    """Returns the mesh axis that both batch and experts are split over, along which rows must move; otherwise None."""
    axis = mesh_impl.tensor_dimension_to_mesh_axis(experts_dim)
    return axis if axis == mesh_impl.tensor_dimension_to_mesh_axis(batch_dim) else None


def _origin(mesh_impl: mtf.MeshImpl) -> LaidOut:
    """Returns laid-out 0, where the experts begin on a processor that has rows for all of them."""
    return slice_start(mesh_impl, mtf.Dimension("all_experts", 1))


class ToExperts(MeshOperation):
    """x [batch, rows, features], destinations, sources -> [experts, expert_batch, slots, features]."""

    def __init__(self, x: mtf.Tensor, routes: DispatchIndices, experts_dim: mtf.Dimension) -> None:
        _, batch_dim, slots_dim = routes.sources.shape.dims
        expert_batch_dim = mtf.Dimension("expert_batch", batch_dim.size)
        shape = mtf.Shape([experts_dim, expert_batch_dim, slots_dim, x.shape.dims[-1]])
        super().__init__([x, routes.destinations, routes.sources], [(shape, x.dtype)], "to_experts")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, x: LaidOut, destinations: LaidOut, sources: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        shape, n_copies = self.outputs[0].shape, self.inputs[1].shape.dims[-1].size
        experts_dim = shape.dims[0]
        axis = _exchange_axis(mesh_impl, self.inputs[0].shape.dims[0], experts_dim)
        if axis is None:
            n_own = mesh_impl.slice_shape(mtf.Shape([experts_dim]))[0]
            kernel = kernels.gather_into_slots(n_own, n_copies)
            return (mesh_impl.slicewise(kernel, x, sources, slice_start(mesh_impl, experts_dim)),)
        kernel = kernels.gather_into_slots(experts_dim.size, n_copies)
        slots = mesh_impl.slicewise(kernel, x, sources, _origin(mesh_impl))
        return (_exchange(mesh_impl, slots, axis, (0, 1), mesh_impl.slice_shape(shape)),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return [FromExperts(grad_ys[0], DispatchIndices(*self.inputs[1:])).outputs[0], None, None]


class FromExperts(MeshOperation):
    """slots [experts, expert_batch, slots, features], destinations, sources -> [batch, rows, features]."""

    def __init__(self, slots: mtf.Tensor, routes: DispatchIndices) -> None:
        shape = mtf.Shape([*routes.destinations.shape.dims[:2], slots.shape.dims[-1]])
        super().__init__([slots, routes.destinations, routes.sources], [(shape, slots.dtype)], "from_experts")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, slots: LaidOut, destinations: LaidOut, sources: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        experts_dim, expert_batch_dim, *row_dims = self.inputs[0].shape.dims
        batch_dim = self.outputs[0].shape.dims[0]
        axis = _exchange_axis(mesh_impl, batch_dim, experts_dim)
        if axis is None:
            start = slice_start(mesh_impl, experts_dim)
            partial = mesh_impl.slicewise(kernels.sum_from_slots, slots, destinations, start)
            return (lazy_sum(mesh_impl, partial, [experts_dim]),)
        shape = mtf.Shape([mtf.Dimension("all_experts", experts_dim.size), batch_dim, *row_dims])
        slots = _exchange(mesh_impl, slots, axis, (1, 0), mesh_impl.slice_shape(shape))
        return (mesh_impl.slicewise(kernels.sum_from_slots, slots, destinations, _origin(mesh_impl)),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        experts_dim = self.inputs[0].shape.dims[0]
        return [ToExperts(grad_ys[0], DispatchIndices(*self.inputs[1:]), experts_dim).outputs[0], None, None]


def _exchange(
    mesh_impl: mtf.MeshImpl, slots: LaidOut, axis: int, dims: tuple[int, int], slice_shape: Sequence[int]
) -> LaidOut:
    """Splits the first of the two dimensions over the mesh axis and joins the second, with an all-to-all."""
    moved = mesh_impl.alltoall(slots, axis, *dims)
    # TensorFlow does not know the shapes of its parts statically.
    return mesh_impl.slicewise(lambda part: tf.reshape(part, slice_shape), moved)


def to_experts(x: mtf.Tensor, routes: DispatchIndices, experts_dim: mtf.Dimension) -> mtf.Tensor:
    """Dispatches rows: copies each into the slots it is sent to; empty slots are 0.

    Args:
        x: [batch, rows, features]; batch and features may be split.
        routes: where the rows are sent.
        experts_dim: may be split, also over the mesh axis of the batch: then the slots move between processors, and
            expert_batch, which is otherwise split like the batch, is not split.

    Returns:
        [experts, expert_batch, slots, features].
    """
    return ToExperts(x, routes, experts_dim).outputs[0]


def from_experts(slots: mtf.Tensor, routes: DispatchIndices) -> mtf.Tensor:
    """Combines results: sums the slots that each row was sent to; rows sent nowhere are 0.

    Args:
        slots: [experts, expert_batch, slots, features].
        routes: where the rows were sent.

    Returns:
        [batch, rows, features].
    """
    return FromExperts(slots, routes).outputs[0]
