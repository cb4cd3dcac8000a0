"""A model small enough to try every layout with, and how tests run graphs on a mesh."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from configs.layout import parse_layout, parse_mesh_shape
from configs.schema import (
    DataConfig,
    DatasetConfig,
    DatasetUse,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    PredictionConfig,
    RunConfig,
    TrainingConfig,
)
from meshtf import mtf, tf
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.writer import CheckpointWriter
from runtime.mesh.placement import Placement, VariableSlices, VariableStore, place
from runtime.training.steps import build_train_step

BATCH_SIZE = 8
MODEL = ModelConfig(
    n_head=4,
    n_embd=32,
    n_layer=2,
    n_ctx=16,
    n_vocab=64,
    attention_types=("global", "local"),
    local_attention_radius=5,
    z_loss=0.01,
)
# Data whose examples are several texts that do not see one another.
MASKED = DataConfig(datasets=(DatasetUse(DatasetConfig(id="texts", n_vocab=64, cache_dir="unused", packing="masked")),))
# An epsilon far above the gradients' rounding: with 1e-8 the first step is a constant times the gradient's sign, which
# hides a gradient of the wrong size, and magnifies rounding where the gradient is almost 0.
TRAINING = TrainingConfig(train_batch_size=BATCH_SIZE, train_steps=10, epsilon=1e-3, weight_decay=0.1)
SLOTS = ("/adam_m", "/adam_v", "/muon_m")
ALL_DROPOUTS = {"embed_dropout": 0.1, "res_dropout": 0.2, "attn_dropout": 0.3}


def mesh_config(mesh_shape: str, layout: str, shard: str = "off") -> MeshConfig:
    """From the config's text form; empty texts give one device."""
    return MeshConfig(mesh_shape=parse_mesh_shape(mesh_shape), layout=parse_layout(layout), shard=shard)


def run_config(
    mesh: MeshConfig | None = None,
    model: Mapping[str, object] = {},
    training: Mapping[str, object] = {},
    data: DataConfig | None = None,
) -> RunConfig:
    """The tiny model with some keys changed."""
    return RunConfig(
        name="tiny",
        model_path="unused",
        model=dataclasses.replace(MODEL, **model),
        training=dataclasses.replace(TRAINING, **training),
        evaluation=EvaluationConfig(eval_batch_size=BATCH_SIZE),
        prediction=PredictionConfig(),
        data=data or DataConfig(no_dataset=True),
        mesh=mesh or MeshConfig(),
    )


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels, int32 [batch, sequence]."""
    ids = np.random.default_rng(seed).integers(0, MODEL.n_vocab, (BATCH_SIZE, MODEL.n_ctx + 1), dtype=np.int32)
    return ids[:, :-1], ids[:, 1:]


def step_inputs(noise_key: int = 7, rate: float = 1e-2, has_segments: bool = False) -> tuple:
    """What a training step takes, every token of the batch weighing the same; each row two texts with segments."""
    weights = np.full((BATCH_SIZE, MODEL.n_ctx), 1.0 / (BATCH_SIZE * MODEL.n_ctx), np.float32)
    second = np.arange(3, 3 + BATCH_SIZE, dtype=np.int32)[:, None]
    segments = (np.where(np.arange(MODEL.n_ctx) < second, 0, second),) if has_segments else ()
    return *batch(), weights, *segments, np.float32(rate), np.int32(0), np.int32(noise_key)


def whole_value(stored: VariableSlices) -> np.ndarray:
    """Puts a variable's slices together; processors that hold the same part must hold the same values."""
    whole = np.full(stored.whole_shape, np.nan, np.float32)
    for begin, piece in zip(stored.begins, stored.slices, strict=True):
        region = tuple(slice(b, b + size) for b, size in zip(begin, piece.shape.as_list(), strict=True))
        if not np.isnan(whole[region]).any():
            np.testing.assert_array_equal(piece.numpy(), whole[region], err_msg=f"{stored.name}: copies differ")
        whole[region] = piece.numpy()
    assert not np.isnan(whole).any(), stored.name
    return whole


def address(piece: tf.Variable) -> int:
    """Where the value of a variable lies in memory."""
    return np.frombuffer(memoryview(piece.read_value()), np.float32).ctypes.data


def values_of(store: VariableStore) -> dict[str, np.ndarray]:
    """Every variable, whole, by name."""
    return {stored.name: whole_value(stored) for stored in store}


