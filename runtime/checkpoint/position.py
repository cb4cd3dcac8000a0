"""The position of a training run, which its checkpoints hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TrainingPosition:
    """How far training is.

    Attributes:
        step: updates made.
        examples: training examples read.
        examples_per_dataset: how many of them came from each dataset, by name; None: unknown.
    """

    step: int
    examples: int
    examples_per_dataset: Mapping[str, int] | None = None
