"""The activation functions by their config name, and the layer that applies one.

The functions take and return float32. They and their gradients are finite wherever x is, even where a plain formula
would divide infinity by infinity.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from meshtf import mtf, tf
from models.context import Context
from models.kernels.activations import Function
from models.ops.activations import activation, biased_activation, uniform_scalar
from models.variables import Initializer

# The mean of the random number of a random activation, used instead of it outside of training.
MEAN_SCALAR = 0.5

# For larger x, tanh(exp(x)) is 1 in float32, with a derivative of 0; exp itself would overflow further up.
LARGEST_EXPONENT = 20.0


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Computes the tanh approximation of GELU.

    Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2.
    """
    return tf.nn.gelu(x, approximate=True)


def gelu_exact(x: tf.Tensor) -> tf.Tensor:
    """Computes GELU, x times the normal distribution's cumulative function at x.

    Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2.
    """
    return tf.nn.gelu(x, approximate=False)


def mish(x: tf.Tensor) -> tf.Tensor:
    """Computes x tanh(softplus(x)).

    Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation Function, equation 1.
    """
    return x * tf.tanh(tf.math.softplus(x))


def leaky_relu(x: tf.Tensor, slope: tf.Tensor | float) -> tf.Tensor:
    """Returns x where it is positive, and `slope` times x elsewhere.

    Source: Maas et al. 2013, Rectifier Nonlinearities Improve Neural Network Acoustic Models; with a trained slope: He
    et al. 2015, Delving Deep into Rectifiers, section 2.1.
    """
    return tf.where(x > 0, x, slope * x)


def randomized_leaky_relu(x: tf.Tensor, s: tf.Tensor) -> tf.Tensor:
    """Computes leaky ReLU with slope (1 - s) / (1 + s).

    Source: GPT-Neo for the slope; the idea is Xu et al. 2015, Empirical Evaluation of Rectified Activations.
    """
    return leaky_relu(x, (1.0 - s) / (1.0 + s))


def triangle_wave(x: tf.Tensor) -> tf.Tensor:
    """Computes the first four terms of the Fourier series of a triangle wave, up to a factor. Source: GPT-Neo."""
    return tf.sin(x) - tf.sin(3.0 * x) / 9.0 + tf.sin(5.0 * x) / 25.0 - tf.sin(7.0 * x) / 49.0


def square_wave(x: tf.Tensor) -> tf.Tensor:
    """Computes the first four terms of the Fourier series of a square wave, up to a factor. Source: GPT-Neo."""
    return tf.cos(x) - tf.cos(3.0 * x) / 3.0 + tf.cos(5.0 * x) / 5.0 - tf.cos(7.0 * x) / 7.0


def elish(x: tf.Tensor) -> tf.Tensor:
    """Returns x sigmoid(-x) where x is positive, which falls back to 0, and (e^x - 1) sigmoid(x) elsewhere.

    Source: GPT-Neo, kept for its checkpoints.
    """
    return tf.where(x > 0, x, tf.math.expm1(tf.minimum(x, 0.0))) * tf.sigmoid(-tf.abs(x))


def elish_published(x: tf.Tensor) -> tf.Tensor:
    """Returns x sigmoid(x) where x is positive, and (e^x - 1) sigmoid(x) elsewhere.

    Source: Basirat and Roth 2018, The Quest for the Golden Activation Function.
    """
    return tf.where(x > 0, x, tf.math.expm1(tf.minimum(x, 0.0))) * tf.sigmoid(x)


def tanh_exp(x: tf.Tensor) -> tf.Tensor:
    """Computes x tanh(exp(x)).

    Source: Liu and Di 2020, TanhExp: A Smooth Activation Function with High Convergence Speed.
    """
    return x * tf.tanh(tf.exp(tf.minimum(x, LARGEST_EXPONENT)))


def root_tanh(x: tf.Tensor) -> tf.Tensor:
    """Returns (x^2 + 1)^(1 / 3) tanh(x). Source: GPT-Neo."""
    return tf.pow(tf.square(x) + 1.0, 1.0 / 3.0) * tf.tanh(x)


def _above(parameter: tf.Tensor, bound: float) -> tf.Tensor:
    """Maps a trained scalar, which may be any number, to one above a bound."""
    return tf.math.softplus(parameter) + bound


def aria(
    x: tf.Tensor,
    lower: tf.Tensor,
    height: tf.Tensor,
    base: tf.Tensor,
    weight: tf.Tensor,
    rate: tf.Tensor,
    root: tf.Tensor,
) -> tf.Tensor:
    """Returns x times Richards' curve, lower + height / (base + weight e^(rate x / root)), base > 0, root > 1.

    Source: Patwardhan et al. 2018, ARiA: Utilizing Richard's Curve for Controlling the Non-monotonicity of the
    Activation Function; GPT-Neo for the place of the root.
    """
    exponent = rate * x / _above(root, 1.0)
    # Numerator and denominator are divided by the larger of 1 and e^exponent, so that nothing overflows; the quotient
    # stays the same.
    largest = tf.stop_gradient(tf.maximum(exponent, 0.0))
    scale = tf.exp(-largest)
    return x * (lower + height * scale / (_above(base, 0.0) * scale + weight * tf.exp(exponent - largest)))


def parametric_arcsinh(x: tf.Tensor, scale: tf.Tensor, stretch: tf.Tensor) -> tf.Tensor:
    """Returns scale asinh(x stretch), with stretch above 1. Source: GPT-Neo."""
    return scale * tf.asinh(x * _above(stretch, 1.0))


