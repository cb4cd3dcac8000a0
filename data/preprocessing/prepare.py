"""Makes raw text ready for training: a tokenizer of its own, tfrecords to train on, tfrecords that are held out.

All of it is kept under the dataset's `cache_dir`, in a directory named by a fingerprint of the text and the settings:
what is there is either complete and fits, or is not looked at.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import json
import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

from configs.errors import DataError
from configs.schema import DatasetConfig
from data.preprocessing.encoding import (
    PackingStats,
    TextEncoder,
    encode_texts,
    join_documents,
    keep_documents,
    readable_texts,
    shuffle_examples,
)
from data.text.documents import Document, explain, read_all_documents, share_below
from data.text.files import SourceFile, find_files
from data.tfrecord.records import write_shards
from data.tokenization.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from data.train_tokenizer import FILE_NAME, save_tokenizer, train_byte_level_bpe
from storage.files import write_text, writing_to
from storage.locks import is_locked, locked

LAYOUT_VERSION = 1  # a change of what is written, or of how, has to change it: old caches are then not used
EXAMPLES_PER_FILE = 20_000
SHUFFLE_TOKENS = 1 << 24
MANIFEST = "manifest.json"
PYTHON_STDLIB = "{python_stdlib}"
NOT_THE_STDLIB = ("site-packages/*", "*/site-packages/*", "dist-packages/*", "*/dist-packages/*")

Report = Callable[[str], None]


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset as the input pipelines take it.

    Attributes:
        train_pattern: glob of the tfrecords to train on; None if the dataset has none.
        eval_pattern: glob of the tfrecords to evaluate on; None if there are none.
        tokenizer_path: what `load_tokenizer` takes; None if the dataset names none.
        tokenizer_is_pretrained: tokenizer_path may be a Hugging Face name.
    """

    train_pattern: str | None
    eval_pattern: str | None
    tokenizer_path: str | None
    tokenizer_is_pretrained: bool


def prepare_dataset(dataset: DatasetConfig, n_ctx: int, report: Report = print) -> PreparedDataset:
    """Gives the tfrecords and the tokenizer of a dataset; for raw text, makes them unless they are there and fresh.

    Args:
        dataset: with `text` for raw text, or with `path`, which is passed through.
        n_ctx: tokens of context; an example has one more.
        report: is told in a line or two what was made, or that nothing had to be.

    Raises:
        DataError: the raw text, its tokenizer or the cache cannot be used.
        ConfigError: n_vocab, eos_id or padding_id disagree with the tokenizer.
    """
    if not dataset.text:
        return PreparedDataset(
            dataset.path or None, dataset.eval_path or None, dataset.tokenizer_path, dataset.tokenizer_is_pretrained
        )
    if "/" in dataset.id:
        raise DataError(f"{dataset.id}: is no beginning of a file name; name the dataset config without a slash")
    if "://" in dataset.cache_dir:
        raise DataError(
            f"{dataset.id}: cache_dir = {dataset.cache_dir}: raw text is prepared on the disk of this machine; "
            "give a folder there, or write tfrecords into the bucket with data/create_tfrecords.py --output_dir, and "
            "name them in path"
        )
    preparation = _Preparation(dataset, n_ctx, _find_text(dataset), _given_tokenizer(dataset), report)
    directory = preparation.directory()
    if _is_complete(directory):
        report(f"{dataset.id}: {directory} is fresh")
    else:
        _make(directory, preparation)
    return _prepared(directory, dataset)


def _prepared(directory: str, dataset: DatasetConfig) -> PreparedDataset:
    here = glob.escape(directory)
    return PreparedDataset(
        train_pattern=f"{here}/train/*.tfrecords",
        eval_pattern=f"{here}/eval/*.tfrecords" if dataset.eval_fraction else None,
        tokenizer_path=dataset.tokenizer_path or f"{directory}/{FILE_NAME}",
        tokenizer_is_pretrained=dataset.tokenizer_is_pretrained,
    )


def _find_text(dataset: DatasetConfig) -> list[SourceFile]:
    stdlib = sysconfig.get_path("stdlib")
    files = []
    for source in dataset.text:
        exclude = (*dataset.text_exclude, *(NOT_THE_STDLIB if PYTHON_STDLIB in source else ()))
        files += find_files([source.replace(PYTHON_STDLIB, stdlib)], exclude)
    return list({file.path: file for file in files}.values())


def _given_tokenizer(dataset: DatasetConfig) -> Tokenizer | None:
    if dataset.tokenizer_path is None:
        return None
    tokenizer = load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained)
    check_special_ids(tokenizer, dataset)
    return tokenizer


def _is_complete(directory: str) -> bool:
    return os.path.isfile(f"{directory}/{MANIFEST}")


