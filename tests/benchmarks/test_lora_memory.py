"""Fine-tuning adapters of a model of GPT-2's smallest size takes little memory beside training all of it."""

from __future__ import annotations

import pytest

from benchmarks import lora_memory


@pytest.mark.slow
@pytest.mark.processes
def test_adapters_need_at_most_three_fifths_of_the_memory() -> None:
    found = lora_memory.measure(n_ctx=256, repeats=1)
    print(found)
    # 12 layers of 2 targets, and for each 8 (768 + 768)
    assert found["trained"] == 12 * 2 * 8 * 2 * 768
    assert found["trained_share"] < 0.003 and found["ratio"] <= 0.6
