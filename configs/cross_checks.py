"""What the values of a config must satisfy together, once each of them is valid by itself.

A check takes the values of the keys that its parameters name, or all as `values`, and yields what is wrong: a
key, the problem and the remedy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from configs.layout import Layout, MeshShape, find_layout_issues
from configs.schema import (
    BLOCKS,
    LAYER_NORM,
    NO_SHARDING,
    NOAM_DECAYS,
    NORM_AFTER,
    NORM_BEFORE,
    NORM_BOTH,
    PREDICTION_KEYS,
    RANKING,
    RMS_NORM,
    SAMPLING_KEYS,
    SEQUENTIAL,
    STREAM,
    VALIDATION,
    DatasetConfig,
    DatasetEntry,
    ModelConfig,
    TaskEntry,
    keys_of,
)

KeyedIssues = Iterator[tuple[str, str, str]]
CrossCheck = Callable[..., KeyedIssues]

# The keys that name data, with the words that messages use for them.
SOURCES = {"path": "tfrecords", "text": "raw text", "dialogue": "raw conversations", "pairs": "pairs"}
# The sources that a key of a dataset config acts on.
KEYS_OF_SOURCES = {
    **dict.fromkeys(("text_key", "document_separator", "special_tokens"), ("text",)),
    **dict.fromkeys(("text_exclude", "eval_fraction", "on_bad_file"), ("text", "dialogue", "pairs")),
    **dict.fromkeys(("reverse", "two_turn", "max_turns"), ("dialogue",)),
    "chat_template": ("dialogue", "path"),
}


def _find_head_issues(n_head: int, n_embd: int, n_kv_head: int | None, head_dim: int | None) -> KeyedIssues:
    if head_dim is None and n_embd % n_head:
        remedy = "choose n_head and n_embd so that n_embd / n_head is whole, or give head_dim"
        yield "n_head", f"does not divide n_embd = {n_embd}", remedy
    if n_kv_head is not None and n_head % n_kv_head:
        yield "n_kv_head", f"does not divide n_head = {n_head}", "choose them so that n_head / n_kv_head is whole"


def _find_scale_issues(attention_scale: float | None, scale_attn_weights: bool) -> KeyedIssues:
    if attention_scale is not None and scale_attn_weights:
        yield "attention_scale", "scales what scale_attn_weights scales too", "keep one of the two"


def _find_recompute_issues(recompute: str | None, recompute_grad: bool) -> KeyedIssues:
    if recompute_grad and recompute not in (None, BLOCKS):
        yield "recompute", f"recompute_grad = true means {BLOCKS}", "keep one of the two"


def _find_layer_issues(attention_types: tuple[str, ...], n_layer: int) -> KeyedIssues:
    expanded = len(attention_types)
    if expanded not in (0, n_layer):
        remedy = f"make it expand to {n_layer}, or set n_layer to {expanded}"
        yield "attention_types", f"expands to {expanded} layers, but n_layer = {n_layer}", remedy


def _find_rotary_issues(
    n_head: int, n_embd: int, head_dim: int | None, rotary_emb: bool, rotary_dim: int | None
) -> KeyedIssues:
    features = head_dim or n_embd // n_head
    if rotary_dim is not None:
        if rotary_dim % 2 or rotary_dim > features:
            yield "rotary_dim", f"is not an even number of at most {features}, the features of a head", "change it"
    elif rotary_emb and features % 2:
        what = "n_embd / n_head" if head_dim is None else "head_dim"
        problem = f"needs an even number of features per head, but {what} = {features}"
        yield "rotary_emb", problem, "change n_head, n_embd or head_dim, or set it to false"


def _find_idle_rotary_issues(rotary_emb: bool, values: Mapping[str, Any]) -> KeyedIssues:
    for key in ("rotary_base", "rotary_dim", "rotary_style", "rotary_scaling"):
        default = keys_of(ModelConfig)[key].default
        if not rotary_emb and values.get(key, default) != default:
            yield key, "has no effect without rotary_emb", "set rotary_emb to true, or leave it out"


def _find_axial_issues(axial_pos_emb: tuple[int, int] | None, n_ctx: int, rotary_emb: bool) -> KeyedIssues:
    if axial_pos_emb is None:
        return
    n_positions = axial_pos_emb[0] * axial_pos_emb[1]
    if n_positions != n_ctx:
        problem = f"multiplies to {n_positions}, but n_ctx = {n_ctx}"
        yield "axial_pos_emb", problem, "give two sizes whose product is n_ctx"
    if rotary_emb:
        yield "axial_pos_emb", "cannot be combined with rotary_emb", "keep one of the two"


def _find_norm_issues(
    scalenorm: bool, rezero: bool, norm: str, norm_unit_offset: bool, norm_placement: str, parallel_residual: str
) -> KeyedIssues:
    placed = {
        "scalenorm": scalenorm,
        "norm_placement": norm_placement != NORM_BEFORE,
        "parallel_residual": parallel_residual != SEQUENTIAL,
    }
    for key, is_given in placed.items():
        if rezero and is_given:
            yield key, "changes the norms that rezero removes", "keep one of the two"
    if scalenorm and norm != LAYER_NORM:
        yield "scalenorm", f"is a form of {LAYER_NORM}, but norm = {norm}", "keep one of the two"
    if norm_unit_offset and norm != RMS_NORM:
        yield "norm_unit_offset", f"acts on the gain of {RMS_NORM}, but norm = {norm}", f"set norm to {RMS_NORM}"


def _find_absent_norm_issues(
    rezero: bool, no_weight_tie: bool, final_norm: bool | None, objective: str, values: Mapping[str, Any]
) -> KeyedIssues:
    has_final_norm = (objective == RANKING or not no_weight_tie) if final_norm is None else final_norm
    for key in ("norm", "norm_epsilon", "norm_unit_offset"):
        default = keys_of(ModelConfig)[key].default
        if rezero and not has_final_norm and values.get(key, default) != default:
            yield key, "has no effect: rezero removes the norms of blocks, and there is no final norm", "remove it"


def _find_block_issues(
    norm_placement: str, parallel_residual: str, macaron: bool, none_doubles_residual: bool
) -> KeyedIssues:
    if macaron and norm_placement != NORM_BEFORE:
        yield "norm_placement", "says nothing of the first half of macaron, which has no norm", "keep one of the two"
    if parallel_residual == SEQUENTIAL:
        return
    if norm_placement == NORM_AFTER:
        problem = f"counts the norms before attention and feed-forward, and norm_placement = {NORM_AFTER} has none"
        yield "parallel_residual", problem, f"set norm_placement to {NORM_BEFORE} or {NORM_BOTH}"
    for key, is_given in (("macaron", macaron), ("none_doubles_residual", none_doubles_residual)):
        if is_given:
            yield "parallel_residual", f"cannot be combined with {key}", "keep one of the two"


def _find_gate_issues(gated_mlp: bool, mlp_glu: bool) -> KeyedIssues:
    if gated_mlp and mlp_glu:
        yield "gated_mlp", "and mlp_glu are two forms of a gate", "keep one of the two"


def _find_moe_issues(moe_layers: tuple[int, ...], n_layer: int) -> KeyedIssues:
    last = max(moe_layers, default=0)
    if last >= n_layer:
        problem = f"names layer {last}, but the last of {n_layer} layers is {n_layer - 1}"
        yield "moe_layers", problem, "count layers from 0"
    if len(set(moe_layers)) < len(moe_layers):
        yield "moe_layers", "names a layer twice", "name each once"


def _find_adapter_issues(
    lora_rank: int, lora_targets: tuple[str, ...], opt_name: str, values: Mapping[str, Any]
) -> KeyedIssues:
    fields = keys_of(ModelConfig)
    for key in ("lora_alpha", "lora_dropout", "lora_targets"):
        if not lora_rank and values.get(key, fields[key].default) != fields[key].default:
            yield key, "has no effect without lora_rank", "give lora_rank too, or leave it out"
    if not lora_rank:
        return
    has = _adaptable_layers(values)
    for target in lora_targets:
        if target not in has:
            yield "lora_targets", f"names {target}, which {_why_not_adaptable(target)}", f"use {', '.join(has)}"
    if opt_name == "muon":
        yield "opt_name", "updates the matrices that lora_rank freezes", "give adamw"


def _adaptable_layers(values: Mapping[str, Any]) -> list[str]:
    """Returns the targets of adapters that a model has."""
    attention, n_layer = values.get("attention_types"), values.get("n_layer", 1)
    has_attention = not attention or set(attention) != {"none"}
    has_feed_forward = values.get("macaron") or len(set(values.get("moe_layers", ()))) < n_layer
    gate = ["c_gate"] if values.get("gated_mlp") else []
    return [*(["q", "k", "v", "o"] if has_attention else []), *(["c_fc", *gate, "c_proj"] if has_feed_forward else [])]


def _why_not_adaptable(target: str) -> str:
    if target == "c_gate":
        return "models with gated_mlp have, in layers without experts"
    return "no layer has: experts are not adapted" if target.startswith("c_") else "no layer has"


def _find_memory_issues(num_mem_kv: int, attention_types: tuple[str, ...]) -> KeyedIssues:
    if num_mem_kv and attention_types and "global" not in attention_types:
        problem = "acts in global layers, and attention_types has none"
        yield "num_mem_kv", problem, "set it to 0, or give a global layer"


def _find_softcap_issues(attention_softcap: float | None, attention_types: tuple[str, ...]) -> KeyedIssues:
    if attention_softcap and attention_types and not {"global", "local"} & set(attention_types):
        problem = "acts in global and local layers, and attention_types has none"
        yield "attention_softcap", problem, "leave it out, or give such a layer"


def _find_mup_issues(
    mup_base_width: int,
    opt_name: str,
    lr_decay: str | None,
    attention_types: tuple[str, ...],
    n_head: int,
    head_dim: int | None,
) -> KeyedIssues:
    if not mup_base_width:
        return
    if head_dim is None and mup_base_width % n_head:
        problem = f"is not divisible by n_head = {n_head}, and without head_dim narrower models have as many heads"
        yield "mup_base_width", problem, "give head_dim if they have fewer, or change one of the two"
    if opt_name == "adafactor":
        problem = "has no rule for opt_name = adafactor, whose updates are relative to the weights"
        yield "mup_base_width", problem, "use adam, adamw, lion or muon"
    if lr_decay in NOAM_DECAYS:
        yield "lr_decay", "scales lr by n_embd, as mup_base_width does by its own rule", "keep one of the two"
    if "linear" in attention_types:
        yield "mup_base_width", "has no rule for linear attention", "leave it out, or use global or local attention"


def _find_masked_id_issues(
    mlm_training: bool,
    mlm_mask_id: int | None,
    mlm_cls_token_id: int | None,
    mlm_mask_ignore_ids: tuple[int, ...],
    n_vocab: int,
    n_ctx: int,
) -> KeyedIssues:
    if not mlm_training:
        return
    if mlm_mask_id is None:
        yield "mlm_mask_id", "is missing", "give the id that replaces masked tokens"
    for key, token_id in (("mlm_mask_id", mlm_mask_id), ("mlm_cls_token_id", mlm_cls_token_id)):
        if token_id is not None and token_id >= n_vocab:
            yield key, f"is not below n_vocab = {n_vocab}", "give an id of the tokenizer"
    largest = max(mlm_mask_ignore_ids, default=0)
    if largest >= n_vocab:
        yield (
            "mlm_mask_ignore_ids",
            f"holds {largest}, which is not below n_vocab = {n_vocab}",
            "give ids of the tokenizer",
        )
    if len({mlm_mask_id, mlm_cls_token_id, *mlm_mask_ignore_ids} - {None}) + 1 >= n_vocab:  # padding may be one more
        yield "mlm_mask_ignore_ids", "leaves no id to be masked", "ignore fewer"
    if mlm_cls_token_id is not None and mlm_cls_token_id == mlm_mask_id:
        yield "mlm_cls_token_id", "is the same as mlm_mask_id", "give another id"
    if mlm_cls_token_id is not None and n_ctx == 1:
        yield "mlm_cls_token_id", "fills the whole context of n_ctx = 1", "raise n_ctx, or leave it out"


def _find_masked_share_issues(
    mlm_training: bool, mlm_same_token_prob: float, mlm_random_token_prob: float
) -> KeyedIssues:
    if mlm_training and mlm_same_token_prob + mlm_random_token_prob > 1:
        problem = f"exceeds 1 together with mlm_same_token_prob = {mlm_same_token_prob}"
        yield "mlm_random_token_prob", problem, "lower one of the two"


def _find_objective_issues(objective: str, values: Mapping[str, Any]) -> KeyedIssues:
    for key in ("mlm_training", "entmax_loss", "head_bias", "logit_softcap"):
        if objective == RANKING and values.get(key):
            yield "objective", f"is {RANKING}, and {key} is about the likelihood of tokens", f"leave {key} out"


def _find_task_issues(eval_tasks: tuple[TaskEntry, ...], mlm_training: bool, objective: str) -> KeyedIssues:
    named = [entry.name for entry in eval_tasks if entry.name != VALIDATION]
    if named and (mlm_training or objective == RANKING):
        what = "mlm_training = true" if mlm_training else f"objective = {RANKING}"
        yield "eval_tasks", f"names {named[0]}, and {what} gives no likelihood of a text", f"keep {VALIDATION} alone"


def _find_top_k_issues(top_k: int, n_vocab: int) -> KeyedIssues:
    if top_k > n_vocab:
        yield "top_k", f"is more than n_vocab = {n_vocab}", "lower it; 0 turns it off"


def _find_beam_issues(num_beams: int, predict_batch_size: int, values: Mapping[str, Any]) -> KeyedIssues:
    if num_beams == 1:
        return
    for key in SAMPLING_KEYS:
        default = PREDICTION_KEYS[key].default
        if values.get(key, default) not in (0, default):  # a temperature of 0 samples nothing either
            yield key, f"has no effect on beam search (num_beams = {num_beams})", "leave one of them out"
    if predict_batch_size > num_beams:
        yield "predict_batch_size", f"is more than num_beams = {num_beams}", "lower it, or raise num_beams"


def _find_batch_size_issues(batch_size_warmup: tuple[tuple[int, int], ...], train_batch_size: int) -> KeyedIssues:
    sizes = [size for _, size in batch_size_warmup]
    if sizes and sizes[-1] != train_batch_size:
        remedy = f"add [STEP, {train_batch_size}] at its end, or change train_batch_size"
        yield "batch_size_warmup", f"ends with {sizes[-1]}, but train_batch_size = {train_batch_size}", remedy
    elif max(sizes, default=0) > train_batch_size:
        yield "batch_size_warmup", f"exceeds train_batch_size = {train_batch_size}", "lower its sizes"


def _find_decay_issues(
    lr_decay: str | None, lr_decay_steps: int | None, lr_decay_end: int, warmup_steps: int
) -> KeyedIssues:
    if lr_decay == "wsd" and lr_decay_steps is not None and warmup_steps + lr_decay_steps > lr_decay_end:
        problem = f"and warmup_steps = {warmup_steps} are more than lr_decay_end = {lr_decay_end}"
        yield "lr_decay_steps", problem, "lower one of the two; lr_decay_end is train_steps unless it is given"


def _find_missing_datasets(datasets: tuple[DatasetEntry, ...], no_dataset: bool) -> KeyedIssues:
    if not datasets and not no_dataset:
        yield "datasets", "names no dataset", 'give ids, such as ["pile"], or set no_dataset to true'


def _find_mesh_issues(mesh_shape: MeshShape | None, layout: Layout | None, values: Mapping[str, Any]) -> KeyedIssues:
    for issue in find_layout_issues(mesh_shape, layout, dict(_dimension_sizes(values))):
        yield "layout", issue.problem, issue.remedy


def _find_sharding_issues(shard: str, layout: Layout | None) -> KeyedIssues:
    if shard != NO_SHARDING and layout is not None and "batch" not in dict(layout):
        remedy = f"add batch to layout, or set shard to {NO_SHARDING}"
        yield "shard", "splits over the axis of batch, which layout leaves whole", remedy


def _dimension_sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yields each dimension whose size is known, with the name of that size in the config."""
    sources = {
        "sequence": "n_ctx",
        "memory_length": "n_ctx",
        "embed_sequence": "n_ctx",
        "embd": "n_embd",
        "heads": "n_head",
        "vocab": "n_vocab",
    }
    for dimension, key in sources.items():
        if key in values:
            yield dimension, (key, values[key])
    if values.get("n_kv_head"):
        yield "kv_heads", ("n_kv_head", values["n_kv_head"])
    if values.get("n_inner"):
        yield "intermediate_expanded", ("n_inner", values["n_inner"])
    elif "n_embd" in values:
        yield "intermediate_expanded", ("4 n_embd", 4 * values["n_embd"])
    if values.get("lora_rank"):
        yield "lora_rank", ("lora_rank", values["lora_rank"])
    if values.get("moe_layers") and "moe_params" in values:
        yield "experts", ("moe_num_experts", values["moe_params"].moe_num_experts)
        yield "expert_hidden", ("moe_hidden_size", values["moe_params"].moe_hidden_size)


