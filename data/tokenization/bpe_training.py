"""Training a byte-level BPE tokenizer. It is lossless, and the same texts give the same file.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from configs.errors import DataError
from data.tokenization.tokenizer import SEAM, SPECIAL_TOKENS, Tokenizer, cut_at_seams
from storage.files import check_writable, write_text

FILE_NAME = "byte-level-bpe.tokenizer.json"
MIN_VOCAB_SIZE = 256 + 2  # every byte, and the two special tokens
MAX_VOCAB_SIZE = 1 << 24  # n_vocab of a config has this limit too; the trainer reserves 60 bytes for each id
PIECE_CHARACTERS = 1 << 16  # the trainer holds 256 pieces at a time
MAX_WORD_CHARACTERS = 1 << 12  # the time that a word takes grows with the square of its length
_BEFORE_A_SPACE = re.compile(r"(?<=\S)(?= \S)")
_WORD = re.compile(r"[^\W\d_]+|\d+|(?:[^\s\w]|_)+|\s+")  # as the pre-tokenizer's, without the space before it
_LONG_BLANK = re.compile(rf"\s{{{MAX_WORD_CHARACTERS + 1}}}")


def cut_text(parts: Iterable[str], add_prefix_space: bool = False) -> Iterator[str]:
    """Cuts a text, given in parts, into pieces that have the words of the whole, to bound memory."""
    seam, rest = _BEFORE_A_SPACE if add_prefix_space else SEAM, ""
    for part in parts:
        *pieces, rest = cut_at_seams(rest + part, seam, PIECE_CHARACTERS)
        yield from pieces
    yield rest


def train_byte_level_bpe(
    texts: Iterable[str],
    vocab_size: int,
    nfkc: bool = False,
    add_prefix_space: bool = False,
    log: Callable[[str], None] = lambda line: None,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Trains a tokenizer with `<|endoftext|>` as id 0, `<|padding|>` as id 1, and all 256 bytes.

    Args:
        texts: texts to train on; too little text gives fewer than `vocab_size` ids.
        vocab_size: number of ids, special tokens included.
        nfkc: normalises to NFKC first.
        add_prefix_space: puts a space before every text.
        log: is called with a line if very long words were cut.
        special_tokens: more of them, from id 2 on.

    Raises:
        DataError: vocab_size has no room for the bytes and the special tokens, or is beyond any model.
    """
    minimum = MIN_VOCAB_SIZE + len(special_tokens)
    if vocab_size < minimum:
        raise DataError(
            f"vocab_size {vocab_size}: is too small for 256 bytes and {minimum - 256} special tokens; give {minimum} "
            "or more"
        )
    if vocab_size > MAX_VOCAB_SIZE:
        raise DataError(f"vocab_size {vocab_size}: is too large; give {MAX_VOCAB_SIZE:,} or less")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    if nfkc:
        backend.normalizer = normalizers.NFKC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    cut_words: list[str] = []
    pieces = (piece for text in texts for piece in cut_text([text], add_prefix_space))
    backend.train_from_iterator((part for piece in pieces for part in _cut_words(piece, cut_words)), trainer)
    if cut_words:
        log(
            f"{len(cut_words):,} word(s) of more than {MAX_WORD_CHARACTERS:,} characters were cut to train the "
            f"tokenizer, such as {cut_words[0]!r}..."
        )
    return Tokenizer(backend)


def _cut_words(piece: str, cut_words: list[str]) -> list[str]:
    """Cuts a piece inside its very long words, whose beginnings are added to `cut_words`."""
    if max(map(len, piece.split()), default=0) <= MAX_WORD_CHARACTERS and not _LONG_BLANK.search(piece):
        return [piece]
    ends = []
    for word in _WORD.finditer(piece):
        if len(word[0]) > MAX_WORD_CHARACTERS:
            cut_words.append(word[0][:20])
            ends += range(word.start() + MAX_WORD_CHARACTERS, word.end(), MAX_WORD_CHARACTERS)
    return [piece[start:end] for start, end in itertools.pairwise([0, *ends, len(piece)])]


def save_tokenizer(tokenizer: Tokenizer, path: str) -> None:
    """Writes a tokenizers JSON file, and makes its folder.

    Raises:
        UserError: the place cannot be written to.
    """
    check_writable(path)
    write_text(path, tokenizer.to_json())
