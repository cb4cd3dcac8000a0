"""Draws pairs for a ranking model from conversations: a true turn against another conversation's at the same place.

    python data/dialogue/draw_pairs.py --input_dir chats.jsonl --out pairs.jsonl --seed 1

Each line of the file holds the pairs of one conversation, one for each turn after the first.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.command_line import CommandLine, integer
from configs.errors import DataError
from configs.kinds import clean_path_flags
from data.dialogue.conversation import SYSTEM, Turn, from_text
from data.dialogue.pairs import Pair
from data.dialogue.readers import conversations_of
from data.text.documents import TextFormat, explain, read_all_documents
from data.text.files import CONVERSATION_SUFFIXES, find_files
from storage.files import new_file
from storage.streams import run_program

BLOCK = 10_000  # conversations in memory, from which the turns of the others are drawn


def draw_pairs(
    conversations: Iterable[Sequence[Turn]], seed: int, max_turns: int | None = None, block: int = BLOCK
) -> Iterator[list[Pair]]:
    """Yields the pairs of each conversation: each turn after the first, unless its weight is 0, and a wrong one.

    The wrong one is drawn from the turns of the same number in other conversations of a block; a turn for which all of
    these say the same gives no pair.

    Args:
        conversations: their turns, in any order.
        seed: the same seed gives the same pairs.
        max_turns: the most turns of a context, the last ones; None: all.
        block: how many conversations are looked at together.
    """
    draw, remaining = random.Random(seed), iter(conversations)
    while several := list(itertools.islice(remaining, block)):
        said = [[turn for turn in turns if turn.role != SYSTEM] for turns in several]
        longest = max(map(len, said))
        by_number = [[turns[number].text for turns in said if len(turns) > number] for number in range(longest)]
        for turns in said:
            yield [
                pair._replace(turns=pair.turns[-(max_turns or len(turns)) :])
                for pair in _pairs_of(turns, by_number, draw)
            ]


def _pairs_of(turns: Sequence[Turn], by_number: Sequence[Sequence[str]], draw: random.Random) -> Iterator[Pair]:
    texts = [turn.text for turn in turns]
    for number in range(1, len(turns)):
        others = by_number[number]
        start = draw.randrange(len(others))
        wrong = next((text for text in (*others[start:], *others[:start]) if text != texts[number]), None)
        if turns[number].weight != 0 and wrong is not None:
            yield Pair(texts[:number], texts[number], wrong)


def write_pairs(input_dir: str, out: str, seed: int, max_turns: int | None) -> dict[str, int]:
    """Writes the pairs of conversations to a new file, and returns how many of what there are.

    Raises:
        DataError: no conversation can be read.
        UserError: the file cannot be written.
    """
    counts = {"conversations": 0, "left_out": 0, "pairs": 0}
    with new_file(out) as file:
        for pairs in draw_pairs(_conversations(input_dir, counts), seed, max_turns):
            counts["pairs"] += len(pairs)
            if pairs:
                file.write(f"{json.dumps([pair.keys() for pair in pairs])}\n".encode())
        if not counts["pairs"]:
            raise DataError(f"{input_dir}: holds no two conversations with an answer; give more of them")
    return counts


def _conversations(input_dir: str, counts: dict[str, int]) -> Iterator[Sequence[Turn]]:
    files = find_files([input_dir], (), CONVERSATION_SUFFIXES)
    for document in read_all_documents(files, TextFormat(convert=conversations_of)):
        if document.problem is None:
            counts["conversations"] += 1
            yield from_text("".join(document.parts()))
        else:
            counts["left_out"] += 1
            print(f"left out {explain(document)}", file=sys.stderr)


def parse_arguments(arguments: Sequence[str] | None = None) -> dict:
    """Reads the command line."""
    parser = CommandLine(description="Draw pairs for a ranking model from conversations.")
    add = parser.add_argument
    add("--input_dir", required=True, help="directory, glob or file of conversations, as create_dialogue_tfrecords.py")
    add("--out", required=True, help="file of pairs to write, a conversation a line")
    add("--seed", type=integer, default=1, help="the same seed gives the same pairs")
    add("--max_turns", type=integer, help="the most turns of a context, the last ones (default: all)")
    given = vars(parser.parse_args(arguments))
    return given | clean_path_flags(given, ("input_dir", "out"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        counts = write_pairs(**parse_arguments(arguments))
        print(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
        return 0

    return run_program(run, "interrupted: no file is written")


if __name__ == "__main__":
    sys.exit(main())
