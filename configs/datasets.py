"""Loads the dataset configs that a model config names, and checks them against it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from configs.cross_checks import DATASET_CHECKS, SPECIAL_ID_CHECKS
from configs.errors import ConfigError, ValueIssue, did_you_mean
from configs.reader import ConfigReader, RawValue, read_file
from configs.schema import DATASET_INERT_KEYS, DatasetConfig, DatasetEntry, DatasetUse, keys_of

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
    dataset_id = entry.source["id"]
    file = f"{reader.raw['datasets'].file}: dataset {dataset_id}"
    raw = {key: RawValue(key, value, file) for key, value in entry.source.items() if key != "id"}
    return _build_dataset(dataset_id, ConfigReader(file, raw, issues=reader.issues))


def _load_dataset_by_id(reader: ConfigReader, dataset_id: str, directory: Path) -> DatasetConfig | None:
    directories = list(dict.fromkeys((directory, SHIPPED_DIR)))
    for candidate in (place / f"{dataset_id}.json" for place in directories):
        if os.path.isfile(candidate):
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
    places = " or ".join(str(directory) for directory in directories)
    remedy = did_you_mean(dataset_id, known, f"write {dataset_id}.json there")
    return ValueIssue(f"there is no {dataset_id}.json in {places}", remedy)


def _build_dataset(dataset_id: str, reader: ConfigReader) -> DatasetConfig | None:
    """Builds a dataset config, or reports its issues and returns None."""
    known_issues = len(reader.issues)
    reader.check_names(DATASET_FIELDS, DATASET_INERT_KEYS)
    reader.parse(DATASET_FIELDS)
    reader.fill_defaults(DATASET_FIELDS)
    reader.values.setdefault("cache_dir", f"datasets/{dataset_id}")
    reader.cross_check(DATASET_CHECKS)
    return None if len(reader.issues) > known_issues else DatasetConfig(id=dataset_id, **reader.values)


def check_datasets(reader: ConfigReader, uses: Sequence[DatasetUse]) -> None:
    """Reports datasets that do not fit the model config or one another."""
    datasets = [use.dataset for use in uses]
    for dataset in datasets:
        if reader.values.get("n_vocab", dataset.n_vocab) < dataset.n_vocab:
            problem = f"is less than the {dataset.n_vocab} ids of dataset {dataset.id}"
            reader.report("n_vocab", ValueIssue(problem, f"raise it to {dataset.n_vocab} or more"))
    _check_same_tokenizer(reader, datasets)
    for key in ("eos_id", "padding_id"):
        if key not in reader.raw and len({getattr(dataset, key) for dataset in datasets}) > 1:
            listed = ", ".join(f"{dataset.id} has {getattr(dataset, key)}" for dataset in datasets)
            reader.report("datasets", ValueIssue(f"differ in {key}: {listed}", f"give {key} in the model config"))
    reader.cross_check(SPECIAL_ID_CHECKS)


def _check_same_tokenizer(reader: ConfigReader, datasets: Sequence[DatasetConfig]) -> None:
    tokenizers = {dataset.tokenizer_path or f"its own ({dataset.id})" for dataset in datasets}
    if len(tokenizers) > 1:
        problem = f"have different tokenizers: {', '.join(sorted(tokenizers))}"
        reader.report("datasets", ValueIssue(problem, "give all of them the same tokenizer_path"))


def special_ids(reader: ConfigReader, uses: Sequence[DatasetUse]) -> dict[str, int]:
    """Returns eos_id and padding_id of the run, both rows of the token table.

    GPT-Neo gives GPT-2's tokenizer a padding id one past the table. Padded positions then hold eos_id, and evaluation
    counts them, since it cannot tell them from the ends of documents.
    """
    ids = {key: getattr(uses[0].dataset, key) for key in ("eos_id", "padding_id") if uses}
    ids |= {key: reader.values[key] for key in ("eos_id", "padding_id") if key in reader.raw or not uses}
    if ids["padding_id"] == reader.values["n_vocab"]:
        ids["padding_id"] = ids["eos_id"]
    return ids