def _find_source_issues(eval_path: str | None, values: Mapping[str, Any]) -> KeyedIssues:
    given = [key for key in SOURCES if values.get(key)]
    if not given and not eval_path:
        remedy = "give path, the glob of tfrecords, or text, dialogue or pairs, the raw data"
        yield "path", "names no data", remedy
    for first, second in itertools.pairwise(given):
        problem = f"names {SOURCES[first]}, but {second} names {SOURCES[second]}"
        yield first, problem, "keep one of the two; datasets may list several datasets"
    if eval_path and given and given[0] != "path":
        problem = f"has no effect on {SOURCES[given[0]]}"
        yield "eval_path", problem, "remove it; eval_fraction holds out documents"


def _find_packing_issues(packing: str | None, values: Mapping[str, Any]) -> KeyedIssues:
    if packing == STREAM and (values.get("dialogue") or values.get("pairs")):
        yield "packing", "would let the conversations of an example see one another", "remove it"


def _find_tokenizer_issues(
    path: str | None, eval_path: str | None, tokenizer_path: str | None, tokenizer_is_pretrained: bool
) -> KeyedIssues:
    if (path or eval_path) and not tokenizer_path:
        yield "tokenizer_path", "is missing", "give the tokenizer that made the tfrecords"
    if tokenizer_is_pretrained and not tokenizer_path:
        yield "tokenizer_is_pretrained", "needs tokenizer_path", "give its name, such as gpt2"


