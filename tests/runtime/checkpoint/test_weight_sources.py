"""Who wrote a checkpoint, and what a model computes otherwise from its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from configs.schema import MoeParams
from meshtf import tf
from runtime.checkpoint.weight_sources import check_functions
from tests import tiny

GPT_NEO = ("gpt2/wte", "global_step")
FORMER = (*GPT_NEO, "global_step_examples")
OURS = (*FORMER, "global_step_functions")
LINEAR, NONE = {"attention_types": ("linear", "global")}, {"attention_types": ("none", "global")}
EXPERTS = {"moe_layers": (1,)}
AS_GPT_NEO = {"moe_params": MoeParams(moe_second_policy_eval="random", moe_z_loss=0.0)}


def written(folder: Path, names: Sequence[str]) -> str:
    path = f"{folder}/model.ckpt-7"
    values = [tf.constant(1, tf.int64)] * len(names)
    tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
    return path


@pytest.mark.parametrize(
    ("changes", "key", "kept"),
    [
        (LINEAR, "linear_attention_normalization = position", {"linear_attention_normalization": "feature"}),
        ({"activation_function": "elish"}, "activation_function = elish", {"activation_function": "elish_published"}),
        (EXPERTS | {"moe_activation": "elish"}, "moe_activation = elish", {"moe_activation": "elish_published"}),
    ],
)
def test_what_was_trained_with_another_function(
    tmp_path: Path, changes: dict[str, object], key: str, kept: dict[str, object]
) -> None:
    path, model = written(tmp_path, FORMER), dataclasses.replace(tiny.MODEL, **changes)
    with pytest.raises(CheckpointError) as error:
        check_functions(path, model)
    ((name, value),) = kept.items()
    assert str(error.value) == (
        f"{path}: {key}: was another function when these weights were trained; set {name} to {value} to keep it, or "
        "train again"
    )
    assert check_functions(path, dataclasses.replace(model, **kept)) == []
    assert check_functions(written(tmp_path, OURS), model) == []


@pytest.mark.parametrize(
    "changes", [{}, NONE, EXPERTS, {"moe_activation": "elish"}, LINEAR | {"mlm_training": True}], ids=str
)
def test_other_weights_of_ours_are_read_without_a_word(tmp_path: Path, changes: dict[str, object]) -> None:
    assert check_functions(written(tmp_path, FORMER), dataclasses.replace(tiny.MODEL, **changes)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (LINEAR | {"activation_function": "elish"}, []),
        (NONE, ["GPT-Neo doubled the residual stream in layers of attention none, "]),
        (NONE | {"none_doubles_residual": True}, []),
        ({"activation_function": "rrelu"}, ["GPT-Neo drew the slope of rrelu once a process, "]),
        ({"moe_activation": "rrelu"}, []),
        (
            EXPERTS,
            [
                "moe_params: moe_second_policy_eval is all; GPT-Neo's default is random",
                "moe_params: moe_z_loss is 0.001; GPT-Neo's default is 0.0",
                *["experts: "] * 3,
            ],
        ),
        (EXPERTS | AS_GPT_NEO, ["experts: "] * 3),
    ],
)
def test_what_gpt_neo_computed_otherwise(tmp_path: Path, changes: dict[str, object], said: list[str]) -> None:
    path = written(tmp_path, GPT_NEO)
    lines = check_functions(path, dataclasses.replace(tiny.MODEL, **changes))
    assert len(lines) == len(said)
    for line, beginning in zip(lines, said, strict=True):
        assert line.startswith(f"{path}: {beginning}")
