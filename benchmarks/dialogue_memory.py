"""Measures the peak memory of data/create_dialogue_tfrecords.py for files of several numbers of conversations.

    python3 benchmarks/dialogue_memory.py --conversations 100000 1000000

The conversations are made up, each of four short messages. The last line is a JSON object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.process_memory import Peaks, run_and_measure
from configs.command_line import CommandLine
from data.tokenization.bpe_training import train_byte_level_bpe

PROGRAM = Path(__file__).resolve().parent.parent / "data" / "create_dialogue_tfrecords.py"
MB = 10**6
TEXT = "what do you think about that i am not sure we could go there tomorrow if it rains but maybe later"


def conversations(number: int) -> Iterator[str]:
    """Yields different conversations as lines of JSON."""
    draw = random.Random(0)
    for n in range(number):
        texts = [" ".join([*draw.choices(TEXT.split(), k=8), str(n)]) for _ in range(4)]
        turns = zip(("user", "assistant") * 2, texts, strict=True)
        yield json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n"


def measure(number: int, processes: int) -> Peaks:
    """Returns the peak memory of encoding this number of conversations."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/chats.jsonl", "w") as file:
            file.writelines(conversations(number))
        Path(f"{folder}/tokenizer.json").write_text(train_byte_level_bpe(conversations(100), 400).to_json())
        flags = {"input_dir": f"{folder}/chats.jsonl", "encoder_path": f"{folder}/tokenizer.json"}
        flags |= {"output_dir": f"{folder}/out", "processes": processes}
        command = [sys.executable, str(PROGRAM)]
        return run_and_measure([*command, *(str(word) for key, value in flags.items() for word in (f"--{key}", value))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = CommandLine(description="Measure the peak memory of data/create_dialogue_tfrecords.py.")
    parser.add_argument("--conversations", type=_count, nargs="+", default=[10**6], help="numbers of conversations")
    parser.add_argument("--processes", type=_count, default=2, help="processes that encode (default 2)")
    parsed = parser.parse_args(arguments)
    figures = {number: dataclasses.asdict(measure(number, parsed.processes)) for number in parsed.conversations}
    for number, peaks in figures.items():
        print(f"{number:>12,} conversations: peak {peaks['together'] / MB:,.0f} MB, {peaks['seconds']:,.0f} s")
    print(json.dumps(figures))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1; give a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