def _make(directory: str, preparation: _Preparation) -> None:
    dataset, report = preparation.dataset, preparation.report
    lock = f"{dataset.cache_dir}/.lock"
    if is_locked(lock):
        report(f"{dataset.cache_dir}: waiting for another process that prepares this text")
    with locked(lock, lock, "", wait_seconds=math.inf):
        if _is_complete(directory):
            report(f"{dataset.id}: {directory} was made by another process meanwhile")
            return
        report(f"{dataset.id}: preparing {len(preparation.files):,} files of raw text in {directory}")
        unfinished = f"{directory}.partial"
        with writing_to(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed
            os.makedirs(unfinished)
            preparation.write(unfinished)
            os.rename(unfinished, directory)


@dataclass(frozen=True)
class _Preparation:
    """What a cache directory is made from."""

    dataset: DatasetConfig
    n_ctx: int
    files: list[SourceFile]
    given_tokenizer: Tokenizer | None
    report: Report

    def directory(self) -> str:
        """Returns where it belongs; other text or other settings belong elsewhere."""
        identity = {
            "layout_version": LAYOUT_VERSION,
            "n_ctx": self.n_ctx,
            "n_vocab": self.dataset.n_vocab,
            "special_ids": [self.dataset.eos_id, self.dataset.padding_id],
            "eval_fraction": self.dataset.eval_fraction,
            "text_key": self.dataset.text_key,
            "tokenizer": self.given_tokenizer and self.given_tokenizer.to_json(),
            "files": [(file.relative, *file.state()) for file in self.files],
        }
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        return f"{self.dataset.cache_dir}/n_ctx_{self.n_ctx}-{fingerprint}"

    def write(self, directory: str) -> None:
        """Writes everything, the manifest last."""
        bound = _held_out_bound(self._documents(), self.dataset)
        tokenizer = self.given_tokenizer or self._train_tokenizer(directory, bound)
        accounts = {"train": self._write_part(directory, "train", bound, tokenizer)}
        if bound:
            accounts["eval"] = self._write_part(directory, "eval", bound, tokenizer)
        manifest = {
            "dataset": self.dataset.id,
            "n_ctx": self.n_ctx,
            "files": len(self.files),
            "tokenizer_sha256": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
            **{part: asdict(account) for part, account in accounts.items()},
        }
        write_text(f"{directory}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")

    def _documents(self) -> Iterator[Document]:
        return read_all_documents(self.files, self.dataset.text_key)

    def _part(self, part: str, bound: float) -> Iterator[Document]:
        for document in self._documents():
            if (share_below(document.identity) < bound) == (part == "eval"):
                yield document

    def _train_tokenizer(self, directory: str, bound: float) -> Tokenizer:
        texts = (document.text for document in self._part("train", bound) if document.text)
        try:
            tokenizer = train_byte_level_bpe(texts, self.dataset.n_vocab)
        except DataError as error:
            raise DataError(f"{self.dataset.id}: n_vocab = {self.dataset.n_vocab}; {error}") from error
        check_special_ids(tokenizer, self.dataset)
        save_tokenizer(tokenizer, f"{directory}/{FILE_NAME}")
        self.report(f"{self.dataset.id}: trained a byte-level BPE tokenizer of {tokenizer.n_vocab:,} ids")
        return tokenizer

    def _write_part(self, directory: str, part: str, bound: float, tokenizer: Tokenizer) -> PackingStats:
        account = PackingStats()
        encoded = encode_texts(readable_texts(self._part(part, bound), account), partial(map, TextEncoder(tokenizer)))
        documents = keep_documents(encoded, 0, account)
        eos_id, padding_id = self.dataset.eos_id, self.dataset.padding_id
        filling = padding_id if padding_id < tokenizer.n_vocab else eos_id
        examples = join_documents(documents, self.n_ctx + 1, eos_id, filling, account)
        if part == "train":
            examples = shuffle_examples(examples, max(1, SHUFFLE_TOKENS // (self.n_ctx + 1)))
        paths = write_shards(f"{directory}/{part}", self.dataset.id, examples, EXAMPLES_PER_FILE)
        account.check(self.n_ctx + 1)
        self._report_part(part, account, paths)
        return account

    def _report_part(self, part: str, account: PackingStats, paths: list[str]) -> None:
        if not paths:
            reason = f" ({account.problems[0]})" if account.problems else ""
            raise DataError(f"{self.dataset.id}: no document with text is left for {part}{reason}; {_MORE_DOCUMENTS}")
        for problem in account.problems:
            self.report(f"{self.dataset.id}: left out {problem}")
        self.report(
            f"{self.dataset.id}: {part}: {account.documents_kept:,} documents, {account.text_bytes:,} bytes, "
            f"{account.text_tokens:,} tokens, {account.examples:,} examples"
        )


_MORE_DOCUMENTS = "add documents, change eval_fraction, or set eval_fraction to 0 to hold out nothing"


def _held_out_bound(documents: Iterable[Document], dataset: DatasetConfig) -> float:
    """Returns the bound of `share_below` under which documents are held out: at least one is, if any shall be."""
    if not dataset.eval_fraction:
        return 0.0
    problems: list[str] = []
    smallest = heapq.nsmallest(2, (share_below(document.identity) for document in _with_text(documents, problems)))
    if len(smallest) < 2:
        left_out = f" (left out: {problems[0]})" if problems else ""
        raise DataError(
            f"{dataset.id}: the text is {len(smallest)} document(s){left_out}, and one has to be held out; "
            f"{_MORE_DOCUMENTS}"
        )
    lowest, next_lowest = smallest
    return dataset.eval_fraction if lowest < dataset.eval_fraction else (lowest + next_lowest) / 2


def _with_text(documents: Iterable[Document], problems: list[str]) -> Iterator[Document]:
    for document in documents:
        if document.text:
            yield document
        elif document.problem:
            problems.append(explain(document))
