"""Reads config files into typed settings, and writes settings back.

Everything that is wrong with a config, its overrides and its dataset configs is collected and raised together, one line
an issue: `file: key = value: what is wrong; what to do`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from configs import schema
from configs.errors import ConfigError, ValueIssue
from configs.layout import find_layout_issues
from configs.schema import (
    DatasetConfig,
    DatasetEntry,
    DatasetUse,
    PredictionConfig,
    RunConfig,
    is_required,
    keys_of,
)
from configs.weights import config_beside, initial_model_keys

CONFIGS_DIR = Path(__file__).resolve().parent
OVERRIDES_FILE = "--set"
REFERENCE = "docs/configuration.md"

RUN_FIELDS = {name: key for group in (RunConfig, *schema.GROUPS.values()) for name, key in keys_of(group).items()}
DATASET_FIELDS = keys_of(DatasetConfig)
COPIED_DEFAULTS = {"eval_batch_size": "train_batch_size", "lr_decay_end": "train_steps"}
RAW_TEXT_KEYS = ("text_exclude", "eval_fraction", "text_key")
NO_BEAM_KEYS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "entmax_sampling",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
    "never_end",
)
# Of prediction, what one prompt may have otherwise than another.
PROMPT_KEYS = tuple(
    key for key in keys_of(PredictionConfig) if key not in ("predict_steps", "cache_dtype", "remove_partial_sequences")
)
MASKED_ID_KEYS = ("mlm_mask_id", "mlm_cls_token_id", "mlm_mask_ignore_ids", "n_vocab")

KeyedIssues = Iterator[tuple[str, ValueIssue]]
CrossCheck = tuple[tuple[str, ...], Callable[[Mapping[str, Any]], KeyedIssues]]


@dataclass(frozen=True)
class Given:
    """One value as the user wrote it: the key in their spelling, and where it stands."""

    key: str
    value: Any
    file: str


@dataclass(frozen=True)
class Reading:
    """One config on its way to typed values: what was given, what was understood, what is wrong."""

    file: str
    given: Mapping[str, Given]
    values: dict[str, Any] = field(default_factory=dict)
    issues: list[str] = field(default_factory=list)

    def report(self, key: str, issue: ValueIssue) -> None:
        """Notes an issue of a key, with the value and place that the user gave it."""
        given = self.given.get(key)
        place = f"{given.file}: {given.key} = {_shown(given.value)}" if given else f"{self.file}: {key}"
        self.issues.append(f"{place}: {issue}")


def load_config(model: str, overrides: Sequence[str] = (), weights: str | None = None) -> RunConfig:
    """Loads a model config and the dataset configs it names.

    Args:
        model: a name, for `configs/<name>.json` of the repository, or the path of a file ending in .json.
        overrides: `key=value` texts that replace keys of the file; a value is JSON if it parses as JSON, else a string.
        weights: the path of weights to begin with; what the config.json beside them says of the model need not be said
            again, and may not be said otherwise. Without it, a config that leaves out sizes of the model is that of the
            run at its model_path, which once began with weights.

    Raises:
        ConfigError: the message holds every issue, one a line.
    """
    path = _find_model_config(model)
    issues: list[str] = []
    overriding = _read_overrides(overrides, issues)
    given = _left_below(_read_file(path, schema.ALIASES, issues), overriding) | overriding
    source = _source_of_model(given) if weights is None else weights
    of_weights = {} if source is None else _given_by_weights(source)
    reading = Reading(str(path), of_weights | given, issues=issues)
    _check_names(reading, RUN_FIELDS)
    _parse_values(reading, RUN_FIELDS)
    _fill_defaults(reading, RUN_FIELDS)
    reading.values.setdefault("name", path.stem)
    _check_against_weights(reading, of_weights)
    _run_cross_checks(reading, RUN_CHECKS)
    uses = _load_dataset_uses(reading, path.parent / "dataset_configs")
    _check_datasets(reading, uses)
    _raise_issues(reading.issues)
    return _build_run_config(reading.values | {"datasets": uses} | _special_ids(reading, uses))


def override_prediction(config: RunConfig, keys: Mapping[str, Any], place: str) -> PredictionConfig:
    """Replaces settings of prediction, as one prompt of many has its own.

    Args:
        config: the run.
        keys: the settings, by the names of `PROMPT_KEYS` or of their flags.
        place: where they stand, for messages.

    Raises:
        ConfigError: the message holds every issue, one a line.
    """
    issues: list[str] = []
    given = _canonical([Given(key, value, place) for key, value in keys.items()], schema.PREDICTION_FLAGS, issues)
    reading = Reading(place, given, issues=issues)
    fields = {key: RUN_FIELDS[key] for key in PROMPT_KEYS}
    _check_names(reading, fields)
    _parse_values(reading, fields)
    changed = {key: RUN_FIELDS[key].default for key in _overridden_by(given)} | reading.values
    reading.values.update(vars(config.prediction) | vars(config.model) | changed)
    _run_cross_checks(reading, PREDICTION_CHECKS)
    _raise_issues(issues)
    return dataclasses.replace(config.prediction, **changed)


def resolved_json(config: RunConfig) -> str:
    """Writes all settings, defaults filled in and datasets written out, as JSON that loads to an equal config."""
    keys = schema.written_keys(config)
    for group in schema.GROUPS:
        keys |= schema.written_keys(getattr(config, group))
    return json.dumps(keys, indent=4) + "\n"


def _raise_issues(issues: Iterable[str]) -> None:
    lines = list(dict.fromkeys(issues))
    if lines:
        raise ConfigError("\n".join(lines))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]}?" if nearest else otherwise


# Files and overrides to given values.


def _find_model_config(model: str) -> Path:
    if model.endswith(".json"):
        return Path(model)
    path = CONFIGS_DIR / f"{model}.json"
    if not os.path.isfile(path):
        names = sorted(file.stem for file in CONFIGS_DIR.glob("*.json"))
        remedy = _did_you_mean(model, names, f"use {', '.join(names)}, or the path of a .json file")
        raise ConfigError(f"{path}: there is no config of this name; {remedy}")
    return path


def _source_of_model(given: Mapping[str, Given]) -> str | None:
    """The run at model_path, for a config that leaves sizes of the model to it; None: it is complete, or no run."""
    lacks_sizes = any(is_required(field) and key not in given for key, field in keys_of(schema.ModelConfig).items())
    run = given["model_path"].value if "model_path" in given else None
    return run if lacks_sizes and isinstance(run, str) and run and os.path.isfile(config_beside(run)) else None


def _given_by_weights(weights: str) -> dict[str, Given]:
    file = config_beside(weights)
    return {key: Given(key, value, file) for key, value in initial_model_keys(weights).items()}


def _check_against_weights(reading: Reading, of_weights: Mapping[str, Given]) -> None:
    for key, given in of_weights.items():
        if key in reading.values and reading.values[key] != RUN_FIELDS[key].metadata["kind"].parse(given.value):
            problem = f"the weights were made with {_shown(given.value)} ({given.file})"
            reading.report(key, ValueIssue(problem, f"leave {key} out"))


def _read_file(path: Path, aliases: Mapping[str, str], issues: list[str]) -> dict[str, Given]:
    """Reads the top-level keys of a JSON file; a file without any is an error of its own."""
    parsed = _parse_file(path, _read_text(path), issues)
    if not isinstance(parsed, dict):
        raise ConfigError(f'{path}: holds no JSON object; write {{"key": value, ...}}')
    return _canonical([Given(key, value, str(path)) for key, value in parsed.items()], aliases, issues)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path") from None


def _parse_file(path: Path, text: str, issues: list[str]) -> Any:
    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                issues.append(f"{path}: {key} = {_shown(value)}: is given twice; keep one of the two")
            seen[key] = value
        return seen

    try:
        return json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        place = f"{path}: line {error.lineno} column {error.colno}"
        raise ConfigError(f"{place}: is not JSON ({error.msg}); correct the file there") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be parsed ({error}); correct the file") from None


def _canonical(all_given: Iterable[Given], aliases: Mapping[str, str], issues: list[str]) -> dict[str, Given]:
    """Files given values under the names of the schema; a key and its alias may not differ."""
    canonical: dict[str, Given] = {}
    for given in all_given:
        name = aliases.get(given.key, given.key)
        other = canonical.get(name)
        if other and other.key != given.key and other.value != given.value:
            problem = f"is the same key as {other.key}, which is {_shown(other.value)}"
            issues.append(f"{given.file}: {given.key} = {_shown(given.value)}: {problem}; keep one of the two")
        canonical[name] = given
    return canonical


def _read_overrides(overrides: Sequence[str], issues: list[str]) -> dict[str, Given]:
    all_given = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if equals and key.strip():
            all_given.append(Given(key.strip(), _parse_override(text.strip()), OVERRIDES_FILE))
        else:
            issues.append(f"{OVERRIDES_FILE}: {override}: is not a key=value pair; write key=value")
    return _canonical(all_given, schema.ALIASES, issues)


def _overridden_by(given: Mapping[str, Given]) -> tuple[str, ...]:
    """The settings that fall back to their defaults if they are given elsewhere: who asks for a search samples not."""
    n_beams = given["num_beams"].value if "num_beams" in given else 1
    return NO_BEAM_KEYS if isinstance(n_beams, int) and n_beams > 1 else ()


def _left_below(below: Mapping[str, Given], above: Mapping[str, Given]) -> dict[str, Given]:
    """What is still asked for in one place, once another is heard that stands above it."""
    return {key: given for key, given in below.items() if key not in _overridden_by(above)}


def _parse_override(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# Given values to typed values.


def _check_names(reading: Reading, fields: Mapping[str, dataclasses.Field], inert: Iterable[str] = ()) -> None:
    """Reports keys that the schema does not have."""
    known = {*fields, *inert}
    for key, given in reading.given.items():
        if key not in known and (key, given.value) != ("model", "GPT"):
            reading.report(key, _unknown_key(key, known))


def _unknown_key(key: str, known: Iterable[str]) -> ValueIssue:
    if key == "model":
        return ValueIssue("is not a known model", 'write "GPT", or remove the key')
    return ValueIssue("is not a known key", _did_you_mean(key, known, f"remove it; {REFERENCE} lists the keys"))


def _parse_values(reading: Reading, fields: Mapping[str, dataclasses.Field]) -> None:
    for key, given in reading.given.items():
        if key in fields:
            try:
                reading.values[key] = fields[key].metadata["kind"].parse(given.value)
            except ValueIssue as issue:
                reading.report(key, issue)


def _fill_defaults(reading: Reading, fields: Mapping[str, dataclasses.Field]) -> None:
    for key, key_field in fields.items():
        if key in reading.given:
            continue
        if is_required(key_field):
            reading.report(key, ValueIssue("is missing", f"give {key_field.metadata['kind'].description}"))
        elif key_field.default is not MISSING:
            reading.values[key] = key_field.default
    for key, source in COPIED_DEFAULTS.items():
        if key in fields and source in reading.values:
            reading.values[key] = reading.values.get(key) or reading.values[source]


def _run_cross_checks(reading: Reading, checks: Sequence[CrossCheck]) -> None:
    """Runs the checks whose keys were all understood."""
    for keys, find_issues in checks:
        if all(key in reading.values for key in keys):
            for key, issue in find_issues(reading.values):
                reading.report(key, issue)


# What the values of a model config must hold together.


def _find_head_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["n_embd"] % values["n_head"]:
        problem = f"does not divide n_embd = {values['n_embd']}"
        yield "n_head", ValueIssue(problem, "choose n_head and n_embd so that n_embd / n_head is whole")


def _find_layer_issues(values: Mapping[str, Any]) -> KeyedIssues:
    expanded, n_layer = len(values["attention_types"]), values["n_layer"]
    if expanded not in (0, n_layer):
        problem = f"expands to {expanded} layers, but n_layer = {n_layer}"
        yield "attention_types", ValueIssue(problem, f"make it expand to {n_layer}, or set n_layer to {expanded}")


def _find_rotary_issues(values: Mapping[str, Any]) -> KeyedIssues:
    features = values["n_embd"] // values["n_head"]
    if values["rotary_emb"] and features % 2:
        problem = f"needs an even number of features a head; n_embd / n_head = {features}"
        yield "rotary_emb", ValueIssue(problem, "change n_head or n_embd, or set it to false")


def _find_axial_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["axial_pos_emb"] is None:
        return
    first, second = values["axial_pos_emb"]
    if first * second != values["n_ctx"]:
        problem = f"multiplies to {first * second}, but n_ctx = {values['n_ctx']}"
        yield "axial_pos_emb", ValueIssue(problem, "give two sizes whose product is n_ctx")
    if values["rotary_emb"]:
        yield "axial_pos_emb", ValueIssue("takes the place that rotary_emb takes too", "keep one of the two")


def _find_norm_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["scalenorm"] and values["rezero"]:
        yield "scalenorm", ValueIssue("changes norms that rezero takes away", "keep one of the two")


def _find_moe_issues(values: Mapping[str, Any]) -> KeyedIssues:
    layers, n_layer = values["moe_layers"], values["n_layer"]
    if layers and max(layers) >= n_layer:
        problem = f"names layer {max(layers)}, but the last of {n_layer} layers is {n_layer - 1}"
        yield "moe_layers", ValueIssue(problem, "count layers from 0")
    if len(set(layers)) < len(layers):
        yield "moe_layers", ValueIssue("names a layer twice", "name each once")


def _find_memory_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["num_mem_kv"] and values["attention_types"] and "global" not in values["attention_types"]:
        problem = "acts in global layers, and attention_types has none"
        yield "num_mem_kv", ValueIssue(problem, "set it to 0, or give a global layer")


def _find_masked_id_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["mlm_training"]:
        return
    mask_id, cls_id, ignored, n_vocab = (values[key] for key in MASKED_ID_KEYS)
    if mask_id is None:
        yield "mlm_mask_id", ValueIssue("is missing", "give the id to write in place of masked tokens")
    for key, token_id in (("mlm_mask_id", mask_id), ("mlm_cls_token_id", cls_id)):
        if token_id is not None and token_id >= n_vocab:
            yield key, ValueIssue(f"is no id below n_vocab = {n_vocab}", "give the id of the tokenizer")
    if max(ignored, default=0) >= n_vocab:
        problem = f"holds {max(ignored)}, which is no id below n_vocab = {n_vocab}"
        yield "mlm_mask_ignore_ids", ValueIssue(problem, "give ids of the tokenizer")
    if cls_id is not None and cls_id == mask_id:
        yield "mlm_cls_token_id", ValueIssue("is mlm_mask_id too", "give another id")
    if cls_id is not None and values["n_ctx"] == 1:
        yield "mlm_cls_token_id", ValueIssue("fills the whole context of n_ctx = 1", "raise n_ctx, or leave it out")
    if len({mask_id, cls_id, *ignored} - {None}) + 1 >= n_vocab:  # one more may be the id of padding
        yield "mlm_mask_ignore_ids", ValueIssue("leaves no id to be masked", "ignore fewer")


def _find_masked_share_issues(values: Mapping[str, Any]) -> KeyedIssues:
    same, random = values["mlm_same_token_prob"], values["mlm_random_token_prob"]
    if values["mlm_training"] and same + random > 1:
        problem = f"and mlm_same_token_prob = {same} make more than all masked tokens"
        yield "mlm_random_token_prob", ValueIssue(problem, "lower one, to a sum of at most 1")


def _find_masked_text_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["mlm_training"] and values["predict_steps"]:
        yield "predict_steps", ValueIssue("asks for samples, but a masked model writes no text", "set it to 0")


def _find_top_k_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["top_k"] > values["n_vocab"]:
        yield "top_k", ValueIssue(f"is more than n_vocab = {values['n_vocab']}", "lower it; 0 turns it off")


def _find_beam_issues(values: Mapping[str, Any]) -> KeyedIssues:
    n_beams = values["num_beams"]
    if n_beams == 1:
        return
    for key in NO_BEAM_KEYS:
        if values[key] not in (0, RUN_FIELDS[key].default):  # a temperature of 0 samples nothing either
            yield (
                key,
                ValueIssue(f"acts in sampling, and num_beams = {n_beams} samples nothing", "leave one of them out"),
            )
    if values["predict_batch_size"] > n_beams:
        yield "predict_batch_size", ValueIssue(f"is more than num_beams = {n_beams}", "lower it, or raise num_beams")


def _find_missing_datasets(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["datasets"] and not values["no_dataset"]:
        yield "datasets", ValueIssue("names no dataset", 'give ids, such as ["pile"], or set no_dataset to true')


def _find_mesh_issues(values: Mapping[str, Any]) -> KeyedIssues:
    for issue in find_layout_issues(values["mesh_shape"], values["layout"], dict(_dimension_sizes(values))):
        yield "layout", issue


def _dimension_sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yields each dimension whose size is known, with the name of that size in the config."""
    sources = {
        "sequence": "n_ctx",
        "memory_length": "n_ctx",
        "embed_sequence": "n_ctx",
        "embd": "n_embd",
        "heads": "n_head",
        "vocab": "n_vocab",
    }
    for dimension, key in sources.items():
        if key in values:
            yield dimension, (key, values[key])
    if "n_embd" in values:
        yield "intermediate_expanded", ("4 n_embd", 4 * values["n_embd"])
    if values.get("moe_layers") and "moe_params" in values:
        yield "experts", ("moe_num_experts", values["moe_params"].moe_num_experts)
        yield "expert_hidden", ("moe_hidden_size", values["moe_params"].moe_hidden_size)


PREDICTION_CHECKS: tuple[CrossCheck, ...] = (
    (("top_k", "n_vocab"), _find_top_k_issues),
    (("num_beams", "predict_batch_size", *NO_BEAM_KEYS), _find_beam_issues),
)
RUN_CHECKS: tuple[CrossCheck, ...] = (
    (("n_head", "n_embd"), _find_head_issues),
    (("attention_types", "n_layer"), _find_layer_issues),
    (("n_head", "n_embd", "rotary_emb"), _find_rotary_issues),
    (("axial_pos_emb", "n_ctx", "rotary_emb"), _find_axial_issues),
    (("scalenorm", "rezero"), _find_norm_issues),
    (("moe_layers", "n_layer"), _find_moe_issues),
    (("num_mem_kv", "attention_types"), _find_memory_issues),
    (("mlm_training", "n_ctx", *MASKED_ID_KEYS), _find_masked_id_issues),
    (("mlm_training", "mlm_same_token_prob", "mlm_random_token_prob"), _find_masked_share_issues),
    (("mlm_training", "predict_steps"), _find_masked_text_issues),
    *PREDICTION_CHECKS,
    (("datasets", "no_dataset"), _find_missing_datasets),
    (("mesh_shape", "layout"), _find_mesh_issues),
)

# Dataset configs.


