"""The plots of a dataset show what a scan counted."""

from __future__ import annotations

import numpy as np
import pytest

from configs.errors import UserError
from data.check.plots import draw_reports, frequencies_by_rank, length_bars
from data.check.scan import scan_dataset
from data.tfrecord.records import write_examples
from tests.data.check.test_report import report_of
from tests.data.check.test_scan import EOS_ID, decode


def test_the_plot_shows_the_counts(tmp_path):
    write_examples(str(tmp_path / "d_4.tfrecords"), [[5] * 3, [6] * 3, [7] * 16, [5]])
    report = scan_dataset([f"{tmp_path}/*"], None, 13, EOS_ID, decode)
    edges, widths, heights = length_bars(report)
    assert (edges[0], heights[0], heights.sum()) == (1.0, 1, 4)
    (threes,) = [n for n in range(len(edges)) if edges[n] <= 3 < edges[n] + widths[n]]
    assert heights[threes] == 2 and edges[-1] == 16.0 and heights[-1] == 1
    np.testing.assert_allclose(frequencies_by_rank(report), [16 / 23, 4 / 23, 3 / 23])
    picture = tmp_path / "pictures" / "dataset.png"
    draw_reports({"training": report, "$evaluation": report}, str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in picture.parent.iterdir()] == ["dataset.png"]


def test_a_plot_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/file/p.png: cannot be written"):
        draw_reports({"a": report_of("")}, f"{tmp_path}/file/p.png")