def parametric_softplus(x: tf.Tensor, scale: tf.Tensor, stretch: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Returns scale softplus(x stretch) + shift. Source: GPT-Neo."""
    return scale * tf.math.softplus(x * stretch) + shift


def parametric_root_tanh(x: tf.Tensor, power: tf.Tensor, offset: tf.Tensor, root: tf.Tensor) -> tf.Tensor:
    """Returns (|x|^power + offset)^(1 / root) tanh(x), with power above 2, offset above 1 and root above 3.

    Source: GPT-Neo, which raises x itself; a negative x has no real power.
    """
    raised = tf.pow(tf.abs(x), _above(power, 2.0)) + _above(offset, 1.0)
    return tf.pow(raised, 1.0 / _above(root, 3.0)) * tf.tanh(x)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation function and its inputs besides x.

    Attributes:
        function: takes x and scalars: its parameters in order, then a random number if it is random.
        parameters: names and initial values of its trained scalars.
        is_random: a number in (0, 1) is sampled for each use in each training step.
        is_over_features: acts over the last dimension instead of element-wise.
    """

    function: Function
    parameters: tuple[tuple[str, float], ...] = ()
    is_random: bool = False
    is_over_features: bool = False


ARIA_PARAMETERS = (("lower", 0.0), ("height", 1.0), ("base", 0.0), ("weight", 1.0), ("rate", -1.0), ("root", 0.0))
ACTIVATIONS_BY_NAME: dict[str, Activation] = {
    "gelu": Activation(gelu),
    "gelu_exact": Activation(gelu_exact),
    "relu": Activation(tf.nn.relu),
    "sigmoid": Activation(tf.sigmoid),
    "tanh": Activation(tf.tanh),
    "selu": Activation(tf.nn.selu),
    "elu": Activation(tf.nn.elu),
    "abs": Activation(tf.abs),
    "sin": Activation(tf.sin),
    "cos": Activation(tf.cos),
    "sign": Activation(tf.sign),
    "silu": Activation(tf.nn.silu),
    "softplus": Activation(tf.math.softplus),
    "lrelu001": Activation(lambda x: leaky_relu(x, 0.01)),
    "lrelu020": Activation(lambda x: leaky_relu(x, 0.2)),
    "id": Activation(tf.identity),
    "triangle_relax": Activation(triangle_wave),
    "square_relax": Activation(square_wave),
    "spike": Activation(lambda x: 1.0 / (1.0 + tf.square(x))),
    "spike2": Activation(lambda x: tf.exp(-tf.square(x))),
    "tanhshrink": Activation(lambda x: x - tf.tanh(x)),
    "softsign": Activation(tf.nn.softsign),
    "softmax": Activation(tf.nn.softmax, is_over_features=True),
    "logsoftmax": Activation(tf.nn.log_softmax, is_over_features=True),
    "bipolarsigmoid": Activation(lambda x: tf.tanh(x / 2.0)),
    "rrelu": Activation(randomized_leaky_relu, is_random=True),
    "elish": Activation(elish),
    "elish_published": Activation(elish_published),
    "arcsinh": Activation(tf.asinh),
    "aria": Activation(aria, ARIA_PARAMETERS),
    "prelu": Activation(leaky_relu, (("slope", 0.2),)),
    "parcsinh": Activation(parametric_arcsinh, (("scale", 1.0), ("stretch", 0.0))),
    "psoftplus": Activation(parametric_softplus, (("scale", 1.0), ("stretch", 1.0), ("shift", 0.0))),
    "proottanh": Activation(parametric_root_tanh, (("power", 0.0), ("offset", 0.0), ("root", 0.0))),
    # The next four. Source: Eger et al. 2018, Is it Time to Swish? Comparing Deep Learning Activation Functions Across
    # NLP Tasks, table 1.
    "maxsig": Activation(lambda x: tf.maximum(x, tf.sigmoid(x))),
    "cosid": Activation(lambda x: tf.cos(x) - x),
    "minsin": Activation(lambda x: tf.minimum(x, tf.sin(x))),
    "maxtanh": Activation(lambda x: tf.maximum(x, tf.tanh(x))),
    "mish": Activation(mish),
    "tanhexp": Activation(tanh_exp),
    # Source: Roy et al. 2019, LiSHT: Non-Parametric Linearly Scaled Hyperbolic Tangent Activation Function.
    "lisht": Activation(lambda x: x * tf.tanh(x)),
    "seagull": Activation(lambda x: tf.math.log1p(tf.square(x))),
    # Source: Ziyin et al. 2020, Neural Networks Fail to Learn Periodic Functions and How to Fix It, section 4.
    "snake": Activation(lambda x: x + tf.square(tf.sin(x))),
    "roottanh": Activation(root_tanh),
    "softplusmone": Activation(lambda x: tf.math.softplus(x) - 1.0),
}


def _constant(value: float) -> Initializer:
    return lambda generator, shape: np.full(shape, value, np.float32)


def _scalars(context: Context, kind: Activation, scope: str, noise_scope: str) -> list[mtf.Tensor]:
    """Returns the inputs of the function besides x."""
    trained = [context.variable(f"{scope}/activation/{name}", [], _constant(value)) for name, value in kind.parameters]
    if not kind.is_random:
        return trained
    if not context.is_training:
        return [*trained, mtf.constant(context.mesh, MEAN_SCALAR, dtype=tf.float32)]
    return [*trained, uniform_scalar(context.noise_of(f"{noise_scope}/activation"))]


def activated(
    context: Context, x: mtf.Tensor, name: str, scope: str, noise_scope: str, bias: mtf.Tensor | None = None
) -> mtf.Tensor:
    """Applies the activation of that name to x, or to x + bias.

    Args:
        context: the settings of the graph.
        x: [..., features].
        name: in the config.
        scope: of the trained scalars `{scope}/activation/{parameter}` [], if it has any.
        noise_scope: name of its random numbers, unique in the model.
        bias: [features].
    """
    kind = ACTIVATIONS_BY_NAME[name]
    features = x.shape.dims[-1].name
    if kind.is_over_features:
        x = mtf.rename_dimension(x, features, "whole")
        bias = None if bias is None else mtf.rename_dimension(bias, features, "whole")
    scalars = _scalars(context, kind, scope, noise_scope)
    y = activation(x, kind.function, scalars) if bias is None else biased_activation(x, bias, kind.function, scalars)
    return mtf.rename_dimension(y, "whole", features) if kind.is_over_features else y
