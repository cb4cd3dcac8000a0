"""The plots of a dataset show what a scan counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.errors import UserError
from data.check.plots import MAX_ROWS, build_figure, draw_reports, frequencies_by_rank, length_bars, log_ticks
from data.check.report import BINS_PER_OCTAVE, DatasetReport
from data.check.scan import scan_dataset
from data.tfrecord.records import write_examples
from tests.data.check.test_report import report_of
from tests.data.check.test_scan import EOS_ID, decode
from tests.pictures import check_texts, words_of


def measured(lengths: list[int], counts: list[int], n_documents: int | None = 0) -> DatasetReport:
    """Returns a report of documents of these lengths, and ids of these counts."""
    bins = np.floor(np.log2(np.array(lengths or [1])) * BINS_PER_OCTAVE).astype(int)
    lengths_B = np.bincount(bins[: len(lengths)], minlength=160)
    return dataclasses.replace(
        report_of(""), n_documents=n_documents, lengths_B=lengths_B, counts_V=np.array(counts, dtype=np.int64)
    )


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


FOLDER = "/home/somebody/projects/words/datasets/n_ctx_1024-ba653f87d9e52f60"
PICTURES = {
    "two parts of one dataset": {
        f"words, {part}\n{FOLDER}/{part}/words_*.tfrecords": measured([300, 310, 5000], [90, 9, 1], 3)
        for part in ("training", "evaluation")
    },
    "long names": {
        f"{'w' * 300}, training\n{FOLDER * 9}/*": measured([300], [9] * 4096, 1),
        "漢字" * 200: report_of(""),
    },
    "one document": {"one\n*": measured([300], [7], 1)},
    "nothing": {"none\n*": report_of("")},
    "documents of a token": {"ones\n*": measured([1] * 3, [1] * 3, 3)},
    "no separator": {"$_{\n*": measured([], [5, 6, 7], None)},
    "many": {f"{n}\n*": measured([2**n] * 2**n, [10**n, 1], 2**n) for n in range(1, 17, 3)},
    "billions": {"all\n*": dataclasses.replace(measured([3], [10**12, 1]), lengths_B=np.full(160, 9_876_543_210))},
}


@pytest.mark.parametrize("reports", PICTURES.values(), ids=PICTURES)
def test_no_two_texts_meet(reports):
    check_texts(build_figure(reports))


def test_a_title_names_the_dataset_and_below_it_the_files():
    words = words_of(build_figure(PICTURES["two parts of one dataset"]))
    assert {"words, training", "words, evaluation", f"{FOLDER}/training/words_*.tfrecords"} <= set(words)
    assert words.count("documents: 3") == 2
    (title,) = (word for word in words_of(build_figure(PICTURES["long names"])) if word.startswith("ww"))
    assert "…" in title and title.endswith("w, training")


def test_documents_are_counted_in_whole_numbers():
    figure = build_figure(PICTURES["one document"])
    left, right = figure.axes
    assert [tick for tick in left.get_yticks() if tick <= left.get_ylim()[1]] == [0, 1]
    assert [label.get_text() for label in left.get_xticklabels()] == ["200", "300"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["1"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 10_000, [1, 10, 100, 1000, 10_000]),
        (150, 9000, [200, 500, 1000, 2000, 5000]),
        (170, 460, [200, 300]),
        (1, 1e12, [1, 100, 1e4, 1e6, 1e8, 1e10, 1e12]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_what_is_too_much_for_one_picture_is_said():
    figure = build_figure({str(number): report_of("") for number in range(MAX_ROWS + 3)})
    assert len(figure.axes) == 2 * MAX_ROWS and "and 3 more, which are not drawn" in [
        t.get_text() for t in figure.texts
    ]
    assert figure.get_figheight() * figure.dpi < 2**16


def test_a_plot_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/file/p.png: cannot be written"):
        draw_reports({"a": report_of("")}, f"{tmp_path}/file/p.png")