def disturb(store: VariableStore, seed: int = 0) -> None:
    """Adds to every parameter, so that no gain is 1 and no bias is 0 as they begin."""
    for stored in store:
        if stored.variable.is_parameter:
            noise = np.random.default_rng([seed, zlib.crc32(stored.name.encode())]).normal(0.0, 0.1, stored.whole_shape)
            stored.assign_whole((whole_value(stored) + noise).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Updated:
    """What one step of training gave.

    Attributes:
        before: every variable before it.
        after: and after it.
    """

    loss: float
    grad_norm: float
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    def gradient(self, name: str) -> np.ndarray:
        """The gradient that the update used: without bias correction, the first moment is a share of it."""
        return self.after[f"{name}/adam_m"] / (1.0 - TRAINING.beta1)


def one_update(
    config: RunConfig, devices: Sequence[str], noise_key: int = 7, batch: Sequence[np.ndarray] | None = None
) -> Updated:
    """Builds the training step and takes it once, from disturbed initial values, on `batch` or else `step_inputs`."""
    placement = place(config.mesh, devices if config.mesh.mesh_shape else devices[:1])
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    disturb(placement.store)
    before = values_of(placement.store)
    *own, rate, number, key = step_inputs(noise_key, has_segments=config.data.has_segments)
    outputs = step(*(batch or own), rate, number, key)
    return Updated(float(outputs["loss"]), float(outputs["grad_norm"]), before, values_of(placement.store))


@functools.cache
def one_device_update(devices: tuple[str, ...], has_dropout: bool) -> Updated:
    """The update that all others must equal: one device, one microbatch, nothing computed again."""
    return one_update(run_config(model=ALL_DROPOUTS if has_dropout else {}), devices)


def assert_same_update(actual: Updated, expected: Updated) -> None:
    """Loss and norm agree within 1e-5, and every variable as in `assert_same_variable`."""
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=0, atol=1e-5, err_msg="loss")
    np.testing.assert_allclose(actual.grad_norm, expected.grad_norm, rtol=1e-5, atol=0, err_msg="grad_norm")
    assert actual.after.keys() == expected.after.keys()
    for name, value in expected.after.items():
        assert_same_variable(name, actual.after[name], value)


def assert_same_variable(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """A parameter agrees within 1e-5; a slot, which is small, within 1e-5 of its largest element.

    Adam's second moment is compared by its root: as a square, it has twice the relative error of its gradient.
    """
    if name.endswith("/adam_v"):
        actual, expected = np.sqrt(actual), np.sqrt(expected)
    tolerance = 1e-5 * np.abs(expected).max() if name.endswith(SLOTS) else 1e-5
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


def compiled(
    build: Callable[..., Sequence[mtf.Tensor]], placement: Placement, *inputs: tuple[str, np.ndarray]
) -> Callable[..., list[np.ndarray]]:
    """A graph of mesh operations as a function of arrays; its variables are zeros still.

    Args:
        build: from the inputs as mesh tensors to the outputs.
        placement: where.
        inputs: names of the dimensions, apart by blanks, and a value of the shape and type to come.
    """
    shapes = [_shape(names, value) for names, value in inputs]

    def run(*values: tf.Tensor) -> list[tf.Tensor]:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        outputs = build(
            *[mtf.import_tf_tensor(mesh, value, shape) for value, shape in zip(values, shapes, strict=True)]
        )
        lowering = mtf.Lowering(graph, {mesh: placement.implementation(inputs[0][1].shape[0])}, autostack=False)
        return [lowering.export_to_tf_tensor(output) for output in outputs]

    specs = [tf.TensorSpec(value.shape, value.dtype) for _, value in inputs]
    function = tf.function(run, autograph=False).get_concrete_function(*specs)
    return lambda *values: [output.numpy() for output in function(*map(tf.constant, values))]


def evaluate(
    build: Callable[..., Sequence[mtf.Tensor]], placement: Placement, *inputs: tuple[str, np.ndarray]
) -> list[np.ndarray]:
    """Runs a graph of mesh operations without variables once; arguments as of `compiled`."""
    return compiled(build, placement, *inputs)(*[value for _, value in inputs])


def _shape(names: str, value: np.ndarray) -> mtf.Shape:
    return mtf.Shape([mtf.Dimension(name, size) for name, size in zip(names.split(), value.shape, strict=True)])


def save(writer: CheckpointWriter, position: TrainingPosition) -> str:
    """Saves a checkpoint, waits until all processes have written it, and returns its path."""
    path = writer.save(position)
    writer.finish()
    return path
