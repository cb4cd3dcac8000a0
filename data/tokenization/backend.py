"""Makes tokenizers of the tokenizers library from JSON, or from the files of a folder, with every id as it is given."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from storage.files import decode_text

EOS_TOKEN = "<|endoftext|>"
PADDING_TOKEN = "<|padding|>"
# Ends of text and padding in other families of tokenizers, taken where a tokenizer has just one of them.
OTHER_EOS_TOKENS = ("</s>", "<eos>", "[EOS]", "<|eos|>", "<|end_of_text|>", "<|im_end|>", "<｜end▁of▁sentence｜>")
OTHER_PADDING_TOKENS = ("<pad>", "[PAD]", "<PAD>", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>")
TOKENIZER_FILE = "tokenizer.json"
FOLDER_CONFIG = "tokenizer_config.json"
FILES_WITH_ENDS = (FOLDER_CONFIG, "special_tokens_map.json")  # the first that names a token counts
BPE_FILES = ("vocab.json", "merges.txt")


@contextlib.contextmanager
def _panics_are_errors() -> Iterator[None]:
    """Turns a panic of the library, which is no Exception, into one."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its module cannot be imported
            raise
        raise ValueError(f"the library fails on it: {error}") from None


@_panics_are_errors()
def backend_from_json(text: str) -> tokenizers.Tokenizer:
    """Makes a tokenizer from the text of a tokenizers JSON file, whose added tokens keep the ids that it gives them.

    Raises:
        Exception: it is not one; the library raises a bare Exception.
    """
    backend, values = tokenizers.Tokenizer.from_str(text), json.loads(text)
    ids = {token["content"]: token["id"] for token in values.get("added_tokens") or []}
    moved = {token: token_id for token, token_id in ids.items() if backend.token_to_id(token) != token_id}
    if not moved:
        return backend
    if not isinstance(values["model"]["vocab"], dict):
        told = _told(*next(iter(moved.items())))
        raise ValueError(f"{told} after a gap, which a {values['model']['type']} vocabulary cannot have")
    _add_to_vocabulary(ids, values["model"]["vocab"])
    return tokenizers.Tokenizer.from_str(json.dumps(values))


@_panics_are_errors()
def backend_from_folder(folder: Path) -> tokenizers.Tokenizer:
    """Makes a tokenizer from tokenizer.json, or else from vocab.json and merges.txt, and from the added tokens there.

    Raises:
        Exception: a file is broken; the library raises a bare Exception.
    """
    if (folder / TOKENIZER_FILE).is_file():
        values = _read_json(folder / TOKENIZER_FILE)
    else:
        values = json.loads(_byte_level(folder).to_str())
    given = {token["content"]: token for token in values.get("added_tokens") or []}
    tokens = _added_tokens(folder, values["model"]["vocab"]) | given
    values["added_tokens"] = sorted(tokens.values(), key=lambda token: token["id"])
    backend = backend_from_json(json.dumps(values))
    if not (folder / TOKENIZER_FILE).is_file():  # which says itself what a text begins with
        _begin_with_bos(backend, _read_json(folder / FOLDER_CONFIG))
    return backend


