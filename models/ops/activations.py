"""Activations and biases."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import activations as kernels
from models.ops.dropout import Noise
from models.ops.mesh_operation import MeshOperation, lazy_sum


class Activation(MeshOperation):
    """x [..., features] and others, each of some of x's dimensions -> function(x, *others)."""

    def __init__(self, function: kernels.Function, x: mtf.Tensor, *others: mtf.Tensor):
        self._function = function
        super().__init__([x, *others], [(x.shape, x.dtype)], "activation")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.activation(self._function), *inputs),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        return ActivationGradient(self._function, grad_ys[0], *self.inputs).outputs


class ActivationGradient(MeshOperation):
    """dy, x, others -> dx, d_others: each the sum over the dimensions of x that it lacks."""

    def __init__(self, function: kernels.Function, dy: mtf.Tensor, *inputs: mtf.Tensor):
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
        parameters: scalars.
    """
    return Activation(function, x, *parameters).outputs[0]


def biased_activation(
    x: mtf.Tensor, bias: mtf.Tensor, function: kernels.Function, parameters: Sequence[mtf.Tensor] = ()
) -> mtf.Tensor:
    """Computes function(x + bias, *parameters), fused; bias is [features], the rest as in `activation`."""
    return Activation(kernels.biased(function), x, bias, *parameters).outputs[0]


def uniform_scalar(noise: Noise) -> mtf.Tensor:
    """Returns one float32 number in (0, 1), the same for all rows and on any mesh."""
    return mtf.cwise(kernels.uniform_scalar, [noise.key], output_dtype=tf.float32)


class BiasAdd(MeshOperation):
    """x [..., features], bias [features] -> x + bias."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor):
        super().__init__([x, bias], [(x.shape, x.dtype)], "bias_add")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, bias: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(tf.add, x, bias),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        return [grad_ys[0], BiasGradient(grad_ys[0], self.inputs[1]).outputs[0]]


class BiasGradient(MeshOperation):
    """dy [..., features] -> d_bias [features]."""

    def __init__(self, dy: mtf.Tensor, bias: mtf.Tensor):
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
    return BiasAdd(x, bias).outputs[0]
