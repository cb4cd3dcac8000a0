"""Meshes and layouts in text, and what a layout may not do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ValueIssue
from configs.layout import (
    DIMENSIONS,
    TENSORS,
    find_layout_issues,
    format_pairs,
    parse_layout,
    parse_mesh_shape,
    resized,
)

AXIS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
MESHES = st.dictionaries(AXIS, st.integers(1, 16), min_size=1, max_size=5).map(lambda axes: tuple(axes.items()))
LAYOUTS = st.dictionaries(st.sampled_from(DIMENSIONS), AXIS, min_size=1).map(lambda rules: tuple(rules.items()))


@pytest.mark.parametrize("text", ["x:4,y:2", "x:4;y:2", "x:4 y:2", " x:4 , y:2, ", "x:4.y:2"])
def test_every_separator_of_mesh_tensorflow_is_read(text):
    assert parse_mesh_shape(text) == (("x", 4), ("y", 2))


@pytest.mark.parametrize("text", ["", "  ", ","])
def test_nothing_is_none(text):
    assert parse_mesh_shape(text) is None
    assert parse_layout(text) is None
    assert format_pairs(None) == ""


def test_a_layout_keeps_its_order():
    assert parse_layout("heads:y,batch:x") == (("heads", "y"), ("batch", "x"))
    assert format_pairs((("heads", "y"), ("batch", "x"))) == "heads:y,batch:x"


@settings(max_examples=100, deadline=None)
@given(mesh=MESHES)
def test_mesh_shapes_survive_their_text(mesh):
    assert parse_mesh_shape(format_pairs(mesh)) == mesh


@settings(max_examples=100, deadline=None)
@given(layout=LAYOUTS)
def test_layouts_survive_their_text(layout):
    assert parse_layout(format_pairs(layout)) == layout


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="xy24:,;. -²batch", max_size=20) | st.text(max_size=20))
def test_any_text_is_parsed_or_refused_with_a_message(text):
    for parse in (parse_mesh_shape, parse_layout):
        try:
            parsed = parse(text)
        except ValueIssue as issue:
            assert issue.problem and issue.remedy
        else:
            assert parse(format_pairs(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",".join(f"a{number}:1" for number in range(40)), "names 40 axes; give at most 16"),
        ("x:1025,y:1024", "multiplies to 1049600 devices; give at most 1048576"),
        ("x:999999999", "multiplies to 999999999 devices; give at most 1048576"),
    ],
)
def test_no_mesh_is_larger_than_any_machine(text, message):
    with pytest.raises(ValueIssue) as caught:
        parse_mesh_shape(text)
    assert str(caught.value) == message


def test_the_exact_message_of_a_bad_pair():
    with pytest.raises(ValueIssue) as caught:
        parse_mesh_shape("x:4,y:")
    assert str(caught.value) == "'y:' is not a name:value pair; write it as \"x:4,y:2\""


def test_an_unknown_dimension_is_answered_with_those_that_split_something():
    with pytest.raises(ValueIssue) as caught:
        parse_layout("zzz:x")
    listed = (
        "vocab, embd, embed_sequence, heads, kv_heads, intermediate_expanded, lora_rank, batch, sequence, experts, "
        "expert_hidden, memory_length"
    )
    assert str(caught.value) == f"names no known dimension: 'zzz'; use {listed}"


@settings(max_examples=100, deadline=None)
@given(sizes=st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(1, 64)), axis_size=st.integers(1, 8))
def test_each_dimension_alone_is_refused_exactly_when_the_axis_does_not_divide_it(sizes, axis_size):
    for dimension, size in sizes.items():
        rules = ((dimension, "x"), *((("heads", "x"),) if dimension == "kv_heads" else ()))
        issues = list(find_layout_issues((("x", axis_size),), rules, {dimension: (dimension, size)}))
        assert len(issues) == (size % axis_size != 0)


@settings(max_examples=100, deadline=None)
@given(rules=st.dictionaries(st.sampled_from(DIMENSIONS), st.sampled_from("xy")))
def test_a_layout_is_refused_exactly_when_some_tensor_meets_an_axis_twice(rules):
    def is_split_twice(dimensions: tuple[str, ...]) -> bool:
        axes = [rules[dimension] for dimension in dimensions if dimension in rules]
        return len(axes) != len(set(axes))

    issues = list(find_layout_issues((("x", 2), ("y", 2)), tuple(rules.items()), {}))
    is_apart = "kv_heads" in rules and rules["kv_heads"] != rules.get("heads")
    assert bool(issues) == (is_apart or any(is_split_twice(dimensions) for dimensions in TENSORS.values()))


@pytest.mark.parametrize("layout", ["kv_heads:y", "heads:x,kv_heads:y"])
def test_keys_and_values_are_not_split_apart_from_their_heads(layout):
    (issue,) = find_layout_issues((("x", 2), ("y", 2)), parse_layout(layout), {})
    problem = "kv_heads:y splits keys and values apart from the heads that use them"
    assert str(issue) == f"{problem}; give heads:y too, or leave it out"


def test_dimensions_of_no_common_tensor_share_an_axis():
    layout = parse_layout("heads:y,vocab:y,intermediate_expanded:y")
    assert list(find_layout_issues((("y", 2),), layout, {})) == []


def test_the_rule_without_an_axis_of_gpt_neos_notebook_is_passed_over():
    assert parse_layout("heads:x,vocab:n_vocab,embd:y") == (("heads", "x"), ("embd", "y"))


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1, (1, 1, 1)),
        (2, (1, 1, 2)),
        (6, (3, 1, 2)),
        (7, (7, 1, 1)),
        (8, (1, 2, 4)),
        (64, (8, 2, 4)),
        (4096, (512, 2, 4)),
    ],
)
def test_the_first_axis_takes_the_devices_that_are_left(count: int, sizes: tuple[int, ...]) -> None:
    assert resized((("x", 16), ("y", 2), ("z", 4)), count) == tuple(zip("xyz", sizes, strict=True))


@given(MESHES, st.integers(1, 100))
def test_a_resized_mesh_has_all_devices_and_divides_what_the_other_axes_divided(mesh_shape, count):
    found = resized(mesh_shape, count)
    assert math.prod(size for _, size in found) == count
    assert [axis for axis, _ in found] == [axis for axis, _ in mesh_shape]
    assert all(size % own == 0 for (_, size), (_, own) in zip(mesh_shape[1:], found[1:], strict=True))
    assert resized(mesh_shape, math.prod(size for _, size in mesh_shape)) == mesh_shape
