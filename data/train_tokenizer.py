"""Trains a byte-level BPE tokenizer on text files.

    python data/train_tokenizer.py --base_dir texts --file_type txt --vocab_size 32768

The tokenizer is lossless, and the same texts give the same file.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from configs.errors import DataError, UserError
from data.text.documents import Document, explain, read_all_documents, share_below
from data.text.files import SUFFIXES, find_files
from data.tokenization.tokenizer import EOS_TOKEN, PADDING_TOKEN, Tokenizer
from storage.files import check_writable, exists, write_text

FILE_NAME = "byte-level-bpe.tokenizer.json"
SMALLEST_VOCABULARY = 256 + 2  # every byte, and the two special tokens
FILE_TYPES = ("all", *(suffix[1:] for suffix in SUFFIXES))


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        base_dir: directory with the texts, read with all below it.
        output_dir: where the tokenizer is written.
        file_type: suffix of the files to read, without the dot; "all" for every kind that can be read.
        vocab_size: ids to make, special tokens included.
        sample_share: share of the documents to train on, in (0, 1].
        nfkc: normalises to Unicode's NFKC, which loses what NFKC loses.
        add_prefix_space: encodes every text as if a space stood before it.
        overwrite: replaces a tokenizer that is already there.
    """

    base_dir: str
    vocab_size: int
    output_dir: str = "tokenizers"
    file_type: str = "xz"
    sample_share: float = 1.0
    nfkc: bool = False
    add_prefix_space: bool = False
    overwrite: bool = False


def train_byte_level_bpe(
    texts: Iterable[str], vocab_size: int, nfkc: bool = False, add_prefix_space: bool = False
) -> Tokenizer:
    """Trains a tokenizer with `<|endoftext|>` as id 0, `<|padding|>` as id 1, and all 256 bytes.

    Args:
        texts: what to train on; too little text gives fewer than `vocab_size` ids.
        vocab_size: ids to make.
        nfkc: normalises to NFKC first.
        add_prefix_space: puts a space before every text.

    Raises:
        DataError: vocab_size has no room for the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocab_size {vocab_size} is too small: it has to hold 256 bytes and 2 special tokens; take at least "
            f"{SMALLEST_VOCABULARY}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    if nfkc:
        backend.normalizer = normalizers.NFKC()
    backend.train_from_iterator(texts, _trainer(vocab_size))
    return Tokenizer(backend)


def _trainer(vocab_size: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOS_TOKEN, PADDING_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def save_tokenizer(tokenizer: Tokenizer, path: str) -> None:
    """Writes a tokenizers JSON file, beside `path` first; its directory is made if it is missing.

    Raises:
        UserError: the place cannot be written to.
    """
    check_writable(path)
    write_text(path, tokenizer.to_json())


def train_tokenizer(settings: Settings) -> str:
    """Trains a tokenizer on files and writes it; returns its path.

    Raises:
        DataError: no file or no text is found, a tokenizer is already there, or output_dir cannot be written to.
    """
    path = os.path.join(settings.output_dir, FILE_NAME)
    _check(settings, path)
    suffixes = SUFFIXES if settings.file_type == "all" else (f".{settings.file_type}",)
    files = find_files([settings.base_dir], suffixes=suffixes)
    check_writable(path)
    with tqdm(files, desc="reading", unit="file", disable=None) as bar:
        texts = _sample(read_all_documents(bar), settings.sample_share)
        tokenizer = train_byte_level_bpe(
            _some(texts, settings.base_dir), settings.vocab_size, settings.nfkc, settings.add_prefix_space
        )
    save_tokenizer(tokenizer, path)
    print(f"{path}: {tokenizer.n_vocab} ids from {len(files)} files")
    return path


def _check(settings: Settings, path: str) -> None:
    if not 0 < settings.sample_share <= 1:
        raise DataError(f"sample_share {settings.sample_share} is no share; give more than 0 and at most 1")
    if exists(path) and not settings.overwrite:
        raise DataError(f"{path}: already there; choose another --output_dir, or give --overwrite to replace it")


def _sample(documents: Iterable[Document], share: float) -> Iterator[str]:
    for document in documents:
        if document.text is None:
            print(f"left out {explain(document)}", file=sys.stderr)
        elif share_below(document.identity) < share:
            yield document.text


def _some(texts: Iterator[str], source: str) -> Iterator[str]:
    found = False
    for text in texts:
        found = found or bool(text)
        yield text
    if not found:
        raise DataError(f"{source}: has no text to train on; add text, or raise --sample_share")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a byte-level BPE tokenizer.")
    add = parser.add_argument
    add("--base_dir", required=True, help="directory with the texts, read with all below it")
    add("--output_dir", default=Settings.output_dir, help="where the tokenizer is written; nothing there is deleted")
    add("--file_type", default=Settings.file_type, choices=FILE_TYPES, help="suffix of the files to read")
    add("--vocab_size", type=int, required=True, help="ids to make, the two special tokens included")
    add("--sample_share", type=float, default=Settings.sample_share, help="share of the documents to train on")
    add("--nfkc", action="store_true", help="normalise to NFKC (not lossless)")
    add("--add_prefix_space", action="store_true", help="put a space before every text (not lossless)")
    add("--overwrite", action="store_true", help="replace a tokenizer that is already there")
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        train_tokenizer(parse_arguments(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: no tokenizer was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
