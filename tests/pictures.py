"""What a figure shows: its texts, and whether any two of them meet."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts_of(figure: Figure) -> list[Text]:
    """Returns the texts that can be seen: titles, labels of ticks and axes, legends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.canvas.draw()
    return [text for text in figure.findobj(Text) if text.get_text() and _is_seen(figure, text)]


def words_of(figure: Figure) -> list[str]:
    """Returns the same as strings."""
    return [text.get_text() for text in texts_of(figure)]


def check_texts(figure: Figure) -> None:
    """Asserts that every text lies within the figure, and that no two overlap."""
    corners = [(text.get_text(), _corners(text)) for text in texts_of(figure)]
    for text, corners_42 in corners:
        assert (corners_42 >= -1).all() and (corners_42 <= figure.bbox.size + 1).all(), (text, corners_42)
    for (text, corners_42), (other_text, other_42) in itertools.combinations(corners, 2):
        assert _are_apart(corners_42, other_42) or _are_apart(other_42, corners_42), (text, other_text)


def _corners(text: Text) -> np.ndarray:
    """Returns the corners [4, 2] of a text that may be turned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box = text.get_window_extent()
    angle = math.radians(text.get_rotation())
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    width, height = np.linalg.solve(np.abs(turn), [box.width, box.height])
    corners_42 = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    return corners_42 @ turn.T + [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]


def _are_apart(corners_42: np.ndarray, other_42: np.ndarray) -> bool:
    """Whether a side of the first parts the two, but for a pixel."""
    for side in (corners_42[1] - corners_42[0], corners_42[3] - corners_42[0]):
        along = side / max(float(np.linalg.norm(side)), 1e-9)
        own, others = corners_42 @ along, other_42 @ along
        if own.max() <= others.min() + 1 or others.max() <= own.min() + 1:
            return True
    return False


def _is_seen(figure: Figure, text: Text) -> bool:
    """Whether a text is drawn: labels of ticks outside an axis's limits are kept by matplotlib but not drawn."""
    if not text.get_visible():
        return False
    for axis in (
        axis for axes in figure.findobj(lambda one: hasattr(one, "xaxis")) for axis in (axes.xaxis, axes.yaxis)
    ):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if text in (tick.label1, tick.label2):
                low, high = sorted(axis.get_view_interval())
                return low <= tick.get_loc() <= high
    return True