def _find_source_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["path"] and not values["text"]:
        yield "path", ValueIssue("names no data", "give path, the glob of tfrecords, or text, the raw text")
    if values["path"] and values["text"]:
        yield "path", ValueIssue("names tfrecords, but text names raw text", "keep one of the two")
    if values["eval_path"] and values["text"]:
        yield "eval_path", ValueIssue("acts with path only", "remove it; eval_fraction holds out documents of text")


def _find_tokenizer_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["path"] and not values["tokenizer_path"]:
        yield "tokenizer_path", ValueIssue("is missing", "give the tokenizer that made the tfrecords")
    if values["tokenizer_is_pretrained"] and not values["tokenizer_path"]:
        yield "tokenizer_is_pretrained", ValueIssue("needs tokenizer_path", "give its name, such as gpt2")


def _find_idle_text_issues(values: Mapping[str, Any]) -> KeyedIssues:
    for key in RAW_TEXT_KEYS:
        if not values["text"] and values.get(key, DATASET_FIELDS[key].default) != DATASET_FIELDS[key].default:
            yield key, ValueIssue("acts with raw text only", "remove it, or give text")


def _find_eos_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["eos_id"] >= values["n_vocab"]:
        yield "eos_id", ValueIssue(f"is no id below n_vocab = {values['n_vocab']}", "give the id of the tokenizer")


