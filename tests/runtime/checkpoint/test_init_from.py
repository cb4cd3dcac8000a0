"""Runs that start from the weights of a checkpoint of this project or of GPT-Neo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from configs.errors import CheckpointError, UserError
from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from models.variables import Role, get_variable, zeros
from runtime.checkpoint.init_from import find_weights, load_initial_weights
from runtime.mesh.placement import Placement, VariableStore, place
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, n_embd=8, n_head=2, n_vocab=12, attention_types=("global", "local"))
GOLDEN = Path(__file__).parents[2] / "golden"
EVERYTHING_SPLIT = ("x:2,y:2", "embd:x,heads:y,vocab:y,intermediate_expanded:y")


def placed(devices: tuple[str, ...], mesh: tuple[str, str] = ("", ""), model: ModelConfig = MODEL) -> Placement:
    """A mesh with the variables of the model, and a slot of an optimiser, on it."""
    placement = place(tiny.mesh_config(*mesh), devices if mesh[0] else devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        dims = Dims.of(model, *tokens.shape.to_integer_list)
        slot = get_variable(tokens.mesh, "gpt2/wte/adam_m", mtf.Shape([dims.vocab, dims.embd]), zeros, Role.SLOT)
        return [gpt2.logits(Context(tokens.mesh, model, dims), tokens), slot]

    tiny.compiled(build, placement, ("batch sequence", np.zeros((2, model.n_ctx), np.int32)))
    return placement


def random_values(store: VariableStore) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        stored.name: random.normal(size=stored.whole_shape).astype(np.float32)
        for stored in store
        if stored.variable.trainable
    }


def write_checkpoint(prefix: Path, tensors: Mapping[str, np.ndarray | tf.Tensor]) -> str:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return str(prefix)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of MODEL with slots and a step, and the weights in it."""

    folder: Path
    prefix: str
    weights: dict[str, np.ndarray]


@pytest.fixture
def trained(devices: tuple[str, ...], tmp_path: Path) -> Trained:
    weights = random_values(placed(devices).store)
    other = {"gpt2/wte/adam_m": np.ones((12, 8), np.float32), "gpt2/h0/attn/q_slot_vr": np.ones(8, np.float32)}
    other |= {"global_step": np.int64(362), "global_step_examples": np.int64(9)}
    return Trained(tmp_path, write_checkpoint(tmp_path / "model.ckpt-362", weights | other), weights)


def assert_holds(store: VariableStore, weights: Mapping[str, np.ndarray]) -> None:
    """The store holds these weights, and slots of 0."""
    values = tiny.values_of(store)
    assert values.keys() == weights.keys() | {"gpt2/wte/adam_m"}
    for name, value in values.items():
        np.testing.assert_array_equal(value, weights.get(name, 0.0), err_msg=name)


def message(path: str | Path, placement: Placement) -> str:
    with pytest.raises(CheckpointError) as error:
        load_initial_weights(str(path), placement.store)
    return str(error.value)


@pytest.mark.parametrize("mesh", [("", ""), EVERYTHING_SPLIT], ids=["one device", "everything split"])
def test_only_weights_are_read_from_a_checkpoint(
    trained: Trained, devices: tuple[str, ...], mesh: tuple[str, str]
) -> None:
    placement = placed(devices, mesh)
    load_initial_weights(trained.prefix, placement.store)
    assert_holds(placement.store, trained.weights)


def test_the_newest_checkpoint_of_a_folder_is_read(trained: Trained, devices: tuple[str, ...]) -> None:
    placement = placed(devices)
    older = {name: value - 1 for name, value in trained.weights.items()}
    older_prefix = write_checkpoint(trained.folder / "model.ckpt-99", older)
    load_initial_weights(str(trained.folder), placement.store)  # 362 > 99, though "99" > "362"
    assert_holds(placement.store, trained.weights)
    (trained.folder / "checkpoint").write_text(f'model_checkpoint_path: "{Path(older_prefix).name}"\n')
    load_initial_weights(str(trained.folder), placement.store)
    assert_holds(placement.store, older)


@pytest.mark.parametrize("content", ['model_checkpoint_path: "model.ckpt-500"\n', ""])
def test_a_state_file_that_names_no_checkpoint_gives_way_to_the_newest(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (trained.folder / "checkpoint").write_text(content)
    assert find_weights(str(trained.folder)).keys() == trained.weights.keys()
    said = capsys.readouterr().err
    assert said.startswith(f"{trained.folder}/checkpoint: names ")
    assert said.endswith(f"; using the newest checkpoint there, {trained.prefix}\n")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "checkpoint").write_text(content)
    with pytest.raises(CheckpointError, match="/alone/checkpoint: names .*; restore the files of the checkpoint, or "):
        find_weights(f"{tmp_path}/alone")


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_found_by_any_of_its_files(trained: Trained, ending: str) -> None:
    assert find_weights(trained.prefix + ending).keys() == find_weights(trained.prefix).keys() != set()


