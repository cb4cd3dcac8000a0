"""Encodes conversations into tfrecords, each token with its weight in the loss.

    python data/create_dialogue_tfrecords.py --input_dir chats.jsonl --name chats --encoder_path gpt2 --chunk_size 1024

Run the same command again to resume an interrupted run; the files are the same as those of an uninterrupted one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.command_line import CommandLine, integer
from configs.kinds import clean_path_flags
from data.create_tfrecords import DATASET_CONFIG_HELP, PATH_FLAGS, dataset_config_path, describe, to_json
from data.dialogue.conversation import TurnRules
from data.preprocessing.settings import PACKINGS, DialogueSettings, Settings, check_minimums
from data.text.files import ON_BAD_FILE
from storage.streams import run_program

TURN_FLAGS = ("reverse", "two_turn", "max_turns")


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(description="Encode conversations into tfrecords.")
    add, default, dialogue = parser.add_argument, Settings, DialogueSettings
    add(
        "--input_dir",
        "--corpus",
        required=True,
        help="directory (searched recursively), glob or file: DialoGPT's .tsv, .jsonl or .json of chats",
    )
    add("--name", default="dialogue", help="prefix of the file names")
    add("--output_dir", default=default.output_dir, help="directory to write the files to")
    add("--encoder_path", default=default.encoder_path, help="tokenizer: JSON file, folder or Hugging Face name")
    add("--chunk_size", "--max_seq_len", type=integer, default=1024, help="n_ctx of the model; an example has one more")
    add(
        "--chat_template",
        default=dialogue.chat_template,
        help="dialogpt (default: turns joined by the end of text), chatml, tokenizer (its own) or a Jinja file",
    )
    add("--packing", choices=PACKINGS, default=dialogue.packing, help="conversations of an example: as fit, or one")
    add("--reverse", action="store_true", help="the last turn first, for a model that reranks responses")
    add("--two_turn", action="store_true", help="only the first two turns, after --reverse")
    add("--max_turns", type=integer, help="only the last turns of a conversation, this many")
    add("--files_per", type=integer, default=default.files_per, help="examples in a tfrecord file")
    add("--processes", type=integer, default=default.processes, help="processes that encode; 0 for one per core")
    add("--eval_fraction", type=float, default=default.eval_fraction, help="fraction of the conversations to hold out")
    add("--max_documents", type=integer, help="read at most this many conversations")
    add("--deduplicate", action="store_true", help="leave out exact copies of earlier conversations")
    add("--on_bad_file", default=default.on_bad_file, choices=ON_BAD_FILE, help="at a broken link or a pipe")
    add("--overwrite", action="store_true", help="replace existing files of this name")
    add("--write_dataset_config", nargs="?", const="", metavar="PATH", help=DATASET_CONFIG_HELP)
    return _settings(vars(parser.parse_args(arguments)))


def _settings(values: dict) -> Settings:
    values |= clean_path_flags(values, PATH_FLAGS)
    rules = TurnRules(**{key: values.pop(key) for key in TURN_FLAGS})
    check_minimums(rules, max_turns=2)
    if values["write_dataset_config"] is not None:
        values["write_dataset_config"] = dataset_config_path(values["write_dataset_config"], values["name"])
    template, packing = values.pop("chat_template"), values.pop("packing")
    return Settings(**values, dialogue=DialogueSettings(template, packing, rules))


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
