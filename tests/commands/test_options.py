"""What is said of keys that other keys switch off."""

from __future__ import annotations

import pytest

from commands.options import idle_by_other_keys
from tests import tiny


@pytest.mark.parametrize(
    ("lr_decay", "said"),
    [
        (None, ["tiny: lr_decay_end: no effect, since lr_decay is null"]),
        ("noam", ['tiny: lr_decay_end: no effect, since lr_decay is "noam"']),
        ("noamwd", ['tiny: lr_decay_end: no effect, since lr_decay is "noamwd"']),
        ("bert", []),
        ("cosine", []),
    ],
)
def test_the_end_of_a_decay_without_one_has_no_effect(lr_decay: str | None, said: list[str]) -> None:
    config = tiny.run_config(training={"lr_decay": lr_decay, "lr_decay_end": 5})
    assert [line for line in idle_by_other_keys(config) if "lr_decay_end" in line] == said
