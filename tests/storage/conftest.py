"""A bucket called trials, for tests of one process that go through Google's client alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage import buckets
from tests.storage.server import Cloud, cloud


@pytest.fixture(scope="package")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("google")) as found:
        yield found


@pytest.fixture
def trials(google: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The bucket, empty and without faults, with short pauses between retries."""
    for name, value in google.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "BACKOFF_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 20.0)
    buckets._client_of.cache_clear()
    google.client.create_bucket("trials")
    google.requests.clear()
    yield google
    google.faults = lambda request: None
    google.client.bucket("trials").delete(force=True)
    buckets._client_of.cache_clear()
