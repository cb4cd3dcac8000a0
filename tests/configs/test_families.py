"""The families of Hugging Face: configs as they were published, what models they come to, and what is refused.

The configs are those of the published models; their numbers of parameters are those that their makers tell.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.families.table import FAMILIES
from configs.huggingface import family_for, huggingface_config, model_keys
from configs.load import load_config
from configs.schema import ModelConfig, keys_of

COMMON = {"initializer_range": 0.02, "use_cache": True, "transformers_version": "4.43.1", "torch_dtype": "bfloat16"}
LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt-j-6b": {
        **COMMON,
        **{"architectures": ["GPTJForCausalLM"], "model_type": "gptj", "activation_function": "gelu_new"},
        **{"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 50256, "eos_token_id": 50256},
        **{"gradient_checkpointing": False, "layer_norm_epsilon": 1e-05, "n_embd": 4096, "n_head": 16, "n_inner": None},
        **{"n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True},
        **{"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True},
        **{"summary_type": "cls_index", "summary_use_proj": True, "tie_word_embeddings": False, "vocab_size": 50400},
        **{"task_specific_params": {"text-generation": {"do_sample": True}}, "tokenizer_class": "GPT2Tokenizer"},
    },
    "pythia-160m": {
        **COMMON,
        **{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0},
        **{"hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05},
        **{"max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 50304},
        **{"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True},
    },
    "llama-2-7b": {
        **COMMON,
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2},
        **{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096},
        **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1},
        **{"rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000},
    },
    "llama-3.1-8b": {
        **COMMON,
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 128000},
        **{"eos_token_id": [128001, 128008, 128009], "attention_bias": False, "attention_dropout": 0.0},
        **{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072},
        **{"mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
        **{"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False},
        **{"rope_scaling": LLAMA_3_1, "vocab_size": 128256},
    },
    "mistral-7b": {
        **COMMON,
        **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2},
        **{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768},
        **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05},
        **{"rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000},
    },
    "qwen2.5-0.5b": {
        **COMMON,
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "bos_token_id": 151643},
        **{"eos_token_id": 151643, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896},
        **{"intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "use_mrope": False},
        **{"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06},
        **{"rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True},
        **{"use_sliding_window": False, "vocab_size": 151936},
    },
    "qwen3-0.6b": {
        **COMMON,
        **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128},
        **{"bos_token_id": 151643, "eos_token_id": 151645, "attention_dropout": 0.0, "hidden_act": "silu"},
        **{"hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28},
        **{"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06},
        **{"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True},
        **{"use_sliding_window": False, "vocab_size": 151936},
    },
    "olmo-2-7b": {
        **COMMON,
        **{
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "attention_bias": False,
            "pad_token_id": 100277,
        },
        **{"attention_dropout": 0.0, "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096},
        **{"intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32},
        **{"num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_scaling": None},
        **{"rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352},
    },
    "gemma-2-2b": {
        **COMMON,
        **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False, "bos_token_id": 2},
        **{"attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid"},
        **{"eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"},
        **{"hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "pad_token_id": 0},
        **{"max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26},
        **{"num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0},
        **{"sliding_window": 4096, "vocab_size": 256000},
    },
}
PARAMETERS = {
    "gpt-j-6b": 6_050_882_784,
    "pythia-160m": 162_322_944,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "olmo-2-7b": 7_298_617_344,
    "gemma-2-2b": 2_614_341_888,
}
RMS = {
    **{"norm": "rmsnorm", "gated_mlp": True, "mlp_bias": False, "attn_output_bias": False, "rotary_emb": True},
    **{"scale_attn_weights": True, "final_norm": True, "head_bias": False},
}
# What is not our default, besides the sizes.
OURS: dict[str, dict[str, Any]] = {
    "gpt-j-6b": {
        **{"parallel_residual": "one_norm", "rotary_emb": True, "rotary_style": "interleaved", "rotary_dim": 64},
        **{"scale_attn_weights": True, "attn_output_bias": False, "no_weight_tie": True, "final_norm": True},
        "head_bias": True,
    },
    "pythia-160m": {
        **{"parallel_residual": "two_norms", "rotary_emb": True, "rotary_dim": 16, "qkv_bias": True},
        **{"activation_function": "gelu_exact", "scale_attn_weights": True, "no_weight_tie": True},
        **{"final_norm": True, "head_bias": False, "n_inner": 3072},
    },
    "llama-2-7b": RMS | {"n_kv_head": 32, "n_inner": 11008, "activation_function": "silu", "no_weight_tie": True},
    "llama-3.1-8b": {
        **RMS,
        **{"n_kv_head": 8, "n_inner": 14336, "activation_function": "silu", "no_weight_tie": True},
        **{
            "rotary_base": 5e5,
            "rotary_scaling": {"type": "llama3", **{k: v for k, v in LLAMA_3_1.items() if k != "rope_type"}},
        },
    },
    "mistral-7b": {
        **RMS,
        **{"n_kv_head": 8, "n_inner": 14336, "activation_function": "silu", "no_weight_tie": True},
        **{"attention_types": [[["local"], 32]], "local_attention_radius": 4096},
    },
    "qwen2.5-0.5b": {
        **RMS,
        **{"n_kv_head": 2, "n_inner": 4864, "activation_function": "silu", "qkv_bias": True, "rotary_base": 1e6},
        "norm_epsilon": 1e-6,
    },
    "qwen3-0.6b": {
        **RMS,
        **{"n_kv_head": 8, "n_inner": 3072, "activation_function": "silu", "qk_norm": "head", "rotary_base": 1e6},
        **{"norm_epsilon": 1e-6, "head_dim": 128},
    },
    "olmo-2-7b": {
        **RMS,
        **{"n_kv_head": 32, "n_inner": 11008, "activation_function": "silu", "qk_norm": "projection"},
        **{"norm_epsilon": 1e-6, "norm_placement": "after", "rotary_base": 5e5, "no_weight_tie": True},
    },
    "gemma-2-2b": {
        **{key: value for key, value in RMS.items() if key != "scale_attn_weights"},
        **{"n_kv_head": 4, "head_dim": 256, "n_inner": 9216, "norm_epsilon": 1e-6, "norm_unit_offset": True},
        **{"norm_placement": "both", "attention_scale": 1 / 16, "attention_softcap": 50.0, "logit_softcap": 30.0},
        **{"embedding_scale": 48.0, "attention_types": [[["local", "global"], 13]], "local_attention_radius": 4096},
    },
}
SIZES = ("n_embd", "n_head", "n_layer", "n_ctx", "n_vocab")


def model_of(hf_config: dict[str, Any]) -> ModelConfig:
    fields, keys = keys_of(ModelConfig), model_keys(hf_config)
    return ModelConfig(**{key: fields[key].metadata["kind"].parse(value) for key, value in keys.items()})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_comes_to_these_settings(name: str) -> None:
    fields, keys = keys_of(ModelConfig), model_keys(PUBLISHED[name])
    own = {k: v for k, v in keys.items() if fields[k].metadata["kind"].parse(v) != fields[k].default and k not in SIZES}
    expected = {"attention_types": [[["global"], keys["n_layer"]]]} | OURS[name]
    assert own == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_passes_all_checks(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    assert load_config(str(tmp_path)).model == model_of(PUBLISHED[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_hold_as_many_parameters_as_were_published(name: str) -> None:
    keys = model_keys(PUBLISHED[name])
    tensors = FAMILIES[PUBLISHED[name]["model_type"]].tensors(keys)
    assert sum(math.prod(tensor.stored_shape(keys)) for tensor in tensors) == PARAMETERS[name]
    listed = [variable for tensor in tensors for variable in tensor.variables]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_is_exported_as_its_own_family_and_read_back(name: str) -> None:
    model = model_of(PUBLISHED[name])
    written = huggingface_config(model, eos_id=1)
    assert written["model_type"] == PUBLISHED[name]["model_type"] == family_for(model).model_type
    again = huggingface_config(model_of(written), eos_id=1)
    assert again == written
    unused = {"bos_token_id", "eos_token_id", *(() if "local" in model.attention_types else ("sliding_window",))}
    given = {key: value for key, value in PUBLISHED[name].items() if value is not None and key not in unused}
    assert {key: written[key] for key in given if key in written} == {k: v for k, v in given.items() if k in written}


def test_versions_4_and_5_spell_rotations_differently() -> None:
    old, scaling = PUBLISHED["llama-3.1-8b"], {"rope_theta": 500000.0, **LLAMA_3_1}
    new = {key: value for key, value in old.items() if not key.startswith("rope")} | {"rope_parameters": scaling}
    assert model_keys(new) == model_keys(old)
    older = old | {"rope_scaling": {("type" if k == "rope_type" else k): v for k, v in LLAMA_3_1.items()}}
    assert model_keys(older) == model_keys(old)
    pythia = PUBLISHED["pythia-160m"]
    shares = {"rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_type": "default"}
    spelled = {key: value for key, value in pythia.items() if not key.startswith("rotary")} | {
        "rope_parameters": shares
    }
    assert model_keys(spelled) == model_keys(pythia)
    assert model_keys({**old, "dtype": "bfloat16"}) == model_keys(old)


def test_the_default_length_of_a_scaling_is_that_of_the_model() -> None:
    yarn = PUBLISHED["qwen2.5-0.5b"] | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    expected = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert model_keys(yarn)["rotary_scaling"] == expected


def test_windows_by_layer() -> None:
    qwen = PUBLISHED["qwen2.5-0.5b"] | {"num_hidden_layers": 4, "max_window_layers": 3, "use_sliding_window": True}
    assert model_keys(qwen)["attention_types"] == [[["global", "global", "global", "local"], 1]]
    assert model_keys(qwen)["local_attention_radius"] == 32768
    named = qwen | {"layer_types": ["sliding_attention", "full_attention"] * 2}
    assert model_keys(named)["attention_types"] == [[["local", "global"], 2]]
    assert model_keys(PUBLISHED["mistral-7b"] | {"sliding_window": None})["attention_types"] == [[["global"], 32]]
    gemma = PUBLISHED["gemma-2-2b"] | {"num_hidden_layers": 3}
    assert model_keys(gemma)["attention_types"] == [[["local", "global", "local"], 1]]


MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("llama-2-7b", {"hidden_size": "4096"}, 'hidden_size = "4096": is not a size; copy the file again, it must'),
    ("llama-2-7b", {"intermediate_size": None}, "intermediate_size = null: is not a size; "),
    ("llama-2-7b", {"num_key_value_heads": 0}, "num_key_value_heads = 0: is not a size; "),
    ("llama-2-7b", {"hidden_act": "quick_gelu"}, 'hidden_act = "quick_gelu": known are gelu_new, gelu, '),
    ("llama-2-7b", {"attention_bias": 1}, "attention_bias = 1: is not true or false; copy the file again"),
    ("llama-2-7b", {"rms_norm_eps": -1}, "rms_norm_eps = -1: is out of range; copy the file again, it must give "),
    ("llama-2-7b", {"tie_word_embeddings": "no"}, 'tie_word_embeddings = "no": is not true or false; '),
    ("llama-2-7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling = {"),
    ("llama-2-7b", {"rope_scaling": {"type": "linear"}}, 'rope_scaling = {"type": "linear"}: lacks factor; '),
    ("llama-2-7b", {"rope_scaling": "linear"}, 'rope_scaling = "linear": is not an object; copy the file again'),
    ("llama-2-7b", {"rope_theta": "1e4"}, 'rope_theta = "1e4": is a string, not a number; '),
    ("llama-2-7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: only 1.0 is known here; "),
    ("llama-2-7b", {"quantization_config": {"bits": 4}}, "quantization_config = "),
    ("llama-2-7b", {"architectures": ["LlamaForTokenClassification"]}, "architectures = "),
    ("llama-2-7b", {"sliding_window": 4096}, "sliding_window = 4096: is not known of Llama, and may change what the "),
    ("llama-2-7b", {"is_encoder_decoder": True}, "is_encoder_decoder = true: only false is known; "),
    ("mistral-7b", {"sliding_window": "4096"}, 'sliding_window = "4096": is a string, not an integer; '),
    ("qwen2.5-0.5b", {"use_sliding_window": "no"}, 'use_sliding_window = "no": is not true or false; '),
    ("qwen2.5-0.5b", {"layer_types": ["full_attention"]}, 'layer_types = ["full_attention"]: has 1 members, not '),
    ("qwen2.5-0.5b", {"layer_types": ["chunked_attention"] * 24}, "layer_types = ["),
    ("qwen2.5-0.5b", {"layer_types": ["sliding_attention"] * 24}, "layer_types = ["),
    ("qwen3-0.6b", {"head_dim": 0.5}, "head_dim = 0.5: is not a size; "),
    ("pythia-160m", {"rotary_pct": 1.5}, "rotary_pct = 1.5: is not the share of a head that is rotated; "),
    ("pythia-160m", {"use_parallel_residual": None}, "use_parallel_residual = null: is not true or false; "),
    ("gpt-j-6b", {"rotary_dim": None}, "rotary_dim = null: is not a size; "),
    ("gemma-2-2b", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0: is out of range; "),
    ("gemma-2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true: only null is known; "),
]


@pytest.mark.parametrize(("name", "changed", "expected"), MALFORMED)
def test_what_is_not_understood_is_named(name: str, changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        model_keys(PUBLISHED[name] | changed, "there/config.json")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"there/config.json: {expected}") and "; " in line


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_unknown_key_is_never_ignored(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        model_keys(PUBLISHED[name] | {"attention_sinks": 4}, "there/config.json")
    title = FAMILIES[PUBLISHED[name]["model_type"]].title
    assert str(error.value) == (
        f"there/config.json: attention_sinks = 4: is not known of {title}, and may change what the model computes; "
        "remove the key if it does not, or give other weights"
    )


@pytest.mark.parametrize(
    ("name", "changed", "lines"),
    [
        ("llama-3.1-8b", {"qk_norm": "projection"}, ['qk_norm = "projection"']),
        ("llama-3.1-8b", {"final_norm": None, "head_bias": None}, ["final_norm = false", "head_bias = true"]),
        ("gemma-2-2b", {"embedding_scale": None}, ["embedding_scale = null"]),
        ("gemma-2-2b", {"attention_scale": 0.3}, ["attention_scale = 0.3"]),
        ("mistral-7b", {"rotary_dim": 64}, ["rotary_dim = 64"]),
    ],
)
def test_what_no_family_has_is_named_by_the_nearest(name: str, changed: dict[str, Any], lines: list[str]) -> None:
    fields = keys_of(ModelConfig)
    values = model_keys(PUBLISHED[name]) | changed
    model = ModelConfig(**{key: fields[key].metadata["kind"].parse(value) for key, value in values.items()})
    with pytest.raises(ConfigError) as error:
        huggingface_config(model, eos_id=0)
    architecture = PUBLISHED[name]["architectures"][0]
    remedy = f"{architecture} lacks it; export a SavedModel, or train without it"
    assert str(error.value).splitlines() == [f"{line}: {remedy}" for line in lines]
