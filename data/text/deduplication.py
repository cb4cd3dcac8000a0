"""Digests of texts: finds copies, and draws a fixed fraction of all texts."""

from __future__ import annotations


def digest_fraction(digest: bytes) -> float:
    """Maps digests evenly onto [0, 1), to draw the same fraction of texts on every machine."""
    return int.from_bytes(digest[:6], "big") / 2**48


class SeenDigests:
    """A set of digests that takes little more memory than their bytes: a Python set takes six times as much."""

    def __init__(self) -> None:
        """Begins without a digest."""
        self._buckets: dict[bytes, bytearray] = {}

    def add(self, digest: bytes) -> bool:
        """Adds a digest; returns whether it is new."""
        # The last bytes choose the bucket, as the first draw fractions: a fraction of all texts fills all buckets.
        bucket = self._buckets.setdefault(digest[-2:], bytearray())
        rest = digest[:-2]
        at = bucket.find(rest)
        while at % len(rest) and at >= 0:  # found across two digests
            at = bucket.find(rest, at + 1)
        if at < 0:
            bucket += rest
        return at < 0
