"""The settings that every layer reads while a graph is built."""

from __future__ import annotations

import dataclasses
import zlib

from configs.schema import ModelConfig, is_adapter
from meshtf import mtf, tf
from models.dims import Dims
from models.ops.dropout import Noise, dropout
from models.ops.packing import Packing
from models.ops.precision import rounded
from models.variables import Initializer, Role, get_variable


@dataclasses.dataclass(frozen=True)
class Context:
    """The settings of one graph, immutable.

    Attributes:
        mesh: the mesh the graph is built on.
        model: settings of the model.
        dims: dimensions of the tensors.
        noise: source of random numbers for dropout and routing; None outside of training.
        kept_dtype: dtype of the cached keys and values; None: that of the activations.
        segment_starts: the position where the segment of each position begins, int32 [batch, sequence]: whole
            sequences see their own segment only; None: each row is one segment.
    """

    mesh: mtf.Mesh
    model: ModelConfig
    dims: Dims
    noise: Noise | None = None
    kept_dtype: str | None = None
    segment_starts: mtf.Tensor | None = None
    packing: Packing | None = None

    @property
    def activation_dtype(self) -> tf.DType:
        """The dtype that layers compute in."""
        return tf.as_dtype(self.model.precision)

    @property
    def cache_dtype(self) -> tf.DType:
        """The dtype of cached keys and values."""
        return tf.as_dtype(self.kept_dtype or self.model.precision)

    @property
    def is_training(self) -> bool:
        """Whether dropout is active."""
        return self.noise is not None

    def variable(self, name: str, dims: list[mtf.Dimension], initializer: Initializer) -> mtf.Tensor:
        """Returns the variable `gpt2/{name}` in the dtype of the activations; it and its gradient are float32."""
        return rounded(self.float32_variable(name, dims, initializer), self.activation_dtype)

    def float32_variable(self, name: str, dims: list[mtf.Dimension], initializer: Initializer) -> mtf.Tensor:
        """Returns the variable `gpt2/{name}` itself; with `lora_rank`, adapters alone are trained."""
        is_trained = not self.model.lora_rank or is_adapter(name)
        role = Role.TRAINED if is_trained else Role.FROZEN
        return get_variable(self.mesh, f"gpt2/{name}", mtf.Shape(dims), initializer, role)

    def noise_of(self, noise_scope: str) -> Noise:
        """Returns independent random numbers for one part of the model, such as `h0/attn`.

        Outside of training they are the same for all rows and each time, so that a text gives the same result
        whatever stands beside it.
        """
        scope_key = zlib.crc32(noise_scope.encode()) & 0x7FFFFFFF
        if self.noise is None:
            rows = mtf.zeros(self.mesh, [self.dims.batch], tf.int32)
            return Noise(mtf.constant(self.mesh, scope_key, dtype=tf.int32), rows)
        return Noise(self.noise.key + scope_key, self.noise.rows)

    def dropout(self, x: mtf.Tensor, rate: float, noise_scope: str) -> mtf.Tensor:
        """Applies dropout to x [batch, ...] in training; returns x itself otherwise."""
        return dropout(x, rate, self.noise_of(noise_scope)) if rate and self.is_training else x
