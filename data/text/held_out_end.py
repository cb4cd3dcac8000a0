"""Cutting the end off a document, to hold it out where a text is one document."""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace
from typing import BinaryIO

from data.text.documents import Document, check_long_text

_WINDOW_BYTES = 1 << 16


def cut_end(document: Document, fraction: float) -> tuple[Document, Document] | None:
    """Cuts a document that has a text in two, of which the second is about a fraction; None if it is too short.

    The cut is made after a line break, or before a space, if there is one near it.
    """
    content = io.BytesIO(document.text.encode()) if document.long_text is None else document.long_text.file
    n_bytes = content.seek(0, io.SEEK_END)
    cut = _place_of_cut(content, n_bytes, fraction)
    if not 0 < cut < n_bytes:
        return None
    content.seek(0)
    return _read_part(document, content, cut), _read_part(
        replace(document, identity=f"{document.identity}:end"), content, n_bytes - cut
    )


def _place_of_cut(content: BinaryIO, n_bytes: int, fraction: float) -> int:
    aim = int(n_bytes * (1 - fraction))
    reach = min(_WINDOW_BYTES, aim // 2, (n_bytes - aim) // 2)
    content.seek(aim - reach)
    window = content.read(2 * reach)
    places = (
        window.find(b"\n", reach) + 1,
        window.rfind(b"\n", 0, reach) + 1,
        window.find(b" ", reach),
        window.rfind(b" ", 0, reach),
        next((at for at in range(reach, len(window)) if window[at] & 0xC0 != 0x80), 0),  # where a character begins
    )
    return next((aim - reach + place for place in places if place > 0), 0)


def _read_part(document: Document, content: BinaryIO, n_bytes: int) -> Document:
    if document.long_text is None:
        return replace(document, text=content.read(n_bytes).decode())
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the document is no longer needed)
    while n_bytes and (part := content.read(min(n_bytes, 1 << 22))):
        file.write(part)
        n_bytes -= len(part)
    return check_long_text(document.identity, file)
