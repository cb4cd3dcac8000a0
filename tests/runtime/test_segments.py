"""Texts that are packed into rows with masks give the loss and gradients of one text a row, in any layout."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from configs.schema import RunConfig
from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.mesh.placement import place
from runtime.training.steps import build_eval_step, build_train_step
from tests import tiny
from tests.models.reference_attention import segments

# Texts of each row of the batch, in tokens.
LENGTHS = ((5, 11), (16,), (3, 4, 9), (1, 15), (8, 8), (2, 2, 2, 10), (15, 1), (6, 5, 5))
STARTS_BS = segments(*LENGTHS)
THREE_KINDS = {"n_layer": 3, "attention_types": ("global", "local", "linear")}
MODELS = {
    "learned": THREE_KINDS,
    "rotary": {**THREE_KINDS, "rotary_emb": True, "linear_attention_normalization": "feature"},
    "axial": {**THREE_KINDS, "axial_pos_emb": (2, 8)},
    "memory": {"num_mem_kv": 3},
    "bidirectional": {**THREE_KINDS, "mlm_training": True},
}


def packed_batch() -> tuple[np.ndarray, ...]:
    """Tokens, labels, weights and segment starts, [batch, sequence]; labels in another text count nothing."""
    tokens_BS, labels_BS = tiny.batch()
    weights_BS = np.random.default_rng(1).choice([0.0, 0.5, 1.0], tokens_BS.shape).astype(np.float32)
    weights_BS[:, :-1] *= STARTS_BS[:, :-1] == STARTS_BS[:, 1:]
    return tokens_BS, labels_BS, weights_BS, STARTS_BS


def texts() -> list[tuple[int, slice]]:
    """The row and the positions of each text."""
    return [
        (row, slice(start, start + length))
        for row, lengths in enumerate(LENGTHS)
        for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)
    ]


def lone_batch() -> tuple[np.ndarray, ...]:
    """The same texts, each at the beginning of a row of its own; what follows it has weight 0."""
    batch = tuple(np.zeros((len(texts()), tiny.MODEL.n_ctx), array.dtype) for array in packed_batch()[:3])
    for number, (row, own) in enumerate(texts()):
        for packed, lone in zip(packed_batch()[:3], batch, strict=True):
            lone[number, : own.stop - own.start] = packed[row, own]
    return batch


@functools.cache
def one_text_a_row(name: str, devices: tuple[str, ...]) -> tiny.Updated:
    config = tiny.run_config(model=MODELS[name], training={"train_batch_size": len(texts())})
    return tiny.one_update(config, devices, batch=lone_batch())


def assert_same_gradients(packed: tiny.Updated, lone: tiny.Updated) -> None:
    np.testing.assert_allclose(packed.loss, lone.loss, rtol=0, atol=1e-5)
    names = [name for name in lone.after if "/adam_" not in name]
    assert max(np.abs(lone.gradient(name)).max() for name in names) > 1e-2
    for name in names:
        np.testing.assert_allclose(packed.gradient(name), lone.gradient(name), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["learned", "rotary", "axial", pytest.param("memory", marks=pytest.mark.slow)])
def test_packed_texts_are_as_if_alone(devices: tuple[str, ...], name: str) -> None:
    update = tiny.one_update(tiny.run_config(model=MODELS[name], data=tiny.MASKED), devices, batch=packed_batch())
    assert_same_gradients(update, one_text_a_row(name, devices))


@pytest.mark.parametrize(
    ("name", "mesh_shape", "layout"),
    [
        ("learned", "x:2,y:2", "batch:x,heads:y,embed_sequence:x"),
        *(
            pytest.param(name, *mesh, marks=pytest.mark.slow)
            for name, *mesh in (
                ("learned", "x:2,y:2", "sequence:x,memory_length:y,vocab:y"),
                ("learned", "x:2,y:2", "batch:x,sequence:y,embed_sequence:y"),
                ("learned", "x:4", "memory_length:x"),
                ("learned", "x:4", "embed_sequence:x"),
                ("rotary", "x:2,y:2", "batch:x,heads:y"),
                ("rotary", "x:2,y:2", "sequence:x,memory_length:y"),
                ("axial", "x:2,y:2", "batch:x,heads:y"),
                ("axial", "x:2,y:2", "sequence:x,embd:y"),
                ("memory", "x:2,y:2", "batch:x,memory_length:y"),
            )
        ),
    ],
)
def test_packed_texts_are_as_if_alone_on_any_mesh(
    devices: tuple[str, ...], name: str, mesh_shape: str, layout: str
) -> None:
    config = tiny.run_config(tiny.mesh_config(mesh_shape, layout), MODELS[name], data=tiny.MASKED)
    assert_same_gradients(tiny.one_update(config, devices, batch=packed_batch()), one_text_a_row(name, devices))


@pytest.mark.parametrize("layout", ["", pytest.param("batch:x,heads:y", marks=pytest.mark.slow)])
def test_microbatches_of_packed_texts_that_are_computed_again(devices: tuple[str, ...], layout: str) -> None:
    mesh = tiny.mesh_config("x:2,y:2" if layout else "", layout)
    model = {**MODELS["learned"], "recompute_grad": True}
    config = tiny.run_config(mesh, model, {"tokens_per_mb_per_replica": 2 * tiny.MODEL.n_ctx}, tiny.MASKED)
    assert_same_gradients(tiny.one_update(config, devices, batch=packed_batch()), one_text_a_row("learned", devices))


def test_without_masks_texts_change_one_another(devices: tuple[str, ...]) -> None:
    update = tiny.one_update(tiny.run_config(model=MODELS["learned"]), devices, batch=packed_batch()[:3])
    assert abs(update.loss - one_text_a_row("learned", devices).loss) > 1e-3


@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [("", ""), pytest.param("x:2,y:2", "sequence:x,memory_length:y", marks=pytest.mark.slow)],
)
def test_evaluation_where_every_position_sees_its_whole_text(
    devices: tuple[str, ...], mesh_shape: str, layout: str
) -> None:
    """Compared with graphs that are as long as each text."""
    config = tiny.run_config(tiny.mesh_config(mesh_shape, layout), MODELS["bidirectional"], data=tiny.MASKED)
    placement = place(config.mesh, devices if mesh_shape else devices[:1])
    step = build_eval_step(config, placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    tokens_BS, labels_BS, _, starts_BS = packed_batch()
    losses_BS = step(tokens_BS, labels_BS, starts_BS)["token_loss"]
    values = tiny.values_of(placement.store)
    for row, own in (texts()[0], texts()[4], texts()[5]):
        logits = lone_logits(config, values, tokens_BS[row : row + 1, own], devices)
        of_labels = np.take_along_axis(logits, labels_BS[row, own, None], 1)[:, 0]
        alone = np.logaddexp.reduce(logits, 1) - of_labels
        np.testing.assert_allclose(losses_BS[row, own], alone, rtol=0, atol=1e-5)


def lone_logits(
    config: RunConfig, values: dict[str, np.ndarray], tokens: np.ndarray, devices: tuple[str, ...]
) -> np.ndarray:
    """[1, length] -> [length, vocab], by a graph of this length."""
    placement = place(tiny.mesh_config("", ""), devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        dims = Dims.of(config.model, *tokens.shape.to_integer_list)
        return [gpt2.logits(Context(tokens.mesh, config.model, dims), tokens)]

    function = tiny.compiled(build, placement, ("batch sequence", tokens))
    for stored in placement.store:
        stored.assign_whole(values[stored.name])
    return function(tokens)[0][0]


def test_a_run_without_segments_has_the_inputs_of_one_that_knows_none(devices: tuple[str, ...]) -> None:
    ranks = {}
    for config in (tiny.run_config(), tiny.run_config(data=tiny.MASKED)):
        step = build_train_step(config, place(config.mesh, devices[:1]))
        ranks[config.data.has_segments] = [spec.shape.rank for spec in step.function.structured_input_signature[0]]
    assert ranks == {False: [2, 2, 2, 0, 0, 0], True: [2, 2, 2, 2, 0, 0, 0]}