def _find_idle_source_issues(eval_path: str | None, values: Mapping[str, Any]) -> KeyedIssues:
    given = {key for key in SOURCES if values.get(key)} | ({"path"} if eval_path else set())
    for key, sources in KEYS_OF_SOURCES.items():
        default = keys_of(DatasetConfig)[key].default
        if not given & set(sources) and values.get(key, default) != default:
            named = " and ".join(SOURCES[source] for source in sources)
            yield key, f"has an effect on {named} only", f"remove it, or give {' or '.join(sources)}"


def _find_eos_issues(eos_id: int | None, n_vocab: int) -> KeyedIssues:
    if eos_id is not None and eos_id >= n_vocab:
        yield "eos_id", f"is not below n_vocab = {n_vocab}", "give the id of the tokenizer"


def _find_end_issues(end_ids: tuple[int, ...], n_vocab: int) -> KeyedIssues:
    above = [end for end in end_ids if end >= n_vocab]
    if above:
        yield "end_ids", f"{above[0]} is not below n_vocab = {n_vocab}", "give ids of the tokenizer"


def _find_padding_issues(padding_id: int | None, n_vocab: int) -> KeyedIssues:
    if padding_id is not None and padding_id > n_vocab:
        yield "padding_id", f"is more than n_vocab = {n_vocab}", "give the id of the tokenizer"


