"""What the values of a config must satisfy together, once each of them is valid by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.errors import ValueIssue
from configs.layout import find_layout_issues
from configs.reader import CrossCheck, KeyedIssues
from configs.schema import PREDICTION_KEYS, SAMPLING_KEYS, DatasetConfig, keys_of

RAW_TEXT_KEYS = ("text_exclude", "eval_fraction", "text_key")
MASKED_ID_KEYS = ("mlm_mask_id", "mlm_cls_token_id", "mlm_mask_ignore_ids", "n_vocab")


def _find_head_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["n_embd"] % values["n_head"]:
        problem = f"does not divide n_embd = {values['n_embd']}"
        yield "n_head", ValueIssue(problem, "choose n_head and n_embd so that n_embd / n_head is whole")


def _find_layer_issues(values: Mapping[str, Any]) -> KeyedIssues:
    expanded, n_layer = len(values["attention_types"]), values["n_layer"]
    if expanded not in (0, n_layer):
        problem = f"expands to {expanded} layers, but n_layer = {n_layer}"
        yield "attention_types", ValueIssue(problem, f"make it expand to {n_layer}, or set n_layer to {expanded}")


def _find_rotary_issues(values: Mapping[str, Any]) -> KeyedIssues:
    features = values["n_embd"] // values["n_head"]
    if values["rotary_emb"] and features % 2:
        problem = f"needs an even number of features a head; n_embd / n_head = {features}"
        yield "rotary_emb", ValueIssue(problem, "change n_head or n_embd, or set it to false")


def _find_axial_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["axial_pos_emb"] is None:
        return
    first, second = values["axial_pos_emb"]
    if first * second != values["n_ctx"]:
        problem = f"multiplies to {first * second}, but n_ctx = {values['n_ctx']}"
        yield "axial_pos_emb", ValueIssue(problem, "give two sizes whose product is n_ctx")
    if values["rotary_emb"]:
        yield "axial_pos_emb", ValueIssue("takes the place that rotary_emb takes too", "keep one of the two")


def _find_norm_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["scalenorm"] and values["rezero"]:
        yield "scalenorm", ValueIssue("changes norms that rezero takes away", "keep one of the two")


def _find_moe_issues(values: Mapping[str, Any]) -> KeyedIssues:
    layers, n_layer = values["moe_layers"], values["n_layer"]
    if layers and max(layers) >= n_layer:
        problem = f"names layer {max(layers)}, but the last of {n_layer} layers is {n_layer - 1}"
        yield "moe_layers", ValueIssue(problem, "count layers from 0")
    if len(set(layers)) < len(layers):
        yield "moe_layers", ValueIssue("names a layer twice", "name each once")


def _find_memory_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["num_mem_kv"] and values["attention_types"] and "global" not in values["attention_types"]:
        problem = "acts in global layers, and attention_types has none"
        yield "num_mem_kv", ValueIssue(problem, "set it to 0, or give a global layer")


def _find_masked_id_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["mlm_training"]:
        return
    mask_id, cls_id, ignored, n_vocab = (values[key] for key in MASKED_ID_KEYS)
    if mask_id is None:
        yield "mlm_mask_id", ValueIssue("is missing", "give the id to write in place of masked tokens")
    for key, token_id in (("mlm_mask_id", mask_id), ("mlm_cls_token_id", cls_id)):
        if token_id is not None and token_id >= n_vocab:
            yield key, ValueIssue(f"is no id below n_vocab = {n_vocab}", "give the id of the tokenizer")
    if max(ignored, default=0) >= n_vocab:
        problem = f"holds {max(ignored)}, which is no id below n_vocab = {n_vocab}"
        yield "mlm_mask_ignore_ids", ValueIssue(problem, "give ids of the tokenizer")
    if cls_id is not None and cls_id == mask_id:
        yield "mlm_cls_token_id", ValueIssue("is mlm_mask_id too", "give another id")
    if cls_id is not None and values["n_ctx"] == 1:
        yield "mlm_cls_token_id", ValueIssue("fills the whole context of n_ctx = 1", "raise n_ctx, or leave it out")
    if len({mask_id, cls_id, *ignored} - {None}) + 1 >= n_vocab:  # one more may be the id of padding
        yield "mlm_mask_ignore_ids", ValueIssue("leaves no id to be masked", "ignore fewer")


def _find_masked_share_issues(values: Mapping[str, Any]) -> KeyedIssues:
    same, random = values["mlm_same_token_prob"], values["mlm_random_token_prob"]
    if values["mlm_training"] and same + random > 1:
        problem = f"and mlm_same_token_prob = {same} make more than all masked tokens"
        yield "mlm_random_token_prob", ValueIssue(problem, "lower one, to a sum of at most 1")


def _find_masked_text_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["mlm_training"] and values["predict_steps"]:
        yield "predict_steps", ValueIssue("asks for samples, but a masked model writes no text", "set it to 0")


def _find_top_k_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["top_k"] > values["n_vocab"]:
        yield "top_k", ValueIssue(f"is more than n_vocab = {values['n_vocab']}", "lower it; 0 turns it off")


def _find_beam_issues(values: Mapping[str, Any]) -> KeyedIssues:
    n_beams = values["num_beams"]
    if n_beams == 1:
        return
    for key in SAMPLING_KEYS:
        if values[key] not in (0, PREDICTION_KEYS[key].default):  # a temperature of 0 samples nothing either
            yield (
                key,
                ValueIssue(f"acts in sampling, and num_beams = {n_beams} samples nothing", "leave one of them out"),
            )
    if values["predict_batch_size"] > n_beams:
        yield "predict_batch_size", ValueIssue(f"is more than num_beams = {n_beams}", "lower it, or raise num_beams")


def _find_missing_datasets(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["datasets"] and not values["no_dataset"]:
        yield "datasets", ValueIssue("names no dataset", 'give ids, such as ["pile"], or set no_dataset to true')


def _find_mesh_issues(values: Mapping[str, Any]) -> KeyedIssues:
    for issue in find_layout_issues(values["mesh_shape"], values["layout"], dict(_dimension_sizes(values))):
        yield "layout", issue


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
    if "n_embd" in values:
        yield "intermediate_expanded", ("4 n_embd", 4 * values["n_embd"])
    if values.get("moe_layers") and "moe_params" in values:
        yield "experts", ("moe_num_experts", values["moe_params"].moe_num_experts)
        yield "expert_hidden", ("moe_hidden_size", values["moe_params"].moe_hidden_size)


def _find_source_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if not values["path"] and not values["text"]:
        yield "path", ValueIssue("names no data", "give path, the glob of tfrecords, or text, the raw text")
    if values["path"] and values["text"]:
        yield "path", ValueIssue("names tfrecords, but text names raw text", "keep one of the two")
    if values["eval_path"] and values["text"]:
        yield "eval_path", ValueIssue("acts with path only", "remove it; eval_fraction holds out documents of text")


def _find_tokenizer_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["path"] and not values["tokenizer_path"]:
        yield "tokenizer_path", ValueIssue("is missing", "give the tokenizer that made the tfrecords")
    if values["tokenizer_is_pretrained"] and not values["tokenizer_path"]:
        yield "tokenizer_is_pretrained", ValueIssue("needs tokenizer_path", "give its name, such as gpt2")


def _find_idle_text_issues(values: Mapping[str, Any]) -> KeyedIssues:
    defaults = keys_of(DatasetConfig)
    for key in RAW_TEXT_KEYS:
        if not values["text"] and values.get(key, defaults[key].default) != defaults[key].default:
            yield key, ValueIssue("acts with raw text only", "remove it, or give text")


def _find_eos_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["eos_id"] >= values["n_vocab"]:
        yield "eos_id", ValueIssue(f"is no id below n_vocab = {values['n_vocab']}", "give the id of the tokenizer")


def _find_padding_issues(values: Mapping[str, Any]) -> KeyedIssues:
    if values["padding_id"] > values["n_vocab"]:
        problem = f"is no id up to n_vocab = {values['n_vocab']}"
        yield "padding_id", ValueIssue(problem, "give the id of the tokenizer")


PREDICTION_CHECKS: tuple[CrossCheck, ...] = (
    (("top_k", "n_vocab"), _find_top_k_issues),
    (("num_beams", "predict_batch_size", *SAMPLING_KEYS), _find_beam_issues),
)
RUN_CHECKS: tuple[CrossCheck, ...] = (
    (("n_head", "n_embd"), _find_head_issues),
    (("attention_types", "n_layer"), _find_layer_issues),
    (("n_head", "n_embd", "rotary_emb"), _find_rotary_issues),
    (("axial_pos_emb", "n_ctx", "rotary_emb"), _find_axial_issues),
    (("scalenorm", "rezero"), _find_norm_issues),
    (("moe_layers", "n_layer"), _find_moe_issues),
    (("num_mem_kv", "attention_types"), _find_memory_issues),
    (("mlm_training", "n_ctx", *MASKED_ID_KEYS), _find_masked_id_issues),
    (("mlm_training", "mlm_same_token_prob", "mlm_random_token_prob"), _find_masked_share_issues),
    (("mlm_training", "predict_steps"), _find_masked_text_issues),
    *PREDICTION_CHECKS,
    (("datasets", "no_dataset"), _find_missing_datasets),
    (("mesh_shape", "layout"), _find_mesh_issues),
)
SPECIAL_ID_CHECKS: tuple[CrossCheck, ...] = (
    (("eos_id", "n_vocab"), _find_eos_issues),
    (("padding_id", "n_vocab"), _find_padding_issues),
)

DATASET_CHECKS: tuple[CrossCheck, ...] = (
    (("path", "text", "eval_path"), _find_source_issues),
    (("path", "tokenizer_path", "tokenizer_is_pretrained"), _find_tokenizer_issues),
    (("text",), _find_idle_text_issues),
    *SPECIAL_ID_CHECKS,
)
