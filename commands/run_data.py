"""The datasets of a run, made ready to read, and their batches."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator

from commands.console import say
from configs.errors import ConfigError, DataError
from configs.schema import RunConfig
from data.loading.batch import Batch
from data.preprocessing.prepare import PreparedDataset, prepare_dataset
from data.tfrecord.shards import list_shards
from data.tokenization.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from runtime.cluster.process_group import ProcessGroup
from runtime.run import directory as run_directory

DATA_SECONDS = 300  # that a process may wait for its data while others wait for it


@dataclasses.dataclass(frozen=True)
class RunData:
    """The datasets of a run, ready to read."""

    config: RunConfig
    prepared: tuple[PreparedDataset, ...]

    @staticmethod
    def of(config: RunConfig) -> RunData:
        prepared = tuple(prepare_dataset(use.dataset, config.model.n_ctx, say) for use in config.data.datasets)
        return RunData(config, prepared)

    def train_patterns(self) -> list[str]:
        missing = [
            use.dataset.id
            for use, ready in zip(self.config.data.datasets, self.prepared, strict=True)
            if not ready.train_pattern
        ]
        if missing or not self.prepared:
            named = ", ".join(missing) or "no dataset"
            raise ConfigError(
                f"{named}: nothing to train on; give datasets in the model config, and a path in each dataset config"
            )
        patterns = [ready.train_pattern for ready in self.prepared]
        for pattern in patterns:
            list_shards(pattern)  # so that a glob that matches nothing is found before anything is changed
        return patterns

    def eval_patterns(self) -> list[str | None]:
        return [ready.eval_pattern for ready in self.prepared]

    def has_eval_part(self) -> bool:
        return any(self.eval_patterns())

    def check_same(self, group: ProcessGroup) -> None:
        """Finds processes that read other data, as a copy that is not finished, before they wait for each other."""
        if group.size == 1:
            return
        patterns = [pattern for ready in self.prepared for pattern in (ready.train_pattern, ready.eval_pattern)]
        group.check_same("the data", repr([_counts_of(pattern) for pattern in patterns if pattern]))
        tokenizer = self.tokenizer()
        group.check_same("the tokenizer", (tokenizer and tokenizer.to_json()) or "")

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the datasets share, checked against their configs; None: they name none."""
        if not self.prepared or self.prepared[0].tokenizer_path is None:
            return None
        first = self.prepared[0]
        return _checked(self.config, load_tokenizer(first.tokenizer_path, first.tokenizer_is_pretrained))


def trained_tokenizer(config: RunConfig, init_from: str | None) -> Tokenizer | None:
    """The tokenizer of a trained model: where its run has kept one, nothing of the data need be there any more.

    Args:
        config: of the run.
        init_from: weights of another run, whose tokenizer is not known: then, as without a kept one, that of the
            datasets.
    """
    kept = run_directory.tokenizer_path(config.model_path) if init_from is None else None
    return _checked(config, load_tokenizer(kept)) if kept else RunData.of(config).tokenizer()


def _checked(config: RunConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Checks what the configs say of a tokenizer."""
    for use in config.data.datasets:
        check_special_ids(tokenizer, use.dataset)
    _check_eos(config, tokenizer)
    return tokenizer


def _counts_of(pattern: str) -> list[tuple[str, int]]:
    """Names of the files of a glob, and what each holds; none for a part that is not there, and may not be needed."""
    try:
        return [(posixpath.basename(shard.path), shard.n_examples) for shard in list_shards(pattern)]
    except DataError:
        return []


def _check_eos(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Checks what a model config may say over its datasets' heads."""
    if tokenizer.eos_id not in (None, config.data.eos_id):
        raise ConfigError(
            f"{config.name}: eos_id = {config.data.eos_id}: the tokenizer's <|endoftext|> is {tokenizer.eos_id}; "
            "leave eos_id out of the model config"
        )


def waited_for(group: ProcessGroup, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches, for which a process is given more time than for a step: a disk or a network may be slow for a while."""
    while True:
        with group.timeout(DATA_SECONDS):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
