"""What GPT-Neo's own graph computed, under TensorFlow 2.21 and mesh-TensorFlow 0.1.18, for models of each option.

`tests/golden/gpt_neo_original/` holds the options that another reading of the papers gets wrong: the config in
GPT-Neo's keys, and the variables, the tokens of one row and its logits. The folder `gpt_neo_golden` of
NEOMESH_TEST_DATA holds every option with four rows and the loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from configs.schema import ModelConfig
from meshtf import tf
from tests.answers import our_answer
from tests.models import reference

COMMITTED = Path(__file__).parents[1] / "golden" / "gpt_neo_original"
DATA = Path(os.environ.get("NEOMESH_TEST_DATA", "")) / "gpt_neo_golden"
# The largest difference of logits: those in float64 are up to 3.6e-5 away from GPT-Neo's, which are float32.
TOLERANCE = 4e-5
# What GPT-Neo did without a key.
KEYS = {"none": ["none_doubles_residual=true"]}
OPTIONS = (
    *("act_elish", "alternating", "axial", "global", "linear", "local16", "macaron", "mlp_glu", "moe_all_roomy"),
    *("no_weight_tie", "none", "num_mem_kv", "rezero", "rotary", "rotary_local", "scalenorm", "share_parameters"),
)
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="NEOMESH_TEST_DATA names no folder with gpt_neo_golden, what GPT-Neo computed"
)


def model_of(folder: Path, name: str, overrides: Sequence[str]) -> ModelConfig:
    run_keys = ["model_path=unused", "no_dataset=true"]
    return load_config(str(folder / f"{name}.json"), [*run_keys, *overrides]).model


def write_checkpoint(path: Path, golden: np.lib.npyio.NpzFile) -> Path:
    """Writes the variables of a golden file as GPT-Neo would, without a config beside them."""
    names = [name for name in golden if name.startswith("variable/")]
    names_there = [name.removeprefix("variable/") for name in names]
    values = [tf.constant(golden[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=str(path), tensor_names=names_there, shape_and_slices=[""] * len(names), tensors=values)
    return path


def logits_of(
    folder: Path, name: str, tmp_path: Path, devices: tuple[str, ...], overrides: Sequence[str]
) -> np.ndarray:
    golden = np.load(folder / f"{name}.npz")
    path = write_checkpoint(tmp_path / "model.ckpt-20", golden)
    return our_answer(path, model_of(folder, name, overrides), golden["tokens"], devices).logits


@pytest.mark.parametrize("name", ["linear", "act_elish", "none", "moe_all_roomy"])
def test_what_another_reading_gets_wrong(devices: tuple[str, ...], tmp_path: Path, name: str) -> None:
    expected = np.load(COMMITTED / f"{name}.npz")["logits"]
    actual = logits_of(COMMITTED, name, tmp_path, devices, KEYS.get(name, []))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(devices: tuple[str, ...], tmp_path: Path, name: str) -> None:
    golden = np.load(DATA / f"{name}.npz")
    actual = logits_of(DATA, name, tmp_path, devices, KEYS.get(name, []))
    np.testing.assert_allclose(actual, golden["logits"], rtol=0, atol=TOLERANCE)
    cross_entropy, _ = reference.losses(actual.astype(np.float64), golden["labels"])
    np.testing.assert_allclose(cross_entropy.mean(), golden["loss"], rtol=1e-5)


@needs_data
@pytest.mark.slow
def test_experts_drawn_at_random(devices: tuple[str, ...], tmp_path: Path) -> None:
    """A first token sees itself alone: it is sent to its second expert in every layer, or where its gate is large."""
    given = json.loads((DATA / "moe_roomy.json").read_text())["moe_params"]

    def first_logits(policy: str) -> np.ndarray:
        moe_params = json.dumps(given | {"moe_second_policy_eval": policy})
        return logits_of(DATA, "moe_roomy", tmp_path, devices, [f"moe_params={moe_params}"])[:, 0]

    possible = np.stack([first_logits("all"), first_logits("threshold")])
    for drawn in (np.load(DATA / "moe_roomy.npz")["logits"][:, 0], first_logits("random")):
        assert (np.abs(possible - drawn).max(-1).min(0) < TOLERANCE).all()
