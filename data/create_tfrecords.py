"""Encodes text files into tfrecords: chunks of one length, or a document a record.

    python data/create_tfrecords.py --input_dir texts --name mine --encoder_path tokenizers/mine.json --chunk_size 1024

Run the same command again to resume an interrupted run; the files are the same as those of an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.command_line import CommandLine, integer
from configs.errors import UserError
from configs.kinds import clean_path_flags
from configs.reader import read_object
from data.preprocessing.settings import DOCUMENTS, MODES, Settings
from data.text.flags import add_text_flags
from storage.streams import run_program

if TYPE_CHECKING:
    from data.preprocessing.packing import PackingStats
    from data.preprocessing.pipeline import Report

DATASET_CONFIG_HELP = (
    "write a dataset config to this file; if it is a model config, into dataset_configs/ beside it, where that config "
    "finds it; without PATH, into configs/dataset_configs"
)
PATH_FLAGS = ("input_dir", "output_dir", "encoder_path", "write_dataset_config")
DATASET_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "dataset_configs"


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(description="Encode text files into tfrecords.")
    add, default = parser.add_argument, Settings
    add(
        "--input_dir",
        "--base_dir",
        required=True,
        help="directory (searched recursively), glob, file or pipe (-) with the text",
    )
    add("--mode", choices=MODES, default=default.mode, help="a record is a chunk of the text (default), or a document")
    add("--files_per", type=integer, default=default.files_per, help="records in a tfrecord file")
    add("--name", default=default.name, help="prefix of the file names")
    add("--output_dir", default=default.output_dir, help="directory to write the files to")
    tokenizer = parser.add_mutually_exclusive_group().add_argument
    tokenizer("--encoder_path", default=default.encoder_path, help="tokenizer: JSON file, folder or Hugging Face name")
    use_gpt2 = {"dest": "encoder_path", "action": "store_const", "const": "gpt2"}
    tokenizer("--use_gpt2_tokenizer", **use_gpt2, help="the tokenizer gpt2 of Hugging Face, which is the default")
    add("--minimum_size", type=integer, default=default.minimum_size, help="leave out documents with fewer tokens")
    add("--ftfy", action="store_true", help="repair mis-decoded text and normalise it to NFKC")
    add("--no_ftfy", dest="ftfy", action="store_false", help="leave text as it is, which is the default")
    add("--wikitext_detokenize", action="store_true", help="undo WikiText's tokenization")
    add(
        "--separator", type=_token_id, metavar="ID", help="id after every document, 0 or [0] (default: the tokenizer's)"
    )
    add("--chunk_size", type=integer, default=argparse.SUPPRESS, help="n_ctx of the model; a chunk has one token more")
    add("--write_dataset_config", nargs="?", const="", metavar="PATH", help=DATASET_CONFIG_HELP)
    add("--processes", type=integer, default=default.processes, help="processes that encode; 0 for one per core")
    add("--overwrite", action="store_true", help="replace existing files of this name")
    add_text_flags(parser, "the tokenizer's end of text")
    add("--special_tokens", action="store_true", help="special tokens that texts spell count as such")
    add("--deduplicate", action="store_true", help="leave out exact copies of earlier documents")
    add("--max_documents", type=integer, default=default.max_documents, help="read at most this many documents")
    add("--eval_fraction", type=float, default=default.eval_fraction, help="fraction of the documents to hold out")
    add("--runner", default=default.runner, help="encode with Apache Beam: DirectRunner, DataflowRunner or FlinkRunner")
    known, others = parser.parse_known_args(arguments)
    if others and known.runner is None:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    values = vars(known) | clean_path_flags(vars(known), PATH_FLAGS) | {"beam_options": tuple(others)}
    if known.mode == DOCUMENTS and "chunk_size" in values:
        print("--chunk_size has no effect: with --mode documents, a record is a whole document", file=sys.stderr)
    if known.write_dataset_config is not None:
        values["write_dataset_config"] = dataset_config_path(values["write_dataset_config"], known.name)
    return Settings(**values)


def dataset_config_path(given: str, name: str) -> str:
    """Returns where to write a dataset config: a file as given, or where a model config or folder looks for it."""
    if not given:
        return str(DATASET_CONFIGS / f"{name}.json")
    folder = given if os.path.isdir(given) else os.path.dirname(given)
    if folder != given and not _is_model_config(given):
        return given
    is_for_datasets = os.path.basename(os.path.abspath(folder)) == DATASET_CONFIGS.name
    return os.path.join(folder, "" if is_for_datasets else DATASET_CONFIGS.name, f"{name}.json")


def _is_model_config(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        return "n_layer" in read_object(Path(path), [])
    except UserError:
        return False


def _token_id(text: str) -> int:
    """Parses an id, or a list of one as GPT-Neo's pages write it."""
    try:
        return int(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: is not one id; give one, such as 0 or [0]") from None


def describe(report: Report) -> str:
    """Returns the report as text."""
    lines = [f"files: {report.files_read:,} read"]
    lines += _describe_split(report.stats, report.tfrecords, report.example_tokens)
    problems = report.stats.problems
    if report.eval_stats:
        held_out = _describe_split(report.eval_stats, report.eval_tfrecords, report.example_tokens)
        lines += [f"held out: {line}" for line in held_out]
        problems = problems + report.eval_stats.problems
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"manifest: {report.manifest}")
    if report.dataset_config:
        lines.append(f"dataset config: {report.dataset_config}")
    if report.example_tokens is None:
        entry = [Path(report.dataset_config or "your_dataset").stem, 25, "documents_random", 1.0]
        lines.append(f'to train on them: "input_fn": "generic_text", "datasets": [{json.dumps(entry)}]')
    return "\n".join([*lines, *(f"discarded {problem}" for problem in problems)])


def _describe_split(stats: PackingStats, tfrecords: Sequence[str], example_tokens: int | None) -> list[str]:
    written = f"{len(tfrecords):,} written, {tfrecords[0]} to {tfrecords[-1]}" if tfrecords else "none"
    return [stats.describe_documents(), stats.describe_tokens(example_tokens), f"tfrecords: {written}"]


def to_json(report: Report) -> str:
    """Returns the report as one line of JSON."""
    values = asdict(report)
    return json.dumps({**values.pop("stats"), "eval_account": values.pop("eval_stats"), **values})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        settings = parse_arguments(arguments)
        # Not at the top: the processes that encode import this module, and need no TensorFlow.
        from data.preprocessing.pipeline import create_tfrecords

        report = create_tfrecords(settings)
        print(describe(report))
        print(to_json(report))
        return 0

    return run_program(run, "interrupted: existing files are unchanged; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
