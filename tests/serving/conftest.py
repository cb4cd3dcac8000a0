"""Fixtures for tests of a trained model behind a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import program
from tests.serving.projects import SIZE, Project
from tests.serving.servers import Server


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trains a small model."""
    folder = tmp_path_factory.mktemp("project")
    program.write_project(folder)
    done = program.run_process(folder, *SIZE, "--set", "train_steps=150")
    assert done.returncode == 0, done.stderr[-3000:]
    return Project(folder)


@pytest.fixture(scope="session")
def trained_server(project: Project) -> Iterator[Server]:
    """Serves it."""
    with project.serving() as server:
        yield server