def test_a_hugging_face_folder_is_found_by_any_of_its_files() -> None:
    weights = find_weights(f"{GOLDEN}/gpt_2/model.safetensors")
    assert weights.keys() == find_weights(f"{GOLDEN}/gpt_2").keys() != set()


def test_other_files_of_a_folder_are_ignored(trained: Trained) -> None:
    (trained.folder / "notes-more.index").write_text("")
    assert "gpt2/wte" in find_weights(str(trained.folder))


def test_bfloat16_weights_of_gpt_neo_become_float32(trained: Trained, devices: tuple[str, ...], tmp_path: Path) -> None:
    placement = placed(devices)
    exact = {name: tf.cast(value, tf.bfloat16) for name, value in trained.weights.items()}
    load_initial_weights(write_checkpoint(tmp_path / "half" / "model.ckpt-1", exact), placement.store)
    assert_holds(placement.store, {name: tf.cast(value, tf.float32).numpy() for name, value in exact.items()})


def test_a_missing_or_unknown_variable_or_another_shape_is_named(
    trained: Trained, devices: tuple[str, ...], tmp_path: Path
) -> None:
    placement, name = placed(devices), "gpt2/h1/attn/q"
    before = tiny.values_of(placement.store)
    remedy = "give the config of these weights, or other weights"
    without = {key: value for key, value in trained.weights.items() if key != name}
    path = write_checkpoint(tmp_path / "a" / "model.ckpt-1", without)
    assert message(path, placement).startswith(f"{path}: has no variable {name}; the nearest name there is gpt2/h1/")
    assert message(path, placement).endswith(f"; {remedy}")
    path = write_checkpoint(tmp_path / "b" / "model.ckpt-1", trained.weights | {"gpt2/h2/attn/q": np.zeros(3)})
    assert message(path, placement) == f"{path}: gpt2/h2/attn/q: the model of the config lacks it; {remedy}"
    path = write_checkpoint(tmp_path / "c" / "model.ckpt-1", trained.weights | {name: np.zeros((8, 16), np.float32)})
    assert message(path, placement) == f"{path}: {name}: is [8, 16] there and [8, 8] by the config; {remedy}"
    for key, value in tiny.values_of(placement.store).items():
        np.testing.assert_array_equal(value, before[key], err_msg="nothing may be set by weights that do not fit")


def test_a_smaller_n_ctx_takes_the_first_positions(
    trained: Trained, devices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    placement = placed(devices, model=dataclasses.replace(MODEL, n_ctx=10))
    load_initial_weights(trained.prefix, placement.store)
    assert_holds(placement.store, trained.weights | {"gpt2/wpe": trained.weights["gpt2/wpe"][:10]})
    said = f"{trained.prefix}: gpt2/wpe: using the first 10 of its 16 positions\n"
    assert capsys.readouterr().err == said
    larger = placed(devices, model=dataclasses.replace(MODEL, n_ctx=20))
    assert message(trained.prefix, larger).startswith(f"{trained.prefix}: gpt2/wpe: is [16, 8] there and [20, 8] by ")


def test_a_path_without_weights_or_with_a_broken_file(
    trained: Trained, devices: tuple[str, ...], tmp_path: Path
) -> None:
    placement = placed(devices)
    assert message(tmp_path / "nowhere", placement).startswith(f"{tmp_path}/nowhere: holds no weights; give ")
    data = Path(f"{trained.prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:100])
    printed = message(trained.prefix, placement)
    assert printed.startswith(f"{trained.prefix}") and ": cannot be read: " in printed and "\n" not in printed


@pytest.mark.parametrize("path", ["nothing://bucket/model.ckpt-1", ""])
def test_an_unreachable_path_is_reported(path: str) -> None:
    with pytest.raises(UserError) as error:
        find_weights(path)
    assert str(error.value).startswith(f"{path}: cannot be read: " if path else "--init_from: is empty; give ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_variable_with_nan_or_infinity_is_refused(trained: Trained, tmp_path: Path, value: float) -> None:
    broken = trained.weights["gpt2/wpe"].copy()
    broken[2, 3] = value
    path = write_checkpoint(tmp_path / "broken" / "model.ckpt-1", trained.weights | {"gpt2/wpe": broken})
    with pytest.raises(CheckpointError, match=f"^{path}: gpt2/wpe: holds NaN or infinity; give weights "):
        find_weights(path)["gpt2/wpe"].read()


def test_weights_are_read_on_demand(trained: Trained) -> None:
    weights = find_weights(trained.prefix)
    Path(f"{trained.prefix}.data-00000-of-00001").write_bytes(b"")
    assert weights["gpt2/h0/mlp/conv1d_main/c_fc/kernel"].shape == (8, 32)