def _find_padding_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["padding_id"] > values["n_vocab"]:
        problem = f"is no id up to n_vocab = {values['n_vocab']}"
        yield "padding_id", ValueIssue(problem, "give the id of the tokenizer")


SPECIAL_ID_CHECKS: tuple[CrossCheck, ...] = (
    (("eos_id", "n_vocab"), _find_eos_issues),
    (("padding_id", "n_vocab"), _find_padding_issues),
)

DATASET_CHECKS: tuple[CrossCheck, ...] = (
    (("path", "text", "eval_path"), _find_source_issues),
    (("path", "tokenizer_path", "tokenizer_is_pretrained"), _find_tokenizer_issues),
    (("text",), _find_idle_text_issues),
    *SPECIAL_ID_CHECKS,
)


def _load_dataset_uses(reading: Reading, directory: Path) -> tuple[DatasetUse, ...]:
    """Returns the datasets of the run that could be read; the issues of the others are noted."""
    uses = []
    for entry in reading.values.get("datasets", ()):
        dataset = _load_dataset(reading, entry, directory)
        if dataset is not None:
            uses.append(DatasetUse(dataset, entry.stitch, entry.datatype, entry.weight))
    return tuple(uses)


def _load_dataset(reading: Reading, entry: DatasetEntry, directory: Path) -> DatasetConfig | None:
    if isinstance(entry.source, str):
        return _load_dataset_by_id(reading, entry.source, directory)
    dataset_id = entry.source["id"]
    file = f"{reading.given['datasets'].file}: dataset {dataset_id}"
    given = {key: Given(key, value, file) for key, value in entry.source.items() if key != "id"}
    return _build_dataset(dataset_id, Reading(file, given, issues=reading.issues))


