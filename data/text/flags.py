"""The flags that say how texts are read, of every program that reads them."""

from __future__ import annotations

from configs.command_line import CommandLine, unescape
from data.text.files import ON_BAD_FILE


def add_text_flags(parser: CommandLine, end_of_text: str) -> None:
    """Declares them, with the names of the keys of a dataset config.

    Args:
        parser: gets the flags.
        end_of_text: what `--document_separator` without a value stands for, in words.
    """
    add = parser.add_argument
    add("--text_key", default="text", help="key of a JSON object that holds its text")
    add(
        "--document_separator",
        type=unescape,
        nargs="?",
        const="eos",
        metavar="MARKER",
        help=f"split a text into documents at a marker; without one, or eos: at {end_of_text}",
    )
    add("--on_bad_file", default=ON_BAD_FILE[0], choices=ON_BAD_FILE, help="at a broken link or a pipe")
