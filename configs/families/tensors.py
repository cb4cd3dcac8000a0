"""The tensors of a family by their names: the pieces that families share.

A piece takes the names of a layer in their file and in our variables, both without what stands before them in every
name, and returns its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Keys = Mapping[str, Any]  # of a config.json of theirs or of ours, with JSON values


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file.

    Attributes:
        name: its name without the prefix.
        variables: the variables in it, without `gpt2/`; several are concatenated along the last dimension.
        dims: the dimensions of each variable, a letter each: V vocab, C n_ctx, E embd, F feed-forward, Q the features
            of all heads, K those of all heads of keys, D those of one head, 1 one.
        is_transposed: whether the tensor is [out, in], as in PyTorch's Linear; variables and GPT-2's are [in, out].
        is_head: whether its name in files has no prefix.
        other_names: by which other versions of their library know it.
        is_by_head: whether the variables alternate: the first head of each, then the second head of each.
    """

    name: str
    variables: tuple[str, ...]
    dims: str
    is_transposed: bool = False
    is_head: bool = False
    is_by_head: bool = False
    other_names: tuple[str, ...] = ()

    def shape(self, keys: Keys) -> tuple[int, ...]:
        """Returns the shape of one variable of the tensor, for the keys of a model config."""
        sizes = _sizes(keys)
        return tuple(sizes[dim] for dim in self.dims)

    def stored_shape(self, keys: Keys) -> tuple[int, ...]:
        """Returns the shape of the tensor in its file."""
        *rows, last = self.shape(keys)
        shape = (*rows, last * len(self.variables))
        return shape[::-1] if self.is_transposed else shape

    def head_size(self, keys: Keys) -> int:
        """Returns the features of one head."""
        return _sizes(keys)["D"]


def _sizes(keys: Keys) -> dict[str, int]:
    n_embd, n_head = keys["n_embd"], keys.get("n_head", 1)
    head = keys.get("head_dim") or n_embd // n_head
    widths = {"E": n_embd, "F": keys.get("n_inner") or 4 * n_embd, "D": head}
    heads = {"Q": n_head * head, "K": (keys.get("n_kv_head") or n_head) * head}
    return {"V": keys["n_vocab"], "C": keys["n_ctx"], "1": 1} | widths | heads


SCORE = Tensor("score.weight", ("score",), "1E", is_head=True)


def norm(theirs: str, ours: str) -> list[Tensor]:
    """Returns the gain and the bias of a LayerNorm."""
    return [Tensor(f"{theirs}.weight", (f"{ours}/g",), "E"), Tensor(f"{theirs}.bias", (f"{ours}/b",), "E")]


def rms_norm(theirs: str, ours: str, dims: str = "E") -> list[Tensor]:
    """Returns the gain of an RMSNorm."""
    return [Tensor(f"{theirs}.weight", (f"{ours}/g",), dims)]


def linear(theirs: str, kernel: str, bias: str, dims: str, is_transposed: bool = True) -> list[Tensor]:
    """Returns the kernel and the bias of a linear layer; an empty name of ours: it has no bias."""
    biases = [Tensor(f"{theirs}.bias", (bias,), dims[-1])] if bias else []
    return [Tensor(f"{theirs}.weight", (kernel,), dims, is_transposed), *biases]


def feed_forward(up: str, down: str, ours: str, is_transposed: bool = True, has_bias: bool = True) -> list[Tensor]:
    """Returns a feed-forward layer of two linear ones."""
    main = f"{ours}/conv1d_main"
    return [
        *linear(up, f"{main}/c_fc/kernel", f"{main}/c_fc/bias" if has_bias else "", "EF", is_transposed),
        *linear(down, f"{main}/c_proj/kernel", f"{main}/c_proj/bias" if has_bias else "", "FE", is_transposed),
    ]


def gated_mlp(theirs: str, ours: str, keys: Keys) -> list[Tensor]:
    """Returns a gated feed-forward layer, of the linear layers gate_proj, up_proj and down_proj."""
    found: list[Tensor] = []
    for name, layer, dims in (("c_gate", "gate", "EF"), ("c_fc", "up", "EF"), ("c_proj", "down", "FE")):
        scope = f"{ours}/conv1d_main/{name}"
        found += linear(f"{theirs}.{layer}_proj", f"{scope}/kernel", f"{scope}/bias" if keys["mlp_bias"] else "", dims)
    return found


def projections(theirs: str, ours: str, keys: Keys, output: str = "o_proj") -> list[Tensor]:
    """Returns the linear layers of queries, keys, values and the output of attention, each by itself."""
    found: list[Tensor] = []
    for name, dims in (("q", "EQ"), ("k", "EK"), ("v", "EK")):
        bias = f"{ours}/{name}_bias" if keys["qkv_bias"] else ""
        found += linear(f"{theirs}.{name}_proj", f"{ours}/{name}", bias, dims)
    bias = f"{ours}/compute_output_bias/o_b" if keys["attn_output_bias"] else ""
    return [*found, *linear(f"{theirs}.{output}", f"{ours}/o", bias, "QE")]


def query_key_norms(theirs: str, ours: str, keys: Keys) -> list[Tensor]:
    """Returns the RMSNorms of queries and keys, each head's or all heads' together, if there are any."""
    dims = {"off": None, "head": ("D", "D"), "projection": ("Q", "K")}[keys["qk_norm"]]
    names = zip("qk", dims or (), strict=False)
    return [tensor for name, own in names for tensor in rms_norm(f"{theirs}.{name}_norm", f"{ours}/{name}_norm", own)]


def output_layer(theirs: str, keys: Keys, *other_names: str) -> list[Tensor]:
    """Returns the output layer of a language model: a kernel unless it is the token table, and a bias if it has one."""
    scope = "wte_final_linear/conv1d_main/linear_out"
    untied, has_bias = keys["no_weight_tie"], keys.get("head_bias")
    kernel = Tensor(
        f"{theirs}.weight", (f"{scope}/kernel",), "EV", is_transposed=True, is_head=True, other_names=other_names
    )
    bias = Tensor(f"{theirs}.bias", (f"{scope}/bias",), "V", is_head=True)
    return [*([kernel] if untied else []), *([bias] if (untied if has_bias is None else has_bias) else [])]


def tables(tokens: str, positions: str = "") -> list[Tensor]:
    """Returns the token embedding and, if it is named, the position embedding."""
    learned = [Tensor(f"{positions}.weight", ("wpe",), "CE")] if positions else []
    return [Tensor(f"{tokens}.weight", ("wte",), "VE"), *learned]


def heads(ranks: bool) -> Sequence[Tensor]:
    """Returns the layer of a ranker, if the model is one."""
    return [SCORE] if ranks else []
