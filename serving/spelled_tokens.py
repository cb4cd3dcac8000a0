"""Says in the log which special tokens prompts spell that do not count."""

from __future__ import annotations

import collections
import math
import sys
import threading
from collections.abc import Sequence

from data.tokenization.tokenizer import Tokenizer


class SpelledTokens:
    """Counts the requests that spell a special token; any thread may use it."""

    def __init__(self) -> None:
        """Starts with no requests."""
        self._lock = threading.Lock()
        self._n_times: collections.Counter[str] = collections.Counter()
        self._n_requests: collections.Counter[str] = collections.Counter()

    def add(self, prompts: Sequence[str], tokenizer: Tokenizer) -> None:
        """Counts those in the prompts of a request; prints a line for each at the first, tenth, hundredth ... one."""
        counts: collections.Counter[str] = collections.Counter()
        for prompt in prompts:
            counts.update(tokenizer.count_spelled(prompt))
        with self._lock:
            self._n_times.update(counts)
            self._n_requests.update(counts.keys())
            for name in counts:
                if _is_power_of_ten(self._n_requests[name]):
                    print(self._describe(name), file=sys.stderr, flush=True)

    def _describe(self, name: str) -> str:
        return (
            f"warning: prompts spell the special token {name}, read as plain characters; times: "
            f"{self._n_times[name]:,}, requests: {self._n_requests[name]:,}; a request with "
            '"special_tokens": true makes it count'
        )


def _is_power_of_ten(n: int) -> bool:
    return n == 10 ** round(math.log10(n))
