"""The layers of a model, as its config describes them."""

from __future__ import annotations

import dataclasses

from configs.schema import ModelConfig


@dataclasses.dataclass(frozen=True)
class Layer:
    """The kind of a layer and its names.

    Attributes:
        attention: its member of `attention_types`.
        is_mixture: whether its feed-forward half is a mixture of experts.
        scope: prefix of its variables, such as "h3"; empty where all layers share the variables of one block, whose
            names then begin with `gpt2//`, as in GPT-Neo's checkpoints.
        name: such as "h3", also where variables are shared; distinguishes random numbers and metrics.
    """

    attention: str
    is_mixture: bool
    scope: str
    name: str

    @property
    def has_attention(self) -> bool:
        """False: the layer is its feed-forward half alone."""
        return self.attention != "none"


def layers(model: ModelConfig) -> list[Layer]:
    """Returns the layers from the first to the last."""
    names = [f"h{index}" for index in range(model.n_layer)]
    return [
        Layer(model.attention_types[index], index in model.moe_layers, "" if model.share_parameters else name, name)
        for index, name in enumerate(names)
    ]
