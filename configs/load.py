"""Loads model configs into typed settings, and writes settings back.

Everything that is wrong with a config, its overrides and its dataset configs is collected and raised together, one line
an issue: `file: key = value: what is wrong; what to do`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import schema
from configs.command_line import read_overrides
from configs.cross_checks import PREDICTION_CHECKS, RUN_CHECKS
from configs.datasets import check_datasets, default_input_fn, load_datasets, special_ids
from configs.errors import ConfigError, ValueIssue, did_you_mean, looked_from
from configs.reader import ConfigReader, RawValue, raise_issues, read_file, rename_aliases, shown
from configs.schema import RUN_FIELDS, PredictionConfig, RunConfig, is_required, keys_of
from configs.weights import (
    CONFIG_FILE,
    KEY_OF_FUNCTIONS,
    adapter_keys,
    config_beside,
    initial_end_ids,
    initial_model_keys,
    is_huggingface_folder,
    no_weights,
    tokenizer_beside,
)

CONFIGS_DIR = Path(__file__).resolve().parent


def load_config(
    model: str, overrides: Sequence[str] = (), weights: str | None = None, adapter: str | None = None
) -> RunConfig:
    """Loads a model config and the dataset configs that it names.

    Args:
        model: a name, for `configs/<name>.json` of the repository, or the path of a file ending in .json. A folder
            stands for the config.json in it, and for its run or its weights.
        overrides: `KEY=VALUE` and `--FLAG=VALUE` texts that replace keys of the file.
        weights: the path of initial weights. What the config.json beside them says of the model may be left out of the
            config, and may not be contradicted. Without this argument, a config that lacks sizes of the model takes
            them from the run at its model_path.
        adapter: the path of adapters for these weights, whose keys likewise need not be in the config.

    Raises:
        ConfigError: the message holds every issue, one a line.
    """
    if model == weights and not os.path.isdir(model):
        raise no_weights(model)
    path = find_model_config(model)
    issues: list[str] = []
    overriding = read_overrides(overrides, issues)
    is_folder = os.path.isdir(model)
    weights = model if weights is None and is_folder and is_huggingface_folder(model) else weights
    keys = _keys_of_folder(Path(model), weights, issues) if is_folder else read_file(path, schema.ALIASES, issues)
    raw = _without_overridden(keys, overriding) | overriding | _named_tasks(keys, overriding)
    if weights is not None:
        raw.setdefault("no_dataset", RawValue("no_dataset", "datasets" not in raw, weights))
    source = _find_model_source(raw) if weights is None else weights
    from_weights = {} if source is None else _raw_of_weights(source)
    from_adapter = {} if adapter is None else _raw_of_adapter(adapter, weights)
    inherited = {key: value for key, value in from_weights.items() if key != KEY_OF_FUNCTIONS}
    inherited |= {} if source is None else _ends_of_weights(source, raw)
    reader = ConfigReader(str(path), inherited | from_adapter | raw, issues=issues)
    reader.check_names(RUN_FIELDS)
    reader.parse(RUN_FIELDS)
    reader.fill_defaults(RUN_FIELDS)
    default_input_fn(reader)
    reader.values.setdefault("name", path.stem)
    _check_against_weights(reader, from_weights | from_adapter)
    reader.cross_check(RUN_CHECKS)
    datasets = load_datasets(reader, path.parent / "dataset_configs")
    check_datasets(reader, datasets)
    raise_issues(issues)
    return _build_run_config(reader.values | {"datasets": datasets} | special_ids(reader, datasets))


def given_keys(model: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the keys that a config file or the overrides set, for a config that `load_config` has accepted."""
    issues: list[str] = []
    given = read_file(find_model_config(model), schema.ALIASES, issues) | read_overrides(overrides, issues)
    return tuple(given)


def find_model_config(model: str) -> Path:
    """Returns the file of a model config, from its path, its folder or its name.

    Raises:
        ConfigError: there is no config of this name.
    """
    if os.path.isdir(model):
        return Path(model, CONFIG_FILE)
    if model.endswith(".json") or (os.sep in model and os.path.exists(model)):  # such as a pipe
        return Path(model)
    if os.sep in model:
        raise ConfigError(f"{model}: there is no such file or folder; check the path{looked_from(model)}")
    path = CONFIGS_DIR / f"{model}.json"
    if not os.path.isfile(path):
        names = sorted(file.stem for file in CONFIGS_DIR.glob("*.json"))
        remedy = did_you_mean(model, names, f"use {', '.join(names)}, or the path of a .json file")
        raise ConfigError(f"{path}: there is no config of this name; {remedy}{looked_from(model)}")
    return path


def override_prediction(config: RunConfig, keys: Mapping[str, Any], place: str) -> PredictionConfig:
    """Replaces settings of prediction, for one prompt of many.

    Args:
        config: the run.
        keys: the settings, by the names of `PROMPT_KEYS` or of their flags.
        place: the file and line that give them, for messages.

    Raises:
        ConfigError: the message holds every issue, one a line.
    """
    issues: list[str] = []
    raw_values = [RawValue(key, value, place) for key, value in keys.items()]
    raw = rename_aliases(raw_values, schema.GENERATION_FLAGS, issues)
    reader = ConfigReader(place, raw, issues=issues)
    fields = {key: RUN_FIELDS[key] for key in schema.PROMPT_KEYS}
    reader.check_names(fields)
    reader.parse(fields)
    changed = {key: RUN_FIELDS[key].default for key in _reset_by(raw)} | reader.values
    reader.values.update(vars(config.prediction) | vars(config.model) | changed)
    reader.cross_check(PREDICTION_CHECKS)
    raise_issues(issues)
    return dataclasses.replace(config.prediction, **changed)


