"""Training to rank: the loss of pairs equals NumPy's on any mesh and in microbatches, and evaluation counts pairs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.errors import ConfigError, DataError
from configs.load import load_config
from configs.schema import RunConfig
from data.loading.batch import Batch
from models.losses import uniform_loss
from runtime.mesh.placement import place
from runtime.training.evaluation import evaluate_pairs
from runtime.training.steps import build_eval_step, build_train_step
from tests import tiny
from tests.models import reference

# In each row texts of 5, 4, 4 and 3 tokens: two pairs.
STARTS = np.array([0] * 5 + [5] * 4 + [9] * 4 + [13] * 3, np.int32)
ENDS = ((4, 8), (12, 15))


def run_config(mesh: tuple[str, str] = ("", ""), **training: object) -> RunConfig:
    config = tiny.run_config(tiny.mesh_config(*mesh), {"objective": "ranking"}, training)
    with_segments = dataclasses.replace(load_config("quickstart").data.datasets[0].dataset, packing="masked")
    use = dataclasses.replace(load_config("quickstart").data.datasets[0], dataset=with_segments)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=(use,)))


def pairs() -> tuple[np.ndarray, ...]:
    """Tokens, labels, weights and segment starts; the second pair of every third row does not count."""
    tokens, shape = tiny.batch()[0], (tiny.BATCH_SIZE, tiny.MODEL.n_ctx)
    labels, weights = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)), np.zeros(shape, np.float32)
    for number, (better, worse) in enumerate(ENDS):
        labels[:, worse] = better
        weights[:: 3 if number else 1, worse] = 1.0
    return tokens, labels, weights, np.tile(STARTS, (shape[0], 1))


def expected_losses(values: dict[str, np.ndarray]) -> np.ndarray:
    """[batch, pair]: -log of the softmax of both scores at the better text; each text is read alone."""
    model, tokens = run_config().model, pairs()[0]

    def score(begin: int, end: int) -> np.ndarray:
        x = reference.hidden(model, values, tokens[:, begin : end + 1], 1.0)[0][:, -1]
        return reference.layer_norm(x, values["gpt2/ln_f/g"], values["gpt2/ln_f/b"]) @ values["gpt2/score"][0]

    losses = [
        np.log(np.exp(score(STARTS[better], better)) + np.exp(score(STARTS[worse], worse)))
        - score(STARTS[better], better)
        for better, worse in ENDS
    ]
    return np.stack(losses, 1)


def updated(config: RunConfig, devices: tuple[str, ...]) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    placement = place(config.mesh, devices if config.mesh.mesh_shape else devices[:1])
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    before = tiny.values_of(placement.store)
    outputs = step(*pairs(), np.float32(1e-2), np.int32(0), np.int32(7))
    return float(outputs["loss"]), before, tiny.values_of(placement.store)


def test_the_loss_is_that_of_the_softmax_of_two_scores(devices: tuple[str, ...]) -> None:
    loss, before, after = updated(run_config(), devices)
    losses = expected_losses(before)
    counted = [*losses[:, 0], *losses[::3, 1]]
    assert np.std(counted) > 0.01
    np.testing.assert_allclose(loss, np.mean(counted), rtol=1e-5)
    assert not np.allclose(after["gpt2/score"], before["gpt2/score"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "training"),
    [
        (("x:2,y:2", "batch:x,heads:y,vocab:y"), {}),
        (("x:2,y:2", "sequence:x,memory_length:y"), {}),
        (("x:4", "batch:x"), {"tokens_per_mb_per_replica": 1}),
        (("", ""), {"tokens_per_mb_per_replica": 16}),
    ],
)
def test_a_step_is_the_same_on_a_mesh_and_in_microbatches(
    mesh: tuple[str, str], training: dict[str, object], devices: tuple[str, ...]
) -> None:
    (loss, _, alone), (other, _, split) = (
        updated(config, devices) for config in (run_config(), run_config(mesh, **training))
    )
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for name, value in alone.items():
        np.testing.assert_allclose(split[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_evaluation_counts_the_pairs_whose_better_text_scores_higher(devices: tuple[str, ...]) -> None:
    config = run_config()
    placement = place(config.mesh, devices[:1])
    step = build_eval_step(config, placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    tokens, labels, weights, starts = pairs()
    measured = evaluate_pairs(step, [Batch(tokens, labels, weights, 8, segment_starts_BS=starts)] * 2)
    losses = expected_losses(tiny.values_of(placement.store))
    counted = np.array([*losses[:, 0], *losses[::3, 1]])
    assert 0 < (counted < np.log(2)).mean() < 1
    assert measured["pairs"] == 2 * len(counted) and measured["accuracy"] == (counted < np.log(2)).mean()
    np.testing.assert_allclose(measured["loss"], counted.mean(), rtol=1e-5)
    assert uniform_loss(config.model) == np.log(2)
    with pytest.raises(DataError, match="holds no pair"):
        evaluate_pairs(step, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective=ranking"], "objective = ranking: does not fit python_stdlib, which holds no pairs; write"),
        (["objective=ranking", "mlm_training=true", "mlm_mask_id=3"], "is ranking, and mlm_training is about"),
        (
            ['datasets=[{"id": "p", "pairs": "p.jsonl", "n_vocab": 512}]'],
            "does not fit p, which holds pairs, which only ranking is trained on",
        ),
    ],
)
def test_objective_and_data_fit(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("quickstart", settings)
    assert message in str(error.value)
