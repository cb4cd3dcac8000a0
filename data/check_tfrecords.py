"""Checks every record of tfrecord files, and repairs what can be repaired.

    python data/check_tfrecords.py 'tfrecords/mine_*.tfrecords' --encoder_path tokenizers/mine.json

What is not said is taken from the manifest beside the files, or from the records. Ends with status 0 if everything is
sound or, with --repair, if what is sound is kept; and with 2 if anything is wrong.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import DataError, UserError
from data.check.plots import draw_reports
from data.check.repair import check_free, describe_repaired, repair
from data.check.scan import check_sound, describe_damages, format_report, inspect_dataset
from data.check.validate import blocks_of, find_paths, sift
from data.create_tfrecords import load_encoder
from data.loading.reader import RecordRules
from data.preprocessing.manifest import ENDING, Manifest, read_manifest
from meshtf import tf

MOST_IDS = 1 << 20  # where no vocabulary is known: no tokenizer has so many
FILES_LOOKED_AT = 8


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        globs: of the files.
        encoder_path: tokenizers JSON file, folder or Hugging Face name, to show text and to know the vocabulary.
        chunk_size: an example holds one id more; None: as the manifest says, or as most records are.
        documents: each record is a document, of any length.
        n_vocab: every id is below; None: as tokenizer or manifest say.
        separator: id between documents; None: as tokenizer or manifest say.
        picture: PNG file to draw; None: none.
        repair: whether to write the sound records anew.
        repair_dir: where to, a folder that is not there; None: into `repaired` beside each file.
        processes: that read; 0 for as many as are worth it.
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
class RecordSpec:
    """How the records are to be read: by what the command line says, and else by what the files say.

    Attributes:
        rules: for every record.
        eos_id: between documents; None: not known.
        decode: token ids to text.
    """

    rules: RecordRules
    eos_id: int | None
    decode: Callable[[Sequence[int]], str]


def find_terms(settings: Settings, paths: Sequence[str]) -> RecordSpec:
    """Puts together what is known.

    Raises:
        DataError: the tokenizer cannot be used.
    """
    tokenizer = load_encoder(settings.encoder_path) if settings.encoder_path is not None else None
    manifest = _manifest(paths)
    promised = manifest.settings.get("separator") if manifest else None
    eos_id = _first_known(settings.separator, tokenizer and tokenizer.eos_id, promised)
    n_promised = manifest.tokenizer.get("n_vocab") if manifest else None
    n_vocab = _first_known(settings.n_vocab, tokenizer and tokenizer.n_vocab, n_promised, MOST_IDS)
    n_ctx = None if settings.documents else _n_ctx(settings, manifest, paths)
    return RecordSpec(RecordRules(n_ctx, n_vocab), eos_id, tokenizer.decode if tokenizer else _show_ids)


def _first_known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _show_ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _manifest(paths: Sequence[str]) -> Manifest | None:
    """Returns what lists a file of the first folder; a broken one is the check's business."""
    folder = os.path.dirname(paths[0])
    names = {os.path.basename(path) for path in paths if os.path.dirname(path) == folder}
    for manifest_name in sorted(name for name in tf.io.gfile.listdir(folder or ".") if name.endswith(ENDING)):
        try:
            manifest = read_manifest(os.path.join(folder, manifest_name))
        except DataError:
            continue
        if any(entry.name in names for part in manifest.parts.values() for entry in part.files):
            return manifest
    return None


def _n_ctx(settings: Settings, manifest: Manifest | None, paths: Sequence[str]) -> int:
    if settings.chunk_size is not None:
        return settings.chunk_size
    return (manifest.example_tokens if manifest else _commonest_length(paths)) - 1


def _commonest_length(paths: Sequence[str]) -> int:
    """Returns the length of most records of the first files."""
    lengths: collections.Counter[int] = collections.Counter()
    for path in paths[:FILES_LOOKED_AT]:
        try:
            for block in itertools.islice(blocks_of(path), 1):
                lengths.update(len(ids) for ids in sift(block, RecordRules(None, MOST_IDS)).rows)
        except DataError:  # the check's business
            continue
    return lengths.most_common(1)[0][0] if lengths else 1


def check_tfrecords(settings: Settings, tell: Callable[[str], None] = print) -> None:
    """Checks, draws and repairs; call it under `if __name__ == "__main__"`.

    Raises:
        DataError: something is wrong and is not to be repaired, or what was asked for cannot be done.
    """
    _check_settings(settings)
    paths = find_paths(settings.globs)
    if settings.repair:
        check_free(paths, settings.repair_dir)
    terms = find_terms(settings, paths)
    n_ctx, n_vocab = terms.rules.n_ctx, terms.rules.n_vocab
    tell(f"checked for {'documents' if n_ctx is None else f'examples of {n_ctx + 1} ids'}, ids below {n_vocab:,}")
    report = inspect_dataset(settings.globs, n_ctx, n_vocab, terms.eos_id, terms.decode, settings.processes)
    tell(format_report(report))
    if settings.picture:
        draw_reports({", ".join(settings.globs): report}, settings.picture)
        tell(f"drawn in {settings.picture}")
    if not settings.repair:
        check_sound(report.damages)
    elif not report.damages:
        tell("nothing is wrong: nothing is repaired")
    else:
        tell(describe_damages(report.damages))
        tell(describe_repaired(repair(paths, terms.rules, settings.repair_dir)))


def _check_settings(settings: Settings) -> None:
    least = {"chunk_size": 1, "n_vocab": 1, "separator": 0, "processes": 0}
    for key, smallest in least.items():
        value = getattr(settings, key)
        if value is not None and value < smallest:
            raise DataError(f"--{key} {value}: is too small; give {smallest} or more")
    if settings.chunk_size is not None and settings.documents:
        raise DataError("--chunk_size and --documents: exclude each other; give one of them")
    if settings.repair_dir is not None and not settings.repair:
        raise DataError("--repair_dir: there is nothing to write there; give --repair too")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Checks every record of tfrecord files.")
    add = parser.add_argument
    add("globs", nargs="+", metavar="GLOB", help="files, or globs in quotation marks")
    add("--encoder_path", metavar="PATH", help="tokenizer: JSON file, folder or Hugging Face name")
    add("--chunk_size", type=int, metavar="N", help="examples hold N + 1 ids (default: as the manifest or most are)")
    add("--documents", action="store_true", help="each record is a document, of any length")
    add("--n_vocab", type=int, metavar="N", help="ids are below N (default: as tokenizer or manifest say)")
    add("--separator", type=int, metavar="ID", help="id between documents (default: as tokenizer or manifest say)")
    add("--picture", metavar="FILE", help="draw document lengths and token frequencies into this PNG file")
    add("--repair", action="store_true", help="write the sound records anew, beside, with right counts in the names")
    add("--repair_dir", metavar="DIR", help="where to (default: into repaired/ beside each file)")
    add("--processes", type=int, default=0, help="processes that read; 0 for as many as are worth it")
    values = vars(parser.parse_args(arguments))
    return Settings(**values | {"globs": tuple(values["globs"])})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        check_tfrecords(parse_arguments(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
