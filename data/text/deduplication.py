"""Telling texts by short hashes: which of them were met before, and which share of them is drawn."""

from __future__ import annotations


def share_of(digest: bytes) -> float:
    """Maps hashes evenly onto [0, 1), to draw a fixed share of texts, the same wherever they come from."""
    return int.from_bytes(digest[:6], "big") / 2**48


class SeenTexts:
    """A set of hashes that takes their own bytes of memory and little more: a Python set takes six times as much."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}

    def add(self, digest: bytes) -> bool:
        """Adds a hash; says whether it is new."""
        # The end, as the beginning draws shares: a part of all texts fills all buckets alike.
        bucket = self._buckets.setdefault(digest[-2:], bytearray())
        rest = digest[:-2]
        at = bucket.find(rest)
        while at % len(rest) and at >= 0:  # across two hashes
            at = bucket.find(rest, at + 1)
        if at < 0:
            bucket += rest
        return at < 0
