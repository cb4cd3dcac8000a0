"""What a family of models of Hugging Face is: its names, its config.json and its tensors, as tables.

A family is one `Family`. Its rules say how keys of config.json and our keys mean the same, in both directions, and its
tensors which of our variables each tensor of a file holds. `configs/huggingface.py` and
`runtime/checkpoint/huggingface.py` follow these tables and know no family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from configs.families.tensors import Keys, Tensor
from configs.schema import ModelConfig


class MisreadError(ValueError):
    """A value of a config.json is not understood; `configs/huggingface.py` makes a message of all of them."""

    def __init__(self, key: str, value: Any, problem: str, remedy: str) -> None:
        """Keeps the key, its value, what is wrong and what to do apart."""
        super().__init__(key)
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy


@dataclass(frozen=True)
class Rule:
    """What some keys of a config.json say of a model.

    Attributes:
        keys: those keys.
        read: returns what they mean as our keys; raises `MisreadError`.
        write: returns them for a model. What it cannot say it leaves out, and it is then missed on reading back.
    """

    keys: Sequence[str]
    read: Callable[[Keys], Keys]
    write: Callable[[ModelConfig], Keys]


@dataclass(frozen=True)
class Family:
    """One of Hugging Face's architectures.

    Attributes:
        model_type: as its config.json names it.
        title: as people call it.
        architecture: the class with the output layer of a language model.
        bare: the class without an output layer, which is tied to the token embedding then.
        ranker: the class with a linear layer that scores a text; empty: it is not read.
        rules: about the keys of its config.json.
        tensors: from our keys to every tensor of a model.
        prefix: of the names of tensors in files, except those of its heads.
        attention: the kinds of attention that it has.
        tolerated: our keys that an export may switch on, because what they add is 0 then.
    """

    model_type: str
    title: str
    architecture: str
    bare: str
    ranker: str
    rules: Sequence[Rule]
    tensors: Callable[[Keys], list[Tensor]]
    prefix: str
    attention: frozenset[str] = frozenset({"global"})
    tolerated: frozenset[str] = frozenset()
