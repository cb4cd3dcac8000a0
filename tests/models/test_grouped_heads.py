"""Heads that share keys and values: the same numbers however heads are split, with and without the cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import pytest

from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference
from tests.models.decoding import cached_logits

TOKENS_BS = tiny.batch()[0][:4]
PROMPT_LENGTH = 14
KINDS = {"n_layer": 3, "attention_types": ("global", "local", "linear"), "num_mem_kv": 2}
MODELS: dict[str, Mapping[str, object]] = {
    "2 of 4": {**KINDS, "n_kv_head": 2},
    "1 of 4": {**KINDS, "n_kv_head": 1, "head_dim": 6},
    "3 of 12": {**KINDS, "n_head": 12, "n_kv_head": 3, "head_dim": 4, "qk_norm": "projection"},
    "6 of 12": {**KINDS, "n_head": 12, "n_kv_head": 6, "head_dim": 4, "rotary_emb": True, "qk_norm": "head"},
}
# A slice has whole groups, one head of a group, or heads of two groups.
SPLIT = [
    pytest.param("2 of 4", "x:2,y:2", "batch:x,heads:y,kv_heads:y", id="whole groups"),
    pytest.param("3 of 12", "x:4", "heads:x", id="parts of two groups"),
]
SPLIT_OTHERWISE = [
    pytest.param("2 of 4", "x:2,y:2", "heads:x", id="a group, and all keys"),
    pytest.param("2 of 4", "x:4", "heads:x", id="half a group"),
    pytest.param("3 of 12", "x:2,y:2", "batch:x,heads:y", id="one and a half groups"),
    pytest.param("1 of 4", "x:4", "heads:x", id="one key head"),
    pytest.param("6 of 12", "x:2,y:2", "heads:x,kv_heads:x,embd:y", id="embd too"),
    pytest.param("6 of 12", "x:2,y:2", "heads:y,kv_heads:y,sequence:x", id="sequence too"),
    pytest.param("6 of 12", "x:2,y:2", "heads:y,memory_length:x", id="memory_length too"),
    pytest.param("6 of 12", "x:2,y:2", "sequence:x,memory_length:y", id="no heads"),
]
DECODED_WHOLE = ("sequence", "memory_length")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
ALL = [*SPLIT, *(slow(*case.values, id=case.id) for case in SPLIT_OTHERWISE)]


@pytest.mark.parametrize(("name", "mesh_shape", "layout"), ALL)
def test_logits_with_and_without_the_cache(devices: tuple[str, ...], name: str, mesh_shape: str, layout: str) -> None:
    model = dataclasses.replace(tiny.MODEL, **MODELS[name])
    decoded_layout = ",".join(rule for rule in layout.split(",") if rule.split(":")[0] not in DECODED_WHOLE)
    placement = place(tiny.mesh_config(mesh_shape, decoded_layout), devices)

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        whole = gpt2.logits(Context(tokens.mesh, model, Dims.of(model, *TOKENS_BS.shape)), tokens)
        return [whole, *cached_logits(model, tokens, PROMPT_LENGTH)]

    function = tiny.compiled(build, placement, ("batch sequence", TOKENS_BS))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    whole_BSV, *cached_BV = function(TOKENS_BS)
    expected = reference.logits(model, tiny.values_of(placement.store), TOKENS_BS)
    np.testing.assert_allclose(whole_BSV, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.stack(cached_BV, 1), expected[:, PROMPT_LENGTH - 1 :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "mesh_shape", "layout"), ALL)
def test_an_update(devices: tuple[str, ...], name: str, mesh_shape: str, layout: str) -> None:
    updated = update(devices, name, mesh_shape, layout)
    tiny.assert_same_update(updated, update(devices, name))


@functools.cache
def update(devices: tuple[str, ...], name: str, mesh_shape: str = "", layout: str = "") -> tiny.Updated:
    model = {**MODELS[name], **tiny.ALL_DROPOUTS}
    return tiny.one_update(tiny.run_config(tiny.mesh_config(mesh_shape, layout), model), devices)


def test_the_cache_holds_one_head_of_keys_for_each_group() -> None:
    model = dataclasses.replace(tiny.MODEL, **MODELS["1 of 4"])
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    caches = gpt2.empty_caches(Context(mesh, model, Dims.of(model, 2, 16)))
    sizes = [tensor.shape.get_dim_by_name("kv_heads").size for cache in caches for tensor in cache.values()]
    assert sizes == [1] * (2 + 2 + 3)
