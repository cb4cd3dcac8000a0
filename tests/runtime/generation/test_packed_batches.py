"""Texts are packed into rows without loss, in few shapes and with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.generation.packed_batches import BatchShape, PackedBatch, PackedBatches, PackedText, plan_batches


def text(n_context: int, *continuations: int) -> PackedText:
    return PackedText(range(n_context), [range(100, 100 + length) for length in continuations])


def test_a_row_by_hand() -> None:
    texts = [PackedText([5, 6, 7], [[8, 9], [10], [11, 12, 13]]), PackedText([1], [[2]])]
    batch = PackedBatch(BatchShape(2, 10, 8), [[0, 1]])
    tokens, part_starts, context_starts, positions, asked, labels = batch.arrays(texts)
    assert tokens[0].tolist() == [5, 6, 7, 8, 11, 12, 1, 0, 0, 0]
    assert part_starts[0].tolist() == [0, 0, 0, 3, 4, 4, 6, 7, 7, 7]
    assert context_starts[0].tolist() == [0, 0, 0, 0, 0, 0, 6, 7, 7, 7]
    assert positions[0].tolist() == [0, 1, 2, 3, 3, 4, 0, 0, 0, 0]
    assert asked[0].tolist() == [2, 3, 2, 2, 4, 5, 6, 0]
    assert labels[0].tolist() == [8, 9, 10, 11, 12, 13, 2, 0]
    assert not tokens[1].any() and not part_starts[1].any()
    output = np.arange(16).reshape(2, 8)
    assert [(index, part.tolist()) for index, part in batch.split(texts, output)] == [(0, [0, 1, 2, 3, 4, 5]), (1, [6])]


lengths = st.tuples(st.integers(1, 700), st.lists(st.integers(1, 60), min_size=1, max_size=5))


@settings(max_examples=60, deadline=None)
@given(st.lists(lengths, max_size=60), st.integers(1, 5000), st.integers(1, 4))
def test_every_text_lies_in_one_row_that_has_room(given: list, batch_tokens: int, multiple: int) -> None:
    texts = [text(n_context, *continuations) for n_context, continuations in given]
    batches = plan_batches(texts, batch_tokens, multiple)
    assert sorted(index for batch in batches for row in batch.rows for index in row) == list(range(len(texts)))
    for batch in batches:
        assert len(batch.rows) <= batch.shape.n_rows and batch.shape.n_rows % multiple == 0
        assert batch.shape.n_rows * batch.shape.length <= max(batch_tokens, batch.shape.length) * multiple
        for row in batch.rows:
            assert 0 < sum(texts[index].n_tokens for index in row) <= batch.shape.length
            assert sum(texts[index].n_asked for index in row) <= batch.shape.n_asked


def test_texts_of_a_kind_take_one_program_and_little_padding() -> None:
    draw = np.random.default_rng(0)
    texts = [text(int(draw.normal(84, 14)), int(draw.integers(1, 4))) for _ in range(2000)]
    batches = plan_batches(texts, 2048)
    (shape,) = {batch.shape for batch in batches}
    n_computed = len(batches) * shape.n_rows * shape.length
    assert sum(each.n_tokens for each in texts) > 0.92 * n_computed
    assert len(batches) * shape.n_rows * shape.n_asked < 3 * sum(each.n_asked for each in texts)


def test_texts_that_fill_no_batch_take_few_programs() -> None:
    draw = np.random.default_rng(0)
    shapes = {
        batch.shape
        for _ in range(200)
        for batch in plan_batches([text(int(draw.integers(5, 60)), int(draw.integers(1, 30)))] * 4, 2048)
    }
    assert len(shapes) <= 6


def test_a_program_is_built_once_for_each_shape() -> None:
    built: list[BatchShape] = []

    def build(shape: BatchShape) -> object:
        built.append(shape)
        return lambda *arrays: {"labels": arrays[5]}

    batches = PackedBatches(build, multiple=3, batch_tokens=400)
    texts = [text(20, 5, 2), text(30, 7), *[text(50, 3)] * 30]
    for _ in range(2):
        found = {index: outputs["labels"] for batch in batches.outputs(texts) for index, outputs in batch.items()}
        assert found[0].tolist() == [100, 101, 102, 103, 104, 100, 101]
        assert found[1].tolist() == list(range(100, 107)) and len(found) == len(texts)
    assert len(built) == len(set(built)) == 2
