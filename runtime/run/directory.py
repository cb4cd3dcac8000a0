"""The folder of a run: what is kept in it beside checkpoints and metrics, whose it is, and when it may be deleted."""

from __future__ import annotations

import contextlib
import os
import posixpath

from configs.errors import CheckpointError, ConfigError, UserError
from configs.load import load_config, resolved_json
from configs.schema import RunConfig
from meshtf import tf
from storage import buckets, locks
from storage.files import is_local, write_text
from storage.remote_configs import on_disk

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
LOCK_FILE = "lock"
# What may be there before there is a run.
PLAN_PICTURE, DATASET_PICTURE = "plan.png", "dataset.png"
# Settings that no variable's shape shows: with another value the same weights are another model.
SETTINGS_OF_THE_WEIGHTS = (
    "n_head",
    "n_layer",
    "attention_types",
    "activation_function",
    "rotary_emb",
    "scale_attn_weights",
    "mlm_training",
)


def check_path(model_path: str) -> None:
    """Refuses a path that cannot hold a run: TensorFlow takes it for a pattern, or a bucket cannot be reached.

    Raises:
        ConfigError: the path holds a character of glob patterns, or is neither of this machine nor of a bucket.
        BucketError: it is of a bucket, and what is missing is said.
    """
    special = sorted(set(model_path) & set("*?[]\\"))
    if special:
        raise ConfigError(
            f"model_path = {model_path}: holds {' '.join(special)}, which TensorFlow reads as a pattern; "
            "give a path without"
        )
    if is_local(model_path):
        return
    if not model_path.startswith(buckets.SCHEME):
        raise ConfigError(
            f"model_path = {model_path}: is neither a folder nor a bucket of Google Cloud Storage; give a path of "
            f"this machine, or {buckets.SCHEME}BUCKET/FOLDER"
        )
    buckets.check(model_path)


def keep_settings(config: RunConfig, tokenizer_json: str | None) -> None:
    """Writes the resolved config and the tokenizer."""
    write_text(posixpath.join(config.model_path, CONFIG_FILE), resolved_json(config))
    if tokenizer_json is not None:
        write_text(posixpath.join(config.model_path, TOKENIZER_FILE), tokenizer_json)


def check_kept(config: RunConfig) -> None:
    """Checks that this process sees what the first process of the run has written.

    Raises:
        ConfigError: it does not: its folder is another one.
    """
    path = posixpath.join(config.model_path, CONFIG_FILE)
    if not tf.io.gfile.exists(path) or _read(path) != resolved_json(config).encode():
        raise ConfigError(
            f"model_path = {config.model_path}: this process does not see there what the first one has written; "
            "give a folder that all machines share, or a bucket"
        )


def check_settings(config: RunConfig, tokenizer_json: str | None) -> None:
    """Compares with what the run was trained with, as far as it is known.

    Raises:
        CheckpointError: the weights would be read as those of another model, or the ids as those of another tokenizer.
    """
    _check_model(config)
    path = kept_tokenizer(config.model_path)
    if tokenizer_json is not None and path is not None and _read(path) != tokenizer_json.encode():
        raise CheckpointError(
            f"{path}: is not the tokenizer of the dataset now: its text or settings have changed since training "
            "began; give another model_path, or --new to begin again"
        )


def kept_tokenizer(model_path: str) -> str | None:
    """The path of the tokenizer that the run was trained with; None: none is known."""
    path = posixpath.join(model_path, TOKENIZER_FILE)
    return path if tf.io.gfile.exists(path) else None


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _check_model(config: RunConfig) -> None:
    path = posixpath.join(config.model_path, CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        return
    trained, wanted = _settings_of_the_weights(_load(path)), _settings_of_the_weights(config)
    for key, was in trained.items():
        now = wanted.get(key, was)  # a key that only one of them reads follows from another that differs
        if was != now:
            raise CheckpointError(
                f"{path}: {key} = {_shown(was)}: the run was trained with it, and the config says {_shown(now)}; "
                "give the config that was trained, or another model_path"
            )


def _load(path: str) -> RunConfig:
    with on_disk(path) as file:
        return load_config(file)


def _settings_of_the_weights(config: RunConfig) -> dict[str, object]:
    """What the weights' meaning depends on, by key; keys that nothing of the model reads are left out."""
    model, data = config.model, config.data
    settings = {key: getattr(model, key) for key in SETTINGS_OF_THE_WEIGHTS}
    if "local" in model.attention_types:
        settings["local_attention_radius"] = model.local_attention_radius
    if model.moe_layers:
        settings |= {"moe_activation": model.moe_activation, "moe_gating": model.moe_params.moe_gating}
    if model.mlm_training:
        settings |= {"mlm_mask_id": data.mlm_mask_id, "mlm_cls_token_id": data.mlm_cls_token_id}
    return settings


def check_outside(model_path: str, weights: str) -> None:
    """Refuses weights that lie in a run which is to be deleted.

    Raises:
        ConfigError: they do.
    """
    run, path = (os.path.realpath(name) if is_local(name) else name.rstrip("/") for name in (model_path, weights))
    if path == run or path.startswith(f"{run}/"):
        raise ConfigError(
            f"--init_from {weights}: lies in the run that --new deletes; give another model_path, or leave --new out"
        )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def locked(model_path: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from training in the same folder: on a disk those of this machine, in a bucket all.

    Raises:
        UserError: another process has it.
    """
    path, refusal = posixpath.join(model_path, LOCK_FILE), f"model_path = {model_path}: another process trains here"
    return locks.locked(path, refusal, "wait for it, or give another model_path")


class Claim:
    """The lock of a folder in a bucket as it was when this process, its holder, began to write there.

    A process that stood still for so long that another has taken the lock must find that out before it writes.
    """

    def __init__(self, model_path: str) -> None:
        self._model_path = model_path
        self._generation = self._now()

    def check(self) -> None:
        """Checks that nobody has taken the run over.

        Raises:
            UserError: somebody has.
        """
        if self._now() != self._generation:
            raise UserError(
                f"model_path = {self._model_path}: another process has taken the run over; let that one go on, or "
                "end it and start this one again"
            )

    def _now(self) -> int:
        return 0 if is_local(self._model_path) else buckets.look(posixpath.join(self._model_path, LOCK_FILE)).generation


def is_empty(model_path: str) -> bool:
    """Whether there is nothing, or nothing but pictures that were drawn before a run."""
    if not tf.io.gfile.exists(model_path):
        return True
    return tf.io.gfile.isdir(model_path) and set(tf.io.gfile.listdir(model_path)) <= {PLAN_PICTURE, DATASET_PICTURE}


def is_run(model_path: str) -> bool:
    """Whether a folder holds what training writes, so that deleting it deletes a run and nothing else."""
    if any(tf.io.gfile.exists(posixpath.join(model_path, name)) for name in ("checkpoint", "metrics.jsonl")):
        return True
    path = posixpath.join(model_path, CONFIG_FILE)
    try:
        return tf.io.gfile.exists(path) and _load(path) is not None
    except ConfigError:
        return False


def delete_contents(model_path: str) -> None:
    """Deletes all of a run but the lock, which the deleting process holds."""
    if not is_local(model_path):
        for name in buckets.names_in(model_path):
            if name != LOCK_FILE:
                buckets.delete(f"{model_path.rstrip('/')}/{name}")
        return
    for name in tf.io.gfile.listdir(model_path):
        path = posixpath.join(model_path, name)
        if name == LOCK_FILE:
            continue
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
