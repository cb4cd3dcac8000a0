"""Preparing the raw text of a dataset config: its tokenizer, and its tfrecords to train on and to evaluate on.

They are kept under the dataset's `cache_dir`, in a directory named by a fingerprint of the text and the settings. Such
a directory is always complete, because it is made under another name.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import itertools
import json
import math
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from configs.errors import DataError
from configs.schema import DatasetConfig
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.manifest import Split
from data.preprocessing.packing import ShardLayout
from data.preprocessing.pipeline import tokenizer_sha256, write_splits
from data.preprocessing.resume import Fingerprint, ResumeFolder, source_states
from data.preprocessing.settings import marker_of
from data.preprocessing.splits import EVAL, TRAIN, DocumentOptions, hold_out_end
from data.text.deduplication import digest_fraction
from data.text.documents import TextFormat, explain, identity_digest
from data.text.files import ReadingNotes, SourceFile, find_files
from data.tokenization.bpe_training import FILE_NAME, cut_text, save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer, check_special_ids, load_tokenizer, with_special_ids
from storage.files import is_local, write_text, writing_to
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
    """Returns the tfrecords and the tokenizer of a dataset; makes those of raw text unless they are in the cache.

    Args:
        dataset: a dataset with `text` for raw text, or with `path`, which is returned as it is.
        n_ctx: tokens of context; an example has one more.
        log: is called with a line for each step, or with one that nothing had to be done.

    Raises:
        DataError: the raw text, its tokenizer or the cache cannot be used.
        ConfigError: n_vocab, eos_id or padding_id disagree with the tokenizer.
    """
    if not dataset.text:
        return PreparedDataset(
            dataset.path or None, dataset.eval_path or None, dataset.tokenizer_path, dataset.tokenizer_is_pretrained
        )
    if "/" in dataset.id:
        raise DataError(f"{dataset.id}: cannot begin a file name; name the dataset config without a slash")
    if not is_local(dataset.cache_dir):
        raise DataError(
            f"{dataset.id}: cache_dir = {dataset.cache_dir}: raw text is prepared on a local disk; give a local "
            "folder, or write tfrecords into the bucket with data/create_tfrecords.py --output_dir, and name them in "
            "path"
        )
    notes, tokenizer = ReadingNotes(), _given_tokenizer(dataset)
    dataset = with_special_ids(dataset, tokenizer)
    preparation = _Preparation(dataset, n_ctx, _find_text(dataset, notes), tokenizer, log)
    preparation = _trained_here(preparation) or preparation
    directory = preparation.finished or preparation.directory
    if preparation.finished:
        log(f"{dataset.id}: {preparation.described}")
    else:
        for line in notes.lines():
            log(f"{dataset.id}: {line}")
        _make(preparation)
    pattern = f"{glob.escape(directory)}/{{}}/*.tfrecords"
    return PreparedDataset(
        train_pattern=pattern.format(TRAIN),
        eval_pattern=pattern.format(EVAL) if dataset.eval_fraction else None,
        tokenizer_path=dataset.tokenizer_path or f"{directory}/{FILE_NAME}",
        tokenizer_is_pretrained=dataset.tokenizer_is_pretrained,
    )


def _find_text(dataset: DatasetConfig, notes: ReadingNotes) -> list[SourceFile]:
    stdlib = sysconfig.get_path("stdlib")
    files = []
    for source in dataset.text:
        exclude = (*dataset.text_exclude, *(NOT_THE_STDLIB if PYTHON_STDLIB in source else ()))
        source = source.replace(PYTHON_STDLIB, stdlib)
        files += find_files([source], exclude, on_bad_file=dataset.on_bad_file, notes=notes)
    return list({file.path: file for file in files}.values())


def _given_tokenizer(dataset: DatasetConfig) -> Tokenizer | None:
    if dataset.tokenizer_path is None:
        return None
    return load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained)


def _trained_here(preparation: _Preparation) -> _Preparation | None:
    """Returns the finished preparation whose own tokenizer is the given one, as with weights of a run on this text."""
    trained = replace(preparation, given_tokenizer=None)
    path, given = f"{trained.finished}/{FILE_NAME}", preparation.given_tokenizer
    if given is None or not os.path.isfile(path):
        return None
    return trained if load_tokenizer(path).to_json() == given.to_json() else None


def _make(preparation: _Preparation) -> None:
    dataset, directory, log = preparation.dataset, preparation.directory, preparation.log
    lock = f"{dataset.cache_dir}/.lock"
    if is_locked(lock):
        log(f"{dataset.cache_dir}: waiting for another process that prepares this text")
    with locked(lock, lock, "", wait_seconds=math.inf):
        if os.path.isfile(f"{directory}/{MANIFEST}"):
            log(f"{dataset.id}: {directory} was made by another process meanwhile")
            return
        log(f"{dataset.id}: preparing {len(preparation.files):,} files of raw text in {directory}")
        unfinished = f"{directory}.partial"
        with writing_to(unfinished):
            os.makedirs(unfinished, exist_ok=True)
            preparation.write(unfinished)
            os.rename(unfinished, directory)


@dataclass(frozen=True)
class _Preparation:
    """What a cache directory is made from."""

    dataset: DatasetConfig
    n_ctx: int
    files: list[SourceFile]
    given_tokenizer: Tokenizer | None
    log: Log

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
            "text_key": dataset.text_key,
            "tokenizer": self.given_tokenizer and self.given_tokenizer.to_json(),
        }
        for key in ("document_separator", "special_tokens"):
            if value := getattr(dataset, key):
                settings[key] = value
        return Fingerprint(settings, source_states(self.files))

    @cached_property
    def directory(self) -> str:
        """The directory of this text and these settings."""
        return self._directory(LAYOUT_VERSION)

    @cached_property
    def finished(self) -> str | None:
        """The directory that holds them; None: they are not prepared yet."""
        directories = map(self._directory, (LAYOUT_VERSION, *EARLIER_LAYOUTS))
        return next((path for path in directories if os.path.isfile(f"{path}/{MANIFEST}")), None)

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
        dataset = self.dataset
        folder = ResumeFolder(directory, self.fingerprint, self._say)
        options = self._options()
        tokenizer = self.given_tokenizer or self._train_tokenizer(options, f"{directory}/{FILE_NAME}")
        layouts = self._layouts(tokenizer)
        for split in layouts:
            os.makedirs(f"{directory}/{split}", exist_ok=True)
        splits = write_splits(self.files, options, self._encoder(tokenizer), layouts, folder, log=self._say)
        for name, split in splits.items():
            self._report(name, split)
        manifest = {
            "dataset": dataset.id,
            "n_ctx": self.n_ctx,
            "files": len(self.files),
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            **{name: asdict(split.stats) for name, split in splits.items()},
        }
        write_text(f"{directory}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
        folder.remove_records()

    def _encoder(self, tokenizer: Tokenizer) -> TextEncoder:
        return TextEncoder(tokenizer.reading_special_tokens if self.dataset.special_tokens else tokenizer)

    def _say(self, line: str) -> None:
        self.log(f"{self.dataset.id}: {line}")

    def _options(self) -> DocumentOptions:
        """Returns how documents are read and split: at least one is held out if any is to be, or the end of one."""
        dataset = self.dataset
        marker = marker_of(dataset.document_separator, self.given_tokenizer, dataset.eos_id)
        options = DocumentOptions(TextFormat(dataset.text_key, marker), split_digest=identity_digest)
        if not dataset.eval_fraction:
            return options
        options = replace(options, eval_fraction=dataset.eval_fraction)
        at_end = hold_out_end(options, self.files, self._say)
        return at_end if at_end.end_fraction else replace(options, eval_fraction=self._held_out_bound(options))

    def _held_out_bound(self, options: DocumentOptions) -> float:
        """Returns the bound below which documents are held out."""
        fraction, problems = self.dataset.eval_fraction, []
        lowest = heapq.nsmallest(2, self._fractions(options, problems))
        if len(lowest) < 2:
            left_out = f" (left out: {problems[0]})" if problems else ""
            raise DataError(
                f"{self.dataset.id}: the text is {len(lowest)} document(s){left_out}, and one must be held out; "
                f"{_MORE_DOCUMENTS}"
            )
        return fraction if lowest[0] < fraction else sum(lowest) / 2

    def _fractions(self, options: DocumentOptions, problems: list[str]) -> Iterator[float]:
        for document, _ in itertools.chain.from_iterable(map(options.read, self.files)):
            if document.text or document.long_text:
                yield digest_fraction(identity_digest(document))
            elif document.problem:
                problems.append(explain(document))

    def _train_tokenizer(self, options: DocumentOptions, path: str) -> Tokenizer:
        if os.path.exists(path):  # an interrupted run trained it
            return load_tokenizer(path)
        documents = itertools.chain.from_iterable(map(options.read, self.files))
        texts = (text for document, split in documents if split == TRAIN for text in cut_text(document.parts()))
        try:
            tokenizer = train_byte_level_bpe(texts, self.dataset.n_vocab, log=self._say)
        except DataError as error:
            raise DataError(f"{self.dataset.id}: {error}") from error
        check_special_ids(tokenizer, self.dataset)
        save_tokenizer(tokenizer, path)
        self.log(f"{self.dataset.id}: trained a byte-level BPE tokenizer of {tokenizer.n_vocab:,} ids")
        return tokenizer

    def _layouts(self, tokenizer: Tokenizer) -> Mapping[str, ShardLayout]:
        dataset, example_tokens = self.dataset, self.n_ctx + 1
        train = ShardLayout(
            prefix=f"{TRAIN}/{dataset.id}",
            example_tokens=example_tokens,
            examples_per_file=EXAMPLES_PER_FILE,
            separator=dataset.eos_id,
            padding=dataset.padding_id if dataset.padding_id < tokenizer.n_vocab else dataset.eos_id,
            shuffle_examples=max(1, SHUFFLE_TOKENS // example_tokens),
        )
        if not dataset.eval_fraction:
            return {TRAIN: train}
        return {TRAIN: train, EVAL: replace(train, prefix=f"{EVAL}/{dataset.id}", shuffle_examples=0)}

    def _report(self, name: str, split: Split) -> None:
        stats = split.stats
        if not split.files:
            reason = f" ({stats.problems[0]})" if stats.problems else ""
            raise DataError(f"{self.dataset.id}: no document with text is left for {name}{reason}; {_MORE_DOCUMENTS}")
        for problem in stats.problems:
            self.log(f"{self.dataset.id}: left out {problem}")
        self.log(
            f"{self.dataset.id}: {name}: {stats.documents_kept:,} documents, {stats.text_bytes:,} bytes, "
            f"{stats.text_tokens:,} tokens, {stats.examples:,} examples"
        )


_MORE_DOCUMENTS = "add documents, change eval_fraction, or set eval_fraction to 0 to hold out nothing"
