"""The folder of a run: what counts as a run, and what may be deleted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from configs.errors import CheckpointError, ConfigError, UserError
from configs.schema import MoeParams, RunConfig
from runtime.run import directory as run_directory
from runtime.run import lock
from tests import tiny


def test_only_what_training_writes_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["somebody's"]}))
    (tmp_path / "weights.bin").write_text("precious")
    assert not run_directory.is_run(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    assert run_directory.is_run(str(tmp_path))


def test_deleting_a_run_keeps_its_lock(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "events").write_text("")
    (tmp_path / "checkpoint").write_text("")
    with lock.locked(str(tmp_path)):
        run_directory.delete_contents(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_is_released_at_the_end(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            lock.locked(str(tmp_path)),
            pytest.raises(UserError, match="another process trains here"),
            lock.locked(str(tmp_path)),
        ):
            pass


MASKED = {"mlm_training": True}
MIXED = {"moe_layers": (1,)}
LINEAR, NONE = {"attention_types": ("linear", "global")}, {"attention_types": ("none", "global")}
BY_FEATURE = {"linear_attention_normalization": "feature"}


def run_at(path: Path, model: dict[str, object], data: dict[str, object]) -> RunConfig:
    config = tiny.run_config(model=model)
    data_config = dataclasses.replace(config.data, **data)
    return dataclasses.replace(config, model_path=str(path), data=data_config)


@pytest.mark.parametrize(
    ("model", "data", "changed_model", "changed_data", "named"),
    [
        (MASKED, {"mlm_mask_id": 3}, MASKED, {"mlm_mask_id": 5}, "mlm_mask_id = 3"),
        (MASKED, {"mlm_mask_id": 3}, MASKED, {"mlm_mask_id": 3, "mlm_cls_token_id": 4}, "mlm_cls_token_id = None"),
        (MIXED, {}, {**MIXED, "moe_params": MoeParams(moe_gating="top_1")}, {}, "moe_gating = top_2"),
        (MIXED, {}, {**MIXED, "moe_activation": "gelu"}, {}, "moe_activation = relu"),
        ({}, {}, {"local_attention_radius": 4}, {}, "local_attention_radius = 5"),
        ({}, {}, {"rotary_emb": True}, {}, "rotary_emb = False"),
        (LINEAR, {}, {**LINEAR, **BY_FEATURE}, {}, "linear_attention_normalization = position"),
        (NONE, {}, {**NONE, "none_doubles_residual": True}, {}, "none_doubles_residual = False"),
        # What nothing of the model reads may change.
        (
            {"attention_types": ("global",) * 2},
            {},
            {"attention_types": ("global",) * 2, "local_attention_radius": 9},
            {},
            None,
        ),
        ({}, {}, {"moe_activation": "gelu"}, {}, None),
        ({}, {}, BY_FEATURE, {}, None),
        ({}, {"mlm_mask_id": 3}, {}, {"mlm_mask_id": 5}, None),
        # Room for more tokens does not make another model.
        (MIXED, {}, {**MIXED, "moe_params": MoeParams(moe_capacity_factor_eval=4.0)}, {}, None),
    ],
)
def test_a_changed_model_is_refused_on_resume(
    tmp_path: Path,
    model: dict[str, object],
    data: dict[str, object],
    changed_model: dict[str, object],
    changed_data: dict[str, object],
    named: str | None,
) -> None:
    run_directory.write_settings(run_at(tmp_path, model, data), None)
    changed = run_at(tmp_path, changed_model, changed_data)
    if named is None:
        run_directory.check_settings(changed, None)
        return
    with pytest.raises(CheckpointError) as raised:
        run_directory.check_settings(changed, None)
    assert str(raised.value).startswith(f"{tmp_path}/config.json: {named}: the run was trained with it")


@pytest.mark.parametrize(
    ("model", "kept", "named"),
    [
        (LINEAR, BY_FEATURE, "linear_attention_normalization = feature"),
        (
            {"activation_function": "elish"},
            {"activation_function": "elish_published"},
            "activation_function = elish_published",
        ),
    ],
)
def test_a_run_from_before_a_function_changed_is_refused_unless_a_key_keeps_it(
    tmp_path: Path, model: dict[str, object], kept: dict[str, object], named: str
) -> None:
    run_directory.write_settings(run_at(tmp_path, model, {}), None)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["linear_attention_normalization"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"config.json: {named}: the run was trained with it"):
        run_directory.check_settings(run_at(tmp_path, model, {}), None)
    run_directory.check_settings(run_at(tmp_path, model | kept, {}), None)


DAMAGE = (
    b"",
    b'{"n_head": 4, "n_em',
    b"\0" * 4096,
    b'{"n_head": 4,' + b"\0" * 512,
    b"[1]",
    b"\xff\xfe",
    b"[" * 100_000,
)


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_settings_are_named_and_not_used(tmp_path: Path, content: bytes) -> None:
    config = run_at(tmp_path, {}, {})
    for name in ("config.json", "tokenizer.json", "interrupted.json"):
        (tmp_path / name).write_bytes(content)
    assert run_directory.damaged_settings(str(tmp_path)) == [
        f"{tmp_path}/config.json: is damaged, so the config is not compared with it",
        f"{tmp_path}/tokenizer.json: is damaged, so the dataset's tokenizer is used",
    ]
    assert run_directory.kept_config(str(tmp_path)) is run_directory.tokenizer_path(str(tmp_path)) is None
    assert run_directory.read_interrupted(str(tmp_path), 3) == ()
    run_directory.check_settings(config, "{}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()  # as without permission, which root always has
    with pytest.raises(CheckpointError) as raised:
        run_directory.check_settings(run_at(tmp_path, {}, {}), "{}")
    assert str(raised.value).startswith(f"{tmp_path}/{name}: cannot be read: ")


@pytest.mark.parametrize("weights", ["run", "run/model.ckpt-3", "run/../run/model.ckpt-3", "run/"])
def test_weights_inside_a_run_that_is_deleted_are_refused(tmp_path: Path, weights: str) -> None:
    with pytest.raises(ConfigError, match="lies in the run that --new deletes"):
        run_directory.check_outside(f"{tmp_path}/run", f"{tmp_path}/{weights}")
    run_directory.check_outside(f"{tmp_path}/run", f"{tmp_path}/runs/model.ckpt-3")


@pytest.mark.parametrize("path", ["runs/[a]", "runs/a*", "runs/a?", "runs/a\\b"])
def test_glob_patterns_are_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        run_directory.check_path(path)
    run_directory.check_path("runs/a b-{c}")


def test_other_clouds_are_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        run_directory.check_path("s3://trials/run")
    assert str(raised.value) == (
        "model_path = s3://trials/run: is neither a local folder nor a bucket of Google Cloud Storage; give a "
        "local path, or gs://BUCKET/FOLDER"
    )
