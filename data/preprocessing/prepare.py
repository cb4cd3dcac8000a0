"""Preparing the raw text or conversations of a dataset config: its tokenizer and its tfrecords of both splits.

They are kept under the dataset's `cache_dir`, in a directory named by a fingerprint of the data and the settings. Such
a directory is complete, because it is made under another name; one that a power loss or a full disk has damaged is made
again.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import itertools
import json
import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from configs.errors import DataError
from configs.schema import DatasetConfig
from data.preprocessing.manifest import Split, read_json
from data.preprocessing.packing import ShardLayout
from data.preprocessing.pipeline import tokenizer_sha256, write_splits
from data.preprocessing.raw_sources import RawSource, raw_source
from data.preprocessing.resume import Fingerprint, ResumeFolder, remove_start, source_states
from data.preprocessing.splits import EVAL, TRAIN, DocumentOptions
from data.text.deduplication import digest_fraction
from data.text.documents import explain, identity_digest
from data.text.files import ReadingNotes, SourceFile, find_files
from data.tfrecord.shards import count_in_name
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer, check_special_ids, load_tokenizer, with_special_ids
from meshtf import tf
from storage.files import flush_to_disk, is_local, write_text, writing_to
from storage.locks import is_locked, locked

LAYOUT_VERSION = 2  # must change whenever what is written changes
EARLIER_LAYOUTS = (1,)  # their caches are used, so that no run goes on with other data than it began with
EXAMPLES_PER_FILE = 20_000
SHUFFLE_TOKENS = 1 << 24
MANIFEST = "manifest.json"
PYTHON_STDLIB = "{python_stdlib}"
NOT_THE_STDLIB = ("site-packages/*", "*/site-packages/*", "dist-packages/*", "*/dist-packages/*")

Log = Callable[[str], None]


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset as the input pipelines take it.

    Attributes:
        train_pattern: glob of the tfrecords to train on; None if the dataset has none.
        eval_pattern: glob of the tfrecords to evaluate on; None if there are none.
        tokenizer_path: a path or name for `load_tokenizer`; None if the dataset names none.
        tokenizer_is_pretrained: whether tokenizer_path may be a Hugging Face name.
    """

    train_pattern: str | None
    eval_pattern: str | None
    tokenizer_path: str | None
    tokenizer_is_pretrained: bool


def prepare_dataset(dataset: DatasetConfig, n_ctx: int, log: Log = print) -> PreparedDataset:
    """Returns the tfrecords and the tokenizer of a dataset; makes those of raw data unless they are in the cache.

    Args:
        dataset: a dataset with `text`, `dialogue` or `pairs` for raw data, or with `path`, which is returned as it is.
        n_ctx: tokens of context; an example has one more.
        log: is called with a line for each step, or with one that nothing had to be done.

    Raises:
        DataError: the raw data, its tokenizer or the cache cannot be used.
        ConfigError: n_vocab, eos_id or padding_id disagree with the tokenizer.
    """
    if not dataset.text and not dataset.dialogue and not dataset.pairs:
        return PreparedDataset(
            dataset.path or None, dataset.eval_path or None, dataset.tokenizer_path, dataset.tokenizer_is_pretrained
        )
    if "/" in dataset.id:
        raise DataError(f"{dataset.id}: cannot begin a file name; name the dataset config without a slash")
    notes, tokenizer = ReadingNotes(), _given_tokenizer(dataset)
    source = raw_source(with_special_ids(dataset, tokenizer), tokenizer)
    if not is_local(dataset.cache_dir):
        raise DataError(
            f"{dataset.id}: cache_dir = {dataset.cache_dir}: is not a local folder, which preparing {source.noun} "
            f"needs; give one, or write tfrecords into the bucket with {source.script} --output_dir, and name them "
            "in path"
        )
    preparation = _Preparation(source, n_ctx, _find_files(source, notes), log)
    preparation = _trained_here(preparation) or preparation
    directory = preparation.finished
    if directory:
        log(f"{dataset.id}: {preparation.described}")
    else:
        for line in notes.lines():
            log(f"{dataset.id}: {line}")
        directory = _make(preparation)
    pattern = f"{glob.escape(directory)}/{{}}/*.tfrecords"
    return PreparedDataset(
        train_pattern=pattern.format(TRAIN),
        eval_pattern=pattern.format(EVAL) if dataset.eval_fraction else None,
        tokenizer_path=dataset.tokenizer_path or f"{directory}/{FILE_NAME}",
        tokenizer_is_pretrained=dataset.tokenizer_is_pretrained,
    )


