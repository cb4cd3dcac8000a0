"""What a model gives for tokens: how weights read here are compared with what another library makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from configs.schema import ModelConfig, keys_of
from configs.weights import initial_model_keys
from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from models.ops.cross_entropy import label_scores
from runtime.checkpoint.init_from import load_initial_weights, set_adapters
from runtime.checkpoint.weight_sources import Weights
from runtime.mesh.placement import place
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Answer:
    """Logits [batch, sequence, vocab], and the mean cross-entropy of each next token."""

    logits: np.ndarray
    loss: float


def assert_equal(actual: Answer, expected: Answer, tolerance: float) -> None:
    difference = np.abs(actual.logits - expected.logits).max()
    print(f"largest difference of logits up to {np.abs(expected.logits).max():.1f}: {difference:.1e}")
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=tolerance)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=0, atol=tolerance)


def model_of(folder: Path) -> ModelConfig:
    """The settings that the config.json of a folder comes to."""
    fields = keys_of(ModelConfig)
    keys = initial_model_keys(str(folder))
    return ModelConfig(**{key: fields[key].metadata["kind"].parse(value) for key, value in keys.items()})


def our_answer(
    weights: str | Path,
    model: ModelConfig,
    tokens: np.ndarray,
    devices: tuple[str, ...],
    adapters: Weights | None = None,
) -> Answer:
    """What Neomesh gives for weights of any of the kinds that `--init_from` takes.

    Args:
        weights: their path.
        model: its settings.
        tokens: int32 [batch, sequence].
        devices: the first is used.
        adapters: for these weights, by variable name.
    """

    def build(tokens: mtf.Tensor, labels: mtf.Tensor) -> list[mtf.Tensor]:
        context = Context(tokens.mesh, model, Dims.of(model, *tokens.shape.to_integer_list))
        logits = gpt2.logits(context, tokens)
        return [logits, -label_scores(logits, labels)[0]]

    labels = np.roll(tokens, -1, axis=1)
    placement = place(tiny.mesh_config("", ""), devices[:1])
    function = tiny.compiled(build, placement, ("batch sequence", tokens), ("batch sequence", labels))
    load_initial_weights(str(weights), placement.store)
    if adapters is not None:
        set_adapters(adapters, placement.store, "adapters")
    logits, loss = function(tokens, labels)
    return Answer(logits, float(loss[:, :-1].mean()))  # the last token has no next one
