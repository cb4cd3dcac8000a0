"""What a config leaves to the tokenizer: which one the datasets have, and the ids of its special tokens."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from commands.options import Options
from configs.errors import ConfigError, UserError
from configs.schema import DatasetConfig, RunConfig
from configs.weights import tokenizer_beside
from data.tokenization.tokenizer import Tokenizer, load_tokenizer, with_special_ids
from runtime.run import directory as run_directory

Note = Callable[[str], None]


def with_tokenizer(config: RunConfig, options: Options, note: Note) -> RunConfig:
    """Fills in the tokenizer of datasets that name none, if the weights have one, and eos_id and padding_id.

    Args:
        config: the run.
        options: name the initial weights.
        note: is called with a line for what the config does not say.

    Raises:
        UserError: a dataset names another tokenizer than that of the weights, or a tokenizer cannot be used.
    """
    if options.init_from is not None and config.data.keep_tokenizer:
        config = _with_tokenizer_of_weights(config, options.init_from, note)
    kept = None if options.init_from is not None or options.new else run_directory.tokenizer_path(config.model_path)
    if kept is not None and any(use.dataset.tokenizer_path is None for use in config.data.datasets):
        config = _with_inherited_tokenizer(config, kept)
    if config.data.datasets:
        return _with_ids_of_datasets(config, kept)
    path = kept if options.init_from is None else tokenizer_beside(options.init_from)
    return config if path is None else _with_ids_of(config, load_tokenizer(path))


def _with_datasets(config: RunConfig, change: Callable[[DatasetConfig], DatasetConfig]) -> RunConfig:
    uses = tuple(dataclasses.replace(use, dataset=change(use.dataset)) for use in config.data.datasets)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=uses))


def _with_tokenizer_of_weights(config: RunConfig, weights: str, note: Note) -> RunConfig:
    path = tokenizer_beside(weights)
    if path is None:
        for use in config.data.datasets:
            if use.dataset.tokenizer_path is None:
                note(
                    f"{use.dataset.id}: a tokenizer is trained, as none lies beside {weights}: the ids get other "
                    "meanings; give tokenizer_path to keep those of the weights"
                )
        return config
    tokenizer = load_tokenizer(path)
    if tokenizer.n_vocab > config.model.n_vocab:
        raise ConfigError(
            f"{config.name}: n_vocab = {config.model.n_vocab}: is less than the {tokenizer.n_vocab} ids of the "
            f"tokenizer of the weights, {path}; set keep_tokenizer to false to use another"
        )
    return _with_datasets(config, lambda dataset: _with_tokenizer_at(dataset, path, tokenizer, note))


def _with_tokenizer_at(dataset: DatasetConfig, path: str, tokenizer: Tokenizer, note: Note) -> DatasetConfig:
    if dataset.tokenizer_path is None:
        note(f"{dataset.id}: names no tokenizer, and uses that of the weights, {path} ({tokenizer.n_vocab:,} ids)")
        return _naming(dataset, path, tokenizer)
    difference = load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained).difference(tokenizer)
    if difference:
        raise ConfigError(
            f"{dataset.id}: tokenizer_path = {dataset.tokenizer_path}: is not the tokenizer of the weights, {path}: "
            f"{difference}; leave tokenizer_path out, or set keep_tokenizer to false to train with other ids"
        )
    return dataset


def _naming(dataset: DatasetConfig, path: str, tokenizer: Tokenizer) -> DatasetConfig:
    return dataclasses.replace(dataset, tokenizer_path=path, n_vocab=max(dataset.n_vocab, tokenizer.n_vocab))


def _with_inherited_tokenizer(config: RunConfig, kept: str) -> RunConfig:
    """Names the tokenizer of a run in datasets that had none when it began, but used that of its initial weights."""
    given = set()
    with contextlib.suppress(UserError):  # the settings of the run are checked later
        before = run_directory.kept_config(config.model_path)
        given = {use.dataset.id for use in before.data.datasets if use.dataset.tokenizer_path} if before else given

    def change(dataset: DatasetConfig) -> DatasetConfig:
        is_inherited = dataset.tokenizer_path is None and dataset.id in given
        return _naming(dataset, kept, load_tokenizer(kept)) if is_inherited else dataset

    return _with_datasets(config, change)


def _with_ids_of_datasets(config: RunConfig, kept: str | None) -> RunConfig:
    """Fills in the special ids from the tokenizer that the run keeps, or else from that of each dataset."""
    config = _with_datasets(config, lambda dataset: _with_ids(dataset, kept))
    data, first = config.data, config.data.datasets[0].dataset
    eos_id = first.eos_id if data.eos_id is None else data.eos_id
    return _with_special_ids(config, eos_id, first.padding_id if data.padding_id is None else data.padding_id)


def _with_ids(dataset: DatasetConfig, kept: str | None) -> DatasetConfig:
    if None not in (dataset.eos_id, dataset.padding_id):
        return dataset
    if kept is not None:
        return with_special_ids(dataset, load_tokenizer(kept))
    if dataset.tokenizer_path is None:
        return with_special_ids(dataset, None)
    return with_special_ids(dataset, load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained))


def _with_ids_of(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Fills in the special ids of a run without datasets."""
    return config if tokenizer.eos_id is None else _with_special_ids(config, tokenizer.eos_id, tokenizer.padding_id)


def _with_special_ids(config: RunConfig, eos_id: int, padding_id: int | None) -> RunConfig:
    padding_id = eos_id if padding_id in (None, config.model.n_vocab) else padding_id
    return dataclasses.replace(config, data=dataclasses.replace(config.data, eos_id=eos_id, padding_id=padding_id))
