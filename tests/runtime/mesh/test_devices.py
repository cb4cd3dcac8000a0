"""The devices that a run uses, and the errors for those that do not exist."""

from __future__ import annotations

import pytest

from configs.errors import DeviceError
from meshtf import tf
from runtime.mesh.devices import choose_devices

N_GPUS = len(tf.config.list_physical_devices("GPU"))
without_gpu = pytest.mark.skipif(N_GPUS > 0, reason="a GPU is there")


def error_message(gpu_ids: list[str] | None, n_cpu_devices: int | None) -> str:
    with pytest.raises(DeviceError) as error:
        choose_devices(gpu_ids, n_cpu_devices)
    return str(error.value)


@without_gpu
def test_the_cpu_is_used_without_a_gpu() -> None:
    assert choose_devices(None, None) == ("/device:CPU:0",)


@pytest.mark.skipif(N_GPUS == 0, reason="no GPU is there")
def test_all_gpus_are_used_by_default() -> None:
    assert choose_devices(None, None) == tuple(f"/device:GPU:{index}" for index in range(N_GPUS))
    assert choose_devices(["device:GPU:0"], None) == ("/device:GPU:0",)


@pytest.mark.parametrize("name", ["device:CPU:0", "/device:CPU:0", " device:CPU:0 "])
def test_devices_are_chosen_by_name(name: str) -> None:
    assert choose_devices([name], None) == ("/device:CPU:0",)


@without_gpu
def test_a_missing_device_is_refused() -> None:
    assert error_message(["device:GPU:3"], None) == (
        "--gpu_ids device:GPU:3: no such device; GPUs that TensorFlow sees: none; name one that is there, or leave "
        "--gpu_ids out to run on what is there"
    )


@without_gpu
def test_a_number_is_that_of_a_gpu() -> None:
    assert error_message(["0", "1"], None).startswith("--gpu_ids device:GPU:0: no such device; ")


def test_a_device_named_twice_is_refused() -> None:
    assert error_message(["device:CPU:0", "/device:CPU:0"], None) == (
        "--gpu_ids device:CPU:0 /device:CPU:0: a device is named twice; name each once"
    )


@pytest.mark.parametrize("count", [0, -2])
def test_fewer_than_one_cpu_device_is_refused(count: int) -> None:
    assert error_message(None, count) == (
        f"--cpu_devices {count}: must be at least 1; give the number of virtual CPU devices"
    )
