"""The rules about keys of config.json that families share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import ConfigError, ValueIssue
from configs.families.family import Keys, MisreadError, Rule
from configs.kinds import Kind
from configs.schema import ModelConfig, keys_of

MODEL_KEYS = keys_of(ModelConfig)
REQUIRED: Any = object()  # a default: the key must be there
WITHOUT = "give weights trained without it"
AGAIN = "copy the file again"

# Our name of each activation. Of several names for one, a family's default is written, or else the first.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "mish": "mish",
    "linear": "id",
}
# Keys of every config.json without an effect on the numbers of a model. Those of special tokens and of generation count
# where text is made, and dropouts and initial values are those of the run that trains.
INERT = frozenset(
    (
        *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path"),
        *("name_or_path", "_commit_hash", "use_cache", "initializer_range", "gradient_checkpointing", "is_decoder"),
        *("return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss"),
        *("chunk_size_feed_forward", "tie_encoder_decoder", "cross_attention_hidden_size", "finetuning_task"),
        *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "task_specific_params", "prefix"),
        *("tokenizer_class", "pretraining_tp", "_attn_implementation", "attn_implementation"),
        *("_attn_implementation_autoset", "_attn_implementation_internal", "unsloth_version", "unsloth_fixed"),
        *("transformers.js_config", "xla_device"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
        *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty"),
    )
)


def kind_of(key: str) -> Kind:
    """Returns the kind of values that a key of ours has."""
    return MODEL_KEYS[key].metadata["kind"]


def is_understood(value: Any, kind: Kind) -> bool:
    """Returns whether a value is one of a kind."""
    try:
        kind.parse(value)
    except ConfigError:
        return False
    return True


def size(theirs: str, ours: str, default: Any = REQUIRED, written: Callable[[ModelConfig], Any] | None = None) -> Rule:
    """Returns the rule of a size, which has a key of ours.

    Args:
        theirs: their key.
        ours: our key.
        default: the size if the file does not tell it.
        written: the size of a model, where our key may leave it to others.
    """

    def read(hf_config: Keys) -> Keys:
        value = hf_config.get(theirs, None if default is REQUIRED else default)
        kind = kind_of(
            "n_embd" if value is None and default is REQUIRED else ours
        )  # that of a key that may not be null
        try:
            kind.parse(value)
        except ValueIssue as issue:
            remedy = issue.remedy.removesuffix(", without quotes")
            raise MisreadError(theirs, value, "is not a size", f"{AGAIN}, it must {remedy}") from None
        return {ours: value}

    return Rule((theirs,), read, lambda model: {theirs: written(model) if written else getattr(model, ours)})


def sizes(names: Mapping[str, str]) -> list[Rule]:
    """Returns the rules of sizes that must be there, by their names, with ours."""
    return [size(theirs, ours) for theirs, ours in names.items()]


def fixed(theirs: str, value: Any, is_written: bool = False) -> Rule:
    """Returns the rule of a key that must have one value, which is also its default."""

    def read(hf_config: Keys) -> Keys:
        given = hf_config.get(theirs, value)
        if type(given) is not type(value) or given != value:
            raise MisreadError(theirs, given, f"only {json.dumps(value)} is known", WITHOUT)
        return {}

    return Rule((theirs,), read, lambda model: {theirs: value} if is_written else {})


def activation(theirs: str, default: str) -> Rule:
    """Returns the rule of the activation of the feed-forward layers."""
    names = {ours: name for name, ours in reversed(ACTIVATIONS.items())} | {ACTIVATIONS[default]: default}

    def read(hf_config: Keys) -> Keys:
        given = hf_config.get(theirs, default)
        if given not in list(ACTIVATIONS):  # a list, since it may be unhashable
            raise MisreadError(theirs, given, f"known are {', '.join(ACTIVATIONS)}", WITHOUT)
        return {"activation_function": ACTIVATIONS[given]}

    def write(model: ModelConfig) -> Keys:
        name = names.get(model.activation_function)
        return {} if name is None else {theirs: name}

    return Rule((theirs,), read, write)


def dropouts(names: Mapping[str, str]) -> Rule:
    """Returns the rule of dropouts: a run has its own, and an export tells them."""
    return Rule(
        tuple(names), lambda _: {}, lambda model: {theirs: getattr(model, ours) for theirs, ours in names.items()}
    )


def implied(**ours: Any) -> Rule:
    """Returns the rule of what every model of a family has, whatever its config.json says."""
    return Rule((), lambda _: ours, lambda _: {})


def inert(*theirs: str) -> Rule:
    """Returns the rule of keys of a family without an effect on the numbers."""
    return Rule(theirs, lambda _: {}, lambda _: {})


def plain_weights(hf_config: Keys) -> Keys:
    """Refuses quantized weights; the reading half of a rule."""
    quantization = hf_config.get("quantization_config")
    if quantization is not None:
        remedy = "give the weights from before they were quantized"
        raise MisreadError("quantization_config", quantization, "only plain numbers are known as weights", remedy)
    return {}


PLAIN_WEIGHTS = Rule(("quantization_config",), plain_weights, lambda _: {})
DECODER_ALONE = (fixed("add_cross_attention", False), fixed("is_encoder_decoder", False), fixed("pruned_heads", {}))


def flag(theirs: str, *ours: str, default: bool) -> Rule:
    """Returns the rule of an option that is on or off, and may be several of ours."""

    def read(hf_config: Keys) -> Keys:
        value = hf_config.get(theirs, default)
        if not isinstance(value, bool):
            raise MisreadError(theirs, value, "is not true or false", AGAIN)
        return dict.fromkeys(ours, value)

    return Rule((theirs,), read, lambda model: {theirs: getattr(model, ours[0])})


def number(theirs: str, ours: str, default: float | None) -> Rule:
    """Returns the rule of a number, which has a key of ours."""

    def read(hf_config: Keys) -> Keys:
        return {ours: understood(theirs, hf_config.get(theirs, default), kind_of(ours))}

    return Rule((theirs,), read, lambda model: {theirs: getattr(model, ours)})


def understood(theirs: str, value: Any, kind: Kind) -> Any:
    """Returns a value, with JSON values, that is one of a kind of ours; raises `MisreadError` for any other."""
    try:
        return kind.write(kind.parse(value))
    except ValueIssue as issue:
        raise MisreadError(theirs, value, issue.problem, f"{AGAIN}, it must {issue.remedy}") from None


def tied_output(default: bool) -> Rule:
    """Returns the rule of the output layer of families with a final norm: the token table, or a kernel of its own."""

    def read(hf_config: Keys) -> Keys:
        tied = hf_config.get("tie_word_embeddings", default)
        if not isinstance(tied, bool):
            raise MisreadError("tie_word_embeddings", tied, "is not true or false", AGAIN)
        return {"no_weight_tie": not tied, "final_norm": True}

    return Rule(("tie_word_embeddings",), read, lambda model: {"tie_word_embeddings": not model.no_weight_tie})


def llama_sizes() -> list[Rule]:
    """Returns the rules of the sizes of most families since GPT-NeoX."""
    names = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    return sizes(names | {"max_position_embeddings": "n_ctx", "vocab_size": "n_vocab"})


def width(theirs: str, is_nullable: bool = False) -> Rule:
    """Returns the rule of the feed-forward width; null, where it may be: four times the width of the model."""
    if is_nullable:
        return size(theirs, "n_inner", None)
    return size(theirs, "n_inner", written=lambda model: model.feed_forward_width)


def key_heads(default: int | None) -> Rule:
    """Returns the rule of the heads of keys and values; null: as many as of queries."""
    return size("num_key_value_heads", "n_kv_head", default, lambda model: model.kv_heads)


def head_size(default: int | None) -> Rule:
    """Returns the rule of the features of a head; null: those of the model divided by its heads."""
    return size("head_dim", "head_dim", default, lambda model: model.features_per_head)
