"""The folder of a run: its settings and its lock, and the rules for deleting it."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from configs.errors import CheckpointError, ConfigError
from configs.load import load_config, resolved_json
from configs.reader import read_object
from configs.schema import RunConfig
from configs.weights import attention_keys, former_functions
from data.tokenization.tokenizer import Tokenizer, from_json
from meshtf import tf
from runtime.run.lock import LOCK_FILE
from storage import buckets
from storage.files import decode_text, is_local, write_text, writing_to
from storage.remote_configs import on_disk

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
INTERRUPTED_FILE = "interrupted.json"  # the step and the hooks of a pause that a signal has ended
# May exist before a run does.
PLAN_PICTURE, DATASET_PICTURE = "plan.png", "dataset.png"
# Settings that change what the weights compute, but not the shape of any variable.
WEIGHT_SETTINGS = (
    "n_head",
    "n_layer",
    "attention_types",
    "activation_function",
    "rotary_emb",
    "scale_attn_weights",
    "mlm_training",
    "objective",
)


def check_path(model_path: str) -> None:
    """Checks that a path can hold a run; asks no bucket.

    Raises:
        ConfigError: the path holds a glob character, or is neither a local path nor in a bucket.
    """
    special = sorted(set(model_path) & set("*?[]\\"))
    if special:
        raise ConfigError(
            f"model_path = {model_path}: holds {' '.join(special)}, which TensorFlow reads as a glob "
            "pattern; give a path without"
        )
    if not is_local(model_path) and not model_path.startswith(buckets.SCHEME):
        raise ConfigError(
            f"model_path = {model_path}: is neither a local folder nor a bucket of Google Cloud Storage; give a local "
            f"path, or {buckets.SCHEME}BUCKET/FOLDER"
        )


def check_access(model_path: str) -> None:
    """Checks that the bucket of a run, if it is in one, can be reached.

    Raises:
        BucketError: it cannot.
    """
    if not is_local(model_path):
        buckets.check_access(model_path)


def write_settings(config: RunConfig, tokenizer: Tokenizer | None) -> None:
    """Writes the resolved config and the tokenizer into the folder."""
    write_text(posixpath.join(config.model_path, CONFIG_FILE), resolved_json(config))
    for name, content in tokenizer.files().items() if tokenizer else ():
        write_text(posixpath.join(config.model_path, name), content)


def write_interrupted(model_path: str, step: int, hooks: Sequence[str]) -> None:
    """Notes the names of the hooks that are left to do at the pause of a step, which a signal has ended."""
    write_text(posixpath.join(model_path, INTERRUPTED_FILE), json.dumps([step, list(hooks)]))


def read_interrupted(model_path: str, step: int) -> tuple[str, ...]:
    """Returns the names of the hooks that are left to do at the pause of a step."""
    try:
        interrupted_step, hooks = json.loads(_read(posixpath.join(model_path, INTERRUPTED_FILE)))
    except (CheckpointError, ValueError, TypeError, RecursionError):
        return ()
    is_known = isinstance(hooks, list) and all(isinstance(name, str) for name in hooks)
    return tuple(hooks) if is_known and interrupted_step == step else ()


def forget_interrupted(model_path: str) -> None:
    """Notes that nothing is left to do."""
    with writing_to(model_path, tf.errors.OpError):
        tf.io.gfile.remove(posixpath.join(model_path, INTERRUPTED_FILE))


def is_removed(model_path: str) -> bool:
    """Whether a local folder is gone; in a bucket there are only files."""
    return is_local(model_path) and not os.path.isdir(model_path)


def check_shared(config: RunConfig) -> None:
    """Checks that this process sees the files that the first process of the run wrote.

    Raises:
        ConfigError: it does not, because the folder is not shared.
    """
    path = posixpath.join(config.model_path, CONFIG_FILE)
    if not tf.io.gfile.exists(path) or _read(path) != resolved_json(config).encode():
        raise ConfigError(
            f"model_path = {config.model_path}: this process does not see the files that the first process wrote "
            "there; give a folder that all machines share, or a bucket"
        )


def check_settings(config: RunConfig, tokenizer_json: str | None) -> None:
    """Compares the config and the tokenizer with those that the run was trained with, where known.

    Raises:
        CheckpointError: the weights would become another model, or the ids mean other tokens.
    """
    _check_model(config)
    path = tokenizer_path(config.model_path)
    if tokenizer_json is not None and path is not None and not _is_tokenizer(_read(path), tokenizer_json):
        raise CheckpointError(
            f"{path}: differs from the tokenizer of the dataset, which has changed since training started; give "
            "the tokenizer that the run was trained with, or another model_path"
        )


def _is_tokenizer(kept: bytes, tokenizer_json: str) -> bool:
    """Compares a kept tokenizer with another, also if it was kept with a truncation that is now switched off."""
    return kept == tokenizer_json.encode() or from_json(decode_text(kept)).to_json() == tokenizer_json


def tokenizer_path(model_path: str) -> str | None:
    """Returns the path of the tokenizer that the run was trained with; None: unknown."""
    path = posixpath.join(model_path, TOKENIZER_FILE)
    return path if tf.io.gfile.exists(path) and not _is_damaged(path) else None


def damaged_settings(model_path: str) -> list[str]:
    """Returns a line for each file of settings that is empty or cut off, as after a power cut, and is not used."""
    uses = {CONFIG_FILE: "the config is not compared with it", TOKENIZER_FILE: "the dataset's tokenizer is used"}
    paths = {posixpath.join(model_path, name): instead for name, instead in uses.items()}
    return [
        f"{path}: is damaged, so {instead}"
        for path, instead in paths.items()
        if tf.io.gfile.exists(path) and _is_damaged(path)
    ]


def _is_damaged(path: str) -> bool:
    content = _read(path)
    try:
        return not isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return True


def _read(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.message}; check its permissions, or move it away"
        ) from error


def kept_config(model_path: str) -> RunConfig | None:
    """Returns the config that the run was trained with; None: unknown, or damaged."""
    path = posixpath.join(model_path, CONFIG_FILE)
    return _load(path) if tf.io.gfile.exists(path) and not _is_damaged(path) else None


def _check_model(config: RunConfig) -> None:
    path, kept = posixpath.join(config.model_path, CONFIG_FILE), kept_config(config.model_path)
    if kept is None:
        return
    trained, wanted = _weight_settings(kept), _weight_settings(config)
    for key, was in trained.items():
        now = wanted.get(key, was)  # a key that only one of them uses depends on another that differs
        if was != now:
            raise CheckpointError(
                f"{path}: {key} = {_shown(was)}: the run was trained with it, but the config says {_shown(now)}; "
                f"set {key} to that, or give another model_path"
            )


def _load(path: str) -> RunConfig:
    """Loads the config.json of a run, by today's names of what it computes."""
    with on_disk(path) as file:
        former = former_functions(read_object(Path(file), issues=[]))
        return load_config(file, [f"{key}={value}" for key, value in former.items()])


