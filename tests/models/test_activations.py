"""Activations and the feed-forward layer against NumPy in float64: values, gradients, and on several layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ACTIVATIONS, ModelConfig
from meshtf import mtf, tf
from models.activations import ACTIVATIONS_BY_NAME, activated
from models.context import Context
from models.dims import Dims
from models.feed_forward import feed_forward
from models.kernels import activations as kernels
from models.kernels.compile import compiled
from models.ops.activations import bias_add, uniform_scalar
from models.ops.dropout import Noise
from runtime.mesh.placement import Placement, place
from tests import tiny
from tests.models.reference_activations import ACTIVATIONS as REFERENCES

Devices = tuple[str, ...]
PARAMETRIC = [name for name, kind in ACTIVATIONS_BY_NAME.items() if kind.parameters]
FAST_IN_BFLOAT16 = ("gelu", "tanhshrink", "softmax", "aria")
BATCH, LENGTH = 4, 6
LAYOUTS = [("", ""), ("x:2,y:2", "batch:x,intermediate_expanded:y"), ("x:2,y:2", "embd:x,intermediate_expanded:y")]


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0.0, std, shape).astype(np.float32)


def close(actual: object, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def slope(function: Callable[[float], np.ndarray], step: float = 1e-6) -> np.ndarray:
    """The derivative at 0 by central differences."""
    return (function(step) - function(-step)) / (2 * step)


X = np.concatenate([normal(9, 8, std=2.0), [[0.0, 100.0, -100.0, 1e-3, -1e-3, 9.0, -9.0, 0.5]]]).astype(np.float32)
DY = normal(*X.shape, seed=2)


def scalars_of(name: str) -> list[np.float32]:
    """Trained scalars near their initial values, and a random number for a random activation."""
    kind = ACTIVATIONS_BY_NAME[name]
    shifts = normal(len(kind.parameters), seed=3, std=0.3)
    trained = [np.float32(value + shift) for (_, value), shift in zip(kind.parameters, shifts, strict=True)]
    return [*trained, np.float32(0.3)] if kind.is_random else trained


def expected_gradients(name: str, x: np.ndarray, scalars: list[np.float64]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The gradients of x and of each scalar; the function may act on whole rows of x."""

    def row_sums(x: np.ndarray, scalars: list[np.float64]) -> np.ndarray:
        return (REFERENCES[name](x, *scalars) * DY).sum(-1)

    dx = [slope(lambda t, unit=unit: row_sums(x + t * unit, scalars)) for unit in np.eye(x.shape[-1])]
    d_scalars = [
        slope(lambda t, unit=unit: row_sums(x, list(scalars + t * unit)).sum()) for unit in np.eye(len(scalars))
    ]
    return np.stack(dx, -1), d_scalars


def test_every_activation_of_the_config_exists() -> None:
    assert sorted(ACTIVATIONS_BY_NAME) == sorted(ACTIVATIONS) == sorted(REFERENCES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients(name: str) -> None:
    assert_values_and_gradients(name, tf.float32)


@pytest.mark.parametrize(
    "name", [name if name in FAST_IN_BFLOAT16 else pytest.param(name, marks=pytest.mark.slow) for name in ACTIVATIONS]
)
def test_values_and_gradients_in_bfloat16(name: str) -> None:
    assert_values_and_gradients(name, tf.bfloat16)


def value_and_gradients(function: kernels.Function, dy: tf.Tensor, *inputs: tf.Tensor) -> list[tf.Tensor]:
    """Results of both kernels; in one graph they compile once."""

    def both(dy: tf.Tensor, *inputs: tf.Tensor) -> list[tf.Tensor]:
        return [kernels.activation(function)(*inputs), *kernels.activation_gradient(function)(dy, *inputs)]

    return compiled(both)(dy, *inputs)


def assert_values_and_gradients(name: str, dtype: tf.DType) -> None:
    """bfloat16 results differ by their rounding only, because kernels compute in float32."""
    x, dy, *scalars = (tf.cast(value, dtype) for value in (X, DY, *scalars_of(name)))
    exact, _, *exact_scalars = (np.asarray(tf.cast(value, tf.float64)) for value in (x, dy, *scalars))
    y, dx, *d_scalars = value_and_gradients(ACTIVATIONS_BY_NAME[name].function, dy, x, *scalars)
    assert {y.dtype, dx.dtype, *[gradient.dtype for gradient in d_scalars]} == {dtype}
    tolerance = 1e-5 if dtype == tf.float32 else 2**-7
    close(tf.cast(y, tf.float32), REFERENCES[name](exact, *exact_scalars), tolerance)
    expected, d_scalars_expected = expected_gradients(name, exact, np.array(exact_scalars))
    assert np.isfinite(tf.cast(dx, tf.float32)).all()
    smooth = exact != 0.0
    close(np.asarray(tf.cast(dx, tf.float32))[smooth], expected[smooth], 2 * tolerance)
    for actual, gradient in zip(d_scalars, d_scalars_expected, strict=True):
        np.testing.assert_allclose(np.float64(actual), gradient, rtol=10 * tolerance, atol=1e-3)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_initial_values_are_those_of_gpt_neo(name: str) -> None:
    kind = ACTIVATIONS_BY_NAME[name]
    first_values = [np.float32(value) for _, value in kind.parameters]
    close(kernels.activation(kind.function)(X, *first_values), REFERENCES[name](X.astype(np.float64)))


@given(st.floats(-1000.0, 1000.0, width=32), st.floats(-8.0, 8.0, width=32))
@settings(max_examples=50, deadline=None)
def test_aria_is_finite_at_any_rate(x: float, rate: float) -> None:
    scalars = [np.float32(value) for value in (0.0, 1.0, 0.0, 1.0, rate, 0.0)]
    x = np.full([1, 1], x, np.float32)
    aria = ACTIVATIONS_BY_NAME["aria"].function
    y, *gradients = (
        kernels.activation(aria)(x, *scalars),
        *kernels.activation_gradient(aria)(np.ones_like(x), x, *scalars),
    )
    assert all(np.isfinite(value).all() for value in (y, *gradients))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer on a mesh with disturbed variables.

    Attributes:
        y: its output.
        dx: the gradient of its input, given `dy`.
        values: every variable, whole.
        gradients: of each variable, by name.
    """

    y: np.ndarray
    dx: np.ndarray
    values: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def placed(devices: Devices, mesh_shape: str, layout: str) -> Placement:
    return place(tiny.mesh_config(mesh_shape, layout), devices if mesh_shape else devices[:1])


def context_of(x: mtf.Tensor, model: ModelConfig, key: int | None = None) -> Context:
    batch_dim = x.shape.dims[0]
    rows = mtf.mtf_range(x.mesh, batch_dim, tf.int32)
    noise = None if key is None else Noise(mtf.constant(x.mesh, key, dtype=tf.int32), rows)
    return Context(x.mesh, model, Dims.of(model, batch_dim.size, LENGTH), noise)


def evaluate_layer(
    build: Callable[[mtf.Tensor], mtf.Tensor], placement: Placement, names: str, x: np.ndarray, dy: np.ndarray
) -> Layer:
    variables: list[str] = []

    def with_gradients(x: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        y = build(x)
        trained = y.graph.trainable_variables
        variables[:] = [variable.name for variable in trained]
        return [y, *mtf.gradients([mtf.reduce_sum(y * dy)], [x, *[variable.outputs[0] for variable in trained]])]

    function = tiny.compiled(with_gradients, placement, (names, x), (names, dy))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    y, dx, *gradients = function(x, dy)
    return Layer(y, dx, tiny.values_of(placement.store), dict(zip(variables, gradients, strict=True)))


@pytest.mark.parametrize("name", ["aria", "softmax"])
def test_biased_activation_on_a_mesh(devices: Devices, name: str) -> None:
    x, dy = normal(BATCH, LENGTH, 8), normal(BATCH, LENGTH, 8, seed=1)

    def build(x: mtf.Tensor) -> mtf.Tensor:
        context = context_of(x, tiny.MODEL)
        bias = context.variable("bias", [x.shape.dims[-1]], lambda _, shape: normal(*shape))
        return activated(context, x, name, "h0/mlp", "h0/mlp", bias)

    names = "batch sequence intermediate_expanded"
    layer = evaluate_layer(build, placed(devices, "x:2,y:2", "batch:x,intermediate_expanded:y"), names, x, dy)
    parameters = [f"gpt2/h0/mlp/activation/{parameter}" for parameter, _ in ACTIVATIONS_BY_NAME[name].parameters]
    assert sorted(layer.values) == sorted(["gpt2/bias", *parameters])
    assert [layer.values[parameter].shape for parameter in parameters] == [()] * len(parameters)

    def loss(**changed: np.ndarray) -> float:
        values = layer.values | {"x": x.astype(np.float64)} | changed
        biased = values["x"] + values["gpt2/bias"]
        return (REFERENCES[name](biased, *[values[parameter] for parameter in parameters]) * dy).sum()

    biased = x.astype(np.float64) + layer.values["gpt2/bias"]
    close(layer.y, REFERENCES[name](biased, *[layer.values[parameter] for parameter in parameters]))
    for parameter, actual in (layer.gradients | {"x": layer.dx}).items():
        value = np.float64(x if parameter == "x" else layer.values[parameter])
        close(actual, numerical_gradient(lambda value, p=parameter: loss(**{p: value}), value), 2e-5)


def numerical_gradient(loss: Callable[[np.ndarray], float], value: np.ndarray) -> np.ndarray:
    gradient = np.empty_like(value)
    for index in np.ndindex(value.shape):
        unit = np.zeros_like(value)
        unit[index] = 1.0
        gradient[index] = slope(lambda t, unit=unit: loss(value + t * unit))
    return gradient


@pytest.mark.parametrize("name", ["prelu", "logsoftmax"])
def test_activation_without_bias_of_any_shape(devices: Devices, name: str) -> None:
    x, dy = normal(2, 4, 3, 8), normal(2, 4, 3, 8, seed=1)
    placement = placed(devices, "x:2,y:2", "batch:x,experts:y,expert_hidden:y")
    names = "batch slots experts_here expert_hidden"
    layer = evaluate_layer(lambda x: activated(context_of(x, tiny.MODEL), x, name, "h1", "h1"), placement, names, x, dy)
    scalars = [np.float64(value) for value in layer.values.values()]
    close(layer.y, REFERENCES[name](x.astype(np.float64), *scalars))
    close(
        layer.dx,
        np.stack(
            [slope(lambda t, unit=unit: (REFERENCES[name](x + t * unit, *scalars) * dy).sum(-1)) for unit in np.eye(8)],
            -1,
        ),
    )
    for actual in layer.gradients.values():
        close(actual, np.where(x > 0, 0.0, x * dy).sum())


@pytest.mark.parametrize("layout", ["batch:x,embd:y", "sequence:x"])
def test_bias_add(devices: Devices, layout: str) -> None:
    x, bias, dy = normal(2, 4, 8), normal(8, seed=1), normal(2, 4, 8, seed=2)

    def build(x: mtf.Tensor, bias: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        y = bias_add(x, bias)
        return [y, *mtf.gradients([mtf.reduce_sum(y * dy)], [x, bias])]

    inputs = [("batch sequence embd", x), ("embd", bias), ("batch sequence embd", dy)]
    y, dx, d_bias = tiny.evaluate(build, placed(devices, "x:2,y:2", layout), *inputs)
    np.testing.assert_array_equal(y, x + bias)
    np.testing.assert_array_equal(dx, dy)
    close(d_bias, dy.sum((0, 1)))


def test_sum_of_rows() -> None:
    x = normal(2, 3, 40) * np.float32(3.0)
    close(kernels.sum_of_rows(x), x.sum((0, 1), dtype=np.float64))
    # A sum kept in bfloat16 would stay at 256; 304 is a bfloat16 number.
    assert float(tf.cast(kernels.sum_of_rows(tf.ones((304, 1), tf.bfloat16)), tf.float32)[0]) == 304.0


def random_slopes(devices: Devices, mesh_shape: str, layout: str, key: int | None, place: str) -> np.ndarray:
    """The slope of rrelu at each element of [batch, sequence, embd]."""

    def build(x: mtf.Tensor) -> list[mtf.Tensor]:
        return [activated(context_of(x, tiny.MODEL, key), x, "rrelu", "unused", place)]

    x = np.full([BATCH, LENGTH, 8], -1.0, np.float32)
    return -tiny.evaluate(build, placed(devices, mesh_shape, layout), ("batch sequence embd", x))[0]


def test_rrelu_samples_one_number_per_layer_and_step(devices: Devices) -> None:
    draws = {at: random_slopes(devices, "", "", *at) for at in ((1, "h0/mlp"), (1, "h1/mlp"), (2, "h0/mlp"))}
    assert all(np.ptp(slopes) == 0.0 and 0.0 < slopes.flat[0] < 1.0 for slopes in draws.values())
    assert len({float(slopes.flat[0]) for slopes in draws.values()}) == 3
    on_mesh = random_slopes(devices, "x:2,y:2", "batch:x,embd:y", 1, "h0/mlp")
    np.testing.assert_array_equal(on_mesh, draws[1, "h0/mlp"])


def test_rrelu_samples_nothing_in_evaluation(devices: Devices) -> None:
    close(random_slopes(devices, "", "", None, "h0/mlp"), np.full([BATCH, LENGTH, 8], 0.5 / 1.5))


def test_uniform_scalars_are_uniform(devices: Devices) -> None:
    numbers = np.array([kernels.uniform_scalar(np.int32(key)) for key in range(1000)])
    counts = np.histogram(numbers, 10, (0.0, 1.0))[0]
    assert counts.sum() == 1000 and ((counts - 100.0) ** 2 / 100.0).sum() < 30.0

    def build(rows: mtf.Tensor) -> list[mtf.Tensor]:
        return [uniform_scalar(Noise(mtf.constant(rows.mesh, 17, dtype=tf.int32), rows))]

    (number,) = tiny.evaluate(build, placed(devices, "x:4", "batch:x"), ("batch", np.arange(4, dtype=np.int32)))
    assert number == numbers[17]


def expected_feed_forward(model: ModelConfig, values: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    activation = REFERENCES[model.activation_function]
    parameters = [
        values[f"gpt2/h0/mlp/activation/{name}"]
        for name, _ in ACTIVATIONS_BY_NAME[model.activation_function].parameters
    ]
    main = "gpt2/h0/mlp/conv1d_main"
    hidden = x @ values[f"{main}/c_fc/kernel"] + values[f"{main}/c_fc/bias"]
    if model.mlp_glu:
        hidden, gate = np.split(hidden, 2, -1)
        hidden = hidden * activation(gate, *parameters)
    else:
        hidden = activation(hidden, *parameters)
    return hidden @ values[f"{main}/c_proj/kernel"] + values[f"{main}/c_proj/bias"]


def assert_gradients(layer: Layer, loss: Callable[[dict[str, np.ndarray]], float]) -> None:
    """The gradient of each variable along a random direction."""
    exact = {name: value.astype(np.float64) for name, value in layer.values.items()}
    for name, value in exact.items():
        direction = np.float64(normal(*value.shape, seed=9))
        expected = slope(lambda t, n=name, v=value, d=direction: loss(exact | {n: v + t * d}))
        close((layer.gradients[name] * direction).sum(), expected, 1e-4)


@pytest.mark.parametrize(("mesh_shape", "layout"), LAYOUTS)
@pytest.mark.parametrize("changes", [{"mlp_glu": True}, {"activation_function": "prelu"}], ids=str)
def test_feed_forward(devices: Devices, mesh_shape: str, layout: str, changes: dict[str, object]) -> None:
    model = dataclasses.replace(tiny.MODEL, n_embd=8, **changes)
    x, dy = normal(BATCH, LENGTH, 8), normal(BATCH, LENGTH, 8, seed=1)

    def build(x: mtf.Tensor) -> mtf.Tensor:
        return feed_forward(context_of(x, model), x, "h0/mlp", "h0/mlp")

    layer = evaluate_layer(build, placed(devices, mesh_shape, layout), "batch sequence embd", x, dy)
    width = 64 if model.mlp_glu else 32
    assert layer.values["gpt2/h0/mlp/conv1d_main/c_fc/kernel"].shape == (8, width)
    assert layer.values["gpt2/h0/mlp/conv1d_main/c_fc/bias"].shape == (width,)
    assert layer.values["gpt2/h0/mlp/conv1d_main/c_proj/kernel"].shape == (32, 8)
    exact = x.astype(np.float64)
    close(layer.y, expected_feed_forward(model, layer.values, exact))
    assert_gradients(layer, lambda values: (expected_feed_forward(model, values, exact) * dy).sum())
    direction = normal(*x.shape, seed=8)
    expected = slope(lambda t: (expected_feed_forward(model, layer.values, exact + t * direction) * dy).sum())
    close((layer.dx * direction).sum(), expected, 1e-4)


def test_feed_forward_of_one_position_is_that_of_the_sequence(devices: Devices) -> None:
    model = dataclasses.replace(tiny.MODEL, mlp_glu=True, activation_function="silu")

    def build(x: mtf.Tensor) -> mtf.Tensor:
        return feed_forward(context_of(x, model), x, "h0/mlp", "h0/mlp")

    x = normal(BATCH, 1, model.n_embd)
    sequence = evaluate_layer(build, placed(devices, "", ""), "batch sequence embd", x, x)
    position = evaluate_layer(build, placed(devices, "x:4", "batch:x"), "batch embd", x[:, 0], x[:, 0])
    close(position.y, sequence.y[:, 0])


def test_layers_that_share_variables_have_independent_random_numbers(devices: Devices) -> None:
    model = dataclasses.replace(tiny.MODEL, res_dropout=0.5)

    def build(x: mtf.Tensor) -> list[mtf.Tensor]:
        context = context_of(x, model, key=3)
        outputs = [feed_forward(context, x, "/mlp", place) for place in ("h0/mlp", "h1/mlp", "h0/mlp")]
        assert {name.partition("/conv1d_main")[0] for name in x.graph.name_to_variable} == {"gpt2//mlp"}
        return outputs

    placement, inputs = placed(devices, "", ""), ("batch sequence embd", normal(BATCH, LENGTH, model.n_embd))
    function = tiny.compiled(build, placement, inputs)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    first, second, again = function(inputs[1])
    np.testing.assert_array_equal(first, again)
    assert 0.3 < ((first == 0) != (second == 0)).mean() < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"activation_function": "aria", "mlp_glu": True}, {"activation_function": "rrelu"}],
    ids=["glu with trained scalars", "random"],
)
def test_an_update_is_the_same_on_a_mesh_in_microbatches(devices: Devices, changes: dict[str, object]) -> None:
    mesh = tiny.mesh_config("x:2,y:2", "batch:x,intermediate_expanded:y")
    changes = changes | {"n_layer": 1, "attention_types": ("global",)}
    expected = tiny.one_update(tiny.run_config(model=changes), devices)
    again, microbatches = changes | {"recompute_grad": True}, {"tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
    actual = tiny.one_update(tiny.run_config(mesh, again, microbatches), devices)
    np.testing.assert_allclose([actual.loss, actual.grad_norm], [expected.loss, expected.grad_norm], rtol=1e-5)
    assert actual.after.keys() == expected.after.keys()
    # The gradient of a scalar is a long sum that nearly cancels.
    for name in [name for name in expected.after if f"{name}/adam_m" in expected.after]:
        gradient = expected.gradient(name)
        np.testing.assert_allclose(actual.gradient(name), gradient, rtol=0, atol=1e-4 * np.abs(gradient).max())
