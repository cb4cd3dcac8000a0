"""The lists that filters need, each a file of one entry a line: words, subreddits, trigrams, keys."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from configs.errors import DataError
from data.text.files import cannot_read
from storage.files import decode_text, read_bytes

N_FREQUENT_WORDS = 50
_GZIP_START = b"\x1f\x8b"
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class ListPaths:
    """Where the lists are; None: there is none.

    Attributes:
        bl_words: words and phrases that no response may have; lines that begin with # are left out, here and below.
        bl_subreddits: names of subreddits.
        keep_keys: `link<tab>comment<tab>dep` for each comment to read, and `keep` in place of `dep` for each response
            to keep; a folder holds `2017-01.gz` for the dump 2017-01.
        discard_tgt_keys: SHA-224 of normalised turns to learn nothing from; a folder holds `2017-01-o.gz`.
        freq_words: words, the most frequent first.
        bland_trigrams: trigrams that are too common, words apart by blanks.
    """

    bl_words: str | None = None
    bl_subreddits: str | None = None
    keep_keys: str | None = None
    discard_tgt_keys: str | None = None
    freq_words: str | None = None
    bland_trigrams: str | None = None

    def of_dump(self, name: str) -> ListPaths:
        """Returns the paths for one dump: the file of that dump for each folder."""
        return replace(
            self,
            keep_keys=_in_folder(self.keep_keys, f"{name}.gz"),
            discard_tgt_keys=_in_folder(self.discard_tgt_keys, f"{name}-o.gz"),
        )

    def states(self) -> list[tuple[str, int, int] | None]:
        """Returns the name, the bytes and the time of change of each list.

        Raises:
            DataError: one is not there.
        """
        return [_state_of(getattr(self, field.name)) for field in fields(self)]


def _in_folder(path: str | None, name: str) -> str | None:
    return os.path.join(path, name) if path and os.path.isdir(path) else path


def _state_of(path: str | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    try:
        state = os.stat(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    return os.path.basename(path), state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class Phrases:
    """Phrases to find in texts, whatever their case.

    Attributes:
        tokens: the words and marks of each.
        lengths: how many of them phrases have.
    """

    tokens: frozenset[tuple[str, ...]]
    lengths: tuple[int, ...]

    def are_in(self, text: str) -> bool:
        """Returns whether a phrase is in a text, between whole words."""
        tokens = _tokens(text)
        starts = range(len(tokens))
        return any(tokens[start : start + length] in self.tokens for length in self.lengths for start in starts)


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text.lower()))


@dataclass(frozen=True)
class Lists:
    """The lists themselves, as `ListPaths` says; None where there is none."""

    bl_words: Phrases | None = None
    bl_subreddits: frozenset[str] | None = None
    keep_keys: frozenset[str] | None = None
    discard_tgt_keys: frozenset[str] | None = None
    freq_words: frozenset[str] | None = None
    bland_trigrams: frozenset[str] | None = None

    def block(self, text: str) -> bool:
        """Returns whether nobody is to learn to say a text."""
        if self.bl_words is not None and self.bl_words.are_in(text):
            return True
        return self.discard_tgt_keys is not None and sha224(text) in self.discard_tgt_keys


def sha224(text: str) -> str:
    """Returns the key of a turn in DialoGPT's lists of what to discard."""
    return hashlib.sha224(text.encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def load_lists(paths: ListPaths) -> Lists:
    """Reads the lists, once in a process.

    Raises:
        DataError: one cannot be read, or is empty.
    """
    return Lists(
        bl_words=_phrases(paths.bl_words) if paths.bl_words else None,
        bl_subreddits=_entries(paths.bl_subreddits, lowers=True),
        keep_keys=_entries(paths.keep_keys),
        discard_tgt_keys=_entries(paths.discard_tgt_keys),
        freq_words=_first_words(paths.freq_words) if paths.freq_words else None,
        bland_trigrams=_entries(paths.bland_trigrams, lowers=True),
    )


def _phrases(path: str) -> Phrases:
    tokens = frozenset(_tokens(line) for line in _lines(path))
    return Phrases(tokens, tuple(sorted(set(map(len, tokens)))))


def _first_words(path: str) -> frozenset[str]:
    """Returns the words of the first lines; what follows a word, such as its frequency, does not count."""
    return frozenset(line.split()[0].lower() for line in itertools.islice(_lines(path), N_FREQUENT_WORDS))


def _entries(path: str | None, lowers: bool = False) -> frozenset[str] | None:
    if path is None:
        return None
    return frozenset(line.lower() if lowers else line for line in _lines(path))


def _lines(path: str) -> Iterator[str]:
    """Yields the entries of a list, which may be compressed by gzip; one without any has no effect, as DialoGPT's."""
    try:
        content = read_bytes(path)
        text = decode_text(gzip.decompress(content) if content.startswith(_GZIP_START) else content)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise cannot_read(path, error) from None
    yield from (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