def _begin_with_bos(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Lets texts begin with the bos_token of a tokenizer_config.json, if its add_bos_token says so."""
    bos = next(_names(config.get("bos_token")), None)
    bos_id = None if bos is None else backend.token_to_id(bos)
    if config.get("add_bos_token") is True and bos_id is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, bos_id)]
        )


@dataclass(frozen=True)
class Ends:
    """Which tokens of a tokenizer end a document, and fill up the last example.

    Attributes:
        eos: the name of the one; None if it is unknown.
        padding: the name of the other; None if there is none.
        possible: names that may be the first, of which none is taken.
    """

    eos: str | None
    padding: str | None
    possible: tuple[str, ...] = ()


def find_ends(backend: tokenizers.Tokenizer, named: Mapping[str, str]) -> Ends:
    """Finds the ends that a tokenizer's folder names, or else those of well-known names.

    Args:
        backend: the tokenizer.
        named: the tokens that its folder names, by "eos_token" and "pad_token".
    """
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    found = []
    for key, own, others in (
        ("eos_token", EOS_TOKEN, OTHER_EOS_TOKENS),
        ("pad_token", PADDING_TOKEN, OTHER_PADDING_TOKENS),
    ):
        first = [name for name in (named.get(key), own) if name and backend.token_to_id(name) is not None]
        found.append(first[:1] or [name for name in others if name in special])
    eos, padding = (names[0] if len(names) == 1 else None for names in found)
    return Ends(eos, padding if padding != eos else None, tuple(found[0]) if eos is None else ())


def named_ends(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the tokens that `FILES_WITH_ENDS` name, given by their names; those of the first file count.

    Raises:
        ValueError: one is not JSON.
    """
    named: dict[str, str] = {}
    for file, content in files.items():
        try:
            values = json.loads(decode_text(content))
        except ValueError as error:
            raise ValueError(f"{file} beside it is not JSON: {error}") from None
        names = {key: next(_names(values.get(key)), None) for key in ("eos_token", "pad_token")}
        named = {key: name for key, name in names.items() if name} | named
    return named


def start_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Returns the ids that a tokenizer puts before a text, such as that of `<s>`; mostly none."""
    encoding = backend.encode("a", add_special_tokens=True)
    is_added = encoding.special_tokens_mask
    n_before = next((number for number, flag in enumerate(is_added) if not flag), 0)
    return tuple(encoding.ids[:n_before])


def switch_off_state(backend: tokenizers.Tokenizer) -> list[str]:
    """Switches off what a program has left in a tokenizer that would change texts; returns what that was."""
    found = {
        "truncation": backend.truncation,
        "padding": backend.padding,
        "dropout": getattr(backend.model, "dropout", None),
    }
    backend.no_truncation()
    backend.no_padding()
    if found["dropout"] is not None:
        backend.model.dropout = None
    return [name for name, state in found.items() if state]


def _add_to_vocabulary(ids: dict[str, int], vocabulary: dict[str, int]) -> None:
    """Adds all added tokens: the library numbers anew, by the size of the vocabulary, each that is not in it."""
    owners = {token_id: token for token, token_id in vocabulary.items()}
    for token, token_id in ids.items():
        if vocabulary.get(token, token_id) != token_id:
            raise ValueError(f"{_told(token, token_id)}, but the vocabulary gives it {vocabulary[token]}")
        if (owner := owners.setdefault(token_id, token)) != token:
            raise ValueError(f"{_told(token, token_id)}, which is that of {owner}")
    vocabulary |= ids


def _told(token: str, token_id: int) -> str:
    return f"the added token {token} has the id {token_id}"


def _byte_level(folder: Path) -> tokenizers.Tokenizer:
    vocabulary, merges = (decode_text((folder / name).read_bytes()) for name in BPE_FILES)
    backend = tokenizers.Tokenizer(models.BPE(json.loads(vocabulary), _merges(merges)))
    is_prefixed = _read_json(folder / FOLDER_CONFIG).get("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=is_prefixed)
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges(text: str) -> list[tuple[str, ...]]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def _added_tokens(folder: Path, vocabulary: Any) -> dict[str, dict[str, Any]]:
    """Returns the added tokens that lie beside a vocabulary, as a tokenizers JSON file lists them, by their text."""
    config = _read_json(folder / FOLDER_CONFIG)
    roles = {key: value for key, value in config.items() if key.endswith("_token")}
    special = {EOS_TOKEN, PADDING_TOKEN, *_names(_read_json(folder / "special_tokens_map.json")), *_names(roles)}
    ids = {token: vocabulary[token] for token in special if isinstance(vocabulary, dict) and token in vocabulary}
    ids |= _read_json(folder / "added_tokens.json")
    tokens = {token: _added_token(token, operator.index(token_id), token in special) for token, token_id in ids.items()}
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        token = _added_token(entry["content"], int(token_id), entry.get("special", False))
        tokens[entry["content"]] = token | {key: entry[key] for key in token if key in entry}
    return tokens


def _added_token(content: str, token_id: int, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": token_id, "content": content, "special": is_special, "normalized": not is_special} | flags


def _names(value: Any) -> Iterator[str]:
    """Yields the tokens that a special_tokens_map.json names: each a string, an object, or a list of them, or null."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and "content" in value:
        yield value["content"]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _names(part)


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if there is no file."""
    value = json.loads(decode_text(path.read_bytes())) if path.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} does not hold an object")
    return value
