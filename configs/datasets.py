"""Loads the dataset configs that a model config names, and checks them against it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.cross_checks import DATASET_CHECKS, SPECIAL_ID_CHECKS
from configs.errors import ConfigError, ValueIssue, did_you_mean
from configs.reader import ConfigReader, RawValue, read_file
from configs.schema import (
    DATASET_INERT_KEYS,
    GLOBS_EXAMPLE,
    RANDOM_SAMPLE,
    RANKING,
    TFRECORDS,
    DatasetConfig,
    DatasetEntry,
    DatasetUse,
    Globs,
    keys_of,
)

GPT2_VOCAB = 50257
GPT2_KEYS = {"n_vocab": GPT2_VOCAB, "tokenizer_path": "gpt2", "tokenizer_is_pretrained": True}
GPT2_KEYS |= {"eos_id": GPT2_VOCAB - 1, "padding_id": GPT2_VOCAB}
OBJECTIVE_REMEDY = 'write "objective": "ranking" in the model config and pairs in its dataset configs, or neither'
SHIPPED_DIR = Path(__file__).resolve().parent / "dataset_configs"
DATASET_FIELDS = keys_of(DatasetConfig)


def load_datasets(reader: ConfigReader, directory: Path) -> tuple[DatasetUse, ...]:
    """Returns the datasets of the run that can be loaded, and reports the issues of the others.

    Args:
        reader: of the model config.
        directory: the first place to look for a dataset config; the second is `configs/dataset_configs`.
    """
    uses = []
    for entry in reader.values.get("datasets", ()):
        dataset = _load_dataset(reader, entry, directory)
        if dataset is not None:
            uses.append(DatasetUse(dataset, entry.stitch, entry.datatype, entry.weight))
    return tuple(uses)


def _load_dataset(reader: ConfigReader, entry: DatasetEntry, directory: Path) -> DatasetConfig | None:
    if isinstance(entry.source, str):
        return _load_dataset_by_id(reader, entry.source, directory)
    source = _config_of_globs(entry.source, reader) if isinstance(entry.source, Globs) else entry.source
    if source is None:
        return None
    file = f"{reader.raw['datasets'].file}: dataset {source['id']}"
    raw = {key: RawValue(key, value, file) for key, value in source.items() if key != "id"}
    return _build_dataset(source["id"], ConfigReader(file, raw, issues=reader.issues))


def _config_of_globs(globs: Globs, reader: ConfigReader) -> dict[str, Any] | None:
    """Returns the dataset config that two globs stand for; as in GPT-Neo, a vocabulary of GPT-2's size is GPT-2's."""
    if reader.values.get("n_vocab", GPT2_VOCAB) < GPT2_VOCAB:
        problem = f"names tfrecords without their tokenizer, and n_vocab is less than GPT-2's {GPT2_VOCAB}"
        reader.report("datasets", ValueIssue(problem, "name them and tokenizer_path in a file of dataset_configs/"))
        return None
    stem = os.path.basename(globs.path).partition(".")[0]
    dataset_id = re.sub(r"[^\w-]+", "_", stem).strip("_") or "globs"
    return {"id": dataset_id, "path": globs.path, "eval_path": globs.eval_path, **GPT2_KEYS}


def _load_dataset_by_id(reader: ConfigReader, dataset_id: str, directory: Path) -> DatasetConfig | None:
    directories = list(dict.fromkeys((directory, SHIPPED_DIR)))
    for candidate in (place / f"{dataset_id}.json" for place in directories):
        if os.path.exists(candidate):
            try:
                raw = read_file(candidate, {}, reader.issues)
            except ConfigError as error:
                reader.issues.append(str(error))
                return None
            return _build_dataset(dataset_id, ConfigReader(str(candidate), raw, issues=reader.issues))
    reader.report("datasets", _unknown_dataset(dataset_id, directories))
    return None


def _unknown_dataset(dataset_id: str, directories: Sequence[Path]) -> ValueIssue:
    known = sorted(file.stem for directory in directories for file in directory.glob("*.json"))
    places = " or ".join(os.path.abspath(directory) for directory in directories)
    if dataset_id.endswith(TFRECORDS):
        return ValueIssue(f"holds tfrecords, {dataset_id!r}, in place of a dataset id", GLOBS_EXAMPLE)
    remedy = did_you_mean(dataset_id, known, f"write {dataset_id}.json there")
    return ValueIssue(f"there is no {dataset_id}.json in {places}", remedy)


def _build_dataset(dataset_id: str, reader: ConfigReader) -> DatasetConfig | None:
    """Builds a dataset config, or reports its issues and returns None."""
    known_issues = len(reader.issues)
    reader.check_names(DATASET_FIELDS, DATASET_INERT_KEYS)
    reader.parse(DATASET_FIELDS)
    if reader.values.get("n_vocab") == reader.values.get("eos_id") == GPT2_VOCAB - 1:
        reader.values["n_vocab"] = GPT2_VOCAB  # GPT-Neo's notebook counts one id too few
    reader.fill_defaults(DATASET_FIELDS)
    reader.values.setdefault("cache_dir", f"datasets/{dataset_id}")
    reader.cross_check(DATASET_CHECKS)
    return None if len(reader.issues) > known_issues else DatasetConfig(id=dataset_id, **reader.values)


def default_input_fn(reader: ConfigReader) -> None:
    """Reads documents where the forms of GPT-Neo's page that mean them are used: two globs, or random_sample."""
    entries = reader.raw["datasets"].value if reader.values.get("datasets") else []
    means_documents = (isinstance(entry, list) and (len(entry) == 5 or RANDOM_SAMPLE in entry) for entry in entries)
    if "input_fn" not in reader.raw and any(means_documents):
        reader.values["input_fn"] = "generic_text"


