"""The typed settings of a run: one frozen dataclass field a key, with its kind, default, unit and meaning.

The keys are GPT-Neo's flat JSON keys. What one value may be is in `kinds.py`; how files become settings and what
values must satisfy together is in `load.py` and `cross_checks.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, get_type_hints

from configs.errors import ValueIssue
from configs.kinds import (
    ATTENTION,
    ATTENTION_TYPES,
    AXIAL,
    FLAG,
    FOLDER,
    LAYOUT,
    MAX_LAYERS,
    MESH_SHAPE,
    NON_NEGATIVE,
    PATH,
    PATHS,
    POSITIVE,
    POSITIVE_FLOAT32,
    SEPARATOR,
    SHARE,
    STOPS,
    SWITCH,
    TEXT,
    TOP_P,
    Kind,
    integer,
    integers,
    is_unicode,
    names_of,
    number,
    one_of,
    optional,
    parse_part,
    steps_and_sizes,
    unless_named,
    unless_off,
    within,
)
from configs.layout import Layout, MeshShape

ACTIVATIONS = (
    *("gelu", "relu", "sigmoid", "tanh", "selu", "elu", "abs", "sin", "cos", "sign", "silu", "softplus", "lrelu001"),
    *("lrelu020", "id", "triangle_relax", "square_relax", "spike", "spike2", "tanhshrink", "softsign", "softmax"),
    *("logsoftmax", "bipolarsigmoid", "rrelu", "elish", "arcsinh", "aria", "prelu", "parcsinh", "psoftplus"),
    *("proottanh", "maxsig", "cosid", "minsin", "maxtanh", "mish", "tanhexp", "lisht", "seagull", "snake"),
    *("roottanh", "softplusmone", "elish_published", "gelu_exact"),
)
NO_QK_NORM, QK_NORM_OF_HEAD, QK_NORM_OF_PROJECTION = QK_NORMS = ("off", "head", "projection")
ROTARY_STYLES = ("half", "interleaved")
LINEAR_NORMALIZATIONS = ("position", "feature")
LAYER_NORM, RMS_NORM = NORMS = ("layernorm", "rmsnorm")
NORM_BEFORE, NORM_AFTER, NORM_BOTH = NORM_PLACEMENTS = ("before", "after", "both")
SEQUENTIAL, ONE_NORM, TWO_NORMS = PARALLEL_RESIDUALS = ("off", "one_norm", "two_norms")
NEXT_TOKEN, RANKING = OBJECTIVES = ("next_token", "ranking")
PRECISIONS = ("float32", "bfloat16")
NOTHING, SELECTED, BLOCKS = RECOMPUTATIONS = ("none", "attention", "block")
CONSTANT_RATE = ("constant", "none")
NOAM_DECAYS = ("noam", "noamwd")  # which scale lr by the width
LR_DECAYS = ("linear", "cosine", "linear_to_zero", "wsd", *NOAM_DECAYS, "bert")
OPTIMIZERS = ("adam", "adamw", "lion", "muon", "adafactor")
NO_SHARDING, SHARD_OPTIMIZER, SHARD_PARAMETERS = SHARDINGS = ("off", "optimizer", "parameters")
MOE_GATINGS = ("top_1", "top_2")
SECOND_POLICIES = ("all", "none", "threshold", "random")
INPUT_FNS = ("sequential_input", "generic_text")
PROMPT_OVERFLOWS = ("left", "refuse")
STREAM, MASKED = PACKINGS = ("stream", "masked")
DATATYPES = ("chunks", "documents_fixed", "documents_random")
*_, DIALOGUE = TASK_KINDS = ("continuation", "rolling", "multiple_choice", "dialogue")
VALIDATION = "validation"  # the evaluation task that is the held-out loss
SAMPLES = "samples"  # the metrics of generated texts have the place of a task of this name
TASK_NAME_PATTERN = re.compile(r"[\w.+-]{1,100}", re.ASCII)  # a part of the names of files
RANDOM_SAMPLE = "random_sample"  # an older name in GPT-Neo's page

ALIASES = {
    "activation_fn": "activation_function",
    "n_positions": "n_ctx",
    "n_heads": "n_head",
    "axial_pos_emb_": "axial_pos_emb",
}

# The linear layers of a block that adapters may be put beside, and what is added to a kernel's name for the adapter's
# two matrices, [in, lora_rank] and [lora_rank, out].
LORA_TARGETS = ("q", "k", "v", "o", "c_fc", "c_gate", "c_proj")
LORA_KEYS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
ADAPTER_DOWN, ADAPTER_UP = "/lora_a", "/lora_b"

# Keys of the model that may change when training continues from weights.
FREE_KEYS = (
    "embed_dropout",
    "res_dropout",
    "attn_dropout",
    "scale_by_depth",
    "scale_by_in",
    "precision",
    "recompute",
    "recompute_grad",
    "z_loss",
    "entmax_loss",
    "objective",
    "moe_params",
    *LORA_KEYS,
)

TASK_ALIASES = {"lambada": "lambada_openai"}  # GPT-Neo's name
DATASET_INERT_KEYS = {
    "lambada_tokens_path": "the task lambada_openai reads the text in eval_tasks_dir, and keeps no tokens"
}

MAX_SEED = 2**31 - 1
# Far above any model, and low enough that a slip of the finger is a message and not a machine without memory.
# Building and planning take a time that grows with layers and experts: some 0.5 seconds a layer.
MAX_FEATURES, MAX_TOKENS, MAX_EXAMPLES, MAX_EXPERTS = 1 << 20, 1 << 24, 1 << 20, 1 << 12


def setting(
    kind: Kind,
    doc: str,
    *,
    unit: str = "",
    default: Any = MISSING,
    default_text: str = "",
    source: str = "",
    flag: str = "",
    sampling: bool = False,
) -> Any:
    """Declares one key of a config file.

    Args:
        kind: the values that it may have.
        doc: its meaning in one sentence, for `docs/configuration.md` and the help text of its flag.
        unit: of its value.
        default: its value if the file lacks it; required if absent.
        default_text: names a default that depends on other keys and is filled in on loading.
        source: the paper or program that the setting comes from.
        flag: the flag of main.py that sets the key, such as `--seed N`; one without a value sets it to true.
        sampling: the key shapes how a token is sampled, so beam search excludes it.
    """
    metadata = {"kind": kind, "doc": doc, "unit": unit, "default_text": default_text}
    metadata |= {"source": source, "flag": flag, "sampling": sampling}
    return dataclasses.field(default=default, metadata=metadata)


# A key that shapes how a token is sampled; beam search excludes it.
sampling_setting = functools.partial(setting, sampling=True)


def is_adapter(name: str) -> bool:
    """Returns whether a variable is a matrix of an adapter, by its name."""
    return name.endswith((ADAPTER_DOWN, ADAPTER_UP))


def lora_target(kernel: str) -> str:
    """Returns the name that a kernel would have among `LORA_TARGETS`, by the name of its variable."""
    return kernel.removesuffix("/kernel").rpartition("/")[2]


def keys_of(config_class: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a config class that are keys of its JSON file, by name."""
    return {field.name: field for field in dataclasses.fields(config_class) if "kind" in field.metadata}


def is_required(field: dataclasses.Field) -> bool:
    """Returns whether a file must give this key."""
    return field.default is MISSING and not field.metadata["default_text"]


