"""A small model with weights, and its logits, which an exported model must equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from configs.schema import DataConfig, ModelConfig, RunConfig
from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.checkpoint.init_from import set_weights
from runtime.checkpoint.weight_sources import StoredTensor, Weights
from runtime.mesh.placement import VariableStore, place
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, n_embd=8, n_head=2, n_vocab=20)
TOKENS = np.random.default_rng(0).integers(0, MODEL.n_vocab, (3, MODEL.n_ctx)).astype(np.int32)


def run_of(model: ModelConfig) -> RunConfig:
    data = DataConfig(no_dataset=True, eos_id=1, padding_id=0)
    return dataclasses.replace(tiny.run_config(), model=model, data=data)


def model_function(
    model: ModelConfig, store: VariableStore, devices: tuple[str, ...], tokens: np.ndarray
) -> Callable[..., list[np.ndarray]]:
    """Returns the model as a function of tokens, with its variables in the store."""

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        return [gpt2.logits(Context(tokens.mesh, model, Dims.of(model, *tokens.shape.to_integer_list)), tokens)]

    placement = dataclasses.replace(place(tiny.mesh_config("", ""), devices[:1]), store=store)
    return tiny.compiled(build, placement, ("batch sequence", tokens))


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model with random weights."""

    model: ModelConfig
    weights: Weights
    devices: tuple[str, ...]

    @staticmethod
    def of(model: ModelConfig, devices: tuple[str, ...]) -> Graph:
        store, random = VariableStore(), np.random.default_rng(1)
        model_function(model, store, devices, TOKENS)
        values = {stored.name: random.normal(0.0, 0.5, stored.whole_shape).astype(np.float32) for stored in store}
        weights = {name: StoredTensor(name, value.shape, lambda value=value: value) for name, value in values.items()}
        return Graph(model, weights, devices)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        store = VariableStore()
        function = model_function(self.model, store, self.devices, tokens)
        set_weights(self.weights, store, "the test")
        return function(tokens)[0]
