"""Figures as PNG files, and texts that fit into them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text


def write_png(figure: Figure, path: str) -> None:
    """Writes a figure to a PNG file, whole or not at all.

    Args:
        figure: what to draw.
        path: the PNG file, local or `gs://`.

    Raises:
        UserError: the file cannot be written.
    """
    png = io.BytesIO()
    with without_glyph_warnings():
        figure.savefig(png, format="png")
    write_bytes(path, png.getvalue())


def fit_text(text: Text, width_pixels: float) -> None:
    """Takes letters from the middle of a text until it is no wider than `width_pixels`."""
    letters = text.get_text()
    with without_glyph_warnings():
        while (width := text.get_window_extent().width) > width_pixels and len(letters) > 3:
            half = max(1, min(int(len(letters) * width_pixels / width), len(letters) - 2) // 2)
            letters = f"{letters[:half]}…{letters[-half:]}"
            text.set_text(letters)


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Draws a box for a letter that the font lacks, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield
