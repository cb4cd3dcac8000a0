"""Encodes text files into tfrecords of one example length.

    python data/create_tfrecords.py --input_dir texts --name mine --encoder_path tokenizers/mine.json --chunk_size 1024

Documents are read and written in this process and encoded in others; the files are the same for any number of them.
"""

from __future__ import annotations

import argparse
import glob
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from configs.errors import DataError, UserError
from data.chunking import (
    Account,
    EncodedText,
    TextEncoder,
    encode_texts,
    join_documents,
    keep_documents,
    readable_texts,
)
from data.documents import Document, SourceFile, find_files, read_all_documents
from data.tokenizer import EOS_TOKEN, Tokenizer, load_tokenizer
from data.writing import check_writable, write_text

GPT2 = "gpt2"
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


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        account: what became of every document and token.
        files_read: source files.
        example_tokens: tokens in an example.
        tfrecords: the files written, in order.
        dataset_config: the dataset config written, if one was asked for.
    """

    account: Account
    files_read: int
    example_tokens: int
    tfrecords: tuple[str, ...]
    dataset_config: str | None


def create_tfrecords(settings: Settings) -> Report:
    """Writes the tfrecords; with more than one process, call it under `if __name__ == "__main__"`.

    Raises:
        DataError: a setting, the tokenizer or an input cannot be used; files of that name are already there; or the
            place cannot be written to. The old files then stay as they are.
    """
    # Here and not above: the encoding processes import this module, and have no use for TensorFlow.
    from data.tfrecords import find_shards, replace_shards, side_folder, write_shards

    _check_settings(settings)
    tokenizer = load_encoder(settings.encoder_path)
    separator = _separator(settings, tokenizer)
    files = find_files([settings.input_dir])
    old_files = find_shards(settings.output_dir, settings.name)
    _check_free(settings, old_files)
    if settings.write_dataset_config:
        check_writable(settings.write_dataset_config)
    account = Account()
    with side_folder(settings.output_dir, settings.name) as folder:
        with _examples(settings, tokenizer, separator, files, account) as examples:
            new_files = write_shards(folder, settings.name, _some(examples, settings, account), settings.files_per)
        account.check(settings.chunk_size + 1)
        paths = replace_shards(settings.output_dir, old_files, new_files)
    if settings.write_dataset_config:
        _write_dataset_config(settings, tokenizer, separator)
    return Report(account, len(files), settings.chunk_size + 1, tuple(paths), settings.write_dataset_config)


def load_encoder(encoder_path: str) -> Tokenizer:
    """Loads the tokenizer that `--encoder_path` names: what is no file, nor called like one, is a Hugging Face name."""
    return load_tokenizer(encoder_path, is_pretrained=_is_name(encoder_path))


def _is_name(encoder_path: str) -> bool:
    return not os.path.exists(encoder_path) and not encoder_path.endswith(".json") and not os.path.isabs(encoder_path)


@contextmanager
def _examples(
    settings: Settings, tokenizer: Tokenizer, separator: int, files: list[SourceFile], account: Account
) -> Iterator[Iterator[np.ndarray]]:
    encoder = TextEncoder(tokenizer, settings.ftfy, settings.wikitext_detokenize)
    padding = separator if tokenizer.padding_id is None else tokenizer.padding_id
    with (
        tqdm(files, desc="encoding", unit="file", disable=None) as bar,
        _mapping(encoder, settings.processes) as encode,
    ):
        documents = _show_documents(read_all_documents(bar), bar)
        encoded = encode_texts(readable_texts(documents, account), encode)
        kept = keep_documents(encoded, settings.minimum_size, account)
        yield join_documents(kept, settings.chunk_size + 1, separator, padding, account)


def _some(examples: Iterator[np.ndarray], settings: Settings, account: Account) -> Iterator[np.ndarray]:
    first = next(examples, None)
    if first is None:
        reasons = "; ".join([describe_documents(account), *account.problems[:1]])
        raise DataError(f"{settings.input_dir}: no text to write -- {reasons}")
    yield from chain([first], examples)


def _show_documents(documents: Iterator[Document], bar: tqdm) -> Iterator[Document]:
    for number, document in enumerate(documents, start=1):
        if number % 1000 == 0:
            bar.set_postfix_str(f"{number:,} documents")
        yield document


def _check_settings(settings: Settings) -> None:
    if not settings.name or "/" in settings.name:
        raise DataError(f"--name {settings.name!r} -- is no beginning of a file name -- give one that has no slash")
    smallest = {"files_per": 1, "chunk_size": 1, "minimum_size": 0, "processes": 0}
    for key, least in smallest.items():
        if getattr(settings, key) < least:
            raise DataError(f"--{key} {getattr(settings, key)} -- is too small -- give {least} or more")


def _separator(settings: Settings, tokenizer: Tokenizer) -> int:
    separator = tokenizer.eos_id if settings.separator is None else settings.separator
    if separator is None:
        raise DataError(f"{settings.encoder_path}: has no {EOS_TOKEN} -- give the id between documents by --separator")
    if not 0 <= separator < tokenizer.n_vocab:
        raise DataError(f"--separator {separator} -- the tokenizer has {tokenizer.n_vocab} ids -- give a smaller one")
    if settings.write_dataset_config and tokenizer.eos_id not in (None, separator):
        raise DataError(
            f"--separator {separator} -- the tokenizer's {EOS_TOKEN} is {tokenizer.eos_id}, and no dataset config may "
            "say otherwise -- leave out --separator, or --write_dataset_config"
        )
    return separator


def _check_free(settings: Settings, old_files: list[str]) -> None:
    config = settings.write_dataset_config
    in_the_way = [*old_files, *([config] if config and os.path.exists(config) else [])]
    if in_the_way and not settings.overwrite:
        raise DataError(
            f"{in_the_way[0]}: already there -- choose another --name or --output_dir, or give --overwrite to replace "
            f"{len(in_the_way)} file(s)"
        )


@contextmanager
def _mapping(encoder: TextEncoder, processes: int) -> Iterator[Callable[[Iterator[list[str]]], Iterator]]:
    """Gives what encodes batches in their order, in this process or in others."""
    if processes == 1:
        yield partial(map, encoder)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy TensorFlow's threads, which do not survive it
    number = processes or os.cpu_count() or 1
    with ProcessPoolExecutor(number, mp_context=context, initializer=_start_worker, initargs=(encoder,)) as executor:
        yield partial(_map_in_order, executor, 2 * number)


def _map_in_order(
    executor: ProcessPoolExecutor, most_waiting: int, batches: Iterator[list[str]]
) -> Iterator[list[EncodedText]]:
    waiting = deque()
    for batch in batches:
        waiting.append(executor.submit(_encode, batch))
        if len(waiting) >= most_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker_encoder: TextEncoder


def _start_worker(encoder: TextEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the writing process, which ends these
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The pool's queues stay open while any worker lives: nothing else tells them that the writing process was killed.
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode(texts: list[str]) -> list[EncodedText]:
    return _worker_encoder(texts)


def _write_dataset_config(settings: Settings, tokenizer: Tokenizer, separator: int) -> None:
    is_name = _is_name(settings.encoder_path)
    start = f"{_absolute(settings.output_dir)}/{settings.name}"
    values = {
        "n_vocab": tokenizer.n_vocab,
        "path": f"{glob.escape(start)}_[0-9]*_[0-9]*_[0-9]*.tfrecords",
        "eval_path": "",
        "tokenizer_path": settings.encoder_path if is_name else _absolute(settings.encoder_path),
        "tokenizer_is_pretrained": is_name,
        "eos_id": separator,
        "padding_id": tokenizer.n_vocab if tokenizer.padding_id is None else tokenizer.padding_id,
    }
    write_text(settings.write_dataset_config, json.dumps(values, indent=2) + "\n")


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def describe_documents(account: Account) -> str:
    """Says in one line how many documents were read, kept and discarded, and why."""
    discarded = {
        "undecodable": account.discarded_undecodable,
        "empty": account.discarded_empty,
        "too short": account.discarded_short,
    }
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in discarded.items())
    return (
        f"documents: {account.documents_read:,} read = {account.documents_kept:,} kept + "
        f"{sum(discarded.values()):,} discarded ({reasons})"
    )


def describe(report: Report) -> str:
    """Returns the report as a person reads it."""
    account = report.account
    tokens = account.text_tokens + account.separator_tokens + account.padding_tokens
    lines = [
        f"files: {report.files_read:,} read",
        describe_documents(account),
        f"tokens: {account.text_tokens:,} of text + {account.separator_tokens:,} separators + "
        f"{account.padding_tokens:,} of padding at the very end = {tokens:,} = "
        f"{account.examples:,} examples of {report.example_tokens:,}",
        f"tfrecords: {len(report.tfrecords):,} written, {report.tfrecords[0]} to {report.tfrecords[-1]}",
    ]
    if report.dataset_config:
        lines.append(f"dataset config: {report.dataset_config}")
    lines += [f"discarded {problem}" for problem in account.problems]
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
    values = vars(parser.parse_args(arguments))
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
        print("stopped: nothing was written, and what was there is as it was", file=sys.stderr)
        return 130
    print(describe(report))
    print(to_json(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