def check_datasets(reader: ConfigReader, uses: Sequence[DatasetUse]) -> None:
    """Reports datasets that do not fit the model config or one another."""
    datasets = [use.dataset for use in uses]
    for dataset in datasets:
        if reader.values.get("n_vocab", dataset.n_vocab) < dataset.n_vocab:
            problem = f"is less than the {dataset.n_vocab} ids of dataset {dataset.id}"
            reader.report("n_vocab", ValueIssue(problem, f"raise it to {dataset.n_vocab} or more"))
    _check_same_tokenizer(reader, datasets)
    _check_objective(reader, datasets)
    for key in ("eos_id", "padding_id"):
        given = {dataset.id: getattr(dataset, key) for dataset in datasets if getattr(dataset, key) is not None}
        if key not in reader.raw and len(set(given.values())) > 1:
            listed = ", ".join(f"{dataset_id} has {token_id}" for dataset_id, token_id in given.items())
            reader.report("datasets", ValueIssue(f"differ in {key}: {listed}", f"give {key} in the model config"))
    reader.cross_check(SPECIAL_ID_CHECKS)


def _check_same_tokenizer(reader: ConfigReader, datasets: Sequence[DatasetConfig]) -> None:
    tokenizers = {dataset.tokenizer_path or f"its own ({dataset.id})" for dataset in datasets}
    if len(tokenizers) > 1:
        problem = f"have different tokenizers: {', '.join(sorted(tokenizers))}"
        reader.report("datasets", ValueIssue(problem, "give all of them the same tokenizer_path"))


def _check_objective(reader: ConfigReader, datasets: Sequence[DatasetConfig]) -> None:
    ranks = reader.values.get("objective") == RANKING
    unfit = [dataset.id for dataset in datasets if bool(dataset.pairs) != ranks]
    if unfit:
        holds = "no pairs" if ranks else "pairs, which only ranking is trained on"
        problem = f"does not fit {', '.join(unfit)}, which holds {holds}"
        reader.report("objective", ValueIssue(problem, OBJECTIVE_REMEDY))


def special_ids(reader: ConfigReader, uses: Sequence[DatasetUse]) -> dict[str, int | None]:
    """Returns eos_id and padding_id of the run, both rows of the token table; None: left to the tokenizer.

    GPT-Neo gives GPT-2's tokenizer a padding id one past the table. Padded positions then hold eos_id, and evaluation
    counts them, since it cannot tell them from the ends of documents.
    """
    ids = {}
    for key in ("eos_id", "padding_id"):
        own = reader.values[key] if key in reader.raw or not uses else None
        given = (token_id for token_id in (own, *(getattr(use.dataset, key) for use in uses)) if token_id is not None)
        ids[key] = next(given, None)
    if ids["padding_id"] == reader.values["n_vocab"]:
        ids["padding_id"] = ids["eos_id"]
    return ids