def _weight_settings(config: RunConfig) -> dict[str, object]:
    """Returns the settings that give the weights their meaning, by key, without those that the model ignores."""
    model, data = config.model, config.data
    keys = (*WEIGHT_SETTINGS, *attention_keys(model.attention_types, model.is_causal))
    settings = {key: getattr(model, key) for key in keys}
    if model.moe_layers:
        settings |= {"moe_activation": model.moe_activation, "moe_gating": model.moe_params.moe_gating}
    if model.lora_rank:
        settings["lora_alpha"] = model.lora_alpha
    if model.mlm_training:
        settings |= {"mlm_mask_id": data.mlm_mask_id, "mlm_cls_token_id": data.mlm_cls_token_id}
    return settings


def check_outside(model_path: str, weights: str) -> None:
    """Checks that `--init_from` names no weights inside the run that `--new` deletes.

    Raises:
        ConfigError: it does.
    """
    run, path = (os.path.realpath(name) if is_local(name) else name.rstrip("/") for name in (model_path, weights))
    if path == run or path.startswith(f"{run}/"):
        raise ConfigError(
            f"--init_from {weights}: lies in the run that --new deletes; give another model_path, or leave --new out"
        )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def is_empty(model_path: str) -> bool:
    """Whether a folder holds nothing except plots of a plan or a dataset."""
    if not tf.io.gfile.exists(model_path):
        return True
    return tf.io.gfile.isdir(model_path) and set(tf.io.gfile.listdir(model_path)) <= {PLAN_PICTURE, DATASET_PICTURE}


def is_run(model_path: str) -> bool:
    """Whether a folder holds a run, so that `--new` may delete it."""
    if any(tf.io.gfile.exists(posixpath.join(model_path, name)) for name in ("checkpoint", "metrics.jsonl")):
        return True
    path = posixpath.join(model_path, CONFIG_FILE)
    try:
        return tf.io.gfile.exists(path) and _load(path) is not None
    except ConfigError:
        return False


def delete_contents(model_path: str) -> None:
    """Deletes a run, except for the lock, which this process holds."""
    if not is_local(model_path):
        for name in buckets.list_objects(model_path):
            if name != LOCK_FILE:
                buckets.delete(f"{model_path.rstrip('/')}/{name}")
        return
    with writing_to(model_path, tf.errors.OpError):
        for name in tf.io.gfile.listdir(model_path):
            path = posixpath.join(model_path, name)
            if name != LOCK_FILE:
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