@dataclass(frozen=True, kw_only=True)
class MoeParams:
    """The mixture-of-experts layers: the members of the key `moe_params`."""

    moe_num_experts: int = setting(integer(2, limit=MAX_EXPERTS), "Experts of a layer.", unit="experts", default=16)
    moe_hidden_size: int = setting(
        integer(1, limit=MAX_FEATURES), "Width of an expert's hidden layer.", unit="features", default=4096
    )
    moe_gating: str = setting(one_of(MOE_GATINGS), "Experts that a token is sent to: one or two.", default="top_2")
    moe_group_size: int = setting(
        integer(1), "Tokens of a row that share the experts' capacity; at most n_ctx.", unit="tokens", default=1024
    )
    moe_capacity_factor_train: float = setting(
        POSITIVE, "Capacity of an expert in training, relative to an equal share of its group's tokens.", default=1.25
    )
    moe_capacity_factor_eval: float = setting(POSITIVE, "The same in evaluation and generation.", default=2.0)
    moe_min_expert_capacity: int = setting(integer(1), "Smallest capacity of an expert.", unit="tokens", default=1)
    moe_loss_coef: float = setting(
        NON_NEGATIVE, "Weight of the loss that balances the load of the experts.", default=1e-2
    )
    moe_z_loss: float = setting(
        NON_NEGATIVE, "Weight of the squared log-partition of the router; 0, as in GPT-Neo: none.", default=1e-3
    )
    moe_second_policy_train: str = setting(
        one_of(SECOND_POLICIES),
        "Which tokens reach their second expert in training: all, none, those whose gate exceeds the threshold, or "
        "each with probability gate / threshold (random).",
        default="random",
    )
    moe_second_policy_eval: str = setting(
        one_of(SECOND_POLICIES),
        "The same in evaluation and generation, where random depends on the layer and the position alone; GPT-Neo's "
        "default is random.",
        default="all",
    )
    moe_second_threshold_train: float = setting(SHARE, "The threshold in training.", default=0.2)
    moe_second_threshold_eval: float = setting(SHARE, "The threshold in evaluation and generation.", default=0.2)
    moe_dropout_rate: float = setting(
        SHARE, "Dropout of the experts' output, in training.", unit="probability", default=0.0
    )