def _find_files(source: RawSource, notes: ReadingNotes) -> list[SourceFile]:
    dataset, stdlib = source.dataset, sysconfig.get_path("stdlib")
    files = []
    for path in source.paths:
        exclude = (*dataset.text_exclude, *(NOT_THE_STDLIB if PYTHON_STDLIB in path else ()))
        path = path.replace(PYTHON_STDLIB, stdlib)
        files += find_files([path], exclude, source.suffixes, dataset.on_bad_file, notes)
    return list({file.path: file for file in files}.values())


def _given_tokenizer(dataset: DatasetConfig) -> Tokenizer | None:
    if dataset.tokenizer_path is None:
        return None
    return load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained)


def _trained_here(preparation: _Preparation) -> _Preparation | None:
    """Returns the finished preparation whose own tokenizer is the given one, as with weights of a run on this text."""
    trained = replace(preparation, source=replace(preparation.source, given_tokenizer=None))
    path, given = f"{trained.finished}/{FILE_NAME}", preparation.given_tokenizer
    if given is None or not trained.finished:
        return None
    return trained if load_tokenizer(path).to_json() == given.to_json() else None


def _make(preparation: _Preparation) -> str:
    """Prepares the data unless another process does; returns the directory."""
    dataset, directory, log = preparation.dataset, preparation.directory, preparation.log
    lock = f"{dataset.cache_dir}/.lock"
    if is_locked(lock):
        log(f"{dataset.cache_dir}: waiting for another process that prepares the same data")
    with locked(lock, lock, "", wait_seconds=math.inf):
        if finished := replace(preparation).finished:  # it looks again
            log(f"{dataset.id}: {finished} was made by another process meanwhile")
        elif not preparation.restore():
            log(f"{dataset.id}: preparing {len(preparation.files):,} files of {preparation.source.noun} in {directory}")
            unfinished = f"{directory}.partial"
            with writing_to(unfinished):
                os.makedirs(unfinished, exist_ok=True)
                preparation.write(unfinished)
                _replace(directory, unfinished)
    return replace(preparation).finished or directory


def _replace(directory: str, finished: str) -> None:
    """Renames a finished folder; a damaged one that stands in its place is removed once it is there."""
    damaged = f"{directory}.damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    if os.path.isdir(directory):
        os.rename(directory, damaged)
    os.rename(finished, directory)
    flush_to_disk(os.path.dirname(directory))
    shutil.rmtree(damaged, ignore_errors=True)


def _problem_of(path: str, n_bytes: int | None = None) -> str | None:
    """Returns what a power loss has done to a file; None if there is no sign of it.

    Args:
        path: the file.
        n_bytes: its size when it was written; None: unknown.
    """
    if not os.path.isfile(path):
        return f"{path} is missing"
    size = os.path.getsize(path)
    if not size:
        return f"{path} is empty"
    return None if n_bytes in (None, size) else f"{path} has {size:,} bytes in place of {n_bytes:,}"


def _problem_of_tokenizer(path: str) -> str | None:
    problem = _problem_of(path)
    if problem or not os.access(path, os.R_OK):
        return problem
    try:
        load_tokenizer(path)
    except DataError:
        return f"{path} is damaged"
    return None


def _read_manifest(directory: str) -> dict[str, Any] | None:
    try:
        values = read_json(f"{directory}/{MANIFEST}")
    except (tf.errors.OpError, ValueError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get(TRAIN), dict) else None


