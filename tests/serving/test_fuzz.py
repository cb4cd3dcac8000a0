"""All that the server's own document says may be asked, and much that it says may not, asked by schemathesis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.servers import scripted

KEY = "key"
# What its schema allows may still be refused, as a prompt that is too long: no schema counts tokens.
EXCLUDED = "positive_data_acceptance"


def assert_nothing_found(folder: Path, *arguments: str, **environment: str) -> None:
    """No 5xx, no status that the document does not tell of, no answer of another form, and nothing wrong accepted."""
    with scripted(**environment) as server:
        words = ["run", f"{server.url}/openapi.json", "--checks", "all", "--exclude-checks", EXCLUDED, "--seed", "1"]
        program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        command = [sys.executable, "-c", program, *words, "--no-color", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        assert "Tested: 5" in done.stdout
        assert not any("Traceback" in line for line in server.said)


def test_what_is_asked_at_random_is_answered_as_the_document_says(tmp_path: Path) -> None:
    assert_nothing_found(tmp_path, "--phases", "fuzzing", "--max-examples", "25")


@pytest.mark.slow
def test_whatever_is_asked_is_answered_as_the_document_says(tmp_path: Path) -> None:
    authorization = ("--header", f"Authorization: Bearer {KEY}")
    assert_nothing_found(tmp_path, "--max-examples", "200", *authorization, NEOMESH_API_KEY=KEY)
