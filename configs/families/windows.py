"""The rules about sliding windows, which are our local attention.

Hugging Face's window w lets position p see (p - w, p], which is our local_attention_radius: `sliding_window_overlay` of
transformers' `masking_utils.py` keeps the keys above p - w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from configs.families.family import Keys, MisreadError, Rule
from configs.families.rules import AGAIN, kind_of, understood
from configs.kinds import ATTENTION, MAX_LAYERS
from configs.schema import ModelConfig

NAMES = {"full_attention": "global", "sliding_attention": "local"}
DEFAULT_WINDOW = 4096
SWITCH = "use_sliding_window"
Layers = Callable[[Keys, int], Sequence[str]]  # from a config.json and the number of layers to their attention


def _keys_of(layers: Sequence[str], window: Any) -> Keys:
    keys: dict[str, Any] = {"attention_types": ATTENTION.write(tuple(layers))}
    if "local" in layers:
        keys["local_attention_radius"] = understood("sliding_window", window, kind_of("local_attention_radius"))
    return keys


def _n_layer(hf_config: Keys) -> int:
    """Returns the number of layers; 1 where it is not one, which has a message of its own."""
    given = hf_config.get("num_hidden_layers", hf_config.get("n_layer"))
    return given if isinstance(given, int) and 0 < given <= MAX_LAYERS else 1


def _window(hf_config: Keys) -> Any:
    return hf_config.get("sliding_window", DEFAULT_WINDOW)


def _written_window(model: ModelConfig) -> Keys:
    return {"sliding_window": model.local_attention_radius if "local" in model.attention_types else None}


def no_window() -> Rule:
    """Returns the rule of families whose layers see everything."""
    return Rule((), lambda hf_config: _keys_of(["global"] * _n_layer(hf_config), None), lambda _: {})


def one_window() -> Rule:
    """Returns the rule of a window in every layer; null: in none."""

    def read(hf_config: Keys) -> Keys:
        kind = "global" if _window(hf_config) is None else "local"
        return _keys_of([kind] * _n_layer(hf_config), _window(hf_config))

    return Rule(("sliding_window",), read, _written_window)


def windows_by_layer(default: Layers, has_switch: bool = False) -> Rule:
    """Returns the rule of a window in the layers that layer_types names, or else in those that `default` returns.

    Args:
        default: from the config.json and the number of layers to the attention of each.
        has_switch: whether use_sliding_window, which is false by default, must be true for any.
    """

    def read(hf_config: Keys) -> Keys:
        layers = _layers(hf_config, default)
        if has_switch and not isinstance(hf_config.get(SWITCH, False), bool):
            raise MisreadError(SWITCH, hf_config[SWITCH], "is not true or false", AGAIN)
        if has_switch and "local" in layers and not hf_config.get(SWITCH, False):
            raise MisreadError("layer_types", hf_config["layer_types"], f"needs {SWITCH} = true", AGAIN)
        return _keys_of(layers, _window(hf_config))

    def write(model: ModelConfig) -> Keys:
        theirs = {ours: name for name, ours in NAMES.items()}
        switch = {SWITCH: "local" in model.attention_types} if has_switch else {}
        types = [theirs.get(kind, kind) for kind in model.attention_types]
        return {"layer_types": types, **switch, **_written_window(model)}

    return Rule(("layer_types", "sliding_window", *([SWITCH] if has_switch else [])), read, write)


def _layers(hf_config: Keys, default: Layers) -> Sequence[str]:
    types, n_layer = hf_config.get("layer_types"), _n_layer(hf_config)
    if types is None:
        return default(hf_config, n_layer)
    if not isinstance(types, list) or any(name not in list(NAMES) for name in types):
        raise MisreadError("layer_types", types, f"known are {', '.join(NAMES)}", AGAIN)
    if len(types) != n_layer:
        raise MisreadError("layer_types", types, f"has {len(types)} members, not num_hidden_layers", AGAIN)
    return [NAMES[name] for name in types]


def alternating(hf_config: Keys, n_layer: int) -> Sequence[str]:
    """Returns a window in every second layer, from the first on."""
    return [("local", "global")[layer % 2] for layer in range(n_layer)]


def from_some_layer(hf_config: Keys, n_layer: int) -> Sequence[str]:
    """Returns a window in the layers from max_window_layers on, if use_sliding_window is true."""
    first = hf_config.get("max_window_layers", 28)
    has_windows = hf_config.get(SWITCH, False) is True and _window(hf_config) is not None
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise MisreadError("max_window_layers", first, "is not a number of layers", AGAIN)
    return ["local" if has_windows and layer >= first else "global" for layer in range(n_layer)]
