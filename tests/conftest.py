"""What tests of one process share: TensorFlow's devices, which can be made once only."""

from __future__ import annotations

import sys

import pytest

N_DEVICES = 4
DEVICES = pytest.StashKey[tuple[str, ...]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Makes the virtual devices before any test runs TensorFlow; without a test that does, TensorFlow is not loaded."""
    if "meshtf" in sys.modules:
        from runtime.mesh.devices import choose_devices

        session.config.stash[DEVICES] = choose_devices(None, N_DEVICES)


@pytest.fixture(scope="session")
def devices(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Four virtual CPU devices."""
    return request.config.stash[DEVICES]
