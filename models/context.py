"""What every layer needs to know while a graph is built."""

from __future__ import annotations

import dataclasses
import zlib

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models.dims import Dims
from models.ops.dropout import Noise, dropout
from models.ops.precision import rounded
from models.variables import Initializer, get_variable


@dataclasses.dataclass(frozen=True)
class Context:
    """The settings of one graph; nothing is ever written into it.

    Attributes:
        noise: where dropout's random numbers come from; dropout happens only in training, so None everywhere else.
        kept_dtype: of keys and values that are kept while decoding; None: that of the activations.
    """

    mesh: mtf.Mesh
    model: ModelConfig
    dims: Dims
    noise: Noise | None = None
    kept_dtype: str | None = None

    @property
    def activation_dtype(self) -> tf.DType:
        return tf.as_dtype(self.model.precision)

    @property
    def cache_dtype(self) -> tf.DType:
        return tf.as_dtype(self.kept_dtype or self.model.precision)

    @property
    def is_training(self) -> bool:
        return self.noise is not None

    def variable(self, name: str, dims: list[mtf.Dimension], initializer: Initializer) -> mtf.Tensor:
        """The variable `gpt2/{name}` in the dtype of the activations; kept, and its gradient summed, in float32."""
        value = get_variable(self.mesh, f"gpt2/{name}", mtf.Shape(dims), initializer)
        return rounded(value, self.activation_dtype)

    def noise_of(self, place: str) -> Noise:
        """Random numbers of their own for a place in the model, as `h0/attn`; without training, any will do, for they
        are not used.
        """
        if self.noise is None:
            rows = mtf.mtf_range(self.mesh, self.dims.batch, tf.int32)
            return Noise(mtf.constant(self.mesh, 0, dtype=tf.int32), rows)
        return Noise(self.noise.key + (zlib.crc32(place.encode()) & 0x7FFFFFFF), self.noise.rows)

    def dropout(self, x: mtf.Tensor, rate: float, place: str) -> mtf.Tensor:
        """Dropout on [batch, ...] in training; x itself otherwise."""
        return dropout(x, rate, self.noise_of(place)) if rate and self.is_training else x
