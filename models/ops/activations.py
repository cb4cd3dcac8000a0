"""Activations and biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshtf import mtf, tf
from models.kernels import activations as kernels
from models.ops.mesh_operation import MeshOperation, lazy_sum


class BiasedActivation(MeshOperation):
    """x [..., features], bias [features] -> activation(x + bias)."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]):
        self._activation = activation
        super().__init__([x, bias], [(x.shape, x.dtype)], "biased_activation")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, bias: object) -> Sequence[object]:
        return (mesh_impl.slicewise(kernels.biased_activation(self._activation), x, bias),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        return BiasedActivationGradient(*self.inputs, grad_ys[0], self._activation).outputs


class BiasedActivationGradient(MeshOperation):
    """x, bias, dy -> dx [..., features], d_bias [features]."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor, dy: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]):
        self._activation = activation
        super().__init__([x, bias, dy], [(x.shape, x.dtype), (bias.shape, bias.dtype)], "biased_activation_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        dx, d_bias = mesh_impl.slicewise(kernels.biased_activation_gradient(self._activation), *inputs)
        return dx, lazy_sum(mesh_impl, d_bias, self.inputs[0].shape.dims[:-1])


def biased_activation(x: mtf.Tensor, bias: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]) -> mtf.Tensor:
    """activation(x + bias), element by element, fused.

    Args:
      x: [..., features].
      bias: [features].
      activation: an element-wise TensorFlow function.
    """
    return BiasedActivation(x, bias, activation).outputs[0]


class BiasAdd(MeshOperation):
    """x [..., features], bias [features] -> x + bias."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor):
        super().__init__([x, bias], [(x.shape, x.dtype)], "bias_add")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, bias: object) -> Sequence[object]:
        return (mesh_impl.slicewise(tf.add, x, bias),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        return [grad_ys[0], BiasGradient(grad_ys[0], self.inputs[1]).outputs[0]]


class BiasGradient(MeshOperation):
    """dy [..., features] -> d_bias [features]."""

    def __init__(self, dy: mtf.Tensor, bias: mtf.Tensor):
        super().__init__([dy], [(bias.shape, bias.dtype)], "bias_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, dy: object) -> Sequence[object]:
        return (lazy_sum(mesh_impl, mesh_impl.slicewise(kernels.sum_of_rows, dy), self.inputs[0].shape.dims[:-1]),)


def bias_add(x: mtf.Tensor, bias: mtf.Tensor) -> mtf.Tensor:
    """x + bias, with a gradient that sums faster than mesh-TensorFlow's.

    Args:
      x: [..., features].
      bias: [features].
    """
    return BiasAdd(x, bias).outputs[0]
