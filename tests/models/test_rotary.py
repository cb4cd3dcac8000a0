"""Rotary frequencies, against those of Hugging Face's transformers 5.23 (`ROPE_INIT_FUNCTIONS`)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.schema import RotaryScaling
from models.rotary import rotary_frequencies, rotary_gain
from tests import tiny

# Head width, base, scaling, and what transformers gives: the frequencies and the attention factor.
GOLDEN = {}


@pytest.mark.parametrize(("width", "base", "scaling", "frequencies", "gain"), GOLDEN.values(), ids=GOLDEN.keys())
def test_scaled_frequencies(
    width: int, base: float, scaling: RotaryScaling | None, frequencies: list[float], gain: float
) -> None:
    model = dataclasses.replace(tiny.MODEL, head_dim=width, rotary_base=base, rotary_scaling=scaling)
    np.testing.assert_allclose(rotary_frequencies(model), np.array(frequencies, np.float32), rtol=3e-7)
    assert rotary_gain(model) == pytest.approx(gain, rel=1e-12)
    assert rotary_frequencies(model).dtype == np.float32


def test_some_features_are_rotated_by_frequencies_of_their_own() -> None:
    whole, part = ({"head_dim": 8}, {"head_dim": 32, "rotary_dim": 8})
    np.testing.assert_array_equal(
        *(rotary_frequencies(dataclasses.replace(tiny.MODEL, rotary_emb=True, **sizes)) for sizes in (whole, part))
    )
