"""Checks every record of tfrecord files, and copies the valid ones to new files.

    python data/check_tfrecords.py 'tfrecords/mine_*.tfrecords' --encoder_path tokenizers/mine.json

Settings that are not given come from the manifest beside the files, or from the records; so does the tokenizer, which
decodes an example. Exits with status 0 if every
record is valid or, with --repair, if the valid ones were copied; and with 2 otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.command_line import CommandLine, integer
from configs.errors import DataError
from configs.kinds import clean_path_flags
from data.check.plots import draw_reports
from data.check.repair import check_free, describe_repaired, repair
from data.check.report import Decode, check_no_errors, format_errors, format_report
from data.check.scan import scan_dataset
from data.check.validate import find_paths, split_into_blocks, validate_block
from data.loading.reader import RecordRules
from data.preprocessing.manifest import Manifest, manifest_paths, read_manifest
from data.preprocessing.pipeline import tokenizer_sha256
from data.preprocessing.settings import check_minimums
from data.tokenization.bpe_training import FILE_NAME
from data.tokenization.tokenizer import Tokenizer, is_at_hand, load_encoder
from storage.streams import run_program

MAX_VOCAB = 1 << 20  # if the vocabulary is not known: no tokenizer has as many ids
FILES_SAMPLED = 8


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        globs: which files to check.
        encoder_path: tokenizers JSON file, folder or Hugging Face name; decodes text and gives the vocabulary.
        chunk_size: an example holds chunk_size + 1 ids; None: from the manifest, or from the most common length.
        documents: each record is a document, of any length.
        n_vocab: every id is below it; None: from tokenizer or manifest.
        separator: id between documents; None: from tokenizer or manifest.
        picture: PNG file to plot into, or None.
        repair: whether to copy the valid records.
        repair_dir: a new folder to copy them to; None: `repaired` beside each file.
        processes: number of reading processes; 0: by the number of cores and bytes.
    """

    globs: tuple[str, ...]
    encoder_path: str | None = None
    chunk_size: int | None = None
    documents: bool = False
    n_vocab: int | None = None
    separator: int | None = None
    picture: str | None = None
    repair: bool = False
    repair_dir: str | None = None
    processes: int = 0


@dataclass(frozen=True)
class RecordFormat:
    """What is known of the records.

    Attributes:
        rules: what makes one valid.
        eos_id: the id between documents; None: it is not known.
        padding_id: the id that fills up examples; None: it is not known.
        decode: ids to text.
        remark: why ids are shown and no text; empty: text is shown.
    """

    rules: RecordRules
    eos_id: int | None
    padding_id: int | None
    decode: Decode
    remark: str


def find_record_format(settings: Settings, paths: Sequence[str]) -> RecordFormat:
    """Combines command line, tokenizer, manifest and records, in this order.

    Raises:
        DataError: the tokenizer cannot be used.
    """
    manifest = _manifest(paths)
    tokenizer, remark = _find_tokenizer(settings, manifest, paths)
    manifest_eos_id = manifest.settings.get("separator") if manifest else None
    manifest_n_vocab = manifest.tokenizer.get("n_vocab") if manifest else None
    n_vocab = _first_known(settings.n_vocab, tokenizer and tokenizer.n_vocab, manifest_n_vocab, MAX_VOCAB)
    return RecordFormat(
        rules=RecordRules(_n_ctx(settings, manifest, paths), n_vocab),
        eos_id=_first_known(settings.separator, manifest_eos_id, tokenizer and tokenizer.eos_id),
        padding_id=tokenizer and tokenizer.padding_id,
        decode=tokenizer.decode_marked if tokenizer else lambda ids: " ".join(map(str, ids)),
        remark=remark,
    )


def _find_tokenizer(
    settings: Settings, manifest: Manifest | None, paths: Sequence[str]
) -> tuple[Tokenizer | None, str]:
    """Returns the tokenizer of the command line, or else the one that wrote the files; and if there is none, why."""
    if settings.encoder_path is not None:
        return load_encoder(settings.encoder_path), ""
    path = str(manifest.tokenizer.get("path")) if manifest else _tokenizer_beside(paths[0])
    if not is_at_hand(path):
        missing = f"the tokenizer of the manifest, {path}, is not here" if manifest else "no tokenizer is known"
        return None, f"ids are shown in place of text: {missing}; give --encoder_path"
    tokenizer = load_encoder(path)
    if manifest and tokenizer_sha256(tokenizer) != manifest.tokenizer.get("sha256"):
        return None, f"ids are shown in place of text: {path} is not what wrote the files; give --encoder_path"
    return tokenizer, ""


