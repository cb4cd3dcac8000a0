from __future__ import annotations

import itertools
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import tf
from runtime.mesh import products
from runtime.mesh.products import einsum

SIZES = dict(zip(string.ascii_lowercase, itertools.cycle((2, 3, 1, 4, 5)), strict=False))
# Forward, and the gradients of both inputs, of the products in a model.
MATRIX_PRODUCTS = (
    "bse,ef->bsf",  # a dense layer
    "bsf,ef->bse",
    "bsf,bse->ef",
    "bse,bsf->ef",
    "bse,ekh->bskh",  # queries, keys and values
    "bse,ve->bsv",  # the token table as output layer
    "bsv,bse->ve",
    "xgce,xef->xgcf",  # experts
    "xgcf,xgce->xef",
    "ab,bc->ca",
)
OTHERS = ("bhd,mhd->bhm", "be,e->be", "abc,abc->abc", "ab,b->a", "ab,ac->abc", "abc,dac->bd", "ab,bc,cd->ad")


def arrays_for(equation: str) -> list[np.ndarray]:
    generator = np.random.default_rng(len(equation))
    return [
        generator.standard_normal([SIZES[letter] for letter in letters]).astype(np.float32)
        for letters in equation.split("->")[0].split(",")
    ]


@pytest.mark.parametrize("equation", MATRIX_PRODUCTS)
def test_products_in_a_model_are_products_of_matrices(equation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products.tf, "einsum", None)
    arrays = arrays_for(equation)
    np.testing.assert_allclose(
        einsum(equation, *map(tf.constant, arrays)), np.einsum(equation, *arrays), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("equation", OTHERS)
def test_other_equations_are_left_to_tensorflow(equation: str) -> None:
    arrays = arrays_for(equation)
    np.testing.assert_allclose(
        einsum(equation, *map(tf.constant, arrays)), np.einsum(equation, *arrays), rtol=1e-5, atol=1e-6
    )


@st.composite
def equations(draw: st.DrawFn) -> str:
    letters = draw(st.permutations("abcdef"))
    cuts = sorted(draw(st.lists(st.integers(0, 6), min_size=3, max_size=3)))
    batch, contracted, rows, columns = ("".join(letters[i:j]) for i, j in itertools.pairwise([0, *cuts, 6]))
    left, right, output = (
        "".join(draw(st.permutations(part)))
        for part in (batch + contracted + rows, batch + contracted + columns, batch + rows + columns)
    )
    return f"{left},{right}->{output}"


@settings(deadline=None, max_examples=150)
@given(equations())
def test_any_equation(equation: str) -> None:
    arrays = arrays_for(equation)
    expected = np.einsum(equation, *arrays)
    result = einsum(equation, *map(tf.constant, arrays))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
