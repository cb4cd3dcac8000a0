"""The base of mesh operations that mesh-TensorFlow lacks or composes slowly: kernels on slices, and collectives.

An operation accepts any layout that its shapes allow: if the dimension that it reduces over is split, partial results
are reduced over those mesh axes; otherwise one compiled kernel does all the work. None multiplies by a one-hot matrix:
GPT-Neo's `mtf.gather` and cross-entropy do, forward and backward, which costs as much as the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels.compile import Kernel

# Takes the operation and the gradients of its outputs; returns those of its inputs.
Gradient = Callable[..., list[mtf.Tensor | None]]


def mesh_axes(mesh_impl: mtf.MeshImpl, dims: Sequence[mtf.Dimension]) -> list[int]:
    """Returns the mesh axes that any of these dimensions is split over."""
    axes = (mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims)
    return [axis for axis in axes if axis is not None]


def slice_size(mesh_impl: mtf.MeshImpl, dims: Iterable[mtf.Dimension]) -> int:
    """Returns the number of elements of a processor's slice; several dims may be split over one mesh axis."""
    return math.prod(mesh_impl.slice_size(mtf.Shape([dim])) for dim in dims)


def slice_starts(mesh_impl: mtf.MeshImpl, dims: Sequence[mtf.Dimension]) -> LaidOut:
    """Laid-out int32 [len(dims)]: where each processor's slice begins along these dimensions."""
    axes = [mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims]
    sizes = [
        dim.size if axis is None else dim.size // mesh_impl.shape[axis].size
        for dim, axis in zip(dims, axes, strict=True)
    ]

    def stack(*coordinates: int | tf.Tensor) -> tf.Tensor:
        remaining = iter(coordinates)
        return tf.stack([0 if axis is None else next(remaining) * size for axis, size in zip(axes, sizes, strict=True)])

    return mesh_impl.slicewise(stack, *[mesh_impl.laid_out_pcoord(axis) for axis in axes if axis is not None])


def slice_start(mesh_impl: mtf.MeshImpl, dim: mtf.Dimension) -> LaidOut:
    """Laid-out int32 scalar: where each processor's slice begins along one dimension."""
    return mesh_impl.slicewise(lambda starts: starts[0], slice_starts(mesh_impl, [dim]))


def replace_inputs(operation: mtf.Operation, new: Mapping[mtf.Tensor, mtf.Tensor]) -> None:
    """Lets an operation read other tensors of the same shapes, as copies of operations do in mesh-TensorFlow."""
    operation._inputs = [new.get(x, x) for x in operation.inputs]


class MeshOperation(mtf.Operation):
    """An operation that computes its outputs from the slices of its inputs, in `lower_slices`."""

    def __init__(self, inputs: Sequence[mtf.Tensor], outputs: Sequence[tuple[mtf.Shape, tf.DType]], name: str) -> None:
        super().__init__(list(inputs), name=name)
        self._outputs = [mtf.Tensor(self, shape, dtype, index=index) for index, (shape, dtype) in enumerate(outputs)]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Sets the laid-out outputs in the lowering of the graph."""
        inputs = [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs]
        for output, laid_out in zip(self.outputs, self.lower_slices(lowering.mesh_impl(self), *inputs), strict=True):
            lowering.set_tensor_lowering(output, laid_out)

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Returns the laid-out outputs, one for each output tensor, from the laid-out inputs."""
        raise NotImplementedError

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Returns the floating-point operations of one processor's matrix products; 0 where there are none."""
        return 0.0


