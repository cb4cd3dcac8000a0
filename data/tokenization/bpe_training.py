"""Training a byte-level BPE tokenizer. It is lossless, and the same texts give the same file.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from configs.errors import DataError
from data.tokenization.tokenizer import EOS_TOKEN, PADDING_TOKEN, Tokenizer
from storage.files import check_writable, write_text

FILE_NAME = "byte-level-bpe.tokenizer.json"
MIN_VOCAB_SIZE = 256 + 2  # every byte, and the two special tokens


def train_byte_level_bpe(
    texts: Iterable[str], vocab_size: int, nfkc: bool = False, add_prefix_space: bool = False
) -> Tokenizer:
    """Trains a tokenizer with `<|endoftext|>` as id 0, `<|padding|>` as id 1, and all 256 bytes.

    Args:
        texts: texts to train on; too little text gives fewer than `vocab_size` ids.
        vocab_size: number of ids, special tokens included.
        nfkc: normalises to NFKC first.
        add_prefix_space: puts a space before every text.

    Raises:
        DataError: vocab_size has no room for the bytes and the special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size {vocab_size}: is too small for 256 bytes and 2 special tokens; give {MIN_VOCAB_SIZE} or more"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    if nfkc:
        backend.normalizer = normalizers.NFKC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOS_TOKEN, PADDING_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def save_tokenizer(tokenizer: Tokenizer, path: str) -> None:
    """Writes a tokenizers JSON file, and makes its folder.

    Raises:
        UserError: the place cannot be written to.
    """
    check_writable(path)
    write_text(path, tokenizer.to_json())