# What the object of each type of rotary_scaling must have, and what it may have, as in Hugging Face's rope_scaling.
ROTARY_SCALINGS = {
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary position embeddings reach beyond the trained length: the members of the key `rotary_scaling`."""

    type: str = setting(
        one_of(tuple(ROTARY_SCALINGS)),
        "linear divides every frequency by factor; llama3 the slow ones, by how often they turn within the original "
        "length; yarn those beyond a ramp, and scales attention.",
        source="Chen et al. 2023, Position Interpolation; Llama 3.1; Peng et al. 2023, YaRN",
    )
    factor: float = setting(number(">= 1", lambda value: value >= 1), "How many times longer texts may be.")
    original_max_position_embeddings: int | None = setting(
        optional(integer(1, limit=MAX_TOKENS)), "llama3, yarn: the trained length.", unit="tokens", default=None
    )
    low_freq_factor: float | None = setting(
        optional(POSITIVE), "llama3: frequencies that turn less often are divided.", unit="turns", default=None
    )
    high_freq_factor: float | None = setting(
        optional(POSITIVE), "llama3: frequencies that turn more often are kept.", unit="turns", default=None
    )
    beta_fast: float | None = setting(
        optional(POSITIVE), "yarn: turns at which the ramp begins; null: 32.", unit="turns", default=None
    )
    beta_slow: float | None = setting(
        optional(POSITIVE), "yarn: turns at which the ramp ends; null: 1.", unit="turns", default=None
    )
    attention_factor: float | None = setting(
        optional(POSITIVE), "yarn: multiplies rotated queries and keys; null: 0.1 ln(factor) + 1.", default=None
    )
    mscale: float | None = setting(
        optional(POSITIVE),
        "yarn: with mscale_all_dim, attention_factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) "
        "+ 1).",
        default=None,
    )
    mscale_all_dim: float | None = setting(optional(POSITIVE), "yarn: see mscale.", default=None)
    truncate: bool | None = setting(
        optional(FLAG), "yarn: rounds the ends of the ramp to whole pairs of features; null: true.", default=None
    )


def _parse_rotary_scaling(value: Any) -> RotaryScaling | None:
    if value is None:
        return None
    if not isinstance(value, dict) or "type" not in value:
        raise ValueIssue("is not an object with a type", 'write it as {"type": "linear", "factor": 2.0}')
    members = _parse_members(RotaryScaling, value)
    required, allowed = ROTARY_SCALINGS[members["type"]]
    for member in required:
        if members.get(member) is None:
            raise ValueIssue(f"lacks {member}", f"{members['type']} needs {', '.join(required)}")
    for member, given in members.items():
        if given is not None and member not in ("type", *required, *allowed):
            raise ValueIssue(f"has {member}, which {members['type']} does not have", "leave it out")
    scaling = RotaryScaling(**members)
    _check_ramp(scaling)
    return scaling


def _check_ramp(scaling: RotaryScaling) -> None:
    if scaling.type == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueIssue("has a high_freq_factor that is not above low_freq_factor", "raise it")
    if scaling.type == "yarn" and (scaling.beta_fast or 32.0) <= (scaling.beta_slow or 1.0):
        raise ValueIssue("has a beta_fast that is not above beta_slow", "raise it")


def _write_rotary_scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {member: value for member, value in written_keys(scaling).items() if value is not None}


ROTARY_SCALING = Kind("an object, see below; null: none", _parse_rotary_scaling, _write_rotary_scaling)


def _parse_members(config_class: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """Parses an object that is the value of a key, or a part of it."""
    known, parsed = keys_of(config_class), {}
    for key, member in value.items():
        if key not in known:
            raise ValueIssue(f"has the unknown member {key}", f"use {', '.join(known)}")
        parsed[key] = parse_part(key, known[key].metadata["kind"], member)
    return parsed


def _parse_moe_params(value: Any) -> MoeParams:
    if value is not None and not isinstance(value, dict):
        raise ValueIssue("is not an object", 'write it as {"moe_num_experts": 8}')
    return MoeParams(**_parse_members(MoeParams, value or {}))


MOE_PARAMS = Kind("an object, see below; null: all defaults", _parse_moe_params, lambda params: written_keys(params))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: its dimensions and the variants of its layers."""

    n_head: int = setting(
        integer(1, limit=MAX_FEATURES),
        "Attention heads of a layer; divides n_embd, unless head_dim is given.",
        unit="heads",
    )
    n_embd: int = setting(integer(1, limit=MAX_FEATURES), "Width of the residual stream.", unit="features")
    n_layer: int = setting(integer(1, limit=MAX_LAYERS), "Blocks of attention and feed-forward.", unit="layers")
    n_ctx: int = setting(
        integer(1, limit=MAX_TOKENS), "Length of the context; a training example holds one token more.", unit="tokens"
    )
    n_vocab: int = setting(
        integer(2, limit=MAX_TOKENS),
        "Rows of the token embedding; at least the n_vocab of every dataset.",
        unit="tokens",
    )
    attention_types: tuple[str, ...] = setting(
        ATTENTION,
        f"Attention of each layer: {', '.join(f'{name} ({seen})' for name, seen in ATTENTION_TYPES.items())}. The "
        "pattern expands to n_layer layers.",
        default=(),
        default_text="global in every layer",
    )
    local_attention_radius: int = setting(
        integer(1), "Local attention at position p sees (p - radius, p].", unit="tokens", default=256
    )
    linear_attention_normalization: str = setting(
        one_of(LINEAR_NORMALIZATIONS),
        "What causal linear attention divides by: position, one sum for all features of a position and head, as in "
        "GPT-Neo; or feature, a sum for each, as in runs of this project that were trained before this key.",
        default="position",
    )
    none_doubles_residual: bool = setting(
        SWITCH,
        "Layers of attention none double the residual stream before their feed-forward part, as GPT-Neo's did.",
        default=False,
    )
    activation_function: str = setting(
        one_of(ACTIVATIONS),
        "Activation of the feed-forward layers; gelu is the tanh approximation and gelu_exact the function itself, "
        "elish GPT-Neo's and elish_published that of the paper.",
        default="gelu",
    )
    rotary_emb: bool = setting(
        SWITCH, "Rotary position embeddings of queries and keys, instead of learned ones.", default=False
    )
    axial_pos_emb: tuple[int, int] | None = setting(
        unless_off(AXIAL, None),
        "Sizes of two smaller position embeddings; position p gets the mean of rows p // second and p % second.",
        default=None,
    )
    num_mem_kv: int = setting(
        unless_off(integer(0, limit=MAX_TOKENS), 0),
        "Learned keys and values that every position of a global layer attends to.",
        unit="keys",
        default=0,
    )
    qkv_bias: bool = setting(SWITCH, "Biases of queries, keys and values, as in GPT-2.", default=False)
    scale_attn_weights: bool = setting(
        SWITCH,
        "Divides attention logits by sqrt(head_dim), as in GPT-2; GPT-Neo scales its initial weights instead.",
        default=False,
    )
    n_kv_head: int | None = setting(
        optional(integer(1, limit=MAX_FEATURES)),
        "Heads of keys and values; divides n_head. Fewer than n_head: groups of query heads share one, and the cache "
        "holds that many. 1: multi-query attention. null: n_head.",
        unit="heads",
        default=None,
        source="Ainslie et al. 2023, GQA",
    )
    head_dim: int | None = setting(
        optional(integer(1, limit=MAX_FEATURES)),
        "Width of an attention head; null: n_embd / n_head.",
        unit="features",
        default=None,
    )
    attention_scale: float | None = setting(
        optional(POSITIVE),
        "Attention logits are multiplied by it; null: 1 / sqrt(head_dim) with scale_attn_weights, else 1.",
        default=None,
    )
    rotary_base: float = setting(
        number("> 1", lambda value: value > 1),
        "With rotary_emb: pair i of the rotated features turns by base^(-2 i / rotary_dim) a position.",
        default=10000.0,
    )
    rotary_dim: int | None = setting(
        optional(integer(2, limit=MAX_FEATURES)),
        "With rotary_emb: the first features of each head that are rotated, an even number; null: all.",
        unit="features",
        default=None,
    )
    rotary_style: str = setting(
        one_of(ROTARY_STYLES),
        "With rotary_emb: the features that turn together: half, i and i + rotary_dim / 2, as in GPT-NeoX and Llama; "
        "interleaved, 2 i and 2 i + 1, as in GPT-J.",
        default="half",
    )
    rotary_scaling: RotaryScaling | None = setting(
        ROTARY_SCALING, "With rotary_emb: how texts may be longer than those that it was trained on.", default=None
    )
    qk_norm: str = setting(
        one_of(QK_NORMS),
        "RMS norms of queries and keys, before they are rotated, with norm_epsilon: head, of each head's features, as "
        "in Qwen 3; projection, of all heads' features together, as in OLMo 2.",
        default="off",
    )
    attention_softcap: float | None = setting(
        optional(POSITIVE),
        "Bounds the attention logits of global and local layers to attention_softcap tanh(logits / attention_softcap); "
        "null: no bound.",
        default=None,
        source="Gemma 2",
    )
    attn_output_bias: bool = setting(FLAG, "A bias after the output projection of attention.", default=True)
    mlp_glu: bool = setting(
        SWITCH,
        "Gated feed-forward layers, as in GPT-Neo: one half of a layer of 2 n_inner features times the activation of "
        "the other half.",
        default=False,
    )
    macaron: bool = setting(
        SWITCH, "Puts half of a feed-forward layer before attention and half of one after it.", default=False
    )
    scalenorm: bool = setting(SWITCH, "The norms of blocks have one gain for all features and no bias.", default=False)
    rezero: bool = setting(
        SWITCH, "Blocks have no norms; their output is multiplied by a gain that starts at 0.", default=False
    )
    share_parameters: bool = setting(SWITCH, "All layers share one block's variables.", default=False)
    no_weight_tie: bool = setting(
        SWITCH,
        "A separate output layer instead of the token embedding, and, as in GPT-Neo, no final norm unless final_norm "
        "asks for one.",
        default=False,
    )
    norm: str = setting(
        one_of(NORMS),
        "The norms of blocks and the final one: layernorm, or rmsnorm, which has a gain alone.",
        default=LAYER_NORM,
        source="Zhang and Sennrich 2019, Root Mean Square Layer Normalization",
    )
    norm_epsilon: float = setting(POSITIVE_FLOAT32, "Added to the variance or mean square by every norm.", default=1e-5)
    norm_unit_offset: bool = setting(
        SWITCH, "The gain of rmsnorm is 1 + its variable, which starts at 0, as in Gemma.", default=False
    )
    norm_placement: str = setting(
        one_of(NORM_PLACEMENTS),
        "Where blocks have norms: before attention and feed-forward layers; after them, before their output is added, "
        "as in OLMo 2; or both, as in Gemma 2.",
        default=NORM_BEFORE,
    )
    parallel_residual: str = setting(
        unless_off(one_of(PARALLEL_RESIDUALS), SEQUENTIAL),
        "Attention and feed-forward layer of a block have the same input, and both outputs are added to it: off, one "
        "after the other; one_norm, with one norm before both, as in GPT-J; two_norms, with one before each, as in "
        "GPT-NeoX.",
        default=SEQUENTIAL,
        source="Wang and Komatsuzaki 2021, GPT-J-6B",
    )
    n_inner: int | None = setting(
        optional(integer(1, limit=MAX_FEATURES)),
        "Width of the feed-forward layers; null: 4 n_embd.",
        unit="features",
        default=None,
    )
    gated_mlp: bool = setting(
        SWITCH,
        "Gated feed-forward layers with a kernel of its own for the gate: SwiGLU with the activation silu, GeGLU with "
        "gelu.",
        default=False,
        source="Shazeer 2020, GLU Variants Improve Transformer",
    )
    mlp_bias: bool = setting(FLAG, "Biases of the feed-forward layers.", default=True)
    final_norm: bool | None = setting(
        optional(FLAG), "A norm before the output layer; null: unless no_weight_tie is set.", default=None
    )
    head_bias: bool | None = setting(
        optional(FLAG), "A bias of the logits; null: if no_weight_tie is set.", default=None
    )
    embedding_scale: float | None = setting(
        optional(POSITIVE_FLOAT32),
        "Multiplies token embeddings, such as by sqrt(n_embd) in Gemma; null: 1.",
        default=None,
    )
    logit_softcap: float | None = setting(
        optional(POSITIVE_FLOAT32),
        "Keeps logits below it: c tanh(logits / c), as in Gemma 2; null: off.",
        default=None,
    )
    moe_layers: tuple[int, ...] = setting(
        unless_off(integers(integer(0), "[1, 3, 5]"), ()),
        "Layers, counted from 0, whose feed-forward layer is a mixture of experts.",
        default=(),
    )
    moe_params: MoeParams = setting(MOE_PARAMS, "Settings of the mixture of experts.", default=MoeParams())
    moe_activation: str = setting(one_of(ACTIVATIONS), "Activation of the experts.", default="relu")
    mlm_training: bool = setting(
        SWITCH,
        "Masked language modelling with bidirectional attention, instead of the next token; such a model generates "
        "no text.",
        default=False,
    )
    objective: str = setting(
        one_of(OBJECTIVES),
        "What the model gives: next_token, the probabilities of tokens; ranking, a score of a dialogue's last turn, "
        "trained on pairs of a better and a worse response.",
        default=NEXT_TOKEN,
        source="Gao et al. 2020, Dialogue Response Ranking Training with Large-Scale Human Feedback Data",
    )
    entmax_loss: bool = setting(
        SWITCH, "Trains with the entmax loss (alpha 1.3) instead of cross-entropy and z_loss.", default=False
    )
    embed_dropout: float = setting(SHARE, "Dropout of token and position embeddings.", unit="probability", default=0.0)
    res_dropout: float = setting(
        SHARE, "Dropout of the outputs of attention and feed-forward layers.", unit="probability", default=0.0
    )
    attn_dropout: float = setting(SHARE, "Dropout of attention weights.", unit="probability", default=0.0)
    scale_by_depth: bool = setting(FLAG, "Divides the initial c_proj kernels by sqrt(n_layer).", default=False)
    scale_by_in: bool = setting(FLAG, "Divides the initial dense kernels by sqrt(fan-in).", default=False)
    mup_base_width: int = setting(
        unless_off(integer(0, limit=MAX_FEATURES), 0),
        "Maximal update parametrization: the n_embd of the model whose lr this one takes over; its initial values, "
        "rates of matrices, and scales of logits follow from how much wider it is; 0: off.",
        unit="features",
        default=0,
        source="Yang et al. 2022, Tensor Programs V, table 8",
    )
    precision: str = setting(one_of(PRECISIONS), "Type of the activations; variables stay float32.", default="float32")
    recompute: str | None = setting(
        optional(one_of(RECOMPUTATIONS)),
        "What the backward pass computes again, to save memory: none; attention, in attention and feed-forward layers "
        "all but the outputs of matrix products; block, each block whole. null: block with recompute_grad, otherwise "
        "none.",
        default=None,
        source="Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, section 5",
    )
    recompute_grad: bool = setting(FLAG, 'GPT-Neo\'s name for `"recompute": "block"`.', default=False)
    z_loss: float = setting(NON_NEGATIVE, "Weight of the squared log-partition in the training loss.", default=1e-4)
    lora_rank: int = setting(
        unless_off(integer(0, limit=MAX_FEATURES), 0),
        "Above 0: fine-tunes adapters of this rank beside linear layers of the blocks, and nothing else. Checkpoints "
        "hold the adapters, and name the weights that they belong to.",
        unit="features",
        default=0,
        source="Hu et al. 2021, LoRA",
    )
    lora_alpha: float = setting(
        POSITIVE, "The outputs of adapters are multiplied by lora_alpha / lora_rank.", default=8.0
    )
    lora_dropout: float = setting(SHARE, "Dropout of the inputs of adapters.", unit="probability", default=0.0)
    lora_targets: tuple[str, ...] = setting(
        names_of(LORA_TARGETS),
        "The layers with adapters: queries, keys, values and output of attention (q, k, v, o), and the feed-forward "
        "layers' first, gate and last (c_fc, c_gate, c_proj). Experts have none.",
        default=("q", "v"),
    )

    def __post_init__(self) -> None:
        """Fills in the attention of every layer when none is given."""
        if not self.attention_types:
            object.__setattr__(self, "attention_types", ("global",) * self.n_layer)

    def without_adapters(self) -> ModelConfig:
        """Returns the same model with whole weights alone."""
        fields = keys_of(ModelConfig)
        return dataclasses.replace(self, **{key: fields[key].default for key in LORA_KEYS})

    @property
    def recomputation(self) -> str:
        """What the backward pass computes again, one of `RECOMPUTATIONS`."""
        return self.recompute or (BLOCKS if self.recompute_grad else NOTHING)

    @property
    def is_causal(self) -> bool:
        """Whether a position sees no later one."""
        return not self.mlm_training

    @property
    def writes_text(self) -> bool:
        """Whether the model gives the probabilities of a next token."""
        return not self.mlm_training and not self.ranks

    @property
    def ranks(self) -> bool:
        """Whether the model scores texts instead of giving probabilities of tokens."""
        return self.objective == RANKING

    @property
    def feed_forward_width(self) -> int:
        """Hidden features of a feed-forward layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def has_final_norm(self) -> bool:
        """Whether there is a norm before the output layer; rankers have one unless `final_norm` says otherwise."""
        return (self.ranks or not self.no_weight_tie) if self.final_norm is None else self.final_norm

    @property
    def has_head_bias(self) -> bool:
        """Whether the logits have a bias."""
        return self.no_weight_tie if self.head_bias is None else self.head_bias

    @property
    def is_gated(self) -> bool:
        """Whether feed-forward layers have a gate, in either form."""
        return self.gated_mlp or self.mlp_glu

    @property
    def features_per_head(self) -> int:
        """Width of one attention head, in features."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def width_multiplier(self) -> float:
        """How many times wider the model is than the one that its learning rate was found for; 1 without muP."""
        return self.n_embd / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def base_features_per_head(self) -> int:
        """Width of a head at `mup_base_width`: `head_dim` if given, so that wider models have more heads; else less."""
        return self.head_dim or (self.mup_base_width or self.n_embd) // self.n_head

    @property
    def head_multiplier(self) -> float:
        """How many times wider a head is than at `mup_base_width`."""
        return self.features_per_head / self.base_features_per_head

    @property
    def rotated_features(self) -> int:
        """Features of a head that rotary embeddings turn."""
        return self.rotary_dim or self.features_per_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def lora_scale(self) -> float:
        """What the outputs of adapters are multiplied by."""
        return self.lora_alpha / self.lora_rank

    @property
    def logit_scale(self) -> float:
        """What attention logits are multiplied by: with muP by 1 / features_per_head, as ever at `mup_base_width`.

        Source: Yang et al. 2022, Tensor Programs V, definition 4.1.
        """
        if self.attention_scale is not None:
            base = self.attention_scale
        else:
            base = 1.0 / math.sqrt(self.base_features_per_head) if self.scale_attn_weights else 1.0
        return base / self.head_multiplier


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimiser, its schedule, and the size of a step."""

    train_batch_size: int = setting(
        integer(1, limit=MAX_EXAMPLES), "Examples of a training step, on all devices together.", unit="examples"
    )
    batch_size_warmup: tuple[tuple[int, int], ...] = setting(
        steps_and_sizes(integer(1, limit=MAX_EXAMPLES)),
        "Smaller batches at first: each size holds from its step on, and the last is train_batch_size.",
        unit="examples",
        default=(),
    )
    train_steps: int = setting(integer(1), "Step at which training ends.", unit="steps")
    lr: float = setting(
        POSITIVE,
        "Learning rate at the end of the warm-up; noam and noamwd multiply it by 10^4 (n_embd warmup_steps)^-0.5.",
        default=6e-4,
    )
    lr_decay: str | None = setting(
        unless_named(one_of(LR_DECAYS), CONSTANT_RATE),
        "Decay of the learning rate: linear and cosine, GPT-Neo's, fall to a tenth of lr; linear_to_zero is linear "
        "and falls to 0; wsd is constant and falls linearly to 0 over the last lr_decay_steps; noam falls with the "
        "square root of the step, and noamwd, besides, by half every 1000 steps; bert falls linearly to 0 from lr at "
        "the end of the warm-up; null: constant.",
        default=None,
        source="Hu et al. 2024, MiniCPM, section 4; Vaswani et al. 2017, Attention Is All You Need; DialoGPT",
    )
    lr_decay_end: int | None = setting(
        optional(integer(1)),
        "Step at which linear, cosine, linear_to_zero, wsd and bert end; the rate stays constant afterwards.",
        unit="steps",
        default=None,
        default_text="`train_steps`",
    )
    lr_decay_steps: int | None = setting(
        optional(integer(1)),
        "wsd: the steps before lr_decay_end over which the rate falls; null: a fifth of lr_decay_end.",
        unit="steps",
        default=None,
    )
    warmup_steps: int = setting(integer(0), "Steps over which the rate grows linearly from 0.", unit="steps", default=0)
    opt_name: str = setting(
        one_of(OPTIMIZERS),
        "The optimiser: adam is GPT-Neo's, without bias correction; adamw has it; lion moves by the sign of a mean of "
        "gradients; muon orthogonalises the updates of the blocks' matrices, and is adamw for all else; adafactor "
        "factors the second moments.",
        default="adam",
        source="Loshchilov & Hutter 2019; Chen et al. 2023; Jordan 2024 and Liu et al. 2025; Shazeer & Stern 2018",
    )
    beta1: float = setting(
        SHARE,
        "Decay of the first moment, with lion its weight in the update; with adafactor, 0 saves its memory.",
        default=0.9,
    )
    beta2: float = setting(
        SHARE, "Adam: decay of the second moment; lion: of the mean, published with 0.99.", default=0.95
    )
    epsilon: float = setting(POSITIVE_FLOAT32, "Adam: added to the square root of the second moment.", default=1e-8)
    muon_momentum: float = setting(SHARE, "Muon: decay of the matrices' momentum.", default=0.95)
    ada_epsilon1: float = setting(POSITIVE_FLOAT32, "Adafactor: added to squared gradients.", default=1e-30)
    ada_epsilon2: float = setting(POSITIVE_FLOAT32, "Adafactor: smallest scale of a variable.", default=1e-3)
    ada_decay_rate: float | None = setting(
        optional(SHARE), "Adafactor: decay of the second moment; null: 1 - step^-0.8.", default=None
    )
    weight_decay: float = setting(
        NON_NEGATIVE,
        "Decoupled weight decay, times the learning rate; adam exempts biases, the norms of blocks and the parameters "
        "of activations, the others exempt every vector.",
        default=0.0,
    )
    ema_decay: float | None = setting(
        optional(SHARE),
        "Keeps an exponential moving average of the parameters in checkpoints, with this decay, such as 0.999; --ema "
        "uses it. null: none.",
        default=None,
        source="Polyak & Juditsky 1992, Acceleration of Stochastic Approximation by Averaging",
    )
    gradient_clipping: float | None = setting(
        optional(POSITIVE), "Maximum global norm of the gradients; null: no clipping.", default=None
    )
    iterations: int = setting(integer(1), "Steps between two lines of metrics.", unit="steps", default=10)
    tokens_per_mb_per_replica: int | None = setting(
        optional(integer(1)),
        "Gradient accumulation: largest microbatch of one replica. Less than n_ctx means one sequence; the size is "
        "lowered until it divides the replica's batch; null: the whole batch at once.",
        unit="tokens",
        default=None,
    )
    keep_checkpoints: int = setting(
        integer(1),
        "How many of the newest checkpoints stay; of the older ones, one every two hours.",
        unit="checkpoints",
        default=10,
    )
    keep_every_steps: int | None = setting(
        optional(integer(1)),
        "Steps between two checkpoints that stay for good; they are saved besides those of --steps_per_checkpoint. "
        "null: none.",
        unit="steps",
        default=None,
    )
    log_grads: bool = setting(
        SWITCH, "Logs the gradient norm of each variable and of each kind of them.", default=False
    )
    log_weights: bool = setting(
        SWITCH, "Writes a histogram of each variable for TensorBoard at each checkpoint.", default=False
    )
    seed: int = setting(
        integer(0, MAX_SEED), "Seed of the initial variables, of dropout and of the order of files.", default=1
    )

    @property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """The first step of each batch size, and the size."""
        return self.batch_size_warmup or ((0, self.train_batch_size),)

    def batch_size_at(self, step: int) -> int:
        """Returns the examples in the step after this number of updates."""
        return next(size for first, size in reversed(self.batch_sizes) if first <= step)


def _parse_task_name(value: Any) -> str:
    text = TEXT.parse(value)
    if not TASK_NAME_PATTERN.fullmatch(text) or text == SAMPLES:
        raise ValueIssue("cannot name a task", "use at most 100 letters, digits and _ . + -, such as my_task")
    return TASK_ALIASES.get(text, text)


def _parse_description(value: Any) -> str:
    if not isinstance(value, str) or not is_unicode(value):
        raise ValueIssue("is not a text", "give a string in double quotes")
    return value


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """An evaluation task; a name alone stands for an object with that `name`. The rest is as the table says."""

    name: str = setting(
        Kind("a plain name", _parse_task_name),
        f"A task of the table in docs/evaluation.md, {VALIDATION} for the loss on held-out data, or the name of a task "
        "of your own.",
    )
    file: str | None = setting(
        PATH, "Own task: the file of its items, in eval_tasks_dir or where the path says.", default=None
    )
    kind: str | None = setting(
        optional(one_of(TASK_KINDS)),
        "Own task: continuation, the likelihood of a text after another; rolling, of whole texts; multiple_choice, of "
        "several, of which one is right; dialogue, answers that are generated and compared with references.",
        default=None,
    )
    n_shot: int | None = setting(
        optional(integer(0)), "Solved examples before each item.", unit="examples", default=None
    )
    fewshot_file: str | None = setting(PATH, "The file that solved examples are taken from.", default=None)
    description: str | None = setting(
        optional(Kind("a string", _parse_description)),
        "The text at the start of each prompt, with its line breaks.",
        default=None,
    )
    cue: str | None = setting(
        optional(Kind("a string", _parse_description)),
        r'Files of llm-foundry: what follows the query, with its line break, such as "\nAnswer:"; "": nothing.',
        default=None,
    )
    stride: int | None = setting(
        optional(integer(1)),
        "Rolling: tokens that the window over a text moves on; null: windows do not overlap.",
        unit="tokens",
        default=None,
    )
    limit: int | None = setting(
        optional(integer(1)), "Evaluates only the first items, this many.", unit="items", default=None
    )
    every_steps: int | None = setting(
        optional(integer(1)),
        "While training: steps between two evaluations of the task.",
        unit="steps",
        default=None,
        default_text="`eval_every_steps`",
    )


TASK_EXAMPLE = 'write it as ["lambada_openai", {"name": "mine", "file": "mine.jsonl", "kind": "multiple_choice"}]'
VALIDATION_KEYS = {"name", "every_steps"}


def _parse_task(value: Any) -> TaskEntry:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or "name" not in value:
        raise ValueIssue("holds a task that is neither a name nor an object with one", TASK_EXAMPLE)
    entry = TaskEntry(**_parse_members(TaskEntry, value))
    given = [key for key in value if key not in VALIDATION_KEYS]
    if entry.name == VALIDATION and given:
        raise ValueIssue(f"gives {VALIDATION} the member {given[0]}", "leave it out; eval_steps limits the batches")
    return entry


def _parse_tasks(value: Any) -> tuple[TaskEntry, ...]:
    listed = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise ValueIssue("is not a list", TASK_EXAMPLE)
    entries = tuple(_parse_task(item) for item in listed)
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueIssue(f"names {twice} twice", "give each task once, or another name for another setting of it")
    return entries


def _write_tasks(entries: Sequence[TaskEntry]) -> list:
    written = [{key: value for key, value in written_keys(entry).items() if value is not None} for entry in entries]
    return [keys["name"] if len(keys) == 1 else keys for keys in written]


EVAL_TASKS = Kind(
    "a list of names and objects, see below; or names with commas between them", _parse_tasks, _write_tasks
)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on held-out data, and by tasks."""

    eval_batch_size: int = setting(
        integer(1, limit=MAX_EXAMPLES),
        "Examples of an evaluation batch.",
        unit="examples",
        default_text="`train_batch_size`",
    )
    eval_steps: int = setting(
        integer(0),
        "Maximum number of batches of one evaluation; 0: no evaluation while training.",
        unit="batches",
        default=0,
    )
    eval_tasks: tuple[TaskEntry, ...] = setting(
        EVAL_TASKS,
        f"Evaluation tasks besides the held-out loss. Given on the command line, {VALIDATION} stands for that loss, "
        "which is left out otherwise.",
        default=(),
        flag="--eval_tasks A,B",
    )
    eval_tasks_dir: str = setting(
        FOLDER, "Folder of the files of the table's tasks, as --fetch_tasks fills it.", default="datasets/tasks"
    )
    eval_every_steps: int | None = setting(
        optional(integer(1)),
        "While training: steps between two evaluations, of the held-out loss and of tasks; null: at each checkpoint. "
        "The last step is always evaluated.",
        unit="steps",
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """Text generation."""

    predict_batch_size: int = setting(
        integer(1, limit=MAX_EXAMPLES), "Samples of each prompt.", unit="samples", default=1, flag="--n_samples N"
    )
    predict_steps: int = setting(
        integer(0), "Above 0: also sample at each checkpoint while training.", unit="batches", default=0
    )
    predict_max_steps: int | None = setting(
        optional(integer(1)),
        "Maximum number of new tokens of a sample; null: until n_ctx is full.",
        unit="tokens",
        default=None,
        flag="--max_new_tokens N",
    )
    prompt_overflow: str = setting(
        one_of(PROMPT_OVERFLOWS),
        "What to do with a prompt that fills n_ctx: left keeps its end, refuse stops with an error.",
        default="left",
        flag="--prompt_overflow WHAT",
    )
    remove_partial_sequences: bool = setting(
        FLAG, "Leaves the prompt out of the output.", default=False, flag="--remove_partial_sequences"
    )
    temperature: float = sampling_setting(
        NON_NEGATIVE,
        "Divides the logits before sampling; 0: always the most likely token.",
        default=0.9,
        flag="--temperature T",
    )
    top_k: int = sampling_setting(
        integer(0),
        "Samples from the k most likely tokens only; 0: from all.",
        unit="tokens",
        default=0,
        source="Fan et al. 2018, Hierarchical Neural Story Generation",
        flag="--top_k K",
    )
    top_p: float = sampling_setting(
        TOP_P,
        "Samples from the most likely tokens that together have this probability; 1: from all.",
        unit="probability",
        default=1.0,
        source="Holtzman et al. 2020, The Curious Case of Neural Text Degeneration",
        flag="--top_p P",
    )
    min_p: float = sampling_setting(
        within(0, 1),
        "Samples from tokens with at least this fraction of the most likely token's probability; 0: from all.",
        default=0.0,
        source="Nguyen et al. 2024, Min-p Sampling",
        flag="--min_p P",
    )
    typical_p: float = sampling_setting(
        TOP_P,
        "Samples from the tokens whose surprise is closest to the entropy and that together have this probability; 1: "
        "from all.",
        unit="probability",
        default=1.0,
        source="Meister et al. 2023, Locally Typical Sampling",
        flag="--typical_p P",
    )
    entmax_sampling: bool = sampling_setting(
        SWITCH,
        "Samples from the entmax (alpha 1.3) of the logits instead of their softmax.",
        default=False,
        flag="--entmax_sampling",
    )
    repetition_penalty: float = sampling_setting(
        within(0.01, 100),
        "Above 1: discourages repeated tokens; divides the positive and multiplies the negative logits of tokens of "
        "the prompt and the sample.",
        default=1.0,
        source="Keskar et al. 2019, CTRL",
        flag="--repetition_penalty X",
    )
    presence_penalty: float = sampling_setting(
        within(-2, 2),
        "Subtracted from the logit of each token that the sample holds already; 0: none.",
        default=0.0,
        source="OpenAI's API",
        flag="--presence_penalty X",
    )
    frequency_penalty: float = sampling_setting(
        within(-2, 2),
        "Subtracted from the logit of a token once for each time that the sample holds it; 0: none.",
        default=0.0,
        source="OpenAI's API",
        flag="--frequency_penalty X",
    )
    no_repeat_ngram: int = sampling_setting(
        integer(0, 1_000_000),
        "Never repeats a run of this many tokens of the prompt and the sample; 0: off.",
        unit="tokens",
        default=0,
        source="Paulus et al. 2018, A Deep Reinforced Model for Abstractive Summarization",
        flag="--no_repeat_ngram N",
    )
    penalize_end: bool = sampling_setting(
        FLAG,
        "Lets repetition_penalty and no_repeat_ngram act on an end of text that stands in the prompt too, as Hugging "
        "Face's generate does; by default they leave it alone, so that each turn of a dialogue can end.",
        default=False,
        flag="--penalize_end",
    )
    prompt_special_tokens: bool = setting(
        FLAG,
        "Special tokens that prompts spell, such as <|endoftext|>, count as such; by default they are read as plain "
        "characters.",
        default=False,
        flag="--special_tokens",
    )
    never_end: bool = sampling_setting(
        FLAG,
        "Never generates the end of the text, so that every sample has its full length.",
        default=False,
        flag="--never_end",
    )
    stop: tuple[str, ...] = setting(
        STOPS,
        r"Ends a sample before the first of these strings. In a shell write `\n` for a line break, `\t` for a tab and "
        r"`\\` for a backslash; `\r`, `\xNN` and `\uNNNN` work too.",
        default=(),
        flag="--stop TEXT",
    )
    num_beams: int = setting(
        integer(1, 1000),
        "Beams of a beam search, which replaces sampling; 1: off.",
        unit="beams",
        default=1,
        flag="--num_beams N",
    )
    length_penalty: float = setting(
        within(-8, 8),
        "Beam search: divides log-probabilities by the length to this power; above 0 favours longer texts.",
        default=1.0,
        source="as in Hugging Face's generate",
        flag="--length_penalty X",
    )
    cache_dtype: str | None = setting(
        optional(one_of(PRECISIONS)),
        "Type of the cached keys and values: float32 or bfloat16; null: that of the activations.",
        default=None,
        flag="--cache_dtype TYPE",
    )
    predict_seed: int | None = setting(
        optional(integer(0, MAX_SEED)),
        "Seed of sampling: the same number gives the same text; null: new text each time.",
        default=None,
        flag="--seed N",
    )


PREDICTION_KEYS = keys_of(PredictionConfig)
EVALUATION_KEYS = keys_of(EvaluationConfig)


def _flags_of(fields: Mapping[str, dataclasses.Field]) -> dict[str, str]:
    """Returns the keys that have a flag, by the name of the flag without its dashes."""
    flags = {key: field.metadata["flag"] for key, field in fields.items()}
    return {flag.partition(" ")[0].removeprefix("--"): key for key, flag in flags.items() if flag}


GENERATION_FLAGS = _flags_of(PREDICTION_KEYS)
FLAGS = _flags_of(EVALUATION_KEYS) | GENERATION_FLAGS
# The keys that each prompt of a file may set for itself.
PROMPT_KEYS = tuple(key for key in GENERATION_FLAGS.values() if key not in ("cache_dtype", "remove_partial_sequences"))
SAMPLING_KEYS = tuple(key for key, field in PREDICTION_KEYS.items() if field.metadata["sampling"])


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset and its tokenizer; the id is the stem of its file.

    It is of tfrecords (`path`), raw text (`text`) or raw conversations (`dialogue`).
    """

    id: str
    n_vocab: int = setting(
        integer(2, limit=MAX_TOKENS),
        "Size of the tokenizer; for raw text or conversations without tokenizer_path, the size to train.",
        unit="tokens",
    )
    path: str | None = setting(PATH, "Glob of the tfrecords to train on.", default=None)
    eval_path: str | None = setting(PATH, "Glob of the tfrecords to evaluate on.", default=None)
    tokenizer_path: str | None = setting(
        PATH,
        "A tokenizers JSON file, a folder with vocab.json and merges.txt, or a Hugging Face name. For raw text or "
        "conversations without one, a tokenizer is trained.",
        default=None,
    )
    tokenizer_is_pretrained: bool = setting(
        FLAG, "tokenizer_path is the Hugging Face name of a pretrained tokenizer.", default=False
    )
    eos_id: int | None = setting(
        optional(integer(0)), "Id that ends a document; null: the tokenizer's end of text.", default=None
    )
    padding_id: int | None = setting(
        optional(integer(0)),
        "Id of padding; null: the tokenizer's padding, or none. n_vocab itself means a padding token that "
        "was added to the tokenizer.",
        default=None,
    )
    packing: str = setting(
        one_of(PACKINGS),
        "What the documents or conversations of an example are to the model: stream, one text; masked, texts that do "
        "not see one another, each with positions from 0. One begins after each eos_id, or where the segments of the "
        "tfrecords say.",
        default=None,
        default_text="masked for `dialogue` and `pairs`, else stream",
    )
    text: tuple[str, ...] = setting(
        PATHS,
        "Raw text: folders or globs of .txt, .md, .py, .json or .jsonl files, compressed (.gz, .bz2, .xz, .zst) or in "
        ".tar or .zip archives; {python_stdlib} is Python's standard library.",
        default=(),
    )
    dialogue: tuple[str, ...] = setting(
        PATHS,
        "Raw conversations: files, folders or globs of DialoGPT's .tsv, or of chats in .jsonl or .json, compressed or "
        "in archives like raw text. Only responses count in the loss.",
        default=(),
    )
    pairs: tuple[str, ...] = setting(
        PATHS,
        "Pairs for objective ranking: files, folders or globs of .jsonl or .json with objects of context, better and "
        "worse, or lists of such objects, which are held out together.",
        default=(),
    )
    chat_template: str = setting(
        FOLDER,
        "Conversations: how turns become tokens. dialogpt: joined by the end of text; chatml: between <|im_start|> and "
        "<|im_end|>; tokenizer: by the template in the tokenizer's folder; or the path of a Jinja file.",
        default="dialogpt",
    )
    reverse: bool = setting(
        FLAG, "Raw conversations: the last turn comes first, for a model that ranks responses.", default=False
    )
    two_turn: bool = setting(FLAG, "Raw conversations: only the first two turns, after reverse.", default=False)
    max_turns: int | None = setting(
        optional(integer(2)),
        "Raw conversations: only the last turns of each, this many; null: all.",
        unit="turns",
        default=None,
    )
    text_exclude: tuple[str, ...] = setting(PATHS, "Globs of raw text or conversations to exclude.", default=())
    eval_fraction: float = setting(
        SHARE,
        "Raw text or conversations: fraction of the documents held out for evaluation.",
        unit="fraction",
        default=0.05,
    )
    cache_dir: str = setting(
        FOLDER,
        "Raw text or conversations: folder of the tokenizer and the tfrecords made from them.",
        default_text="`datasets/<id>`",
    )
    text_key: str = setting(TEXT, "Raw text: key of a JSON object that holds the document.", default="text")
    document_separator: str | bool | None = setting(
        SEPARATOR,
        "Raw text: a marker that separates documents inside a text, such as <|endoftext|>. Line breaks next to it are "
        "left out.",
        default=None,
    )
    special_tokens: bool = setting(
        FLAG,
        "Raw text: special tokens that texts spell, such as <|endoftext|>, count as such; false: they are read as "
        "plain characters.",
        default=False,
    )
    on_bad_file: str = setting(
        one_of(("stop", "skip")),
        "Raw text or conversations: at a file that cannot be read, such as a broken link or a pipe: stop, or skip it "
        "and say so.",
        default="stop",
    )

    def __post_init__(self) -> None:
        """Packs conversations with masks, and documents as a stream, unless it is said."""
        if self.packing is None:
            object.__setattr__(self, "packing", MASKED if self.dialogue or self.pairs else STREAM)

    @property
    def has_segments(self) -> bool:
        """Whether an example may hold several texts that do not see one another."""
        return self.packing == MASKED


@dataclass(frozen=True)
class DatasetUse:
    """A dataset of a run, with GPT-Neo's mixing settings; stitch and datatype act with `generic_text` only."""

    dataset: DatasetConfig
    stitch: int | None = None
    datatype: str = "chunks"
    weight: float | None = None


@dataclass(frozen=True)
class Globs:
    """The tfrecords of a dataset without a config, as in an older form of GPT-Neo's `datasets`."""

    path: str
    eval_path: str | None


@dataclass(frozen=True)
class DatasetEntry:
    """A member of the key `datasets` before its dataset config is loaded: an id, the config itself, or two globs."""

    source: str | Mapping[str, Any] | Globs
    stitch: int | None = None
    datatype: str = "chunks"
    weight: float | None = None


DATASETS_EXAMPLE = 'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]'
TFRECORDS = ".tfrecords"
GLOBS_EXAMPLE = 'write it as [["a_*.tfrecords", "b_*.tfrecords", 25, "documents_random", 1.0]]'
STITCH = optional(integer(1))


def _parse_datatype(value: Any) -> str:
    named = {None: "chunks", RANDOM_SAMPLE: "documents_random"}
    return named[value] if value in (None, RANDOM_SAMPLE) else one_of(DATATYPES).parse(value)


DATATYPE = Kind("", _parse_datatype)


def _parse_source(source: Any) -> str | Mapping[str, Any]:
    named = isinstance(source, dict) and isinstance(source.get("id"), str)
    if not named and not (isinstance(source, str) and source.strip()):
        raise ValueIssue("holds an entry without a dataset id", DATASETS_EXAMPLE)
    _check_dataset_id(source["id"] if named else source)
    return source


def _parse_globs(path: Any, eval_path: Any) -> Globs:
    return Globs(parse_part("the glob", TEXT, path), parse_part("the evaluation glob", PATH, eval_path))


def _check_dataset_id(dataset_id: str) -> None:
    """Rejects an id that is not a plain name, since it names a file and a folder."""
    if not dataset_id.strip(" .") or set("/\\\0") & set(dataset_id) or not is_unicode(dataset_id):
        raise ValueIssue(f"the dataset id {dataset_id!r} is not a plain name", "give one without slashes, such as pile")


def _parse_dataset_entry(entry: Any) -> DatasetEntry:
    if not isinstance(entry, list):
        return DatasetEntry(_parse_source(entry))
    if len(entry) not in (4, 5):
        raise ValueIssue("holds an entry that is not [id, stitch, datatype, weight]", DATASETS_EXAMPLE)
    if len(entry) == 4 and isinstance(entry[0], str) and entry[0].endswith(TFRECORDS):
        problem = "holds tfrecords in an entry that is not [train glob, eval glob, stitch, datatype, weight]"
        raise ValueIssue(problem, GLOBS_EXAMPLE)
    *source, stitch, datatype, weight = entry
    parsed = DatasetEntry(
        _parse_source(*source) if len(source) == 1 else _parse_globs(*source),
        parse_part("stitch", STITCH, stitch),
        parse_part("datatype", DATATYPE, datatype),
        parse_part("weight", optional(POSITIVE), weight),
    )
    if parsed.datatype != "chunks" and parsed.stitch is None:
        raise ValueIssue(f"gives {parsed.datatype} no stitch", "give the number of documents to join, such as 25")
    return parsed


def _parse_datasets(value: Any) -> tuple[DatasetEntry, ...]:
    if not isinstance(value, list):
        raise ValueIssue("is not a list", DATASETS_EXAMPLE)
    return tuple(_parse_dataset_entry(entry) for entry in value)


def written_keys(config: Any) -> dict[str, Any]:
    """Returns the keys and JSON values of one config object."""
    return {name: field.metadata["kind"].write(getattr(config, name)) for name, field in keys_of(type(config)).items()}


def _write_datasets(uses: Sequence[DatasetUse]) -> list:
    return [[{"id": use.dataset.id} | written_keys(use.dataset), use.stitch, use.datatype, use.weight] for use in uses]


DATASETS = Kind("a list of ids, or of [id, stitch, datatype, weight]", _parse_datasets, _write_datasets)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data."""

    datasets: tuple[DatasetUse, ...] = setting(
        DATASETS,
        "The datasets: ids of files in dataset_configs/ beside this file or in configs/, or dataset configs with their "
        "ids. Required unless no_dataset. stitch: documents that are joined to cut one example from; "
        "datatype: chunks (records of n_ctx + 1 ids), documents_fixed (an example is the beginning of stitch joined "
        "documents) or documents_random (a random part of them); weight: relative share of the examples, 1 if absent.",
        default=(),
    )
    input_fn: str = setting(
        one_of(INPUT_FNS),
        "sequential_input reads fixed-length chunks, each from a dataset that is sampled by weight; if no entry of "
        "datasets has a weight, all datasets are read as one, as in GPT-Neo. It ignores stitch and datatype. "
        "generic_text uses all three.",
        default="sequential_input",
    )
    shuffle_input_filenames: bool = setting(
        FLAG,
        "Shuffles the order of training files by seed and epoch; records keep their order within a file.",
        default=True,
    )
    on_bad_record: str = setting(
        one_of(("stop", "skip")),
        "What training does at a record that it cannot use: stop and name it, or skip it and warn.",
        default="stop",
    )
    max_bad_share: float = setting(
        SHARE, "With on_bad_record skip: fraction of bad records above which training stops.", default=0.01
    )
    no_dataset: bool = setting(FLAG, "The run has neither dataset nor tokenizer.", default=False)
    keep_tokenizer: bool = setting(
        FLAG,
        "With --init_from, the datasets use the tokenizer that lies beside the weights, and may name no other. false: "
        "they use their own, and the embeddings of the weights are those of other tokens.",
        default=True,
    )
    eos_id: int | None = setting(
        optional(integer(0)),
        "Id that ends a document; less than n_vocab.",
        default=1,
        default_text="the datasets', else 1",
    )
    end_ids: tuple[int, ...] = setting(
        unless_off(integers(integer(0), "[128001, 128009]"), ()),
        "Ids besides eos_id that end a generated text.",
        default=(),
        default_text="those of the weights' generation_config.json or config.json",
    )
    padding_id: int | None = setting(
        optional(integer(0)),
        "Id that fills up an example; not counted in evaluation. n_vocab itself (a padding token that was added to the "
        "tokenizer, outside the token embedding) means eos_id, and so does a tokenizer without a padding token.",
        default=0,
        default_text="the datasets', else 0",
    )
    mlm_mask_id: int | None = setting(
        optional(integer(0)), "Masked training: id that replaces masked tokens; required.", default=None
    )
    mlm_cls_token_id: int | None = setting(
        optional(integer(0)), "Masked training: id at the start of every example; null: none.", default=None
    )
    mlm_mask_prob: float = setting(
        TOP_P, "Masked training: fraction of the tokens that are predicted.", unit="probability", default=0.15
    )
    mlm_same_token_prob: float = setting(
        SHARE,
        "Masked training: fraction of the predicted tokens that are left unchanged.",
        unit="probability",
        default=0.10,
    )
    mlm_random_token_prob: float = setting(
        SHARE,
        "Masked training: fraction of the predicted tokens that are replaced by random ones.",
        unit="probability",
        default=0.0,
    )
    mlm_mask_ignore_ids: tuple[int, ...] = setting(
        unless_off(integers(integer(0), "[0, 5]"), ()), "Masked training: ids that are never predicted.", default=()
    )

    @property
    def has_segments(self) -> bool:
        """Whether an example of the run may hold several texts that do not see one another."""
        return any(use.dataset.has_segments for use in self.datasets)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The mesh of devices, and the mesh axis that each tensor dimension is split over."""

    mesh_shape: MeshShape | None = setting(
        MESH_SHAPE,
        "Axes of the device mesh and their sizes; none: the batch is split over all visible devices.",
        default=None,
    )
    layout: Layout | None = setting(
        LAYOUT,
        "Dimensions of tensors and the mesh axes they are split over; none: the batch over the first axis.",
        default=None,
    )
    elastic_mesh: bool = setting(
        SWITCH,
        "mesh_shape follows the number of devices or processes: the axes after the first keep their size as far as "
        "there are enough, and the first takes the rest.",
        default=False,
    )
    shard: str = setting(
        one_of(SHARDINGS),
        "optimizer: the replicas of the batch axis share the memory and the work of the optimiser: each keeps a part "
        "of its state and of the gradients, updates that part of the parameters, and receives the other parts. "
        "parameters: parameters lie in parts too, and are gathered block by block, for the forward pass and again for "
        "the backward pass. off: each replica does it all.",
        default=NO_SHARDING,
        source="Rajbhandari et al. 2020, ZeRO, sections 5.1 to 5.3",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of one run, checked together."""

    name: str = setting(TEXT, "Name of the run.", default_text="the stem of the file")
    model_path: str = setting(FOLDER, "Directory of checkpoints, metrics and samples.")
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    prediction: PredictionConfig
    data: DataConfig
    mesh: MeshConfig

    def with_batch_size(self, size: int) -> RunConfig:
        """Returns these settings with training batches of one size."""
        training = dataclasses.replace(self.training, train_batch_size=size, batch_size_warmup=())
        return dataclasses.replace(self, training=training)


GROUPS = {name: group for name, group in get_type_hints(RunConfig).items() if dataclasses.is_dataclass(group)}
# Every key of a model config, by name.
RUN_FIELDS = {name: field for group in (RunConfig, *GROUPS.values()) for name, field in keys_of(group).items()}
