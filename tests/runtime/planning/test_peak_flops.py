"""Peak speed of devices: by name, and as measured here."""

from __future__ import annotations

import time

import numpy as np
import pytest

from configs.schema import ModelConfig
from runtime.planning.peak_flops import (
    TPU_VARIABLE,
    known_gpu_peak,
    measured_peak,
    own_peak,
    peak_tokens_per_second,
    tpu_peak,
)
from tests import tiny


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H100 NVL", 835e12, 417e12),
        ("NVIDIA H200", 989e12, 494e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("Tesla V100-SXM2-16GB", 15.7e12, 15.7e12),
        ("Tesla T4", 8.1e12, 8.1e12),
        ("NVIDIA T400", None, None),
        ("NVIDIA GeForce RTX 3090", None, None),
    ],
)
def test_gpus_by_name(name: str, bfloat16: float | None, float32: float | None) -> None:
    found = known_gpu_peak(name, "bfloat16"), known_gpu_peak(name, "float32")
    assert found == (bfloat16, float32)


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [
        ("v3-8", 4 * 123e12),
        ("v2-32", 4 * 45e12),
        ("v5litepod-16", 4 * 197e12),
        ("v5p-8", 4 * 459e12),
        ("v9-8", None),
        ("v30-8", None),
        (None, None),
    ],
)
def test_tpus_by_their_type(monkeypatch: pytest.MonkeyPatch, accelerator: str | None, expected: float | None) -> None:
    monkeypatch.delenv(TPU_VARIABLE, raising=False)
    if accelerator is not None:
        monkeypatch.setenv(TPU_VARIABLE, accelerator)
    assert tpu_peak(n_cores=8, cores_of_chip=2) == expected


def test_a_cpu_is_measured_quickly() -> None:
    """NumPy's product, on the same processors, is neither far faster nor far slower."""
    start_seconds = time.perf_counter()
    peak = measured_peak("/device:CPU:0", "float32")
    took_seconds = time.perf_counter() - start_seconds
    matrix = np.ones((1024, 1024), np.float32)
    seconds = []
    for _ in range(5):
        start_seconds = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start_seconds)
    assert 0.1 < peak / (2 * 1024**3 / min(seconds)) < 20
    assert took_seconds < 10


def test_virtual_cpus_count_as_one(devices: tuple[str, ...]) -> None:
    assert 0.2 < own_peak(devices, "float32") / own_peak(devices[:1], "float32") < 5


def test_peak_tokens_per_second_counts_the_models_own_operations() -> None:
    """6 for each weight that a token uses, and attention to visible positions; nothing for recomputation."""
    model = ModelConfig(
        n_head=2, n_embd=8, n_layer=3, n_ctx=4, n_vocab=50, attention_types=("global",) * 3, recompute_grad=True
    )
    weights = 3 * (4 * 8 * 8 + 2 * 8 * 32) + 50 * 8
    attention = 3 * 4 * 8 * np.mean([1, 2, 3, 4])
    assert peak_tokens_per_second(model, 1e9) == pytest.approx(1e9 / (6 * weights + 3 * attention))
    assert peak_tokens_per_second(tiny.MODEL, 2e9) == 2 * peak_tokens_per_second(tiny.MODEL, 1e9)