def _tokenizer_beside(path: str) -> str:
    """Returns where main.py puts the tokenizer of raw text that it prepares."""
    return os.path.join(os.path.dirname(os.path.dirname(path)) or os.pardir, FILE_NAME)


def _first_known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _manifest(paths: Sequence[str]) -> Manifest | None:
    """Returns the manifest that lists a file of the first folder; the scan reports a broken one."""
    folder = os.path.dirname(paths[0])
    names = {os.path.basename(path) for path in paths if os.path.dirname(path) == folder}
    for path in manifest_paths(folder or "."):
        with contextlib.suppress(DataError):
            manifest = read_manifest(path)
            if any(entry.name in names for entry in manifest.entries()):
                return manifest
    return None


def _n_ctx(settings: Settings, manifest: Manifest | None, paths: Sequence[str]) -> int | None:
    if settings.chunk_size is not None:
        return settings.chunk_size
    if settings.documents or (manifest and manifest.example_tokens is None):
        return None
    return (manifest.example_tokens if manifest else _most_common_length(paths)) - 1


def _most_common_length(paths: Sequence[str]) -> int:
    """Returns the most common length of the first records."""
    lengths: collections.Counter[int] = collections.Counter()
    for path in paths[:FILES_SAMPLED]:
        with contextlib.suppress(DataError):  # the scan reports it
            for block in itertools.islice(split_into_blocks(path), 1):
                rows = validate_block(block, RecordRules(None, MAX_VOCAB)).rows
                lengths.update(len(record.ids_L) for record in rows)
    return lengths.most_common(1)[0][0] if lengths else 1


def check_tfrecords(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Checks, plots and repairs; call it under `if __name__ == "__main__"`.

    Raises:
        DataError: there are errors and `repair` is not set, or the settings cannot be followed.
    """
    _check_settings(settings)
    paths = find_paths(settings.globs)
    if settings.repair:
        check_free(paths, settings.repair_dir)
    found = find_record_format(settings, paths)
    n_ctx, n_vocab = found.rules.n_ctx, found.rules.n_vocab
    say(f"checking {'documents' if n_ctx is None else f'examples of {n_ctx + 1} ids'}, ids below {n_vocab:,}")
    if found.remark:
        say(found.remark)
    report = scan_dataset(
        settings.globs, n_ctx, n_vocab, found.eos_id, found.decode, settings.processes, found.padding_id
    )
    say(format_report(report))
    if settings.picture:
        title = f"{report.n_examples:,} examples in {report.n_files:,} files"
        draw_reports({f"{title}\n{', '.join(settings.globs)}": report}, settings.picture)
        say(f"plot written to {settings.picture}")
    if not settings.repair:
        check_no_errors(report.errors)
    elif not report.errors:
        say("no errors: nothing to repair")
    else:
        say(format_errors(report.errors))
        say(describe_repaired(repair(paths, found.rules, settings.repair_dir)))


def _check_settings(settings: Settings) -> None:
    check_minimums(settings, chunk_size=1, n_vocab=1, separator=0, processes=0)
    if settings.chunk_size is not None and settings.documents:
        raise DataError("--chunk_size and --documents: cannot be combined; give one of them")
    if settings.repair_dir is not None and not settings.repair:
        raise DataError("--repair_dir: has no effect without --repair; give --repair too")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Parses the command line."""
    parser = CommandLine(description="Checks every record of tfrecord files.")
    add = parser.add_argument
    add("globs", nargs="+", metavar="GLOB", help="files, or quoted globs")
    add(
        "--encoder_path",
        metavar="PATH",
        help="tokenizer: JSON file, folder or Hugging Face name (default: the files' own)",
    )
    add("--chunk_size", type=integer, metavar="N", help="examples hold N + 1 ids (default: manifest's, or most common)")
    add("--documents", action="store_true", help="each record is a document, of any length")
    add("--n_vocab", type=integer, metavar="N", help="ids are below N (default: from tokenizer or manifest)")
    add("--separator", type=integer, metavar="ID", help="id between documents (default: from tokenizer or manifest)")
    add("--picture", metavar="FILE", help="plot document lengths and token frequencies into this PNG file")
    add("--repair", action="store_true", help="copy the valid records to new files, named by their counts")
    add("--repair_dir", metavar="DIR", help="new folder for the copies (default: repaired/ beside each file)")
    add("--processes", type=integer, default=0, help="reading processes (default 0: chosen by cores and file sizes)")
    values = vars(parser.parse_args(arguments))
    values |= clean_path_flags(values, ("globs", "encoder_path", "picture", "repair_dir"))
    return Settings(**values | {"globs": tuple(values["globs"])})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        check_tfrecords(parse_arguments(arguments))
        return 0

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
