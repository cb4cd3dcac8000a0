"""The golden list of variable names and shapes for every option, as in GPT-Neo's checkpoints."""

from __future__ import annotations

import dataclasses

import pytest

from configs.schema import ModelConfig, MoeParams
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from tests import tiny

Shapes = dict[str, list[int]]
NORMS = {f"norm_{number}/{part}": [32] for number in (1, 2) for part in "gb"}
ATTENTION = {f"attn/{name}": [32, 32] for name in "qkvo"} | {"attn/compute_output_bias/o_b": [32]}
EMBEDDINGS = {"wte": [64, 32], "wpe": [16, 32]}
FINAL_NORM = {"ln_f/g": [32], "ln_f/b": [32]}


def feed_forward(scope: str = "mlp", expanded: int = 128, hidden: int = 128) -> Shapes:
    return {
        f"{scope}/conv1d_main/c_fc/kernel": [32, expanded],
        f"{scope}/conv1d_main/c_fc/bias": [expanded],
        f"{scope}/conv1d_main/c_proj/kernel": [hidden, 32],
        f"{scope}/conv1d_main/c_proj/bias": [32],
    }


HEAD = "wte_final_linear/conv1d_main/linear_out"
BLOCK = NORMS | ATTENTION | feed_forward()
OUTER = EMBEDDINGS | FINAL_NORM


def without(shapes: Shapes, *beginnings: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(beginnings)}


def without_biases(shapes: Shapes, of: str = "") -> Shapes:
    """Without those of norms, or of what the names begin with."""
    is_bias = (lambda name: name.startswith(of) and name.endswith("/bias")) if of else lambda name: name.endswith("/b")
    return {name: shape for name, shape in shapes.items() if not is_bias(name)}


def in_layers(first: Shapes, second: Shapes, outer: Shapes = OUTER) -> Shapes:
    layers = {f"h{index}/{name}": shape for index, block in enumerate((first, second)) for name, shape in block.items()}
    return {f"gpt2/{name}": shape for name, shape in (outer | layers).items()}


def in_both(block: Shapes, outer: Shapes = OUTER) -> Shapes:
    return in_layers(block, block, outer)


MOE = MoeParams(moe_num_experts=4, moe_hidden_size=24)
EXPERTS = {"top_2_gating/kernel": [32, 4], "wi/kernel": [4, 32, 24], "wo/kernel": [4, 24, 32]}
MEMORY = {"attn/attention/mem_k": [3, 4, 8], "attn/attention/mem_v": [3, 4, 8]}
POST_NORMS = {f"norm_{number}_post/{part}": [32] for number in (1, 2) for part in "gb"}
GROUPED = (
    BLOCK
    | {f"attn/{name}": [32, 16] for name in "kv"}
    | {"attn/q_bias": [32], "attn/k_bias": [16], "attn/v_bias": [16]}
)
ADAPTED = BLOCK | {
    **{f"attn/{name}": [32, 16] for name in "kv"},
    **{f"attn/{name}/lora_a": [32, 3] for name in "qv"},
    **{"attn/q/lora_b": [3, 32], "attn/v/lora_b": [3, 16]},
}
ADAPTER_OF_GLU = {f"mlp/conv1d_main/c_fc/kernel/lora_{end}": shape for end, shape in (("a", [32, 3]), ("b", [3, 256]))}
MEMORY_OF_GROUPS = {"attn/attention/mem_k": [3, 2, 8], "attn/attention/mem_v": [3, 2, 8]}
GAINS = {f"norm_rezero_{number}/g": [] for number in (1, 2)}

