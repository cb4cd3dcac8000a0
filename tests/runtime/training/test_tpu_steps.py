"""The TPU's training program, run by processes instead of cores: everything but its own collectives is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from commands.local_processes import free_ports
from tests.runtime.mesh.test_multi_process import Together, check_case, one_device
from tests.runtime.spmd_worker import CASES, MATRIX
from tests.runtime.tpu_worker import N_STEPS

REPOSITORY = Path(__file__).parents[3]
FAST = ("experts",)
OF_TWO = ("data", "model", "embd", "memory", "sequence", "shared", "segments", "shard", "parameters")
OF_FOUR = ("mixed", "mixed_experts", "mixed_embd", "whole_sequence", "shard_mixed", "parameters_mixed")


def start(n_processes: int, folder: Path, *jobs: str) -> list[subprocess.Popen]:
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(n_processes))
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.tpu_worker", hosts, str(index), str(folder), *jobs],
            cwd=REPOSITORY,
            env={**environment, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(n_processes)
    ]


def outputs_of(processes: Sequence[subprocess.Popen]) -> list[str]:
    """The output of all processes, once they have ended."""
    try:
        return [process.communicate(timeout=600)[0][-2000:] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_together(n_processes: int, folder: Path, device: str, *jobs: str) -> Together:
    cases = {CASES[job].model: CASES[job] for job in jobs if job in CASES}
    expected = {model: one_device(case, folder, device) for model, case in cases.items()}
    processes = start(n_processes, folder, *jobs)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0] * n_processes, "\n".join(outputs)
    results = [dict(np.load(folder / f"{index}.npz")) for index in range(n_processes)]
    for name in CASES.keys() & set(jobs):
        for result in results:
            # `check_case` knows the second loss as that of the next step.
            result[f"{name}/next_loss"] = result[f"{name}/next_losses"][0]
    return Together(folder, results, expected)


def check_loop(together: Together, name: str, device: str) -> None:
    """The first step is that of one device, each step has its own inputs, and no step more is run than asked for."""
    check_case(together, name, device)
    for results in together.results:
        first, following = results[f"{name}/first_losses"], results[f"{name}/next_losses"]
        assert (first.shape, following.shape) == ((N_STEPS,), (N_STEPS,))
        np.testing.assert_array_equal(first[1:], 0)
        assert following[1] < following[0] < first[0]
        np.testing.assert_allclose(
            following[2], following[1], rtol=0, atol=1e-6
        )  # the step between them had a learning rate of 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(2, tmp_path_factory.mktemp("pair"), devices[0], "moved", *FAST)


def check_moved(together: Together) -> None:
    shifted = np.zeros_like(MATRIX)
    shifted[:-3] = MATRIX[3:]
    reduced = [MATRIX.sum(0), MATRIX.max(0), MATRIX.min(0)]
    expected = [MATRIX, MATRIX, MATRIX, *reduced, np.roll(MATRIX, 1, 0), shifted, MATRIX.sum(0)]
    for results in together.results:
        for index, value in enumerate(expected):
            np.testing.assert_allclose(results[f"moved/{index}"], value, rtol=0, atol=1e-6 if index in (3, 8) else 0)


@pytest.mark.slow
@pytest.mark.processes
def test_slices_are_moved(pair: Together) -> None:
    check_moved(pair)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", FAST)
def test_two_replicas_train_as_one_device(pair: Together, devices: tuple[str, ...], name: str) -> None:
    check_loop(pair, name, devices[0])


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(2, tmp_path_factory.mktemp("long_pair"), devices[0], *OF_TWO)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", OF_TWO)
def test_two_replicas_with_any_layout(long_pair: Together, devices: tuple[str, ...], name: str) -> None:
    check_loop(long_pair, name, devices[0])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(4, tmp_path_factory.mktemp("four"), devices[0], *OF_FOUR)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", OF_FOUR)
def test_four_replicas_on_two_axes(four: Together, devices: tuple[str, ...], name: str) -> None:
    check_loop(four, name, devices[0])


@pytest.mark.slow
@pytest.mark.processes
def test_four_replicas_on_one_axis(tmp_path: Path, devices: tuple[str, ...]) -> None:
    together = run_together(4, tmp_path, devices[0], "moved", "four_data")
    check_moved(together)
    check_loop(together, "four_data", devices[0])
