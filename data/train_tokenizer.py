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

from configs.command_line import CommandLine
from configs.errors import DataError, UserError
from data.text.deduplication import digest_fraction
from data.text.documents import Document, explain, identity_digest, read_all_documents
from data.text.files import SUFFIXES, find_files
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe
from storage.files import check_writable, exists

FILE_TYPES = ("all", *(suffix[1:] for suffix in SUFFIXES))


@dataclass(frozen=True)
class Settings:
    """The settings by the names of their flags.

    Attributes:
        base_dir: directory with the texts, searched recursively.
        vocab_size: number of ids, special tokens included.
        output_dir: where the tokenizer is written.
        file_type: suffix of the files to read, without the dot; "all" for every readable kind.
        sample_share: fraction of the documents to train on, in (0, 1].
        nfkc: normalises to Unicode's NFKC, which is not lossless.
        add_prefix_space: encodes every text as if a space preceded it.
        overwrite: replaces an existing tokenizer.
    """

    base_dir: str
    vocab_size: int
    output_dir: str = "tokenizers"
    file_type: str = "xz"
    sample_share: float = 1.0
    nfkc: bool = False
    add_prefix_space: bool = False
    overwrite: bool = False


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
    files = find_files([settings.base_dir], suffixes=suffixes)
    check_writable(path)
    with tqdm(files, desc="reading", unit="file", disable=None) as bar:
        texts = _require_text(_sample(read_all_documents(bar), settings.sample_share), settings.base_dir)
        tokenizer = train_byte_level_bpe(texts, settings.vocab_size, settings.nfkc, settings.add_prefix_space)
    save_tokenizer(tokenizer, path)
    print(f"tokenizer saved at {path}: {tokenizer.n_vocab} ids from {len(files)} files")
    return path


def _sample(documents: Iterable[Document], fraction: float) -> Iterator[str]:
    for document in documents:
        if document.text is None:
            print(f"left out {explain(document)}", file=sys.stderr)
        elif digest_fraction(identity_digest(document)) < fraction:
            yield document.text


def _require_text(texts: Iterator[str], source: str) -> Iterator[str]:
    found = False
    for text in texts:
        found = found or bool(text)
        yield text
    if not found:
        raise DataError(f"{source}: has no text to train on; add text, or raise --sample_share")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(description="Train a byte-level BPE tokenizer on text files.")
    add = parser.add_argument
    add("--base_dir", required=True, help="directory with the texts, searched recursively")
    add("--output_dir", default=Settings.output_dir, help="where the tokenizer is written; nothing there is deleted")
    add("--file_type", default=Settings.file_type, choices=FILE_TYPES, help="suffix of the files to read")
    add("--vocab_size", type=int, required=True, help="number of ids, the two special tokens included")
    add("--sample_share", type=float, default=Settings.sample_share, help="fraction of the documents to train on")
    add("--nfkc", action="store_true", help="normalise to NFKC (not lossless)")
    add("--add_prefix_space", action="store_true", help="put a space before every text (not lossless)")
    add("--overwrite", action="store_true", help="replace an existing tokenizer")
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        train_tokenizer(parse_arguments(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no tokenizer was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
