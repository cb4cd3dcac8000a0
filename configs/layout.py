"""Device meshes and layouts: their text form, and the rules of a layout.

*Axis* is a mesh axis, *dimension* a tensor dimension. The text form is mesh-TensorFlow's: `name:value` pairs, separated
by commas, semicolons, full stops or blanks.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping

from configs.errors import ValueIssue, did_you_mean

MAX_AXES, MAX_DEVICES = 16, 1 << 20

MeshShape = tuple[tuple[str, int], ...]
Layout = tuple[tuple[str, str], ...]

TENSORS = {
    "the token table wte": ("vocab", "embd"),
    "the position table wpe": ("embed_sequence", "embd"),
    "the attention projections": ("embd", "heads"),
    "the key and value projections": ("embd", "kv_heads"),
    "the feed-forward kernels": ("embd", "intermediate_expanded"),
    "the adapters at the residual stream": ("embd", "lora_rank"),
    "the adapters of queries and output": ("heads", "lora_rank"),
    "the adapters of keys and values": ("kv_heads", "lora_rank"),
    "the adapters of feed-forward layers": ("intermediate_expanded", "lora_rank"),
    "the adapters' activations": ("batch", "sequence", "lora_rank"),
    "the experts' kernels": ("experts", "embd", "expert_hidden"),
    "the experts' hidden activations": ("batch", "expert_hidden"),
    "the activations": ("batch", "sequence", "embd"),
    "the hidden feed-forward activations": ("batch", "sequence", "intermediate_expanded"),
    "the queries": ("batch", "sequence", "heads"),
    "the keys and values": ("batch", "memory_length", "heads"),
    "the keys and values of groups": ("batch", "memory_length", "kv_heads"),
    "the attention weights": ("batch", "heads", "sequence", "memory_length"),
    "the logits": ("batch", "sequence", "vocab"),
}
# The dimensions that can be split.
DIMENSIONS = tuple(dict.fromkeys(dimension for dimensions in TENSORS.values() for dimension in dimensions))

NOTEBOOKS_SLIP = ("vocab", "n_vocab")  # in GPT-Neo's notebook; mesh-TensorFlow passes over a rule without an axis
_SEPARATORS = re.compile(r"[,.;\s]+")


def _parse_pairs(text: str, example: str) -> list[tuple[str, str]]:
    pairs = [pair.split(":") for pair in _SEPARATORS.split(text) if pair]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ValueIssue(f"{':'.join(pair)!r} is not a name:value pair", f'write it as "{example}"')
    return [(first, second) for first, second in pairs]


def _check_unique(names: list[str], noun: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueIssue(f"names the {noun} {name!r} twice", "keep one of the two")


def _parse_axis_size(axis: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise ValueIssue(f"size {text!r} of axis {axis!r} is not an integer >= 1", "give the number of devices")
    return int(text)


def parse_mesh_shape(text: str) -> MeshShape | None:
    """Parses `x:4,y:2` to `(("x", 4), ("y", 2))`; an empty text is None.

    Raises:
        ValueIssue: the text has another form, a size below 1, or an axis twice.
    """
    pairs = _parse_pairs(text, "x:4,y:2")
    _check_unique([axis for axis, _ in pairs], "axis")
    if len(pairs) > MAX_AXES:
        raise ValueIssue(f"names {len(pairs)} axes", f"give at most {MAX_AXES}")
    axes = tuple((axis, _parse_axis_size(axis, size)) for axis, size in pairs)
    n_devices = math.prod(size for _, size in axes)
    if n_devices > MAX_DEVICES:
        raise ValueIssue(f"multiplies to {n_devices} devices", f"give at most {MAX_DEVICES}")
    return axes or None


def parse_layout(text: str) -> Layout | None:
    """Parses `batch:x,heads:y` to `(("batch", "x"), ("heads", "y"))`; an empty text is None.

    Raises:
        ValueIssue: the text has another form, a dimension that cannot be split, or a dimension twice.
    """
    pairs = [pair for pair in _parse_pairs(text, "batch:x,heads:y") if pair != NOTEBOOKS_SLIP]
    for dimension, axis in pairs:
        _check_dimension(dimension, axis)
    _check_unique([dimension for dimension, _ in pairs], "dimension")
    return tuple(pairs) or None


def _check_dimension(dimension: str, axis: str) -> None:
    if dimension in DIMENSIONS:
        return
    if dimension == "features_per_head":
        raise ValueIssue(f"{dimension}:{axis} splits heads, which attention needs whole", f"give heads:{axis}")
    remedy = did_you_mean(dimension, DIMENSIONS, f"use {', '.join(DIMENSIONS)}")
    raise ValueIssue(f"names no known dimension: {dimension!r}", remedy)


def format_pairs(pairs: MeshShape | Layout | None) -> str:
    """Writes a mesh shape or a layout so that `parse_mesh_shape` or `parse_layout` reads it."""
    return ",".join(f"{name}:{value}" for name, value in pairs or ())


def resized(mesh_shape: MeshShape, n_devices: int) -> MeshShape:
    """Returns the mesh for another number of devices.

    The axes after the first keep their size as far as there are enough, the last one before the others; each becomes a
    divisor of it. The first axis takes the rest.
    """
    (first, _), *others = mesh_shape
    left, sizes = n_devices, []
    for axis, size in reversed(others):
        sizes.insert(0, (axis, math.gcd(size, left)))
        left //= sizes[0][1]
    return ((first, left), *sizes)


def find_layout_issues(
    mesh_shape: MeshShape | None, layout: Layout | None, sizes: Mapping[str, tuple[str, int]]
) -> Iterator[ValueIssue]:
    """Yields the reasons why a layout cannot split a model over a mesh.

    Args:
        mesh_shape: the axes and their sizes.
        layout: the dimensions, and the axis that each is split over.
        sizes: the name in the config and the size of each dimension.
    """
    axes = dict(mesh_shape or ())
    for dimension, axis in layout or ():
        if axis not in axes:
            yield _unknown_axis(dimension, axis, axes)
        elif dimension in sizes and sizes[dimension][1] % axes[axis]:
            yield _indivisible(dimension, axis, axes[axis], *sizes[dimension])
    rules = dict(layout or ())
    yield from _find_shared_axes(rules)
    if rules.get("kv_heads", rules.get("heads")) != rules.get("heads"):
        yield _apart_from_heads(rules["kv_heads"])


def _unknown_axis(dimension: str, axis: str, axes: Mapping[str, int]) -> ValueIssue:
    rule = f"{dimension}:{axis}"
    if not axes:
        return ValueIssue(f"{rule} needs a mesh, but there is no mesh_shape", f'give one, such as "{axis}:2"')
    remedy = f"use {', '.join(axes)}, or add {axis} to mesh_shape"
    return ValueIssue(f"{rule} names an axis that mesh_shape lacks", remedy)


def _indivisible(dimension: str, axis: str, axis_size: int, key: str, size: int) -> ValueIssue:
    problem = f"{dimension}:{axis} splits {key} = {size} over {axis_size} devices, which does not divide it"
    return ValueIssue(problem, f"change {key}, the size of {axis}, or the rule")


def _apart_from_heads(axis: str) -> ValueIssue:
    problem = f"kv_heads:{axis} splits keys and values apart from the heads that use them"
    return ValueIssue(problem, f"give heads:{axis} too, or leave it out")


def _find_shared_axes(rules: Mapping[str, str]) -> Iterator[ValueIssue]:
    reported: set[tuple[str, str]] = set()
    for tensor, dimensions in TENSORS.items():
        laid_out = [dimension for dimension in dimensions if dimension in rules]
        for first, second in itertools.combinations(laid_out, 2):
            if rules[first] == rules[second] and (first, second) not in reported:
                reported.add((first, second))
                problem = f"{first}:{rules[first]} and {second}:{rules[second]} split {tensor} twice over one axis"
                yield ValueIssue(problem, "give one of them another axis, or leave it out")
