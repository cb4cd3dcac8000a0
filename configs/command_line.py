"""The parser of the programs' command lines."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

_FLAG = re.compile(r"--[\w-]+(?=$|=)")


class CommandLine(argparse.ArgumentParser):
    """Takes every flag with underscores or dashes: `--vocab_size` and `--vocab-size` are the same."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses as argparse does, and shows the help if there is nothing to parse; `parse_args` calls it too."""
        words = sys.argv[1:] if args is None else args
        if not words:
            self.print_help()
            self.exit(2)
        return super().parse_known_args([self._as_declared(word) for word in words], namespace)

    def _as_declared(self, word: str) -> str:
        flag = _FLAG.match(word)
        if flag is None:
            return word
        name = "--" + flag.group()[2:].replace("-", "_")
        is_known = any(option.startswith(name) for option in self._option_string_actions)
        return name + word[flag.end() :] if is_known else word
