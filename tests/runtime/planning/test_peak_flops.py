"""Peak speed of devices: by name, and as measured here."""

from __future__ import annotations

import glob
import math
import multiprocessing
import os
import time
from collections.abc import Callable

import numpy as np
import pytest

from configs.schema import ModelConfig
from runtime.planning import peak_flops
from runtime.planning.peak_flops import (
    MAX_WAITING,
    TPU_VARIABLE,
    WAITING_FILES,
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
    peak = measured_peak("/device:CPU:0", "float32", max_waiting=math.inf)
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
    all_of_them, one = (own_peak(some, "float32", max_waiting=math.inf) for some in (devices, devices[:1]))
    assert 0.2 < all_of_them / one < 5


def _spin(seconds: float) -> None:
    end_seconds = time.perf_counter() + seconds
    while time.perf_counter() < end_seconds:
        pass


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not glob.glob(WAITING_FILES), reason="this system does not tell how long threads wait")
def test_a_busy_machine_has_no_peak() -> None:
    spinning = [multiprocessing.get_context("spawn").Process(target=_spin, args=(60,)) for _ in range(os.cpu_count())]
    for process in spinning:
        process.start()
    try:
        time.sleep(5)  # until all of them spin
        assert measured_peak("/device:CPU:0", "float32") is None
    finally:
        for process in spinning:
            process.kill()
            process.join()


def _calls(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[float, float]]) -> Callable[[], None]:
    """Returns an action whose calls take these seconds, and wait these, by a clock of their own."""
    clock = [0.0, 0.0]
    monkeypatch.setattr(peak_flops.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(peak_flops, "_waited_seconds", lambda: clock[1])
    remaining = iter([(1.0, 0.0), *calls])  # the first warms up

    def call() -> None:
        took, waited = next(remaining)
        clock[0], clock[1] = clock[0] + took, clock[1] + waited

    return call


@pytest.mark.parametrize(
    ("calls", "fastest"),
    [
        ([(0.3, 0.0), (0.2, 0.0), (0.4, 0.0), (0.3, 0.0), (0.3, 0.0)], 0.2),  # no more than five
        ([(0.1, 0.09), (0.3, 0.0), (0.2, 0.1), (3.0, 0.0)], 0.3),  # one that waited is not counted, however fast
        ([(1.0, 0.9)] * 3, None),
        ([(9.0, 0.0)], 9.0),
    ],
)
def test_the_fastest_call_that_did_not_wait_counts(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[float, float]], fastest: float | None
) -> None:
    monkeypatch.setattr(peak_flops.os, "cpu_count", lambda: 1)
    assert peak_flops._fastest_seconds(_calls(monkeypatch, calls), MAX_WAITING) == pytest.approx(fastest)


def test_peak_tokens_per_second_counts_the_models_own_operations() -> None:
    """6 for each weight that a token uses, and attention to visible positions; nothing for recomputation."""
    model = ModelConfig(
        n_head=2, n_embd=8, n_layer=3, n_ctx=4, n_vocab=50, attention_types=("global",) * 3, recompute_grad=True
    )
    weights = 3 * (4 * 8 * 8 + 2 * 8 * 32) + 50 * 8
    attention = 3 * 4 * 8 * np.mean([1, 2, 3, 4])
    assert peak_tokens_per_second(model, 1e9) == pytest.approx(1e9 / (6 * weights + 3 * attention))
    assert peak_tokens_per_second(tiny.MODEL, 2e9) == 2 * peak_tokens_per_second(tiny.MODEL, 1e9)
