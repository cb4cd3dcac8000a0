"""One layer of a model, as its config describes it."""

from __future__ import annotations

import dataclasses

from configs.schema import ModelConfig


@dataclasses.dataclass(frozen=True)
class Layer:
    """Which layer it is, of what kind, and under which names.

    Attributes:
        attention: a member of `attention_types`.
        is_mixture: its feed-forward half is a mixture of experts.
        scope: of its variables: "h3", or empty where all layers share one block's variables. GPT-Neo's names then begin
            with `gpt2//`, kept for checkpoints.
        place: a name of its own in any case, for random numbers.
    """

    attention: str
    is_mixture: bool
    scope: str
    place: str

    @property
    def has_attention(self) -> bool:
        """False: the layer is its feed-forward half alone."""
        return self.attention != "none"


def layers(model: ModelConfig) -> list[Layer]:
    """The layers from the first to the last."""
    places = [f"h{index}" for index in range(model.n_layer)]
    return [
        Layer(model.attention_types[index], index in model.moe_layers, "" if model.share_parameters else place, place)
        for index, place in enumerate(places)
    ]
