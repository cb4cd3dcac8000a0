"""What tests share: the devices of TensorFlow, which a process makes only once, and the programs compiled by XLA."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.talks import Talks

N_DEVICES = 4
DEVICES = pytest.StashKey[tuple[str, ...]]()
PROGRAMS = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Lets all processes of a run, workers and programs they start, share what XLA compiles, and heed signals."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:  # in the background of a shell, or under nohup
            signal.signal(number, handler)
    if "TF_XLA_FLAGS" not in os.environ:
        config.stash[PROGRAMS] = tempfile.mkdtemp(prefix="neomesh-xla-")
        os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={config.stash[PROGRAMS]}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the programs again."""
    if PROGRAMS in config.stash:
        shutil.rmtree(config.stash[PROGRAMS], ignore_errors=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Makes the virtual devices before any test runs TensorFlow; without a test that does, TensorFlow is not loaded."""
    if "meshtf" in sys.modules:
        from runtime.mesh.devices import choose_devices

        session.config.stash[DEVICES] = choose_devices(None, N_DEVICES)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Lets this process write at the speed of memory; which errors of fsync are met, processes of their own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Talks:
    """A model that was trained to talk."""
    from tests.talks import train

    return train(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="session")
def devices(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Four virtual CPU devices."""
    return request.config.stash[DEVICES]