def _problems_of_shards(directory: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with tfrecords; manifests of earlier versions hold only their number of examples."""
    sizes = manifest.get("tfrecord_bytes", {})
    for split in manifest.keys() & {TRAIN, EVAL}:
        found = sorted(glob.glob(f"{glob.escape(directory)}/{split}/*.tfrecords"))
        names = {os.path.relpath(path, directory) for path in found}
        names |= {name for name in sizes if name.startswith(f"{split}/")}
        problems = (_problem_of(f"{directory}/{name}", sizes.get(name)) for name in sorted(names))
        yield from (problem for problem in problems if problem)
        n_examples = sum(map(count_in_name, found))
        if n_examples != manifest[split].get("examples", n_examples):
            yield f"{directory}/{split} has {n_examples:,} examples in place of {manifest[split]['examples']:,}"


@dataclass(frozen=True)
class _Preparation:
    """What a cache directory is made from."""

    source: RawSource
    n_ctx: int
    files: list[SourceFile]
    log: Log

    @property
    def dataset(self) -> DatasetConfig:
        """The dataset config."""
        return self.source.dataset

    @property
    def given_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that it names; None: one is trained."""
        return self.source.given_tokenizer

    @property
    def example_tokens(self) -> int:
        """Ids of an example."""
        return self.n_ctx + 1

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The settings and the source files."""
        dataset = self.dataset
        settings = {
            "layout_version": LAYOUT_VERSION,
            "n_ctx": self.n_ctx,
            "n_vocab": dataset.n_vocab,
            "special_ids": [dataset.eos_id, dataset.padding_id],
            "eval_fraction": dataset.eval_fraction,
        }
        return Fingerprint(settings | self.source.settings(), source_states(self.files))

    @cached_property
    def directory(self) -> str:
        """The directory of this data and these settings."""
        return self._directory(LAYOUT_VERSION)

    def _earlier_too(self) -> list[str]:
        """Returns the directories of this data and these settings that are there, whole or not."""
        return [path for path in map(self._directory, (LAYOUT_VERSION, *EARLIER_LAYOUTS)) if os.path.isdir(path)]

    @cached_property
    def finished(self) -> str | None:
        """The directory that holds them, whole; None: they are not prepared yet."""
        return next((path for path in self._earlier_too() if not self._damage(path)), None)

    def _damage(self, directory: str) -> str | None:
        """Returns what is wrong with a directory that was finished; None: nothing."""
        manifest = _read_manifest(directory)
        if manifest is None:
            return _problem_of(f"{directory}/{MANIFEST}") or f"{directory}/{MANIFEST} is damaged"
        tokenizer = None if self.given_tokenizer else _problem_of_tokenizer(f"{directory}/{FILE_NAME}")
        return next(_problems_of_shards(directory, manifest), tokenizer)

    def restore(self) -> bool:
        """Says what is damaged, and trains the tokenizer again where nothing else is; returns whether all is whole."""
        for directory in self._earlier_too():
            problem = self._damage(directory)
            self._say(f"{problem}, as after a power loss")
            if problem.startswith(f"{directory}/{FILE_NAME}") and self._restore_tokenizer(directory):
                return True
        return False

    def _restore_tokenizer(self, directory: str) -> bool:
        """Trains the tokenizer again; writes it and returns True if it is the one by which the tfrecords were made."""
        tokenizer = self._train_tokenizer(self._options())
        is_same = tokenizer_sha256(tokenizer) == _read_manifest(directory).get("tokenizer_sha256")
        if is_same:
            save_tokenizer(tokenizer, f"{directory}/{FILE_NAME}")
        self._say("it is the tokenizer of the tfrecords, which stay" if is_same else "it is not that of the tfrecords")
        return is_same

    @property
    def described(self) -> str:
        """What is said of a finished directory."""
        hint = (
            ""
            if self.finished == self.directory
            else "; an earlier version prepared it, delete it to read the text anew"
        )
        return f"{self.finished} is up to date{hint}"

    def _directory(self, layout_version: int) -> str:
        fingerprint = self.fingerprint
        identity = {**fingerprint.settings, "layout_version": layout_version, "files": fingerprint.input}
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        return f"{self.dataset.cache_dir}/n_ctx_{self.n_ctx}-{digest}"

    def write(self, directory: str) -> None:
        """Writes everything, the manifest last."""
        dataset, path = self.dataset, f"{directory}/{FILE_NAME}"
        if not self.given_tokenizer and _problem_of_tokenizer(path):
            remove_start(directory)  # what an interrupted run has finished might belong to another tokenizer
        folder = ResumeFolder(directory, self.fingerprint, self._say)
        options = self._options()
        tokenizer = self.given_tokenizer or self._own_tokenizer(options, path)
        layouts = self._layouts(tokenizer)
        for split in layouts:
            os.makedirs(f"{directory}/{split}", exist_ok=True)
        encoder = self.source.encoder(tokenizer, self.example_tokens)
        splits = write_splits(self.files, options, encoder, layouts, folder, log=self._say)
        for name, split in splits.items():
            self._report(name, split)
        manifest = {
            "dataset": dataset.id,
            "n_ctx": self.n_ctx,
            "files": len(self.files),
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            "tfrecord_bytes": {file.name: file.bytes for split in splits.values() for file in split.files},
            **{name: asdict(split.stats) for name, split in splits.items()},
        }
        write_text(f"{directory}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
        folder.remove_records()

    def _say(self, line: str) -> None:
        self.log(f"{self.dataset.id}: {line}")

    def _options(self) -> DocumentOptions:
        """Returns how documents are read and split: at least one is held out if any is to be, or the end of one."""
        options = DocumentOptions(self.source.text_format(), split_digest=identity_digest)
        if not self.dataset.eval_fraction:
            return options
        options = replace(options, eval_fraction=self.dataset.eval_fraction)
        options = self.source.hold_out_end(options, self.files, self._say)
        return options if options.end_fraction else replace(options, eval_fraction=self._held_out_bound(options))

    def _held_out_bound(self, options: DocumentOptions) -> float:
        """Returns the bound below which documents are held out."""
        fraction, problems = self.dataset.eval_fraction, []
        lowest = heapq.nsmallest(2, self._fractions(options, problems))
        if len(lowest) < 2:
            left_out = f" (left out: {problems[0]})" if problems else ""
            raise DataError(
                f"{self.dataset.id}: the data is {len(lowest)} {self.source.unit}(s){left_out}, and one must be held "
                f"out; {self._remedy}"
            )
        return fraction if lowest[0] < fraction else sum(lowest) / 2

    def _fractions(self, options: DocumentOptions, problems: list[str]) -> Iterator[float]:
        for document, _ in itertools.chain.from_iterable(map(options.read, self.files)):
            if document.text or document.long_text:
                yield digest_fraction(identity_digest(document))
            elif document.problem:
                problems.append(explain(document))

    def _own_tokenizer(self, options: DocumentOptions, path: str) -> Tokenizer:
        """Returns the tokenizer that an interrupted run has trained, or that of a damaged directory, or trains one."""
        if not _problem_of_tokenizer(path):
            return load_tokenizer(path)
        kept = f"{self.directory}/{FILE_NAME}"
        tokenizer = self._train_tokenizer(options) if _problem_of_tokenizer(kept) else load_tokenizer(kept)
        save_tokenizer(tokenizer, path)
        return tokenizer

    def _train_tokenizer(self, options: DocumentOptions) -> Tokenizer:
        documents = itertools.chain.from_iterable(map(options.read, self.files))
        of_documents = (self.source.training_texts(document) for document, split in documents if split == TRAIN)
        texts, more = itertools.chain.from_iterable(of_documents), self.source.special_tokens
        try:
            tokenizer = train_byte_level_bpe(texts, self.dataset.n_vocab, log=self._say, special_tokens=more)
        except DataError as error:
            raise DataError(f"{self.dataset.id}: {error}") from error
        check_special_ids(tokenizer, self.dataset)
        self.log(f"{self.dataset.id}: trained a byte-level BPE tokenizer of {tokenizer.n_vocab:,} ids")
        return tokenizer

    def _layouts(self, tokenizer: Tokenizer) -> Mapping[str, ShardLayout]:
        dataset, example_tokens = self.dataset, self.example_tokens
        train = ShardLayout(
            prefix=f"{TRAIN}/{dataset.id}",
            example_tokens=example_tokens,
            examples_per_file=EXAMPLES_PER_FILE,
            separator=dataset.eos_id,
            padding=dataset.padding_id if dataset.padding_id < tokenizer.n_vocab else dataset.eos_id,
            shuffle_examples=max(1, SHUFFLE_TOKENS // example_tokens),
            conversations=self.source.packing,
        )
        if not dataset.eval_fraction:
            return {TRAIN: train}
        return {TRAIN: train, EVAL: replace(train, prefix=f"{EVAL}/{dataset.id}", shuffle_examples=0)}

    def _report(self, name: str, split: Split) -> None:
        stats = split.stats
        if not split.files:
            reason = f" ({stats.problems[0]})" if stats.problems else ""
            named = f"no {self.source.usable} is left for {name}"
            raise DataError(f"{self.dataset.id}: {named}{reason}; {self._remedy}")
        for problem in stats.problems:
            self._say(f"left out {problem}")
        for line in self.source.describe(stats, self.example_tokens):
            self._say(f"{name}: {line}")

    @property
    def _remedy(self) -> str:
        return f"add {self.source.unit}s, change eval_fraction, or set eval_fraction to 0 to hold out nothing"
