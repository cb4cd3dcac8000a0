"""The bucket of tests/storage, for tests of data in a bucket."""

from tests.storage.conftest import google, trials

__all__ = ["google", "trials"]
