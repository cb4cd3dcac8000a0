"""Layer normalisation and RMS normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import norms as kernels
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes


class LayerNorm(MeshOperation):
    """x [..., embd], gain [embd], bias [embd] -> y [..., embd], mean [...], inverse_std [...]."""

    def __init__(self, x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float) -> None:
        self._epsilon = epsilon
        rows = mtf.Shape(x.shape.dims[:-1])
        super().__init__([x, gain, bias], [(x.shape, x.dtype), (rows, tf.float32), (rows, tf.float32)], "layer_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, gain: LaidOut, bias: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        embd_dim = self.inputs[0].shape.dims[-1]
        axes = mesh_axes(mesh_impl, [embd_dim])
        if not axes:
            return mesh_impl.slicewise(kernels.layer_norm(self._epsilon), x, gain, bias)
        total = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_embd, x), axes, "SUM")
        mean = mesh_impl.slicewise(lambda total: total / embd_dim.size, total)
        squares = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares_about, x, mean), axes, "SUM")
        inverse_std = mesh_impl.slicewise(
            lambda squares: tf.math.rsqrt(squares / embd_dim.size + self._epsilon), squares
        )
        return mesh_impl.slicewise(kernels.scale_and_shift, x, mean, inverse_std, gain, bias), mean, inverse_std

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        x, gain, _ = self.inputs
        _, mean, inverse_std = self.outputs
        return LayerNormGradient(x, mean, inverse_std, gain, grad_ys[0]).outputs


class LayerNormGradient(MeshOperation):
    """x, mean, inverse_std, gain, dy -> dx [..., embd], d_gain [embd], d_bias [embd]."""

    def __init__(
        self, x: mtf.Tensor, mean: mtf.Tensor, inverse_std: mtf.Tensor, gain: mtf.Tensor, dy: mtf.Tensor
    ) -> None:
        outputs = [(x.shape, x.dtype), (gain.shape, gain.dtype), (gain.shape, gain.dtype)]
        super().__init__([x, mean, inverse_std, gain, dy], outputs, "layer_norm_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        *row_dims, embd_dim = self.inputs[0].shape.dims
        sums = mesh_impl.slicewise(kernels.layer_norm_gradient_sums, *inputs)
        sums = [mesh_impl.allreduce(part, mesh_axes(mesh_impl, [embd_dim]), "SUM") for part in sums]
        dx, d_gain, d_bias = mesh_impl.slicewise(kernels.layer_norm_gradient(embd_dim.size), *inputs, *sums)
        return dx, lazy_sum(mesh_impl, d_gain, row_dims), lazy_sum(mesh_impl, d_bias, row_dims)


def layer_norm(x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float) -> mtf.Tensor:
    """Normalises the last dimension and applies an affine map.

    Args:
        x: [..., embd].
        gain: [embd].
        bias: [embd].
        epsilon: added to the variance.

    Returns:
        [..., embd] in x's dtype; statistics are float32.

    Source: Ba et al. 2016, Layer Normalization, equation 4.
    """
    return LayerNorm(x, gain, bias, epsilon).outputs[0]


class RmsNorm(MeshOperation):
    """x [..., E], gain [E] -> y [..., E], inverse_rms [...], where E are one or more dimensions."""

    def __init__(self, x: mtf.Tensor, gain: mtf.Tensor, epsilon: float, gain_offset: float) -> None:
        self._epsilon, self._gain_offset = epsilon, gain_offset
        rows = mtf.Shape(x.shape.dims[: -gain.shape.ndims])
        super().__init__([x, gain], [(x.shape, x.dtype), (rows, tf.float32)], "rms_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, gain: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        normed = self.inputs[1].shape
        axes = mesh_axes(mesh_impl, normed.dims)
        if not axes:
            return mesh_impl.slicewise(kernels.rms_norm(self._epsilon, self._gain_offset), x, gain)
        squares = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares, x, gain), axes, "SUM")
        inverse_rms = mesh_impl.slicewise(lambda squares: tf.math.rsqrt(squares / normed.size + self._epsilon), squares)
        return mesh_impl.slicewise(kernels.rms_scale(self._gain_offset), x, inverse_rms, gain), inverse_rms

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        x, gain = self.inputs
        return RmsNormGradient(x, self.outputs[1], gain, grad_ys[0], self._gain_offset).outputs


class RmsNormGradient(MeshOperation):
    """x, inverse_rms, gain, dy -> dx [..., E], d_gain [E]."""

    def __init__(
        self, x: mtf.Tensor, inverse_rms: mtf.Tensor, gain: mtf.Tensor, dy: mtf.Tensor, gain_offset: float
    ) -> None:
        self._gain_offset = gain_offset
        outputs = [(x.shape, x.dtype), (gain.shape, gain.dtype)]
        super().__init__([x, inverse_rms, gain, dy], outputs, "rms_norm_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        normed = self.inputs[2].shape
        row_dims = self.inputs[1].shape.dims
        total = mesh_impl.slicewise(kernels.rms_norm_gradient_sum(self._gain_offset), *inputs)
        total = mesh_impl.allreduce(total, mesh_axes(mesh_impl, normed.dims), "SUM")
        kernel = kernels.rms_norm_gradient(self._gain_offset, normed.size)
        dx, d_gain = mesh_impl.slicewise(kernel, *inputs, total)
        return dx, lazy_sum(mesh_impl, d_gain, row_dims)


def rms_norm(x: mtf.Tensor, gain: mtf.Tensor, epsilon: float, gain_offset: float = 0.0) -> mtf.Tensor:
    """Divides by the root mean square over the last dimensions, and multiplies by a gain.

    Args:
        x: [..., E], where E are the dimensions of the gain; any of them may be split.
        gain: [E].
        epsilon: added to the mean square.
        gain_offset: added to the gain in float32; 1 makes a gain of 0 the identity, as in Gemma.

    Returns:
        [..., E] in x's dtype; statistics and the product with the gain are float32.

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, equation 4.
    """
    return RmsNorm(x, gain, epsilon, gain_offset).outputs[0]
