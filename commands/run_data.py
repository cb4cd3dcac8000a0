"""The datasets of a run, prepared for reading, and its tokenizer."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator

from commands.console import say
from configs.errors import ConfigError, DataError
from configs.schema import RunConfig
from configs.weights import tokenizer_beside
from data.loading.batch import Batch
from data.preprocessing.prepare import PreparedDataset, prepare_dataset
from data.tfrecord.shards import list_shards
from data.tokenization.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from runtime.cluster.process_group import ProcessGroup
from runtime.run import directory as run_directory

DATA_SECONDS = 300  # timeout for reading a batch while other processes wait


@dataclasses.dataclass(frozen=True)
class RunData:
    """The datasets of a run, prepared for reading.

    Attributes:
        config: by which they are read.
        prepared: each of them.
    """

    config: RunConfig
    prepared: tuple[PreparedDataset, ...]

    @staticmethod
    def of(config: RunConfig) -> RunData:
        """Prepares the datasets that are not prepared yet."""
        prepared = tuple(prepare_dataset(use.dataset, config.model.n_ctx, say) for use in config.data.datasets)
        return RunData(config, prepared)

    def train_patterns(self) -> list[str]:
        """Returns a glob of training tfrecords for each dataset.

        Raises:
            UserError: a dataset has no training data.
        """
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
            list_shards(pattern)  # finds a glob without matches before anything is changed
        return patterns

    def eval_patterns(self) -> list[str | None]:
        """Returns a glob of held-out tfrecords for each dataset, None where there is none."""
        return [ready.eval_pattern for ready in self.prepared]

    def has_eval_part(self) -> bool:
        """Returns whether any dataset has held-out data."""
        return any(self.eval_patterns())

    def check_same(self, group: ProcessGroup) -> None:
        """Checks that all processes see the same data, not for example an unfinished copy.

        Raises:
            ClusterError: they do not.
        """
        if group.size == 1:
            return
        patterns = [pattern for ready in self.prepared for pattern in (ready.train_pattern, ready.eval_pattern)]
        group.check_same("the data", repr([_counts_of(pattern) for pattern in patterns if pattern]))
        tokenizer = self.tokenizer()
        group.check_same("the tokenizer", (tokenizer and tokenizer.to_json()) or "")

    def with_eos_of(self, tokenizer: Tokenizer | None) -> RunData:
        """Returns the datasets read with the tokenizer's end of text, if the configs leave `eos_id` out."""
        if tokenizer is None or self.config.data.eos_id is not None:
            return self
        data = dataclasses.replace(self.config.data, eos_id=tokenizer.eos_id)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer that the datasets share, checked against their configs; None if they name none."""
        if not self.prepared or self.prepared[0].tokenizer_path is None:
            return None
        first = self.prepared[0]
        return _checked(self.config, load_tokenizer(first.tokenizer_path, first.tokenizer_is_pretrained))


def trained_tokenizer(config: RunConfig, init_from: str | None) -> Tokenizer | None:
    """Returns the tokenizer of a trained model: the copy in its run directory, so that the data need not exist.

    Args:
        config: the run.
        init_from: other weights, whose tokenizer is returned unless the datasets use their own. Without one, that
            of the datasets is returned, as for a run directory without a copy.
    """
    if init_from is None:
        kept = run_directory.tokenizer_path(config.model_path)
    else:
        kept = tokenizer_beside(init_from) if config.data.keep_tokenizer or not config.data.datasets else None
    return _checked(config, load_tokenizer(kept)) if kept else RunData.of(config).tokenizer()


def _checked(config: RunConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Checks a tokenizer against the configs, and returns it."""
    for use in config.data.datasets:
        check_special_ids(tokenizer, use.dataset)
    if config.data.datasets:
        _check_eos(config, tokenizer)
    return tokenizer


def _counts_of(pattern: str) -> list[tuple[str, int]]:
    """Returns the file names of a glob and their example counts; none for missing data, which may not be needed."""
    try:
        return [(posixpath.basename(shard.path), shard.n_examples) for shard in list_shards(pattern)]
    except DataError:
        return []


def _check_eos(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Checks the eos_id of a model config, which overrides that of its datasets."""
    if tokenizer.contradicts(config.data.eos_id):
        raise ConfigError(
            f"{config.name}: eos_id = {config.data.eos_id}: the tokenizer's <|endoftext|> is {tokenizer.eos_id}; "
            "leave eos_id out of the model config"
        )


def with_data_timeout(group: ProcessGroup, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches with a longer timeout than that of a step: a disk or a network may be slow for a while."""
    while True:
        with group.timeout(DATA_SECONDS):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