def _load_dataset_by_id(reading: Reading, dataset_id: str, directory: Path) -> DatasetConfig | None:
    directories = list(dict.fromkeys((directory, CONFIGS_DIR / "dataset_configs")))
    for candidate in (place / f"{dataset_id}.json" for place in directories):
        if os.path.isfile(candidate):
            try:
                given = _read_file(candidate, {}, reading.issues)
            except ConfigError as error:
                reading.issues.append(str(error))
                return None
            return _build_dataset(dataset_id, Reading(str(candidate), given, issues=reading.issues))
    reading.report("datasets", _unknown_dataset(dataset_id, directories))
    return None


def _unknown_dataset(dataset_id: str, directories: Sequence[Path]) -> ValueIssue:
    known = sorted(file.stem for directory in directories for file in directory.glob("*.json"))
    places = " or ".join(str(directory) for directory in directories)
    remedy = _did_you_mean(dataset_id, known, f"write {dataset_id}.json there")
    return ValueIssue(f"there is no {dataset_id}.json in {places}", remedy)


def _build_dataset(dataset_id: str, reading: Reading) -> DatasetConfig | None:
    """Builds a dataset config, or notes its issues and returns None."""
    known_issues = len(reading.issues)
    _check_names(reading, DATASET_FIELDS, schema.DATASET_INERT_KEYS)
    _parse_values(reading, DATASET_FIELDS)
    _fill_defaults(reading, DATASET_FIELDS)
    reading.values.setdefault("cache_dir", f"datasets/{dataset_id}")
    _run_cross_checks(reading, DATASET_CHECKS)
    return None if len(reading.issues) > known_issues else DatasetConfig(id=dataset_id, **reading.values)


