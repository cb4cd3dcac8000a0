"""A large model of Hugging Face's is read in the memory of what its process holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import weights_memory


@pytest.mark.slow
@pytest.mark.processes
def test_one_process_of_eight_holds_its_slices_and_little_more(tmp_path: Path) -> None:
    found = weights_memory.measure("7b", one_process=False, directory=str(tmp_path))
    print(found)
    assert found["parameters"] == 6_738_415_616
    assert 3.0 < found["slices_gib"] < 3.5
    assert found["peak_gib"] < 3.5 + 1.0  # TensorFlow takes half of the last one