def resolved_json(config: RunConfig) -> str:
    """Writes all settings, defaults filled in and datasets written out, as JSON that loads to an equal config."""
    keys = schema.written_keys(config)
    for group in schema.GROUPS:
        keys |= schema.written_keys(getattr(config, group))
    return json.dumps(keys, indent=4) + "\n"


def _keys_of_folder(folder: Path, weights: str | None, issues: list[str]) -> dict[str, RawValue]:
    """Returns the keys of a run's folder, which may have moved, or those that weights of Hugging Face lack."""
    name = folder.resolve().name
    if weights is not None and is_huggingface_folder(str(folder)):
        keys = {"name": name, "model_path": f"runs/{name}", "train_batch_size": 1, "train_steps": 1}
        return {key: RawValue(key, value, str(folder)) for key, value in keys.items()}
    place = RawValue("model_path", str(folder), str(folder))
    return read_file(folder / CONFIG_FILE, schema.ALIASES, issues) | {"model_path": place}


def _find_model_source(raw: Mapping[str, RawValue]) -> str | None:
    """Returns the run at model_path if the config lacks sizes of the model and there is one, else None."""
    lacks_sizes = any(is_required(field) and key not in raw for key, field in keys_of(schema.ModelConfig).items())
    run = raw["model_path"].value if "model_path" in raw else None
    return run if lacks_sizes and isinstance(run, str) and run and os.path.isfile(config_beside(run)) else None


def _raw_of_weights(weights: str) -> dict[str, RawValue]:
    file = config_beside(weights)
    return {key: RawValue(key, value, file) for key, value in initial_model_keys(weights).items()}


def _raw_of_adapter(adapter: str, weights: str) -> dict[str, RawValue]:
    return {key: RawValue(key, value, adapter) for key, value in adapter_keys(adapter, weights).items()}


def _ends_of_weights(weights: str, raw: Mapping[str, RawValue]) -> dict[str, RawValue]:
    """Returns what ends a text by the weights, unless their tokenizer is not kept; their first is eos by default."""
    ends, file = initial_end_ids(weights), config_beside(weights)
    if not ends or ("keep_tokenizer" in raw and raw["keep_tokenizer"].value is False):
        return {}
    has_eos = "datasets" in raw or tokenizer_beside(weights)
    eos = {} if has_eos else {"eos_id": RawValue("eos_id", ends[0], file)}
    return {"end_ids": RawValue("end_ids", ends, file), **eos}


def _check_against_weights(reader: ConfigReader, from_weights: Mapping[str, RawValue]) -> None:
    """Finds keys that contradict the weights; of their positions the first ones may be used alone."""
    for key, raw in from_weights.items():
        given, trained = reader.values.get(key), RUN_FIELDS[key].metadata["kind"].parse(raw.value)
        is_free = key == "lora_dropout" or (key == "n_ctx" and given is not None and given < trained)
        if key in reader.values and given != trained and not is_free:
            problem = f"the weights were made with {shown(raw.value)} ({raw.file})"
            remedy = f"set {key} to {raw.value}" if key == KEY_OF_FUNCTIONS else f"leave {key} out"
            reader.report(key, ValueIssue(problem, remedy))


def _reset_by(raw: Mapping[str, RawValue]) -> tuple[str, ...]:
    """Returns the keys that these values set back to their defaults: beam search switches sampling off."""
    n_beams = raw["num_beams"].value if "num_beams" in raw else 1
    return schema.SAMPLING_KEYS if isinstance(n_beams, int) and n_beams > 1 else ()


def _without_overridden(raw: Mapping[str, RawValue], overriding: Mapping[str, RawValue]) -> dict[str, RawValue]:
    """Returns the values of a file without those that overrides set back to their defaults."""
    reset = _reset_by(overriding)
    return {key: value for key, value in raw.items() if key not in reset}


def _named_tasks(raw: Mapping[str, RawValue], overriding: Mapping[str, RawValue]) -> dict[str, RawValue]:
    """Returns typed names of evaluation tasks as the tasks that the file describes under these names."""
    typed, written = overriding.get("eval_tasks"), raw.get("eval_tasks")
    listed = typed and (
        [name.strip() for name in typed.value.split(",")] if isinstance(typed.value, str) else typed.value
    )
    if not isinstance(listed, list) or written is None or not isinstance(written.value, list):
        return {}
    described = {_task_name(task["name"]): task for task in written.value if isinstance(task, dict) and "name" in task}
    tasks = [described.get(_task_name(task), task) if isinstance(task, str) else task for task in listed]
    return {"eval_tasks": dataclasses.replace(typed, value=tasks)}


def _task_name(name: Any) -> str:
    return schema.TASK_ALIASES.get(str(name), str(name))


def _build_run_config(values: Mapping[str, Any]) -> RunConfig:
    groups = {name: group(**{key: values[key] for key in keys_of(group)}) for name, group in schema.GROUPS.items()}
    return RunConfig(name=values["name"], model_path=values["model_path"], **groups)