# A model config and its datasets.


def _check_datasets(reading: Reading, uses: Sequence[DatasetUse]) -> None:
    datasets = [use.dataset for use in uses]
    for dataset in datasets:
        if reading.values.get("n_vocab", dataset.n_vocab) < dataset.n_vocab:
            problem = f"is less than the {dataset.n_vocab} ids of dataset {dataset.id}"
            reading.report("n_vocab", ValueIssue(problem, f"raise it to {dataset.n_vocab} or more"))
    _check_same_tokenizer(reading, datasets)
    for key in ("eos_id", "padding_id"):
        if key not in reading.given and len({getattr(dataset, key) for dataset in datasets}) > 1:
            listed = ", ".join(f"{dataset.id} has {getattr(dataset, key)}" for dataset in datasets)
            reading.report("datasets", ValueIssue(f"differ in {key}: {listed}", f"give {key} in the model config"))
    _run_cross_checks(reading, SPECIAL_ID_CHECKS)


def _check_same_tokenizer(reading: Reading, datasets: Sequence[DatasetConfig]) -> None:
    tokenizers = {dataset.tokenizer_path or f"its own ({dataset.id})" for dataset in datasets}
    if len(tokenizers) > 1:
        problem = f"have different tokenizers: {', '.join(sorted(tokenizers))}"
        reading.report("datasets", ValueIssue(problem, "give all of them the same tokenizer_path"))


def _special_ids(reading: Reading, uses: Sequence[DatasetUse]) -> dict[str, int]:
    """Returns eos_id and padding_id of the run, both rows of the token table.

    GPT-2's tokenizer in GPT-Neo has its padding id one past the table. Padded positions hold eos_id then; evaluation
    counts them, for it cannot tell them from the ends of documents.
    """
    ids = {key: getattr(uses[0].dataset, key) for key in ("eos_id", "padding_id") if uses}
    ids |= {key: reading.values[key] for key in ("eos_id", "padding_id") if key in reading.given or not uses}
    if ids["padding_id"] == reading.values["n_vocab"]:
        ids["padding_id"] = ids["eos_id"]
    return ids


def _build_run_config(values: Mapping[str, Any]) -> RunConfig:
    groups = {name: group(**{key: values[key] for key in keys_of(group)}) for name, group in schema.GROUPS.items()}
    return RunConfig(name=values["name"], model_path=values["model_path"], **groups)