PREDICTION_CHECKS: tuple[CrossCheck, ...] = (_find_top_k_issues, _find_beam_issues)
SPECIAL_ID_CHECKS: tuple[CrossCheck, ...] = (_find_eos_issues, _find_padding_issues)
RUN_CHECKS: tuple[CrossCheck, ...] = (
    _find_head_issues,
    _find_scale_issues,
    _find_layer_issues,
    _find_rotary_issues,
    _find_idle_rotary_issues,
    _find_axial_issues,
    _find_norm_issues,
    _find_absent_norm_issues,
    _find_block_issues,
    _find_gate_issues,
    _find_moe_issues,
    _find_adapter_issues,
    _find_memory_issues,
    _find_recompute_issues,
    _find_softcap_issues,
    _find_mup_issues,
    _find_masked_id_issues,
    _find_masked_share_issues,
    _find_objective_issues,
    _find_task_issues,
    *PREDICTION_CHECKS,
    _find_batch_size_issues,
    _find_decay_issues,
    _find_missing_datasets,
    _find_mesh_issues,
    _find_sharding_issues,
)
DATASET_CHECKS: tuple[CrossCheck, ...] = (
    _find_source_issues,
    _find_packing_issues,
    _find_tokenizer_issues,
    _find_idle_source_issues,
    *SPECIAL_ID_CHECKS,
    _find_end_issues,
)
