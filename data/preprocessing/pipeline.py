"""The preprocessing pipeline: from source files to the tfrecords of each split.

`write_splits` serves both `data/create_tfrecords.py` and the raw text of dataset configs. Documents are read and
written in this process, and encoded in others. An interrupted run is resumed by running it again, and gives the same
files as an uninterrupted one, whatever the number of processes.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tqdm import tqdm

from configs.errors import DataError
from data.dialogue.encoding import DialogueEncoder
from data.dialogue.readers import conversations_of
from data.dialogue.templates import NAMES, jinja_text
from data.preprocessing.apache_beam import load_beam, read_encoded, run_pipeline
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.manifest import Manifest, Split, listed_files, manifest_path, read_manifest
from data.preprocessing.packing import PackingStats, ShardLayout
from data.preprocessing.parallel_encoding import encode_all
from data.preprocessing.resume import (
    Fingerprint,
    ResumeFolder,
    carry_out_plan,
    exclusive,
    remove_unless_finished,
    resume_path,
    source_states,
)
from data.preprocessing.settings import Settings, check_settings, marker_of, separator_of
from data.preprocessing.shard_writer import ShardWriter
from data.preprocessing.splits import EVAL, TRAIN, DocumentOptions, DocumentReader, TextPiece, hold_out_end
from data.text.documents import TextFormat
from data.text.files import CONVERSATION_SUFFIXES, SUFFIXES, ReadingNotes, SourceFile, find_files
from data.text.streams import as_file
from data.tfrecord.records import find_shards
from data.tokenization.tokenizer import Tokenizer, folder_of, is_pretrained_name, load_encoder
from storage.files import check_writable, exists, is_local

MAX_SPELLED = 8  # special tokens in a line

Encode = Callable[[Iterable[tuple[TextPiece, str | None]]], Iterator[tuple[TextPiece, np.ndarray | None, int]]]


def write_splits(
    files: Sequence[SourceFile],
    options: DocumentOptions,
    encoder: TextEncoder | DialogueEncoder,
    layouts: Mapping[str, ShardLayout],
    folder: ResumeFolder,
    encode: Encode | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Split]:
    """Reads, encodes and writes all documents.

    Args:
        files: source files.
        options: which documents are read, and how they are split.
        encoder: encodes the texts.
        layouts: of each split that is written.
        folder: where the files are written, after those that an interrupted run has finished.
        encode: runs the encoder; None for this process.
        log: is called with a line for each thing that was read in another way than its name or text promised.

    Returns:
        The files of each split.

    Raises:
        DataError: a source file cannot be read, or the folder cannot be written to.
    """
    encode = encode or partial(encode_all, encoder=encoder, processes=1)
    writers = {split: ShardWriter(folder, split, layout) for split, layout in layouts.items()}
    spelled: Counter[str] = Counter()
    reader = DocumentReader(files, options, {split: writer.start for split, writer in writers.items()})
    try:
        with tqdm(total=len(files), desc="encoding", unit="file", disable=None) as bar:
            pieces = reader.pieces(encoder.cut, lambda n_files: bar.update(n_files - bar.n))
            pieces = _counting(pieces, encoder.unread_tokens, spelled)
            with closing(encode(pieces)) as encoded:
                for piece, ids, text_bytes in encoded:
                    if ids is None:
                        writers[piece.split].discard(piece.discard_reason, piece.problem)
                    else:
                        writers[piece.split].add(piece.position, ids, text_bytes, piece.is_last)
        splits = {split: writer.finish(reader.position) for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    for line in [*reader.notes.lines(), *_lines_of(spelled, options.format.marker, reader.notes.markers)]:
        log(line)
    return splits


def _counting(
    pieces: Iterable[tuple[TextPiece, str | None]], special_tokens: Sequence[str], spelled: Counter[str]
) -> Iterator[tuple[TextPiece, str | None]]:
    for piece, text in pieces:
        for token in special_tokens if text else ():
            spelled[token] += text.count(token)
        yield piece, text


def _lines_of(spelled: Counter[str], marker: str | None, n_markers: int) -> Iterator[str]:
    if found := +spelled:
        listed = ", ".join(f"{token} {count:,} times" for token, count in found.most_common(MAX_SPELLED))
        yield (
            f"texts spell special tokens, read as plain characters: {listed}; special_tokens makes them "
            "count, document_separator separates documents at one"
        )
    if marker is not None and not n_markers:
        yield f"document_separator = {marker!r}: does not occur in the texts"


@dataclass(frozen=True)
class Report:
    """What `create_tfrecords` has written.

    Attributes:
        stats: counts of the documents and tokens to train on.
        files_read: source files.
        example_tokens: tokens in an example; None: each is a document.
        tfrecords: the files to train on, in order.
        eval_tfrecords: the held-out files, in order.
        eval_stats: counts of the held-out documents and tokens; None if none are held out.
        manifest: path of the manifest.
        dataset_config: path of the dataset config; None if none was asked for.
        notes: a line for each thing that was read in another way than its name or text promised.
    """

    stats: PackingStats
    files_read: int
    example_tokens: int | None
    tfrecords: tuple[str, ...]
    eval_tfrecords: tuple[str, ...]
    eval_stats: PackingStats | None
    manifest: str
    dataset_config: str | None
    notes: tuple[str, ...] = ()


def create_tfrecords(settings: Settings, log: Callable[[str], None] = print) -> Report:
    """Writes the tfrecords; with more than one process, call it under `if __name__ == "__main__"`.

    Args:
        settings: what to write.
        log: is called with a line when an interrupted run is resumed, or cannot be.

    Raises:
        DataError: a setting, the tokenizer or an input cannot be used; files of that name exist; or the place cannot
            be written to. Existing files then stay as they are.
    """
    settings = check_settings(settings)
    if settings.runner:
        load_beam(settings.runner)
    tokenizer = load_encoder(settings.encoder_path)
    separator = separator_of(settings, tokenizer)
    notes = ReadingNotes()
    with as_file(settings.input_dir, notes) as source:
        suffixes = CONVERSATION_SUFFIXES if settings.dialogue else SUFFIXES
        files = find_files([source], (), suffixes, settings.on_bad_file, notes)
        content = settings.content_settings() | {
            "separator": separator,
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
        }
        if settings.dialogue:
            content |= template_settings(settings.dialogue.chat_template, folder_of(settings.encoder_path))
        job = _Job(settings, tokenizer, separator, files, Fingerprint(content, source_states(files)))
        if settings.write_dataset_config:
            check_writable(settings.write_dataset_config)
        with exclusive(settings.output_dir, settings.name):
            lines = [*notes.lines(), *_create_unless_finished(job, log)]
            return _report(settings, read_manifest(manifest_path(settings.output_dir, settings.name)), lines)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of a tokenizer's JSON text."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def template_settings(chat_template: str, folder: str | None) -> dict[str, str]:
    """Returns the text of a Jinja template as a setting, since it is part of what determines the files."""
    text = jinja_text(chat_template, folder)
    return {} if text is None else {"chat_template_text": text}


@dataclass(frozen=True)
class _Job:
    """The settings, and what they refer to."""

    settings: Settings
    tokenizer: Tokenizer
    separator: int
    files: Sequence[SourceFile]
    fingerprint: Fingerprint

    @property
    def prefixes(self) -> Mapping[str, str]:
        """What the names of the files begin with, by split."""
        return {TRAIN: self.settings.name, EVAL: f"{self.settings.name}_eval"}

    def layouts(self) -> Mapping[str, ShardLayout]:
        """Returns the layouts of the splits that are written."""
        settings, padding = self.settings, self.tokenizer.padding_id
        train = ShardLayout(
            prefix=self.prefixes[TRAIN],
            example_tokens=settings.example_tokens,
            examples_per_file=settings.files_per,
            separator=self.separator,
            padding=self.separator if padding is None else padding,
            minimum_tokens=settings.minimum_size,
            conversations=settings.dialogue and settings.dialogue.packing,
        )
        return {TRAIN: train} | ({EVAL: replace(train, prefix=self.prefixes[EVAL])} if settings.eval_fraction else {})

    def old_files(self) -> list[str]:
        """Returns the existing tfrecords of this name: by their names, and by the manifest, which knows all splits."""
        settings = self.settings
        listed = listed_files(settings.output_dir, settings.name)
        prefixes = [self.prefixes[split] for split in (self.layouts() if listed is not None else self.prefixes)]
        files = [path for prefix in prefixes for path in find_shards(settings.output_dir, prefix)]
        return list(dict.fromkeys([*files, *(listed or [])]))


def _create_unless_finished(job: _Job, log: Callable[[str], None]) -> list[str]:
    settings = job.settings
    finished = carry_out_plan(settings.output_dir, settings.name)
    if finished == job.fingerprint.digest():
        return []
    if finished is not None:
        log("the finished files of another run have been moved to their place")
    old_files = job.old_files()
    _check_free(settings, old_files)
    folder = ResumeFolder(resume_path(settings.output_dir, settings.name), job.fingerprint, log)
    notes: list[str] = []
    try:
        manifest = _create(job, folder, notes.append)
    except BaseException:
        remove_unless_finished(settings.output_dir, settings.name)
        raise
    folder.write_plan(settings.output_dir, old_files, manifest, _dataset_config(job, manifest))
    carry_out_plan(settings.output_dir, settings.name)
    return notes


def _check_free(settings: Settings, old_files: list[str]) -> None:
    config = settings.write_dataset_config
    existing = [*old_files, *([config] if config and exists(config) else [])]
    if existing and not settings.overwrite:
        raise DataError(
            f"{existing[0]}: already exists; choose another --name or --output_dir, or give --overwrite to replace "
            f"{len(existing)} file(s)"
        )


def _create(job: _Job, folder: ResumeFolder, log: Callable[[str], None]) -> Manifest:
    settings, tokenizer = job.settings, job.tokenizer
    options = _document_options(job, log)
    encoder = _encoder(job)
    encode = _choose_encode(job, options, encoder, folder)
    splits = write_splits(job.files, options, encoder, job.layouts(), folder, encode, log)
    if not splits[TRAIN].files:
        stats = splits[TRAIN].stats
        reasons = "; ".join([stats.describe_documents(), *stats.problems[:1]])
        raise DataError(f"{settings.input_dir}: no text to write; {reasons}")
    return Manifest(
        name=settings.name,
        example_tokens=settings.example_tokens,
        tokenizer={"path": settings.encoder_path, "n_vocab": tokenizer.n_vocab, "sha256": tokenizer_sha256(tokenizer)},
        settings={key: value for key, value in job.fingerprint.settings.items() if key != "write_dataset_config"},
        input={"files": len(job.files), "bytes": sum(size for _, size, _ in job.fingerprint.input)},
        splits=splits,
    )


def _encoder(job: _Job) -> TextEncoder | DialogueEncoder:
    settings, tokenizer = job.settings, job.tokenizer
    if settings.dialogue is None:
        tokenizer = tokenizer.reading_special_tokens if settings.special_tokens else tokenizer
        return TextEncoder(tokenizer, settings.ftfy, settings.wikitext_detokenize)
    template, folder = settings.dialogue.chat_template, folder_of(settings.encoder_path)
    return DialogueEncoder(tokenizer, job.separator, settings.example_tokens, template, folder, settings.dialogue.rules)


def _document_options(job: _Job, log: Callable[[str], None]) -> DocumentOptions:
    settings = job.settings
    if settings.dialogue is not None:
        text_format = TextFormat(convert=conversations_of)
        return DocumentOptions(text_format, settings.deduplicate, settings.max_documents, settings.eval_fraction)
    text_format = TextFormat(settings.text_key, marker_of(settings.document_separator, job.tokenizer, job.separator))
    options = DocumentOptions(text_format, settings.deduplicate, settings.max_documents, settings.eval_fraction)
    return hold_out_end(options, job.files, log) if settings.eval_fraction else options


def _choose_encode(
    job: _Job, options: DocumentOptions, encoder: TextEncoder | DialogueEncoder, folder: ResumeFolder
) -> Encode:
    settings = job.settings
    if settings.runner is None:
        return partial(encode_all, encoder=encoder, processes=settings.processes)
    ids_folder = f"{folder.path}/encoded-{job.fingerprint.digest()}"  # other input has other ids
    run_pipeline(job.files, options, encoder, ids_folder, settings.runner, settings.beam_options)
    return partial(read_encoded, folder=ids_folder)


def _report(settings: Settings, manifest: Manifest, notes: Sequence[str]) -> Report:
    splits = manifest.splits
    paths = {name: tuple(f"{settings.output_dir}/{file.name}" for file in splits[name].files) for name in splits}
    return Report(
        stats=splits[TRAIN].stats,
        files_read=manifest.input["files"],
        example_tokens=manifest.example_tokens,
        tfrecords=paths[TRAIN],
        eval_tfrecords=paths.get(EVAL, ()),
        eval_stats=splits[EVAL].stats if EVAL in splits else None,
        manifest=manifest_path(settings.output_dir, settings.name),
        dataset_config=settings.write_dataset_config,
        notes=tuple(notes),
    )


def _dataset_config(job: _Job, manifest: Manifest) -> Mapping[str, object] | None:
    """Returns the path and the values of the dataset config; None if none was asked for."""
    settings, tokenizer = job.settings, job.tokenizer
    if not settings.write_dataset_config:
        return None
    is_name = is_pretrained_name(settings.encoder_path)
    directory = _absolute(settings.output_dir)
    starts = {split: glob.escape(f"{directory}/{prefix}") for split, prefix in job.prefixes.items()}
    patterns = {split: f"{start}_[0-9]*_[0-9]*_[0-9]*.tfrecords" for split, start in starts.items()}
    values = {
        "n_vocab": tokenizer.n_vocab,
        "path": patterns[TRAIN],
        "eval_path": patterns[EVAL] if EVAL in manifest.splits and manifest.splits[EVAL].files else "",
        "tokenizer_path": settings.encoder_path if is_name else _absolute(settings.encoder_path),
        "tokenizer_is_pretrained": is_name,
        "eos_id": job.separator,
        "padding_id": tokenizer.n_vocab if tokenizer.padding_id is None else tokenizer.padding_id,
    }
    if settings.dialogue:
        template = settings.dialogue.chat_template
        values |= {"packing": "masked", "chat_template": template if template in NAMES else _absolute(template)}
    return {"path": settings.write_dataset_config, "values": values}


def _absolute(path: str) -> str:
    return os.path.abspath(path) if is_local(path) else path
