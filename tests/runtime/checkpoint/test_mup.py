"""Models with muP as models without: the same logits, by NumPy and as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.mup import without_mup
from runtime.checkpoint.peft import read_adapters
from runtime.checkpoint.weight_sources import StoredTensor
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.answers import model_of, our_answer
from tests.models import reference

MODELS = {
    "GPT-2": {"qkv_bias": True, "scale_attn_weights": True, "attention_types": ("global", "global")},
    "GPT-Neo": {},
    "Qwen 3, with Gemma's offset": {
        **{"norm": "rmsnorm", "norm_unit_offset": True, "qk_norm": "head", "scale_attn_weights": True},
        **{"rotary_emb": True, "no_weight_tie": True, "final_norm": True},
    },
}


def weights_of(model: dict[str, object], devices: tuple[str, ...]) -> dict[str, StoredTensor]:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    build_train_step(tiny.run_config(model=model), placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    values = tiny.values_of(placement.store)
    return {
        name: StoredTensor(name, value.shape, lambda value=value: value)
        for name, value in values.items()
        if "/adam_" not in name
    }


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_folded_weights_give_the_same_logits(devices: tuple[str, ...], options: dict[str, object]) -> None:
    model = dataclasses.replace(tiny.MODEL, mup_base_width=8, **options)
    weights = weights_of(options | {"mup_base_width": 8}, devices)
    plain, folded = without_mup(model, weights)
    assert plain == dataclasses.replace(model, mup_base_width=0)
    own, other = (
        reference.logits(settings, {name: np.float64(stored.read()) for name, stored in stored.items()}, tokens)
        for settings, stored in ((model, weights), (plain, folded))
        for tokens in tiny.batch()[:1]
    )
    assert own.std() > 0.1
    np.testing.assert_allclose(other, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT-2", "GPT-Neo"])
def test_an_exported_folder_computes_the_same(devices: tuple[str, ...], tmp_path: Path, name: str) -> None:
    options = MODELS[name] | {"mup_base_width": 8}
    config, weights = tiny.run_config(model=options), weights_of(options, devices)
    write_huggingface_folder(f"{tmp_path}/hf", config, weights, None)
    tokens = tiny.batch()[0]
    answer = our_answer(tmp_path / "hf", model_of(tmp_path / "hf"), tokens, devices)
    values = {name: np.float64(stored.read()) for name, stored in weights.items()}
    np.testing.assert_allclose(answer.logits, reference.logits(config.model, values, tokens), rtol=0, atol=1e-5)


def test_adapters_of_an_exported_model_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        read_adapters("adapters", dataclasses.replace(tiny.MODEL, mup_base_width=8))
    assert str(error.value) == (
        "adapters: mup_base_width = 8: adapters of PEFT belong to the exported model, which has other weights of "
        "queries; give the folder of --export_format hf as --model or --init_from"
    )
