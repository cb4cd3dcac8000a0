"""Encodes text files into tfrecords of one example length.

    python data/create_tfrecords.py --input_dir texts --name mine --encoder_path tokenizers/mine.json --chunk_size 1024

Documents are read and written in this process and encoded in others; the files are the same for any number of them. A
run that was ended, however it was, is gone on with by the same command, and gives the same files as if it never was.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs.errors import DataError, UserError
from data.preprocessing.encoding import PackingStats, TextEncoder
from data.preprocessing.parallel_encoding import Tagged, cut, encode_all
from data.preprocessing.splits import EVAL, TRAIN, Choice, Piece, Place, Router
from data.text.files import SourceFile, find_files
from data.tokenization.tokenizer import EOS_TOKEN, Tokenizer, load_tokenizer
from storage import buckets
from storage.files import check_writable, exists

if TYPE_CHECKING:  # the processes that encode import this module, and have no use for TensorFlow
    from data.preprocessing.manifest import Manifest
    from data.preprocessing.resume import Identity, Unfinished
    from data.preprocessing.shard_writer import Layout, PartWriter

GPT2 = "gpt2"
LONGEST_CHUNK = 1 << 24  # an example is held in memory
DATASET_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "dataset_configs"


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        input_dir: directory (with all below it), glob or file with the text.
        files_per: examples in a tfrecord file.
        name: what the names of the files begin with.
        output_dir: where they are written; may be `gs://`.
        encoder_path: tokenizers JSON file, folder with vocab.json and merges.txt, or Hugging Face name.
        minimum_size: documents of fewer tokens are left out.
        ftfy: repairs mis-decoded text.
        wikitext_detokenize: joins what WikiText's tokenisation has put apart.
        separator: id after every document; None for the tokenizer's `<|endoftext|>`.
        chunk_size: n_ctx of the model; an example has one token more.
        write_dataset_config: where to write a dataset config; None for nowhere.
        processes: processes that encode; 0 for one a core.
        overwrite: replaces the files of this name that are already there.
        text_key: the key of a JSON object that holds its text.
        deduplicate: leaves out documents that were met before.
        max_documents: reads no more than so many; None for all.
        eval_fraction: share of the documents, drawn by their text, that goes to files `{name}_eval_*` instead.
        runner: the runner of Apache Beam that encodes, in place of processes here; None for these.
        beam_options: what Beam is told besides.
    """

    input_dir: str
    files_per: int = 100_000
    name: str = "openwebtext"
    output_dir: str = "./tfrecords"
    encoder_path: str = GPT2
    minimum_size: int = 0
    ftfy: bool = False
    wikitext_detokenize: bool = False
    separator: int | None = None
    chunk_size: int = 2048
    write_dataset_config: str | None = None
    processes: int = 0
    overwrite: bool = False
    text_key: str = "text"
    deduplicate: bool = False
    max_documents: int | None = None
    eval_fraction: float = 0.0
    runner: str | None = None
    beam_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        account: what became of every document and token.
        files_read: source files.
        example_tokens: tokens in an example.
        tfrecords: the files written to train on, in order.
        eval_tfrecords: the files that are held out, in order.
        eval_account: what became of the documents of the held-out part; None without one.
        manifest: the file that says all this.
        dataset_config: the dataset config written, if one was asked for.
    """

    account: PackingStats
    files_read: int
    example_tokens: int
    tfrecords: tuple[str, ...]
    eval_tfrecords: tuple[str, ...]
    eval_account: PackingStats | None
    manifest: str
    dataset_config: str | None


def create_tfrecords(settings: Settings, tell: Callable[[str], None] = print) -> Report:
    """Writes the tfrecords; with more than one process, call it under `if __name__ == "__main__"`.

    Args:
        settings: what to write.
        tell: is told in a line when an ended run is gone on with, or cannot be.

    Raises:
        DataError: a setting, the tokenizer or an input cannot be used; files of that name are already there; or the
            place cannot be written to. The old files then stay as they are.
    """
    from data.preprocessing.apache_beam import load_beam
    from data.preprocessing.manifest import manifest_path, read_manifest
    from data.preprocessing.resume import Identity, alone, look_at

    _check_settings(settings)
    settings = replace(settings, output_dir=settings.output_dir.rstrip("/") or "/")
    if settings.runner:
        load_beam(settings.runner)
    tokenizer = load_encoder(settings.encoder_path)
    separator = _separator(settings, tokenizer)
    files = find_files([settings.input_dir])
    identity = Identity(_deciding(settings, tokenizer, separator), look_at(files))
    if settings.write_dataset_config:
        check_writable(settings.write_dataset_config)
    with alone(settings.output_dir, settings.name):
        _make_unless_made(_Work(settings, tokenizer, separator, files, identity), tell)
        return _report(settings, read_manifest(manifest_path(settings.output_dir, settings.name)))


def load_encoder(encoder_path: str) -> Tokenizer:
    """Loads the tokenizer that `--encoder_path` names: what is no file, nor called like one, is a Hugging Face name."""
    return load_tokenizer(encoder_path, is_pretrained=_is_name(encoder_path))


def _is_name(encoder_path: str) -> bool:
    is_path = "://" in encoder_path or encoder_path.endswith(".json") or os.path.isabs(encoder_path)
    return not is_path and not os.path.exists(encoder_path)


@dataclass(frozen=True)
class _Work:
    """What is to be done: the settings, and what they have led to."""

    settings: Settings
    tokenizer: Tokenizer
    separator: int
    files: Sequence[SourceFile]
    identity: Identity

    def layout(self) -> Layout:
        """Returns how the tokens lie in the files."""
        from data.preprocessing.shard_writer import Layout

        padding = self.separator if self.tokenizer.padding_id is None else self.tokenizer.padding_id
        settings = self.settings
        return Layout(settings.chunk_size + 1, settings.files_per, self.separator, padding, settings.minimum_size)


def _make_unless_made(work: _Work, tell: Callable[[str], None]) -> None:
    from data.preprocessing.resume import carry_out_plan

    settings = work.settings
    done = carry_out_plan(settings.output_dir, settings.name)
    if done == work.identity.digest():
        return
    if done is not None:
        tell("the files of another run were finished but not in their place: they are now")
    old_files = _find_old_files(settings)
    _check_free(settings, old_files)
    _write(work, old_files, tell)
    carry_out_plan(settings.output_dir, settings.name)


def _prefixes(settings: Settings) -> tuple[str, str]:
    return settings.name, f"{settings.name}_eval"


def _find_old_files(settings: Settings) -> list[str]:
    """Returns the tfrecords of this name: by the name, and what is held out by the manifest, which alone knows."""
    from data.preprocessing.manifest import listed_files
    from data.tfrecord.records import find_shards

    prefixes = _prefixes(settings) if settings.eval_fraction else [settings.name]
    files = [path for prefix in prefixes for path in find_shards(settings.output_dir, prefix)]
    return list(dict.fromkeys([*files, *listed_files(settings.output_dir, settings.name)]))


def _deciding(settings: Settings, tokenizer: Tokenizer, separator: int) -> Mapping[str, object]:
    """Returns the settings that decide what the files hold, and not only where they lie or how they are made."""
    deciding = asdict(settings)
    for key in ("input_dir", "output_dir", "encoder_path", "processes", "overwrite", "runner", "beam_options"):
        del deciding[key]
    return deciding | {"separator": separator, "tokenizer_sha256": _hash(tokenizer)}


def _hash(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _write(work: _Work, old_files: Sequence[str], tell: Callable[[str], None]) -> None:
    """Makes all files, and the plan that puts them in place of the old ones."""
    from data.preprocessing.resume import open_unfinished, remove_unless_finished

    settings = work.settings
    folder = open_unfinished(settings.output_dir, settings.name, work.identity, tell)
    try:
        manifest = _make(work, folder)
    except BaseException:
        remove_unless_finished(settings.output_dir, settings.name)
        raise
    folder.plan(settings.output_dir, old_files, manifest, _dataset_config(work, manifest))


def _make(work: _Work, folder: Unfinished) -> Manifest:
    from data.preprocessing.manifest import Manifest
    from data.preprocessing.shard_writer import PartWriter

    settings, layout = work.settings, work.layout()
    names = (TRAIN, EVAL) if settings.eval_fraction else (TRAIN,)
    writers = {
        part: PartWriter(folder, part, prefix, layout) for part, prefix in zip(names, _prefixes(settings), strict=False)
    }
    try:
        end = _encode_into(writers, work, folder)
        parts = {name: writer.finish(end) for name, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    if not parts[TRAIN].files:
        account = parts[TRAIN].account
        reasons = "; ".join([describe_documents(account), *account.problems[:1]])
        raise DataError(f"{settings.input_dir}: no text to write; {reasons}")
    sizes = [size for _, size, _ in work.identity.input.states]
    tokenizer = {"path": settings.encoder_path, "n_vocab": work.tokenizer.n_vocab, "sha256": _hash(work.tokenizer)}
    inputs = {"files": len(sizes), "bytes": sum(sizes)}
    deciding = {key: value for key, value in work.identity.settings.items() if key != "write_dataset_config"}
    return Manifest(settings.name, layout.example_tokens, tokenizer, deciding, inputs, parts)


def _encode_into(writers: Mapping[str, PartWriter], work: _Work, folder: Unfinished) -> Place:
    """Reads, encodes and writes all documents; returns the place after the last one."""
    settings = work.settings
    encoder = TextEncoder(work.tokenizer, settings.ftfy, settings.wikitext_detokenize)
    choice = Choice(settings.text_key, settings.deduplicate, settings.max_documents, settings.eval_fraction)
    router = Router(work.files, choice, {part: writer.start for part, writer in writers.items()})
    with tqdm(total=len(work.files), desc="encoding", unit="file", disable=None) as bar:
        texts = router.texts(partial(cut, encoder=encoder), lambda n_files: bar.update(n_files - bar.n))
        with closing(_encoded(texts, encoder, work, folder)) as encoded:
            for piece, ids, text_bytes in encoded:
                if ids is None:
                    writers[piece.part].leave_out(piece.reason, piece.problem)
                else:
                    writers[piece.part].add(piece.place, ids, text_bytes, piece.is_last)
    return router.end


def _encoded(
    texts: Iterator[Tagged[Piece]], encoder: TextEncoder, work: _Work, folder: Unfinished
) -> Iterator[tuple[Piece, np.ndarray | None, int]]:
    settings = work.settings
    if settings.runner is None:
        return encode_all(texts, encoder, settings.processes)
    from data.preprocessing.apache_beam import read_encoded, run_pipeline

    ids_folder = f"{folder.folder}/encoded-{work.identity.digest()}"  # of other input, other ids
    run_pipeline(work.files, settings.text_key, encoder, ids_folder, settings.runner, settings.beam_options)
    return read_encoded(texts, ids_folder)


def _report(settings: Settings, manifest: Manifest) -> Report:
    from data.preprocessing.manifest import manifest_path

    parts = manifest.parts
    paths = {part: tuple(f"{settings.output_dir}/{file.name}" for file in parts[part].files) for part in parts}
    return Report(
        account=parts[TRAIN].account,
        files_read=manifest.input["files"],
        example_tokens=manifest.example_tokens,
        tfrecords=paths[TRAIN],
        eval_tfrecords=paths.get(EVAL, ()),
        eval_account=parts[EVAL].account if EVAL in parts else None,
        manifest=manifest_path(settings.output_dir, settings.name),
        dataset_config=settings.write_dataset_config,
    )


def _check_settings(settings: Settings) -> None:
    if not settings.name or "/" in settings.name or settings.name.startswith("."):
        raise DataError(
            f"--name {settings.name!r}: is no beginning of a file name that is shown; give one without slashes and "
            "without a dot before it"
        )
    for key in ("input_dir", "output_dir", "write_dataset_config"):
        _check_place(f"--{key}", getattr(settings, key))
    smallest = {"files_per": 1, "chunk_size": 1, "minimum_size": 0, "processes": 0}
    for key, least in smallest.items():
        if getattr(settings, key) < least:
            raise DataError(f"--{key} {getattr(settings, key)}: is too small; give {least} or more")
    if settings.chunk_size > LONGEST_CHUNK:
        raise DataError(f"--chunk_size {settings.chunk_size}: is too large; give {LONGEST_CHUNK} or less")
    if settings.max_documents is not None and settings.max_documents < 1:
        raise DataError(f"--max_documents {settings.max_documents}: is too small; give 1 or more, or leave it out")
    if not 0 <= settings.eval_fraction < 1:
        raise DataError(f"--eval_fraction {settings.eval_fraction}: is no share; give 0 or more, and less than 1")


def _check_place(flag: str, path: str | None) -> None:
    if path is None:
        return
    if path.startswith(buckets.SCHEME):
        buckets.check_access(path)
    elif "://" in path:
        raise DataError(
            f"{flag} {path}: is neither a path of this machine nor of a bucket of Google Cloud Storage; give one "
            f"of this machine, or {buckets.SCHEME}BUCKET/FOLDER"
        )


def _separator(settings: Settings, tokenizer: Tokenizer) -> int:
    separator = tokenizer.eos_id if settings.separator is None else settings.separator
    if separator is None:
        raise DataError(f"{settings.encoder_path}: has no {EOS_TOKEN}; give the id between documents by --separator")
    if not 0 <= separator < tokenizer.n_vocab:
        raise DataError(f"--separator {separator}: the tokenizer has {tokenizer.n_vocab} ids; give a smaller one")
    if settings.write_dataset_config and tokenizer.eos_id not in (None, separator):
        raise DataError(
            f"--separator {separator}: the tokenizer's {EOS_TOKEN} is {tokenizer.eos_id}, and no dataset config may "
            "say otherwise; leave out --separator, or --write_dataset_config"
        )
    return separator


def _check_free(settings: Settings, old_files: list[str]) -> None:
    config = settings.write_dataset_config
    in_the_way = [*old_files, *([config] if config and exists(config) else [])]
    if in_the_way and not settings.overwrite:
        raise DataError(
            f"{in_the_way[0]}: already there; choose another --name or --output_dir, or give --overwrite to replace "
            f"{len(in_the_way)} file(s)"
        )


def _dataset_config(work: _Work, manifest: Manifest) -> Mapping[str, object] | None:
    """Returns where to write which dataset config; None for nowhere."""
    settings, tokenizer = work.settings, work.tokenizer
    if not settings.write_dataset_config:
        return None
    is_name = _is_name(settings.encoder_path)
    paths = [f"{glob.escape(f'{_absolute(settings.output_dir)}/{prefix}')}{_GLOB}" for prefix in _prefixes(settings)]
    values = {
        "n_vocab": tokenizer.n_vocab,
        "path": paths[0],
        "eval_path": paths[1] if EVAL in manifest.parts and manifest.parts[EVAL].files else "",
        "tokenizer_path": settings.encoder_path if is_name else _absolute(settings.encoder_path),
        "tokenizer_is_pretrained": is_name,
        "eos_id": work.separator,
        "padding_id": tokenizer.n_vocab if tokenizer.padding_id is None else tokenizer.padding_id,
    }
    return {"path": settings.write_dataset_config, "values": values}


_GLOB = "_[0-9]*_[0-9]*_[0-9]*.tfrecords"


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def describe_documents(account: PackingStats) -> str:
    """Says in one line how many documents were read, kept and discarded, and why."""
    discarded = {
        "undecodable": account.discarded_undecodable,
        "empty": account.discarded_empty,
        "too short": account.discarded_short,
    }
    if account.discarded_duplicate:
        discarded["met before"] = account.discarded_duplicate
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in discarded.items())
    return (
        f"documents: {account.documents_read:,} read = {account.documents_kept:,} kept + "
        f"{account.discarded:,} discarded ({reasons})"
    )


def _describe_part(account: PackingStats, tfrecords: Sequence[str], example_tokens: int) -> list[str]:
    tokens = account.text_tokens + account.separator_tokens + account.padding_tokens
    written = f"{len(tfrecords):,} written, {tfrecords[0]} to {tfrecords[-1]}" if tfrecords else "none"
    return [
        describe_documents(account),
        f"tokens: {account.text_tokens:,} of text + {account.separator_tokens:,} separators + "
        f"{account.padding_tokens:,} of padding at the very end = {tokens:,} = "
        f"{account.examples:,} examples of {example_tokens:,}",
        f"tfrecords: {written}",
    ]


def describe(report: Report) -> str:
    """Returns the report as a person reads it."""
    lines = [
        f"files: {report.files_read:,} read",
        *_describe_part(report.account, report.tfrecords, report.example_tokens),
    ]
    problems = report.account.problems
    if report.eval_account:
        held_out = _describe_part(report.eval_account, report.eval_tfrecords, report.example_tokens)
        lines += [f"held out: {line}" for line in held_out]
        problems = problems + report.eval_account.problems
    lines.append(f"manifest: {report.manifest}")
    if report.dataset_config:
        lines.append(f"dataset config: {report.dataset_config}")
    lines += [f"discarded {problem}" for problem in problems]
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Returns the report as one line of JSON."""
    counts = asdict(report)
    return json.dumps({**counts.pop("account"), **counts})


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Encodes text files into tfrecords of one example length.")
    add, default = parser.add_argument, Settings
    add("--input_dir", required=True, help="directory (with all below it), glob or file with the text")
    add("--files_per", type=int, default=default.files_per, help="examples in a tfrecord file")
    add("--name", default=default.name, help="what the names of the files begin with")
    add("--output_dir", default=default.output_dir, help="where the files are written")
    add("--encoder_path", default=default.encoder_path, help="tokenizer: JSON file, folder or Hugging Face name")
    add("--minimum_size", type=int, default=default.minimum_size, help="leave out documents of fewer tokens")
    add("--ftfy", action="store_true", help="repair mis-decoded text and normalise it to NFKC")
    add("--wikitext-detokenize", action="store_true", help="join what WikiText's tokenisation has put apart")
    add("--separator", type=int, default=default.separator, help=f"id after every document (default: {EOS_TOKEN})")
    add("--chunk_size", type=int, default=default.chunk_size, help="n_ctx of the model; an example has one token more")
    add("--write_dataset_config", nargs="?", const="", metavar="PATH", help="write a dataset config")
    add("--processes", type=int, default=default.processes, help="processes that encode; 0 for one a core")
    add("--overwrite", action="store_true", help="replace the files of this name that are already there")
    add("--text_key", default=default.text_key, help="key of a JSON object that holds its text")
    add("--deduplicate", action="store_true", help="leave out documents that were met before, to the last byte")
    add("--max_documents", type=int, default=default.max_documents, help="read no more documents than this")
    add("--eval_fraction", type=float, default=default.eval_fraction, help="share of the documents to hold out")
    add("--runner", default=default.runner, help="encode with Apache Beam: DirectRunner, DataflowRunner or FlinkRunner")
    known, others = parser.parse_known_args(arguments)
    values = vars(known) | {"beam_options": tuple(others)}
    if others and known.runner is None:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if values["write_dataset_config"] == "":
        values["write_dataset_config"] = str(DATASET_CONFIGS / f"{values['name']}.json")
    return Settings(**values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        report = create_tfrecords(parse_arguments(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was there is as it was; the same command goes on from here", file=sys.stderr)
        return 130
    print(describe(report))
    print(to_json(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
