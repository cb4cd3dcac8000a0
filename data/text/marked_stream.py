"""Reading a stream in parts that a marker separates, in bounded memory."""

from __future__ import annotations

from typing import BinaryIO

_READ_BYTES = 1 << 20
_LINE_BREAKS = b"\r\n"


class MarkedStream:
    """Reads a stream up to the next marker. Line breaks at the ends of a part are left out."""

    def __init__(self, stream: BinaryIO, marker: bytes) -> None:
        """Begins with the first part of the stream."""
        self._stream, self._marker = stream, marker
        self._buffer, self._at = b"", 0
        self._is_finished = False  # the stream, not the buffer
        self._has_begun = False  # the part: line breaks before it have been read

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes of the part, at least one; empty at its end."""
        while True:
            end, is_end = self._known_end()
            if not self._has_begun:
                self._at = end - len(self._buffer[self._at : end].lstrip(_LINE_BREAKS))
                self._has_begun = self._at < end
            # Line breaks are returned once it is known that the part goes on after them.
            stop = self._at + len(self._buffer[self._at : end].rstrip(_LINE_BREAKS))
            if stop > self._at:
                start, self._at = self._at, min(stop, self._at + size)
                return self._buffer[start : self._at]
            if is_end:
                return b""
            self._fill()

    def next_part(self) -> bool:
        """Moves behind the marker at which `read` ended; returns whether there was one."""
        found = self._buffer.find(self._marker, self._at)
        self._at, self._has_begun = found + len(self._marker), False
        return found >= 0

    def _known_end(self) -> tuple[int, bool]:
        """Returns how far the buffer surely belongs to the part, and whether the part ends there."""
        found = self._buffer.find(self._marker, self._at)
        if found >= 0:
            return found, True
        if self._is_finished:
            return len(self._buffer), True
        return max(self._at, len(self._buffer) - len(self._marker) + 1), False  # a marker may have begun

    def _fill(self) -> None:
        content = self._stream.read(_READ_BYTES)
        self._is_finished = not content
        self._buffer, self._at = self._buffer[self._at :] + content, 0
