"""The settings of `data/create_tfrecords.py`, and which of them are refused.

This module does not load TensorFlow, which the processes that encode do not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from configs.errors import DataError
from data.dialogue.conversation import TurnRules
from data.dialogue.templates import DIALOGPT
from data.text.streams import is_pipe
from data.tokenization.tokenizer import EOS_TOKEN, Tokenizer
from storage import buckets
from storage.files import is_local

MAX_CHUNK_SIZE = 1 << 24  # an example is held in memory
CHUNKS, DOCUMENTS = MODES = ("chunks", "documents")
_NOT_CONTENT = ("input_dir", "output_dir", "encoder_path", "processes", "overwrite", "on_bad_file", "runner")


PACKED, SINGLE = PACKINGS = ("packed", "single")


@dataclass(frozen=True)
class DialogueSettings:
    """How conversations become examples.

    Attributes:
        chat_template: see `load_template`.
        packing: "packed": an example holds as many whole conversations as fit; "single": one.
        rules: which turns are used.
    """

    chat_template: str = DIALOGPT
    packing: str = PACKED
    rules: TurnRules = TurnRules()


@dataclass(frozen=True)
class Settings:
    """The settings by the names of their flags.

    Attributes:
        input_dir: directory (searched recursively), glob, file or pipe with the text; `-` is standard input.
        files_per: records in a tfrecord file.
        name: prefix of the file names.
        output_dir: where they are written; may be `gs://`.
        encoder_path: tokenizers JSON file, folder with vocab.json and merges.txt, or Hugging Face name.
        minimum_size: documents of fewer tokens are left out.
        ftfy: repairs mis-decoded text.
        wikitext_detokenize: undoes WikiText's tokenization.
        separator: id after every document; None for the tokenizer's end of text.
        chunk_size: n_ctx of the model; a chunk has one token more.
        write_dataset_config: where to write a dataset config; None for nowhere.
        processes: processes that encode; 0 for one per core.
        overwrite: replaces existing files of this name.
        text_key: the key of a JSON object that holds its text.
        document_separator: what separates documents inside a text; True or "eos": the end of text; None: nothing.
        on_bad_file: whether to "stop" at a file that cannot be read, such as a broken link, or to "skip" it.
        special_tokens: special tokens that texts spell count as such.
        deduplicate: leaves out copies of earlier documents.
        max_documents: reads at most this many documents; None for all.
        eval_fraction: fraction of the documents, drawn by their text, that goes to files `{name}_eval_*` instead.
        runner: the runner of Apache Beam that encodes; None for processes of this machine.
        beam_options: Beam's own flags.
        mode: what a record is: "chunks", a chunk of the text, or "documents", one document of any length.
        dialogue: how conversations become examples; None: the input is text.
    """

    input_dir: str
    files_per: int = 100_000
    name: str = "openwebtext"
    output_dir: str = "./tfrecords"
    encoder_path: str = "gpt2"
    minimum_size: int = 0
    ftfy: bool = False
    wikitext_detokenize: bool = False
    separator: int | None = None
    chunk_size: int = 2048
    write_dataset_config: str | None = None
    processes: int = 0
    overwrite: bool = False
    text_key: str = "text"
    document_separator: str | bool | None = None
    on_bad_file: str = "stop"
    special_tokens: bool = False
    deduplicate: bool = False
    max_documents: int | None = None
    eval_fraction: float = 0.0
    runner: str | None = None
    beam_options: tuple[str, ...] = ()
    mode: str = CHUNKS
    dialogue: DialogueSettings | None = None

    @property
    def example_tokens(self) -> int | None:
        """Ids in a record; None: a record is a document."""
        return None if self.mode == DOCUMENTS else self.chunk_size + 1

    def content_settings(self) -> Mapping[str, object]:
        """Returns the settings that determine the content of the files, besides tokenizer and separator."""
        values = asdict(self)
        for key in (*_NOT_CONTENT, "beam_options"):
            del values[key]
        if not self.special_tokens:  # so that what is there from before this setting is known again
            del values["special_tokens"]
        del values["mode" if self.mode == CHUNKS else "chunk_size"]
        if self.dialogue is None:
            del values["dialogue"]
        return values


def check_settings(settings: Settings) -> Settings:
    """Returns the settings with a tidy `output_dir`.

    Raises:
        DataError: a setting cannot be used.
    """
    if not settings.name or "/" in settings.name or settings.name.startswith("."):
        raise DataError(
            f"--name {settings.name!r}: cannot begin a visible file name; choose one without slashes and without a "
            "leading dot"
        )
    for key in ("input_dir", "output_dir", "write_dataset_config"):
        _check_location(f"--{key}", getattr(settings, key) or "")
    if settings.runner and is_pipe(settings.input_dir):
        raise DataError(
            f"--input_dir {settings.input_dir}: other machines cannot read a pipe; write its text to a file"
        )
    check_minimums(settings, files_per=1, chunk_size=1, minimum_size=0, processes=0)
    if settings.chunk_size > MAX_CHUNK_SIZE:
        raise DataError(f"--chunk_size {settings.chunk_size}: is too large; give {MAX_CHUNK_SIZE} or less")
    if settings.max_documents is not None and settings.max_documents < 1:
        raise DataError(f"--max_documents {settings.max_documents}: is too small; give 1 or more, or leave it out")
    if not 0 <= settings.eval_fraction < 1:
        raise DataError(f"--eval_fraction {settings.eval_fraction}: is not a fraction; give 0 or more, and less than 1")
    return replace(settings, output_dir=settings.output_dir.rstrip("/") or "/")


def check_minimums(settings: object, **minimums: int) -> None:
    """Checks settings that are given against the smallest value that each may have.

    Raises:
        DataError: one is too small.
    """
    for key, minimum in minimums.items():
        value = getattr(settings, key)
        if value is not None and value < minimum:
            raise DataError(f"--{key} {value}: is too small; give {minimum} or more")


def _check_location(flag: str, path: str) -> None:
    if path.startswith(buckets.SCHEME):
        buckets.check_access(path)
    elif not is_local(path):
        raise DataError(
            f"{flag} {path}: is neither a local path nor one of Google Cloud Storage; give a local path, or "
            f"{buckets.SCHEME}BUCKET/FOLDER"
        )


def marker_of(document_separator: str | bool | None, tokenizer: Tokenizer | None, eos_id: int) -> str | None:
    """Returns what separates documents inside a text: a string, or for True the name of the end of text."""
    if document_separator not in (True, "eos"):
        return document_separator or None
    return EOS_TOKEN if tokenizer is None else tokenizer.ends.eos or tokenizer.decode([eos_id])


def separator_of(settings: Settings, tokenizer: Tokenizer) -> int:
    """Returns the id after every document.

    Raises:
        DataError: there is none, or the tokenizer or a dataset config does not allow it.
    """
    separator = tokenizer.eos_id if settings.separator is None else settings.separator
    if separator is None:
        raise DataError(f"{settings.encoder_path}: {tokenizer.no_eos}; give the id between documents with --separator")
    if not 0 <= separator < tokenizer.n_vocab:
        raise DataError(f"--separator {separator}: the tokenizer has {tokenizer.n_vocab} ids; give a smaller one")
    if settings.write_dataset_config and tokenizer.contradicts(separator):
        raise DataError(
            f"--separator {separator}: a dataset config must use the tokenizer's {EOS_TOKEN}, {tokenizer.eos_id}; "
            "leave out --separator or --write_dataset_config"
        )
    return separator
