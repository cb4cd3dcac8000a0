"""Text to token ids and back. What stands behind it, a file, a folder or a name, is settled once, when it is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import ConfigError, DataError
from configs.schema import DatasetConfig

EOS_TOKEN = "<|endoftext|>"
PADDING_TOKEN = "<|padding|>"
PIECE_CHARACTERS = 1 << 18
PIECES_AT_ONCE = 8
LONGEST_WORD_CHARACTERS = 1 << 20  # what is longer is no word, and is cut all the same: memory has an end
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Byte-level tokens write a byte as the letter of this number, or, where that is none to be seen, as one from 256 on.
_VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + rank): byte for rank, byte in enumerate(_HIDDEN)}
_SEAM = re.compile(
    r"(?<=\S)(?:\n(?=\S)|(?= \S))"  # after a line break, or before a space, between two words
    r"|(?<=[A-Za-z])(?=[0-9.,;:+/=\x22()<>\[\]{}])|(?<=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5])(?=[、。！，．：；？])"
)


class Tokenizer:
    """Encodes and decodes text.

    Special tokens come out of no text: a document that spells `<|endoftext|>` is encoded as the characters it has, so
    that it cannot end before its end.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return from_json, (self.to_json(),)  # the backend's own pickle forgets encode_special_tokens

    @property
    def n_vocab(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_id(self) -> int | None:
        """Id of `<|endoftext|>`; None if the tokenizer has no such token."""
        return self._backend.token_to_id(EOS_TOKEN)

    @property
    def padding_id(self) -> int | None:
        """Id of `<|padding|>`; None if the tokenizer has no such token."""
        return self._backend.token_to_id(PADDING_TOKEN)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; none is a special token's."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, using all cores."""
        pieces = [self.pieces(text) for text in texts]
        ids = self._encode_pieces(chain.from_iterable(pieces))
        return [list(chain.from_iterable(next(ids) for _ in parts)) for parts in pieces]

    def _encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        # The backend's encodings take some 100 bytes a character: only a few pieces at a time.
        for group in _groups(pieces):
            for encoding in self._backend.encode_batch_fast(group, add_special_tokens=False):
                yield encoding.ids

    def encode_end(self, text: str, n_tokens: int) -> list[int]:
        """Returns the last `n_tokens` ids of a text, or all if it has fewer, reading no more of it than that takes."""
        characters = max(64 * n_tokens, 4096)
        while len(ids := self.encode(self._end(text, characters))) < n_tokens and characters < len(text):
            characters *= 2
        return ids[-n_tokens:]

    def _end(self, text: str, characters: int) -> str:
        """Returns at most so many characters from the end, if a cut that changes no token allows it; else all."""
        if len(text) <= characters or not _splits_at_lines(self._backend):
            return text
        seam = _SEAM.search(text, len(text) - characters)
        return text[seam.end() :] if seam else text

    def pieces(self, text: str) -> list[str]:
        """Cuts a very long text where the cut changes no token, to bound memory and to share the work among cores."""
        if len(text) <= PIECE_CHARACTERS or not _splits_at_lines(self._backend):
            return [text]
        pieces, start = [], 0
        while end := _end_of_piece(text, start):
            pieces.append(text[start:end])
            start = end
        return [*pieces, text[start:]]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids, special tokens by their names; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def bytes_of(self, token_id: int) -> bytes:
        """Returns the bytes that an id adds to a text; those of a byte-level tokenizer may be a part of a character."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return _bytes_of_letters(token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte.group(1), 16)])
        before = self.encode("a")  # for a word's first token shows no blank where a text begins
        return self.decode([*before, token_id]).removeprefix(self.decode(before)).encode()

    def to_json(self) -> str:
        """Returns the tokenizer as the text of a tokenizers JSON file."""
        return self._backend.to_str(pretty=True)

    def token_byte_lengths(self) -> np.ndarray:
        """Counts the UTF-8 bytes of text that each id stands for; 0 for special tokens.

        Returns:
            int32, [n_vocab]. For a byte-level tokenizer without normalisation the sum over the ids of a text is the
            length of its UTF-8; for others each id is counted by what it decodes to alone.
        """
        special = self._backend.get_added_tokens_decoder()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.int32)
        for token, token_id in vocabulary.items():
            if token_id not in special:
                lengths[token_id] = self._byte_length(token, token_id)
            elif not special[token_id].special:
                lengths[token_id] = len(token.encode("utf-8"))
        return lengths

    def _byte_length(self, token: str, token_id: int) -> int:
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return len(token)  # one printable character stands for each byte
        return len(self._backend.decode([token_id]).encode("utf-8"))


def _bytes_of_letters(token: str) -> bytes:
    """The bytes that the letters of a byte-level token stand for; a token with others stands for itself."""
    try:
        return bytes(_BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return token.encode()


def _end_of_piece(text: str, start: int) -> int | None:
    """Returns where a piece that begins here may end; None: with the text."""
    longest = start + max(LONGEST_WORD_CHARACTERS, PIECE_CHARACTERS)
    if seam := _SEAM.search(text, start + PIECE_CHARACTERS, longest):
        return seam.end()
    return longest if longest < len(text) else None


def _splits_at_lines(backend: tokenizers.Tokenizer) -> bool:
    """Says whether every `_SEAM` is a token boundary.

    GPT-2's regular expression, which byte-level tokenizers use, makes a line break between two characters that are not
    white space a word of its own, begins a word with such a space, and ends one where letters end.
    """
    words = backend.pre_tokenizer
    return isinstance(words, pre_tokenizers.ByteLevel) and not words.add_prefix_space and words.use_regex


def _groups(pieces: Iterable[str]) -> Iterator[list[str]]:
    group, characters = [], 0
    for piece in pieces:
        group.append(piece)
        characters += len(piece)
        if characters >= PIECES_AT_ONCE * PIECE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def from_json(text: str) -> Tokenizer:
    """Makes a tokenizer from the text of a tokenizers JSON file."""
    return Tokenizer(tokenizers.Tokenizer.from_str(text))


def load_tokenizer(path_or_name: str, is_pretrained: bool = False) -> Tokenizer:
    """Loads a tokenizer from a tokenizers JSON file, a folder with vocab.json and merges.txt, or a Hugging Face name.

    Args:
        path_or_name: the file, which may lie in a bucket, the folder, or the name.
        is_pretrained: what does not exist as a path is a Hugging Face name; it is downloaded unless it is cached.

    Raises:
        DataError: there is no such thing, or it cannot be read as a tokenizer.
    """
    if "://" in path_or_name:
        return _load_object(path_or_name)
    path = Path(path_or_name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    if is_pretrained:
        return _load_file(_download(path_or_name))
    raise DataError(
        f"{path_or_name}: no such tokenizer; give a tokenizers JSON file (data/train_tokenizer.py makes one), or a "
        "folder with vocab.json and merges.txt"
    )


def load_encoder(encoder_path: str) -> Tokenizer:
    """Loads the tokenizer that `--encoder_path` names: a path, or else a Hugging Face name.

    Raises:
        DataError: as `load_tokenizer`.
    """
    return load_tokenizer(encoder_path, is_pretrained_name(encoder_path))


def is_pretrained_name(encoder_path: str) -> bool:
    """Returns whether `--encoder_path` is a Hugging Face name: it neither exists as a path nor looks like one."""
    is_path = "://" in encoder_path or encoder_path.endswith(".json") or os.path.isabs(encoder_path)
    return not is_path and not os.path.exists(encoder_path)


def _load_object(path: str) -> Tokenizer:
    from meshtf import tf  # here, for it takes seconds to load, and most tokenizers lie on a disk

    try:
        with tf.io.gfile.GFile(path) as file:
            return from_json(file.read())
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path}: not a tokenizers JSON file ({error}); give one") from None


def _load_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(
            f"{path}: not a tokenizers JSON file ({error}); give one, or the folder with vocab.json and merges.txt"
        ) from None


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _load_file(folder / "tokenizer.json")
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: has no {name}; a tokenizer folder holds vocab.json and merges.txt")
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{folder}: vocab.json and merges.txt are not a BPE ({error}); copy them again") from None
    return Tokenizer(_byte_level(model))


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token in (EOS_TOKEN, PADDING_TOKEN) if model.token_to_id(token) is not None])
    return backend


def _download(name: str) -> Path:
    try:
        cached = try_to_load_from_cache(name, "tokenizer.json")
        return Path(cached if isinstance(cached, str) else hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{name}: neither a file or folder here, nor found as a tokenizer at Hugging Face ({reason}); give a "
            "tokenizers JSON file, or a folder with vocab.json and merges.txt"
        ) from None


def check_special_ids(tokenizer: Tokenizer, dataset: DatasetConfig) -> None:
    """Checks a dataset config's n_vocab, eos_id and padding_id against its tokenizer.

    A padding_id equal to the number of ids is allowed: GPT-Neo's configs for GPT-2's tokenizer have no padding token.

    Raises:
        ConfigError: they disagree; one line an issue.
    """
    issues = [*_size_issues(tokenizer, dataset), *_name_issues(tokenizer, dataset)]
    if issues:
        raise ConfigError("\n".join(f"{dataset.id}: {issue}" for issue in issues))


def _size_issues(tokenizer: Tokenizer, dataset: DatasetConfig) -> list[str]:
    size, known = tokenizer.n_vocab, f"the tokenizer has ids 0 to {tokenizer.n_vocab - 1} only"
    issues = []
    if size > dataset.n_vocab:
        issues.append(f"n_vocab = {dataset.n_vocab}: the tokenizer has {size} ids; set n_vocab to at least that")
    if dataset.eos_id >= size:
        issues.append(f"eos_id = {dataset.eos_id}: {known}; choose one of them")
    if dataset.padding_id >= size and dataset.padding_id != dataset.n_vocab:
        remedy = f"choose one of them, or n_vocab, {dataset.n_vocab}, for no padding token"
        issues.append(f"padding_id = {dataset.padding_id}: {known}; {remedy}")
    return issues


def _name_issues(tokenizer: Tokenizer, dataset: DatasetConfig) -> list[str]:
    named = (
        ("eos_id", dataset.eos_id, EOS_TOKEN, tokenizer.eos_id),
        ("padding_id", dataset.padding_id, PADDING_TOKEN, tokenizer.padding_id),
    )
    return [
        f"{key} = {given}: the tokenizer's {token} is {actual}; set {key} to {actual}"
        for key, given, token, actual in named
        if actual is not None and given != actual
    ]