GOLDEN: dict[str, tuple[dict[str, object], Shapes]] = {
    "plain": ({}, in_both(BLOCK)),
    "linear": ({"attention_types": ("linear", "linear")}, in_both(BLOCK)),
    "none": ({"attention_types": ("none", "local")}, in_layers(without(BLOCK, "norm_1", "attn"), BLOCK)),
    "none_doubles_residual": (
        {"attention_types": ("none", "local"), "none_doubles_residual": True, "rezero": True},
        in_layers(without(BLOCK, "norm", "attn") | GAINS, without(BLOCK, "norm") | GAINS),
    ),
    "rotary_emb": ({"rotary_emb": True}, in_both(BLOCK, without(OUTER, "wpe"))),
    "axial_pos_emb": (
        {"axial_pos_emb": (2, 8)},
        in_both(BLOCK, without(OUTER, "wpe") | {"axial_wpe_1": [2, 32], "axial_wpe_2": [8, 32]}),
    ),
    "num_mem_kv": ({"num_mem_kv": 3}, in_layers(BLOCK | MEMORY, BLOCK)),
    "mlp_glu": ({"mlp_glu": True}, in_both(BLOCK | feed_forward(expanded=256))),
    "macaron": ({"macaron": True}, in_both(BLOCK | feed_forward("mlp_macaron"))),
    "macaron and mlp_glu": (
        {"macaron": True, "mlp_glu": True},
        in_both(BLOCK | feed_forward(expanded=256) | feed_forward("mlp_macaron", 256)),
    ),
    "scalenorm": ({"scalenorm": True}, in_both(without(BLOCK, "norm") | {"norm_1/g": [], "norm_2/g": []})),
    "rezero": ({"rezero": True}, in_both(without(BLOCK, "norm") | GAINS)),
    "share_parameters": (
        {"share_parameters": True},
        {f"gpt2/{name}": shape for name, shape in (OUTER | {f"/{n}": s for n, s in BLOCK.items()}).items()},
    ),
    "no_weight_tie": (
        {"no_weight_tie": True},
        in_both(
            BLOCK,
            EMBEDDINGS | {f"{HEAD}/kernel": [32, 64], f"{HEAD}/bias": [64]},
        ),
    ),
    "norm": ({"norm": "rmsnorm"}, in_both(without_biases(BLOCK), without_biases(OUTER))),
    "norm_placement after": ({"norm_placement": "after"}, in_both(without(BLOCK, "norm") | POST_NORMS)),
    "norm_placement both": (
        {"norm_placement": "both", "norm": "rmsnorm", "norm_unit_offset": True},
        in_both(without_biases(BLOCK | POST_NORMS), without_biases(OUTER)),
    ),
    "norm_placement with scalenorm": (
        {"norm_placement": "after", "scalenorm": True},
        in_both(without(BLOCK, "norm") | {"norm_1_post/g": [], "norm_2_post/g": []}),
    ),
    "one norm": ({"parallel_residual": "one_norm"}, in_both(without(BLOCK, "norm_2"))),
    "one norm without attention": (
        {"parallel_residual": "one_norm", "attention_types": ("none", "local")},
        in_layers(without(BLOCK, "norm_2", "attn"), without(BLOCK, "norm_2")),
    ),
    "two norms": ({"parallel_residual": "two_norms"}, in_both(BLOCK)),
    "n_inner": ({"n_inner": 40}, in_both(without(BLOCK, "mlp") | feed_forward(expanded=40, hidden=40))),
    "n_inner and mlp_glu": (
        {"n_inner": 40, "mlp_glu": True},
        in_both(without(BLOCK, "mlp") | feed_forward(expanded=80, hidden=40)),
    ),
    "gated_mlp": (
        {"gated_mlp": True},
        in_both(BLOCK | {"mlp/conv1d_main/c_gate/kernel": [32, 128], "mlp/conv1d_main/c_gate/bias": [128]}),
    ),
    "gated_mlp without biases": (
        {"gated_mlp": True, "mlp_bias": False},
        in_both(without_biases(BLOCK, "mlp") | {"mlp/conv1d_main/c_gate/kernel": [32, 128]}),
    ),
    "final_norm": ({"final_norm": False}, in_both(BLOCK, EMBEDDINGS)),
    "untied with final_norm": (
        {"no_weight_tie": True, "final_norm": True, "head_bias": False},
        in_both(BLOCK, OUTER | {f"{HEAD}/kernel": [32, 64]}),
    ),
    "head_bias": ({"head_bias": True}, in_both(BLOCK, OUTER | {f"{HEAD}/bias": [64]})),
    "moe_layers": ({"moe_layers": (1,), "moe_params": MOE}, in_layers(BLOCK, without(BLOCK, "mlp") | EXPERTS)),
    "qkv_bias": ({"qkv_bias": True}, in_both(BLOCK | {f"attn/{name}_bias": [32] for name in "qkv"})),
    "scale_attn_weights": ({"scale_attn_weights": True}, in_both(BLOCK)),
    "n_kv_head": (
        {"n_kv_head": 2, "num_mem_kv": 3, "qkv_bias": True},
        in_layers(GROUPED | MEMORY_OF_GROUPS, GROUPED),
    ),
    "head_dim": (
        {"head_dim": 12},
        in_both(BLOCK | {f"attn/{name}": [32, 48] for name in "qkv"} | {"attn/o": [48, 32]}),
    ),
    "rotary_dim": ({"rotary_emb": True, "rotary_dim": 4}, in_both(BLOCK, without(OUTER, "wpe"))),
    "qk_norm": (
        {"qk_norm": "head", "n_kv_head": 1},
        in_both(BLOCK | {f"attn/{name}": [32, 8] for name in "kv"} | {f"attn/{name}_norm/g": [8] for name in "qk"}),
    ),
    "qk_norm of projections": (
        {"qk_norm": "projection", "n_kv_head": 1},
        in_both(BLOCK | {f"attn/{name}": [32, 8] for name in "kv"} | {"attn/q_norm/g": [32], "attn/k_norm/g": [8]}),
    ),
    "lora_rank": (
        {"lora_rank": 3, "lora_targets": ("q", "v", "c_fc"), "n_kv_head": 2, "mlp_glu": True, "moe_layers": (1,)}
        | {"moe_params": MOE},
        in_layers(ADAPTED | feed_forward(expanded=256) | ADAPTER_OF_GLU, without(ADAPTED, "mlp") | EXPERTS),
    ),
    "attention_softcap": ({"attention_softcap": 5.0}, in_both(BLOCK)),
    "attention_scale": ({"attention_scale": 0.5}, in_both(BLOCK)),
    "attn_output_bias": ({"attn_output_bias": False}, in_both(without(BLOCK, "attn/compute_output_bias"))),
    "prelu": ({"activation_function": "prelu"}, in_both(BLOCK | {"mlp/activation/slope": []})),
    "mlm_training": ({"mlm_training": True}, in_both(BLOCK)),
    "entmax_loss": ({"entmax_loss": True}, in_both(BLOCK)),
    "objective": ({"objective": "ranking"}, in_both(BLOCK, OUTER | {"score": [1, 32]})),
    "objective without a final norm": (
        {"objective": "ranking", "final_norm": False},
        in_both(BLOCK, EMBEDDINGS | {"score": [1, 32]}),
    ),
    "objective untied": (
        {"objective": "ranking", "no_weight_tie": True, "norm": "rmsnorm"},
        in_both(without_biases(BLOCK), without_biases(OUTER) | {"score": [1, 32]}),
    ),
}


def shapes_of(model: ModelConfig) -> Shapes:
    mesh, dims = mtf.Mesh(mtf.Graph(), "mesh"), Dims.of(model, 2, model.n_ctx)
    compute = gpt2.rank if model.ranks else gpt2.logits
    compute(Context(mesh, model, dims), mtf.zeros(mesh, mtf.Shape([dims.batch, dims.sequence]), tf.int32))
    return {name: variable.shape.to_integer_list for name, variable in mesh.graph.name_to_variable.items()}


@pytest.mark.parametrize(("changes", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
def test_names_and_shapes(changes: dict[str, object], expected: Shapes) -> None:
    assert shapes_of(dataclasses.replace(tiny.MODEL, **changes)) == expected
