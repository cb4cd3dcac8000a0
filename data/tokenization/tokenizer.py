"""Tokenizers: loading one from a file, a folder or a Hugging Face name, encoding and decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np
import tokenizers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from tokenizers import pre_tokenizers

from configs.errors import ConfigError, DataError, looked_from
from configs.schema import DatasetConfig
from data.tokenization.backend import (
    BPE_FILES,
    EOS_TOKEN,
    FILES_WITH_ENDS,
    FOLDER_CONFIG,
    PADDING_TOKEN,
    TOKENIZER_FILE,
    Ends,
    backend_from_folder,
    backend_from_json,
    find_ends,
    named_ends,
    start_ids,
    switch_off_state,
)
from storage.files import decode_text, exists, is_local

SPECIAL_TOKENS = (EOS_TOKEN, PADDING_TOKEN)  # of the tokenizers that we train: ids 0 and 1
PIECE_CHARACTERS = 1 << 18
PIECES_AT_ONCE = 8
MAX_WORD_CHARACTERS = 1 << 20  # a longer word is cut, to bound memory
_RARE_LETTER = "\u2d30"  # of Tifinagh
_LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Byte-level tokens write a visible byte as the character of that number, and the others as characters from 256 on.
_VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF_CHARACTER = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + rank): byte for rank, byte in enumerate(_HIDDEN)
}
SEAM = re.compile(
    r"(?<=\S)(?:\n(?=\S)|(?= \S))"  # after a line break, or before a space, between two words
    r"|(?<=[A-Za-z])(?=[0-9.,;:+/=\x22()<>\[\]{}])|(?<=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5])(?=[、。！，．：；？])"
)


class Tokenizer:
    """Encodes and decodes text.

    No text is encoded as a special token: a document that contains `<|endoftext|>` gets the ids of these characters,
    unless the tokenizer reads special tokens.

    Attributes:
        reads_special_tokens: whether a special token that a text spells is encoded as such.
        ends: the tokens that end a document and fill up the last example.
        switched_off: what the file held that would cut, fill up or vary texts, and is not used.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, reads_special_tokens: bool = False, ends: Ends | None = None
    ) -> None:
        """Takes over a backend, and switches off what does not belong to a tokenizer; None: ends by their names."""
        self._backend = backend
        self.ends = ends or find_ends(backend, {})
        self._backend.encode_special_tokens = not reads_special_tokens
        self.reads_special_tokens = reads_special_tokens
        self.switched_off = switch_off_state(backend)
        self._added_tokens = backend.get_added_tokens_decoder()
        self._is_byte_level = _is_byte_level(backend)
        matched = [token for token in self._added_tokens.values() if reads_special_tokens or not token.special]
        self._matched = _any_of([token.content for token in matched])
        self._is_cut = _splits_at_lines(backend) and not any(_reaches_further(token) for token in matched)

    def __reduce__(self) -> tuple[object, tuple[str, bool, Ends]]:
        # The backend's own pickle forgets encode_special_tokens.
        return from_json, (self.to_json(), self.reads_special_tokens, self.ends)

    @functools.cached_property
    def n_vocab(self) -> int:
        """The highest id of all tokens, special ones included, and 1; ids between may be no token."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def unused_ids(self, n_vocab: int) -> tuple[tuple[int, int], ...]:
        """Returns the ids below `n_vocab` that are no token, as ranges (first, one past the last)."""
        used = {i for i in self._backend.get_vocab(with_added_tokens=True).values() if i < n_vocab}
        return tuple(
            (before + 1, after) for before, after in pairwise([-1, *sorted(used), n_vocab]) if after > before + 1
        )

    def first_unknown(self, ids: Sequence[int]) -> int | None:
        """Returns the first of these ids, none of them negative, that is no token; None: there is none."""
        return next((i for i in ids if self._backend.id_to_token(i) is None), None)

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token by its name; None if there is no such token."""
        return self._backend.token_to_id(token)

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a document, such as `<|endoftext|>`; None if it is unknown."""
        return None if self.ends.eos is None else self._backend.token_to_id(self.ends.eos)

    @property
    def special_tokens(self) -> list[str]:
        """Names of the special tokens, such as `<|endoftext|>`."""
        return [token.content for token in self._added_tokens.values() if token.special]

    @property
    def padding_id(self) -> int | None:
        """Id of the token that fills up the last example, such as `<|padding|>`; None if there is none."""
        return None if self.ends.padding is None else self._backend.token_to_id(self.ends.padding)

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The ids that the tokenizer puts before a text that a model continues, such as that of `<s>`; mostly none."""
        return start_ids(self._backend)

    @property
    def no_eos(self) -> str:
        """What is said of a tokenizer whose end of text is unknown."""
        possible = f"{' and '.join(self.ends.possible)}, but " if self.ends.possible else ""
        return f"has {possible}no {EOS_TOKEN}"

    def contradicts(self, eos_id: int) -> bool:
        """Returns whether an id cannot end a document because `<|endoftext|>` does; other names are not as binding."""
        return self.ends.eos == EOS_TOKEN and self.eos_id != eos_id

    @functools.cached_property
    def reading_special_tokens(self) -> Tokenizer:
        """The same tokenizer, for texts in which special tokens count."""
        return from_json(self.to_json(), True, self.ends)

    def count_spelled(self, text: str) -> dict[str, int]:
        """Returns how often a text spells each special token that it is not read as, if it does."""
        names = [] if self.reads_special_tokens else self.special_tokens
        return {name: text.count(name) for name in names if name in text}

    def describe_spelled(self, text: str) -> str:
        """Returns `count_spelled` as words; empty if it spells none."""
        return ", ".join(f"{name} {count:,} times" for name, count in self.count_spelled(text).items())

    def difference(self, other: Tokenizer) -> str | None:
        """Returns how the ids of another tokenizer mean other tokens; None if those that both have mean the same."""
        own, others = (tokenizer._backend.get_vocab(with_added_tokens=True) for tokenizer in (self, other))
        names = {token_id: token for token, token_id in own.items()}
        for token, token_id in sorted(others.items(), key=lambda item: item[1]):
            if names.get(token_id, token) != token:
                return f"the id {token_id} is {names[token_id]!r} in the one and {token!r} in the other"
        return None if self._merges() == other._merges() else "their merges differ"

    def _merges(self) -> list[str] | None:
        return json.loads(self._backend.to_str())["model"].get("merges")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens.

        Raises:
            DataError: the text has a character for which the tokenizer has no token, not even an unknown one.
        """
        with _refusing_texts():
            return self._backend.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def drops_characters(self) -> bool:
        """Whether characters that are not in the vocabulary vanish from texts."""
        try:
            return not self.encode(_RARE_LETTER)
        except DataError:
            return False

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, using all cores."""
        pieces = [self.pieces(text) for text in texts]
        ids = self._encode_pieces(chain.from_iterable(pieces))
        return [list(chain.from_iterable(next(ids) for _ in parts)) for parts in pieces]

    def _encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        # The backend's encodings take some 100 bytes a character, so only a few pieces are encoded at a time.
        for group in _groups(pieces):
            with _refusing_texts():
                encodings = self._backend.encode_batch_fast(group, add_special_tokens=False)
            for encoding in encodings:
                yield encoding.ids

    def encode_end(self, text: str, n_tokens: int) -> list[int]:
        """Returns the last `n_tokens` ids of a text, or all if it has fewer, encoding only the end of a long text."""
        characters = max(64 * n_tokens, 4096)
        # `_encode_pieces` lets other threads run, which `encode` does not.
        while len(ids := next(self._encode_pieces([self._end(text, characters)]))) < n_tokens and characters < len(
            text
        ):
            characters *= 2
        return ids[-n_tokens:]

    def most_bytes(self, n_tokens: int) -> float:
        """Returns the most bytes of text that `n_tokens` ids can stand for; infinity if there is no limit."""
        is_exact = self._is_byte_level and self._backend.normalizer is None
        return n_tokens * self._longest_bytes if is_exact else math.inf

    @functools.cached_property
    def _longest_bytes(self) -> int:
        return max((len(self.bytes_of(token_id)) for token_id in range(self.n_vocab)), default=0)

    def _end(self, text: str, characters: int) -> str:
        """Returns at most this many characters from the end, if the text can be cut there without changing a token."""
        if len(text) <= characters or not self._is_cut:
            return text
        seam = SEAM.search(text, len(text) - characters)
        return text[self._outside(text, seam.end()) :] if seam else text

    def _outside(self, text: str, cut: int) -> int:
        """Returns where to cut instead if an added token of the text would be cut."""
        longest = max((len(token.content) for token in self._added_tokens.values()), default=0)
        found = self._matched.finditer(text, max(0, cut - longest), cut + longest) if self._matched else ()
        return next((token.end() for token in found if token.start() < cut < token.end()), cut)

    def pieces(self, text: str) -> list[str]:
        """Cuts a very long text where this changes no token, to bound memory and to share the work among cores."""
        if not self._is_cut or len(text) <= PIECE_CHARACTERS:
            return [text]
        parts = self._matched.split(text) if self._matched else [text]  # every second is an added token
        pieces = ([part] if i % 2 else cut_at_seams(part, SEAM, PIECE_CHARACTERS) for i, part in enumerate(parts))
        return list(chain.from_iterable(pieces))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids, with the names of special tokens; bytes that are not UTF-8 become U+FFFD."""
        if self._is_byte_level:  # the backend would read the letters of added tokens as bytes
            return b"".join(self.bytes_of(int(i)) for i in ids).decode("utf-8", "replace")
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def decode_marked(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids to look at: a special token is its name in ⟦ ⟧, apart from text that spells it."""
        runs = groupby(map(int, ids), key=lambda i: i in self._added_tokens and self._added_tokens[i].special)
        return "".join(
            "".join(f"⟦{self._added_tokens[i].content}⟧" for i in run) if is_special else self.decode(list(run))
            for is_special, run in runs
        )

    def bytes_of(self, token_id: int) -> bytes:
        """Returns the bytes that an id adds to a text; with a byte-level tokenizer, they may be part of a character."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            return token.encode() if token_id in self._added_tokens else _bytes_of_characters(token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte.group(1), 16)])
        before = self.encode("a")  # at the start of a text, a word's first token would lose its space
        return self.decode([*before, token_id]).removeprefix(self.decode(before)).encode()

    def to_json(self) -> str:
        """Returns the tokenizer as the text of a tokenizers JSON file."""
        return self._backend.to_str(pretty=True)

    def files(self) -> dict[str, str]:
        """Returns the contents of the files, by their names, from whose folder it is loaded again with its ends."""
        files, by_name = {TOKENIZER_FILE: self.to_json()}, find_ends(self._backend, {})
        if self.ends != by_name:
            values = {"eos_token": self.ends.eos, "pad_token": self.ends.padding or self.ends.eos}
            files[FOLDER_CONFIG] = json.dumps(values, indent=2) + "\n"
        return files

    def token_byte_lengths(self) -> np.ndarray:
        """Counts the UTF-8 bytes of text that each id stands for; 0 for special tokens.

        Returns:
            int32, [n_vocab]. For a byte-level tokenizer without normalisation the sum over the ids of a text is the
            length of its UTF-8; for others each id is counted by what it decodes to alone.
        """
        lengths = np.zeros(self.n_vocab, dtype=np.int32)
        for token, token_id in self._backend.get_vocab(with_added_tokens=True).items():
            added = self._added_tokens.get(token_id)
            if added is None:
                lengths[token_id] = self._byte_length(token, token_id)
            elif not added.special:
                lengths[token_id] = len(token.encode("utf-8"))
        return lengths

    def _byte_length(self, token: str, token_id: int) -> int:
        return len(_bytes_of_characters(token) if self._is_byte_level else self.decode([token_id]).encode("utf-8"))


@contextlib.contextmanager
def _refusing_texts() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"the tokenizer cannot encode a text ({error}); give one that has a token for it") from None


def _bytes_of_characters(token: str) -> bytes:
    """Returns the bytes that a byte-level token stands for; a token with other characters stands for itself."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _any_of(names: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})") if names else None