class SliceKernel(MeshOperation):
    """Runs a kernel on the slices of each processor, without collectives.

    If `starts` names dimensions, the kernel's last input is where its slice begins along them, int32 [len(starts)].
    A gradient must read tensors from the operation that it gets: recomputation copies operations with other inputs.
    """

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        inputs: Sequence[mtf.Tensor],
        outputs: Sequence[tuple[mtf.Shape, tf.DType]],
        gradient: Gradient | None = None,
        starts: Sequence[mtf.Dimension] = (),
    ) -> None:
        self._kernel, self._gradient, self._starts = kernel, gradient, starts
        super().__init__(inputs, outputs, name)

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        starts = [slice_starts(mesh_impl, self._starts)] if self._starts else []
        outputs = mesh_impl.slicewise(self._kernel, *inputs, *starts)
        return [outputs] if len(self.outputs) == 1 else outputs

    def gradient(self, grad_ys: Sequence[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return self._gradient(self, *grad_ys) if self._gradient else super().gradient(grad_ys)


def lazy_sum(mesh_impl: mtf.MeshImpl, laid_out: LaidOut, dims: Sequence[mtf.Dimension]) -> LaidOut:
    """Returns a sum over dims, of which each processor holds a part; lazy, so that sums of sums are reduced once."""
    axes = mesh_axes(mesh_impl, dims)
    return mtf.LazyAllreduceSum(mesh_impl, laid_out, axes) if axes else laid_out


def zeros(mesh_impl: mtf.MeshImpl, slice_shape: Sequence[int], dtype: tf.DType = tf.float32) -> LaidOut:
    """Returns zeros of one shape on every processor, to add to in a loop."""
    # `tf.zeros` would be folded into a constant that stays in memory beside the sums.
    return mesh_impl.slicewise(lambda: tf.raw_ops.Empty(shape=slice_shape, dtype=dtype, init=True))


def loop(
    mesh_impl: mtf.MeshImpl, count: int, body: Callable[..., Sequence[LaidOut]], state: Sequence[LaidOut]
) -> list[LaidOut]:
    """Returns the state after `count` times state = body(index, *state), as one loop of TensorFlow.

    Args:
        mesh_impl: where.
        count: at least 1.
        body: from the index, an int32 scalar, and the state to the new state, of the same shapes.
        state: at first.
    """

    def step(index: tf.Tensor, *lists: list[tf.Tensor]) -> list[object]:
        new = body(index, *map(mesh_impl.LaidOutTensor, lists))
        return [index + 1, *(x.to_laid_out_tensor().tensor_list for x in new)]

    first = [tf.constant(0), *(x.to_laid_out_tensor().tensor_list for x in state)]
    with mesh_impl.repeating(count):
        # Without the limit TensorFlow would overlap the repetitions, and hold the tensors of several.
        _, *last = tf.while_loop(lambda index, *_: index < count, step, first, parallel_iterations=1)
    return list(map(mesh_impl.LaidOutTensor, last))


class Redistribution(mtf.ReshapeOperation):
    """Renames a dimension; nothing moves where both names are laid out alike.

    mesh-TensorFlow's own renaming splits before it joins, and permutes the elements if both names are split, over
    different mesh axes.
    """

    def __init__(self, x: mtf.Tensor, old_name: str, new_name: str) -> None:
        self._names = old_name, new_name
        super().__init__(x, x.shape.rename_dimension(old_name, new_name), "redistribute")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Sets the laid-out output in the lowering of the graph."""
        mesh_impl, x = lowering.mesh_impl(self), lowering.tensors[self.inputs[0]]
        index = self.inputs[0].shape.dimension_names.index(self._names[0])
        old, new = (
            mesh_impl.tensor_dimension_to_mesh_axis(y.shape.dims[index]) for y in (self.inputs[0], self.outputs[0])
        )
        if old != new and old is not None:
            x = mesh_impl.allconcat(x.to_laid_out_tensor(), old, index)
        if old != new and new is not None:
            x = mesh_impl.allsplit(x.to_laid_out_tensor(), new, index)
        lowering.set_tensor_lowering(self.outputs[0], x)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradient of the input."""
        return [redistribute(grad_ys[0], *reversed(self._names))]


def redistribute(x: mtf.Tensor, old_name: str, new_name: str) -> mtf.Tensor:
    """Renames a dimension, and moves the data if the two names are laid out differently."""
    return Redistribution(x, old_name, new_name).outputs[0]
