"""Trains a byte-level BPE tokenizer on text files.

python data/train_tokenizer.py --base_dir texts --file_type txt --vocab_size 32768
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from configs.command_line import CommandLine, integer
from configs.errors import DataError
from configs.kinds import clean_path_flags
from data.text.deduplication import digest_fraction
from data.text.documents import Document, TextFormat, explain, identity_digest, read_all_documents
from data.text.files import SUFFIXES, ReadingNotes, SourceFile, find_files
from data.text.flags import add_text_flags
from data.text.streams import as_file
from data.tokenization.bpe_training import FILE_NAME, cut_text, save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import EOS_TOKEN, Tokenizer
from storage.files import check_writable, exists
from storage.streams import run_program

MAX_PROBLEMS = 20  # named one by one
MAX_TEXT_BYTES = 1 << 26  # longer texts are kept in a temporary file
FILE_TYPES = ("all", *(suffix[1:] for suffix in SUFFIXES))


@dataclass(frozen=True)
class Settings:
    """The settings by the names of their flags.

    Attributes:
        base_dir: directory (searched recursively), glob, file or pipe with the text; `-` is standard input.
        vocab_size: number of ids, special tokens included.
        output_dir: where the tokenizer is written.
        file_type: suffix of the files to read, without the dot; "all" for every readable kind.
        sample_share: fraction of the documents to train on, in (0, 1].
        nfkc: normalises to Unicode's NFKC, which is not lossless.
        add_prefix_space: encodes every text as if a space preceded it.
        overwrite: replaces an existing tokenizer.
        text_key: the key of a JSON object that holds its text.
        document_separator: what separates documents inside a text; None for nothing.
        on_bad_file: whether to "stop" at a file that cannot be read, such as a broken link, or to "skip" it.
    """

    base_dir: str
    vocab_size: int
    output_dir: str = "tokenizers"
    file_type: str = "xz"
    sample_share: float = 1.0
    nfkc: bool = False
    add_prefix_space: bool = False
    overwrite: bool = False
    text_key: str = "text"
    document_separator: str | None = None
    on_bad_file: str = "stop"


def train_tokenizer(settings: Settings) -> str:
    """Trains a tokenizer on files and writes it; returns its path.

    Raises:
        DataError: no file or no text is found, a tokenizer exists, or output_dir cannot be written to.
    """
    path = os.path.join(settings.output_dir, FILE_NAME)
    if not 0 < settings.sample_share <= 1:
        raise DataError(f"sample_share {settings.sample_share}: is not a fraction; give more than 0 and at most 1")
    if exists(path) and not settings.overwrite:
        raise DataError(f"{path}: already exists; choose another --output_dir, or give --overwrite to replace it")
    suffixes = SUFFIXES if settings.file_type == "all" else (f".{settings.file_type}",)
    notes = ReadingNotes()
    with as_file(settings.base_dir, notes) as source:
        files = find_files([source], (), suffixes, settings.on_bad_file, notes)
        check_writable(path)
        tokenizer = _train(settings, files, notes)
    save_tokenizer(tokenizer, path)
    for line in notes.lines():
        _say(line)
    print(f"tokenizer saved at {path}: {tokenizer.n_vocab} ids from {len(files)} files")
    return path


def _train(settings: Settings, files: Sequence[SourceFile], notes: ReadingNotes) -> Tokenizer:
    marker = EOS_TOKEN if settings.document_separator == "eos" else settings.document_separator
    text_format = TextFormat(settings.text_key, marker, max_bytes=MAX_TEXT_BYTES)
    with tqdm(files, desc="reading", unit="file", disable=None) as bar:
        texts = _texts(read_all_documents(bar, text_format, notes), settings)
        return train_byte_level_bpe(texts, settings.vocab_size, settings.nfkc, settings.add_prefix_space, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _texts(documents: Iterable[Document], settings: Settings) -> Iterator[str]:
    """Yields the texts of a sample in pieces, and names documents without a text."""
    has_text, problems = False, []
    for document in documents:
        if document.problem is not None:
            problems.append(explain(document))
            if len(problems) <= MAX_PROBLEMS:
                _say(f"left out {problems[-1]}")
        elif digest_fraction(identity_digest(document)) < settings.sample_share:
            for text in cut_text(document.parts(), settings.add_prefix_space):
                has_text = has_text or bool(text)
                yield text
    if len(problems) > MAX_PROBLEMS:
        _say(f"left out {len(problems) - MAX_PROBLEMS:,} more")
    if not has_text:
        reason = f" ({problems[0]}); give texts that can be read" if problems else "; add text, or raise --sample_share"
        raise DataError(f"{settings.base_dir}: has no text to train on{reason}")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(description="Train a byte-level BPE tokenizer on text files.")
    add = parser.add_argument
    add(
        "--base_dir",
        "--input_dir",
        required=True,
        help="directory (searched recursively), glob, file or pipe (-) with the text",
    )
    add("--output_dir", default=Settings.output_dir, help="where the tokenizer is written; nothing there is deleted")
    file_type = {"type": lambda text: text.lower().removeprefix("."), "choices": FILE_TYPES}
    add("--file_type", default=Settings.file_type, **file_type, help="suffix of the files to read, in any case")
    add("--vocab_size", type=integer, required=True, help="number of ids, the two special tokens included")
    add("--sample_share", type=float, default=Settings.sample_share, help="fraction of the documents to train on")
    add("--nfkc", action="store_true", help="normalise to NFKC (not lossless)")
    add("--add_prefix_space", action="store_true", help="put a space before every text (not lossless)")
    add("--overwrite", action="store_true", help="replace an existing tokenizer")
    add_text_flags(parser, EOS_TOKEN)
    values = vars(parser.parse_args(arguments))
    return Settings(**values | clean_path_flags(values, ("base_dir", "output_dir")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        train_tokenizer(parse_arguments(arguments))
        return 0

    return run_program(run, "interrupted: no tokenizer was written")


if __name__ == "__main__":
    sys.exit(main())