def _reaches_further(token: tokenizers.AddedToken) -> bool:
    """Returns whether an added token depends on the text beside it."""
    return token.lstrip or token.rstrip or token.single_word


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Returns whether a character of a token stands for a byte."""
    if backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    return [part["type"] for part in decoder.get("decoders", [decoder]) if part["type"] != "Fuse"] == ["ByteLevel"]


def cut_at_seams(text: str, seam: re.Pattern[str], piece_characters: int) -> list[str]:
    """Cuts a text at the first seam after so many characters, again and again; a word of a million letters is cut."""
    pieces, start = [], 0
    while end := _end_of_piece(text, start, seam, piece_characters):
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _end_of_piece(text: str, start: int, seam: re.Pattern[str], piece_characters: int) -> int | None:
    """Returns where a piece that begins here may end; None for the end of the text."""
    longest = start + max(MAX_WORD_CHARACTERS, piece_characters)
    if found := seam.search(text, start + piece_characters, longest):
        return found.end()
    return longest if longest < len(text) else None


def _splits_at_lines(backend: tokenizers.Tokenizer) -> bool:
    """Returns whether every `SEAM` is a token boundary.

    In GPT-2's regular expression, which byte-level tokenizers use, a line break between two characters that are not
    white space is a word of its own, such a space begins a word, and a word ends where its letters end. A normaliser
    must not look further than that; one that strips a text would strip each piece.
    """
    words, normalizer = backend.pre_tokenizer, backend.normalizer
    steps = json.loads(normalizer.__getstate__()) if normalizer else {"normalizers": []}
    is_local = all(step["type"] in _LOCAL_NORMALIZERS for step in steps.get("normalizers", [steps]))
    return is_local and isinstance(words, pre_tokenizers.ByteLevel) and not words.add_prefix_space and words.use_regex


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


def from_json(text: str, reads_special_tokens: bool = False, ends: Ends | None = None) -> Tokenizer:
    """Makes a tokenizer from the text of a tokenizers JSON file; None: with the ends of well-known names."""
    return Tokenizer(backend_from_json(text), reads_special_tokens, ends)


def load_tokenizer(path_or_name: str, is_pretrained: bool = False) -> Tokenizer:
    """Loads a tokenizer from a tokenizers JSON file, a folder with vocab.json and merges.txt, or a Hugging Face name.

    Args:
        path_or_name: the file, which may be in a bucket, the folder, or the name.
        is_pretrained: whether a path that does not exist is a Hugging Face name, which is downloaded unless cached.

    Raises:
        DataError: it does not exist, or is not a tokenizer.
    """
    tokenizer = _load(path_or_name, is_pretrained)
    if tokenizer.switched_off:
        _say_once(f"{path_or_name}: {', '.join(tokenizer.switched_off)} in it is switched off: texts are encoded whole")
    if tokenizer.drops_characters:
        _say_once(f"{path_or_name}: has no token for unknown characters: those outside its vocabulary are left out")
    for name, own, use in (
        (tokenizer.ends.eos, EOS_TOKEN, "ends a document"),
        (tokenizer.ends.padding, PADDING_TOKEN, "fills up the last example"),
    ):
        if name not in (None, own):
            _say_once(f"{path_or_name}: {name} {use} unless a config says otherwise")
    return tokenizer


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _load(path_or_name: str, is_pretrained: bool) -> Tokenizer:
    if not is_local(path_or_name):
        return _load_object(path_or_name)
    path = Path(path_or_name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    if is_pretrained:
        path = _download(path_or_name)
        return _load_folder(path) if path.is_dir() else _load_file(path)
    raise DataError(
        f"{path_or_name}: no such tokenizer; give a tokenizers JSON file (data/train_tokenizer.py makes one), or a "
        f"folder with vocab.json and merges.txt{looked_from(path_or_name)}"
    )


def load_encoder(encoder_path: str) -> Tokenizer:
    """Loads the tokenizer that `--encoder_path` names: a path, or else a Hugging Face name.

    Raises:
        DataError: as `load_tokenizer`.
    """
    return load_tokenizer(encoder_path, is_pretrained_name(encoder_path))


def is_pretrained_name(encoder_path: str) -> bool:
    """Returns whether `--encoder_path` is a Hugging Face name: it neither exists as a path nor looks like one."""
    is_path = not is_local(encoder_path) or encoder_path.endswith(".json") or os.path.isabs(encoder_path)
    return not is_path and not os.path.exists(encoder_path)


def folder_of(encoder_path: str) -> str | None:
    """Returns the folder of the tokenizer that `--encoder_path` names; None: it is a file in a bucket."""
    if is_pretrained_name(encoder_path):
        path = _download(encoder_path)
        return str(path if path.is_dir() else path.parent)
    if not is_local(encoder_path):
        return None
    return encoder_path if os.path.isdir(encoder_path) else os.path.dirname(os.path.abspath(encoder_path))


def is_at_hand(encoder_path: str) -> bool:
    """Returns whether `load_encoder` needs no download: the path exists, or the name is in the cache."""
    if not is_pretrained_name(encoder_path):
        return exists(encoder_path)
    try:
        return isinstance(try_to_load_from_cache(encoder_path, "tokenizer.json"), str)
    except ValueError:  # no name that Hugging Face could have
        return False


def _load_object(path: str) -> Tokenizer:
    from meshtf import tf  # not at the top: it takes seconds to load, and most tokenizers are local files

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        folder, name = posixpath.split(path)
        beside = {other: f"{folder}/{other}" for other in FILES_WITH_ENDS if name == TOKENIZER_FILE}
        files = {other: tf.io.gfile.GFile(at, "rb").read() for other, at in beside.items() if tf.io.gfile.exists(at)}
        return _with_ends(backend_from_json(decode_text(content)), files)
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path}: not a tokenizers JSON file ({error}); give one") from None


def _load_file(path: Path) -> Tokenizer:
    try:
        beside = path.parent if path.name == TOKENIZER_FILE else None
        return _with_ends(backend_from_json(decode_text(path.read_bytes())), _files_with_ends(beside))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(
            f"{path}: not a tokenizers JSON file ({error}); give one, or the folder with vocab.json and merges.txt"
        ) from None


def _files_with_ends(folder: Path | None) -> dict[str, bytes]:
    paths = [folder / name for name in FILES_WITH_ENDS] if folder else []
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _with_ends(backend: tokenizers.Tokenizer, files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer(backend, ends=find_ends(backend, named_ends(files)))


def _load_folder(folder: Path) -> Tokenizer:
    trained = list(folder.glob("*.tokenizer.json"))  # data/train_tokenizer.py writes one
    if len(trained) == 1 and not any((folder / name).is_file() for name in (TOKENIZER_FILE, *BPE_FILES)):
        return _load_file(trained[0])
    files = (TOKENIZER_FILE,) if (folder / TOKENIZER_FILE).is_file() else BPE_FILES
    for name in files:
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: has no {name}; a tokenizer folder holds tokenizer.json, or vocab.json and merges.txt"
            )
    try:
        return _with_ends(backend_from_folder(folder), _files_with_ends(folder))
    except Exception as error:  # the library raises a bare Exception
        kind = "is not a tokenizers JSON file" if len(files) == 1 else "are not a BPE"
        reason = str(error).partition("\n")[0]
        raise DataError(f"{folder}: {' and '.join(files)} {kind} ({reason}); copy them again") from None


def _download(name: str) -> Path:
    """Returns the JSON file of a tokenizer, or the folder of the cache with the two files that older programs kept."""
    try:
        cached = [try_to_load_from_cache(name, file) for file in ("tokenizer.json", "vocab.json", "merges.txt")]
        found = [isinstance(path, str) for path in cached]
        if not found[0] and all(found[1:]):
            return Path(cached[1]).parent
        if found[0]:
            return Path(cached[0])
        with contextlib.suppress(OSError):  # most have one, which names their end of text
            hf_hub_download(name, FOLDER_CONFIG)
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{name}: neither a file or folder here, nor found as a tokenizer at Hugging Face ({reason}); give a "
            "tokenizers JSON file, or a folder with vocab.json and merges.txt"
        ) from None


def with_special_ids(dataset: DatasetConfig, tokenizer: Tokenizer | None) -> DatasetConfig:
    """Fills in the eos_id and padding_id that a dataset config leaves to its tokenizer.

    Args:
        dataset: the config; eos_id becomes its padding_id if the tokenizer has no padding token.
        tokenizer: None: it is yet to be trained.

    Raises:
        ConfigError: the tokenizer has no end of text either, or disagrees with the config.
    """
    eos_id, padding_id = range(len(SPECIAL_TOKENS)) if tokenizer is None else (tokenizer.eos_id, tokenizer.padding_id)
    eos_id = eos_id if dataset.eos_id is None else dataset.eos_id
    if eos_id is None:
        raise ConfigError(
            f"{dataset.id}: eos_id: is left out, and the tokenizer {tokenizer.no_eos}; give the id that ends a document"
        )
    padding_id = eos_id if padding_id is None else padding_id
    padding_id = padding_id if dataset.padding_id is None else dataset.padding_id
    dataset = dataclasses.replace(dataset, eos_id=eos_id, padding_id=padding_id)
    if tokenizer is not None:
        check_special_ids(tokenizer, dataset)
    return dataset


def check_special_ids(tokenizer: Tokenizer, dataset: DatasetConfig) -> None:
    """Checks a dataset config's n_vocab, eos_id and padding_id against its tokenizer.

    A padding_id equal to the number of ids is allowed: GPT-Neo's configs for GPT-2's tokenizer have no padding token.

    Raises:
        ConfigError: they disagree; one line for each issue.
    """
    size, known = tokenizer.n_vocab, f"the tokenizer has ids 0 to {tokenizer.n_vocab - 1} only"
    issues = []
    if size > dataset.n_vocab:
        issues.append(f"n_vocab = {dataset.n_vocab}: the tokenizer has {size} ids; set n_vocab to at least that")
    if dataset.eos_id >= size:
        issues.append(f"eos_id = {dataset.eos_id}: {known}; choose one of them")
    if dataset.padding_id >= size and dataset.padding_id != dataset.n_vocab:
        remedy = f"choose one of them, or n_vocab, {dataset.n_vocab}, for no padding token"
        issues.append(f"padding_id = {dataset.padding_id}: {known}; {remedy}")
    for key, token in (("eos_id", tokenizer.ends.eos), ("padding_id", tokenizer.ends.padding)):
        given, actual = getattr(dataset, key), getattr(tokenizer, key)
        if actual not in (None, given) and token in SPECIAL_TOKENS:
            issues.append(f"{key} = {given}: the tokenizer's {token} is {actual}; set {key} to {actual}")
        elif actual not in (None, given):
            _say_once(f"{dataset.id}: {key} = {given}: is used, although the tokenizer's {token} is {actual}")
    if issues:
        raise ConfigError("\n".join(f"{dataset.id}: {issue}" for issue in issues))
