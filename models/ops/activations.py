"""Activations and biases."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import activations as kernels
from models.ops.dropout import Noise
from models.ops.mesh_operation import MeshOperation, SliceKernel, lazy_sum


class ActivationGradient(MeshOperation):
    """dy, x, others -> dx, d_others: each the sum over the dimensions of x that it lacks."""

    def __init__(self, function: kernels.Function, dy: mtf.Tensor, *inputs: mtf.Tensor) -> None:
        self._function = function
        super().__init__([dy, *inputs], [(x.shape, x.dtype) for x in inputs], "activation_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *laid_out: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        gradients = mesh_impl.slicewise(kernels.activation_gradient(self._function), *laid_out)
        dims = self.inputs[0].shape.dims
        return [
            lazy_sum(mesh_impl, gradient, [dim for dim in dims if dim not in output.shape.dims])
            for gradient, output in zip(gradients, self.outputs, strict=True)
        ]


def activation(x: mtf.Tensor, function: kernels.Function, parameters: Sequence[mtf.Tensor] = ()) -> mtf.Tensor:
    """Computes function(x, *parameters) in float32, and returns it in the dtype of x.

    Args:
        x: [..., features].
        function: of float32 TensorFlow tensors; element-wise, or over features, which then must not be split.
        parameters: tensors of some of x's dimensions, such as scalars.
    """

    def gradient(operation: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return ActivationGradient(function, dy, *operation.inputs).outputs

    kernel = kernels.activation(function)
    return SliceKernel("activation", kernel, [x, *parameters], [(x.shape, x.dtype)], gradient).outputs[0]


def biased_activation(
    x: mtf.Tensor, bias: mtf.Tensor, function: kernels.Function, parameters: Sequence[mtf.Tensor] = ()
) -> mtf.Tensor:
    """Computes function(x + bias, *parameters), fused; bias is [features], the rest as in `activation`."""
    return activation(x, kernels.biased(function), [bias, *parameters])


def soft_cap(x: mtf.Tensor, cap: float) -> mtf.Tensor:
    """Keeps x within (-cap, cap): cap tanh(x / cap), which is close to x near 0.

    Source: Gemma Team 2024, Gemma 2, section 2, "Logit soft-capping".
    """
    return activation(x, kernels.soft_cap(cap))


def uniform_scalar(noise: Noise) -> mtf.Tensor:
    """Returns one float32 number in (0, 1), the same for all rows and on any mesh."""
    return mtf.cwise(kernels.uniform_scalar, [noise.key], output_dtype=tf.float32)


class BiasGradient(MeshOperation):
    """dy [..., features] -> d_bias [features]."""

    def __init__(self, dy: mtf.Tensor, bias: mtf.Tensor) -> None:
        super().__init__([dy], [(bias.shape, bias.dtype)], "bias_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, dy: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (lazy_sum(mesh_impl, mesh_impl.slicewise(kernels.sum_of_rows, dy), self.inputs[0].shape.dims[:-1]),)


def bias_add(x: mtf.Tensor, bias: mtf.Tensor) -> mtf.Tensor:
    """Adds a bias, with a gradient that sums faster than mesh-TensorFlow's.

    Args:
        x: [..., features].
        bias: [features].
    """

    def gradient(operation: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return [dy, BiasGradient(dy, operation.inputs[1]).outputs[0]]

    return SliceKernel("bias_add", tf.add, [x, bias], [(x.shape, x.dtype)], gradient).outputs[0]
