"""The rule about rotary positions, which config.json spells in several ways.

Source: transformers' `modeling_rope_utils.py`: version 4 writes rope_theta and rope_scaling, version 5 rope_parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.families.family import Keys, MisreadError, Rule
from configs.families.rules import AGAIN, WITHOUT, kind_of, understood
from configs.schema import ModelConfig

WITH_ORIGINAL = ("llama3", "yarn")  # scalings of a model that was trained at a shorter length
# Members that are no part of the scaling.
OTHERS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
DEFAULT_BASE = 10_000.0
BOTH = ("rope_parameters", "rope_scaling")


def rotary(base: Sequence[str] = ("rope_theta",), share: Sequence[str] = (), default_share: float = 1.0) -> Rule:
    """Returns the rule of rotary positions.

    Args:
        base: the names of the base of the frequencies; the first is written.
        share: the names of the share of a head's features that are rotated; none: all are.
        default_share: that share if the file does not tell it.
    """

    def read(hf_config: Keys) -> Keys:
        given = _parameters(hf_config)
        theta = _value(hf_config, given, ("rope_theta", *base), DEFAULT_BASE)
        factor = _value(hf_config, given, ("partial_rotary_factor", *share), default_share)
        if not share and factor != 1.0:
            raise MisreadError("partial_rotary_factor", factor, "only 1.0 is known here", WITHOUT)
        return {
            "rotary_emb": True,
            "rotary_base": understood(base[0], theta, kind_of("rotary_base")),
            "rotary_dim": _rotated(hf_config, share[0], factor) if share else None,
            "rotary_scaling": _scaling(hf_config, given),
        }

    def write(model: ModelConfig) -> Keys:
        scaling = kind_of("rotary_scaling").write(model.rotary_scaling)
        spelled = {} if scaling is None else {"rope_scaling": {"rope_type": scaling.pop("type"), **scaling}}
        rotated = (model.rotary_dim or model.features_per_head) / model.features_per_head
        return {base[0]: model.rotary_base, **spelled, **({share[0]: rotated} if share else {})}

    return Rule((*BOTH, "rope_theta", "partial_rotary_factor", *base, *share), read, write)


def _parameters(hf_config: Keys) -> dict[str, Any]:
    """Returns the object of rotary settings, under either of its names."""
    found = {key: hf_config[key] for key in BOTH if hf_config.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, dict):
            raise MisreadError(key, value, "is not an object", AGAIN)
        if any(isinstance(member, dict) for member in value.values()):
            raise MisreadError(key, value, "is another rotation for each kind of layer", WITHOUT)
    return {name: member for value in found.values() for name, member in value.items() if member is not None}


def _value(hf_config: Keys, given: Keys, names: Sequence[str], default: Any) -> Any:
    """Returns a setting that may be inside the object or beside it."""
    if names[0] in given:
        return given[names[0]]
    return next((hf_config[name] for name in names if hf_config.get(name) is not None), default)


def _rotated(hf_config: Keys, key: str, factor: Any) -> int | None:
    n_embd, n_head = (hf_config.get(name) for name in ("hidden_size", "num_attention_heads"))
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor <= 1:
        raise MisreadError(key, factor, "is not the share of a head that is rotated", f"{AGAIN}, it must be up to 1")
    if factor == 1.0 or not (isinstance(n_embd, int) and isinstance(n_head, int) and n_head):
        return None
    return int(n_embd // n_head * factor)


def _scaling(hf_config: Keys, given: Keys) -> Keys | None:
    name = given.get("rope_type", given.get("type", "default"))
    place = next((key for key in BOTH if hf_config.get(key) is not None), BOTH[0])
    members = {key: value for key, value in given.items() if key not in OTHERS}
    if name == "default" and not members:
        return None
    if name in WITH_ORIGINAL:
        members.setdefault("original_max_position_embeddings", hf_config.get("max_position_embeddings"))
    return understood(place, {"type": name, **members}, kind_of("rotary_scaling"))
