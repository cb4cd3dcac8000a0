"""Hugging Face's config.json against ours, in both directions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.huggingface import COMPARED_KEYS, huggingface_config, model_keys
from configs.kinds import ATTENTION
from configs.schema import LORA_KEYS, ModelConfig, keys_of

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_ctx": 16, "n_vocab": 20}
GPT_NEO = {
    "model_type": "gpt_neo",
    "hidden_size": 2048,
    "num_heads": 16,
    "num_layers": 24,
    "max_position_embeddings": 2048,
    "vocab_size": 50257,
    "attention_types": [[["global", "local"], 12]],
    "window_size": 256,
    "activation_function": "gelu_new",
    "intermediate_size": None,
}
# Our options that neither of the architectures tells.
ABSENT = {
    **dict.fromkeys(("rotary_emb", "mlp_glu", "macaron", "scalenorm", "rezero", "share_parameters"), False),
    **dict.fromkeys(("no_weight_tie", "mlm_training", "norm_unit_offset", "gated_mlp"), False),
    **dict.fromkeys(
        ("axial_pos_emb", "n_kv_head", "head_dim", "attention_scale", "rotary_dim", "rotary_scaling"), None
    ),
    **dict.fromkeys(("attention_softcap", "n_inner", "final_norm", "head_bias", "embedding_scale", "logit_softcap")),
    **{"mup_base_width": 0, "num_mem_kv": 0, "moe_layers": [], "rotary_base": 10000.0, "rotary_style": "half"},
    **{"qk_norm": "off"},
    **{"attn_output_bias": True, "mlp_bias": True, "norm": "layernorm", "norm_placement": "before"},
    **{"parallel_residual": "off", "norm_epsilon": 1e-5},
}
# As GPT-2's config.json of 2019, which knew neither model_type nor an activation.
GPT_2 = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257}


def model_of(hf_config: dict[str, Any]) -> ModelConfig:
    fields = keys_of(ModelConfig)
    return ModelConfig(
        **{key: fields[key].metadata["kind"].parse(value) for key, value in model_keys(hf_config).items()}
    )


def test_gpt_neo() -> None:
    assert model_keys(GPT_NEO) == ABSENT | {
        "n_embd": 2048,
        "n_head": 16,
        "n_layer": 24,
        "n_ctx": 2048,
        "n_vocab": 50257,
        "attention_types": [[["global", "local"], 12]],
        "local_attention_radius": 256,
        "activation_function": "gelu",
        "qkv_bias": False,
        "scale_attn_weights": False,
    }
    assert "local_attention_radius" not in model_keys(GPT_NEO | {"attention_types": [[["global"], 24]]})


def test_gpt_2() -> None:
    assert model_keys(GPT_2) == ABSENT | {
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_ctx": 1024,
        "n_vocab": 50257,
        "attention_types": [[["global"], 12]],
        "activation_function": "gelu",
        "qkv_bias": True,
        "scale_attn_weights": True,
    }
    assert not model_keys(GPT_2 | {"scale_attn_weights": False})["scale_attn_weights"]
    assert model_keys(GPT_2 | {"n_inner": 1000})["n_inner"] == 1000


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu_new", "gelu"), ("gelu_pytorch_tanh", "gelu"), ("gelu_fast", "gelu"), ("swish", "silu"), ("linear", "id")],
)
def test_activations_are_renamed(theirs: str, ours: str) -> None:
    assert model_keys(GPT_2 | {"activation_function": theirs})["activation_function"] == ours


def issues(hf_config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        model_keys(hf_config, "there/config.json")
    return str(error.value).splitlines()


def test_what_cannot_be_ours_is_said_at_once() -> None:
    assert issues(
        GPT_2
        | {
            "layer_norm_epsilon": 0,
            "tie_word_embeddings": False,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "add_cross_attention": True,
            "n_inner": 0,
            "activation_function": "quick_gelu",
        }
    ) == [
        "there/config.json: layer_norm_epsilon = 0: is out of range; copy the file again, it must give a number "
        ">= 1e-37",
        "there/config.json: tie_word_embeddings = false: only true is known; give weights trained without it",
        "there/config.json: scale_attn_by_inverse_layer_idx = true: only false is known; give weights trained "
        "without it",
        "there/config.json: reorder_and_upcast_attn = true: only false is known; give weights trained without it",
        "there/config.json: add_cross_attention = true: only false is known; give weights trained without it",
        "there/config.json: n_inner = 0: is not a size; copy the file again, it must give an integer >= 1",
        'there/config.json: activation_function = "quick_gelu": known are gelu_new, gelu, gelu_pytorch_tanh, '
        "gelu_fast, relu, silu, swish, tanh, sigmoid, mish, linear; give weights trained without it",
    ]


@pytest.mark.parametrize("model_type", ["opt", "phi3", "gemma3", None, 3, ["gpt2"], {}])
def test_another_architecture(model_type: object) -> None:
    assert issues(GPT_NEO | {"model_type": model_type}) == [
        f"there/config.json: model_type = {json.dumps(model_type)}: is another architecture; give weights of "
        "GPT-2 (gpt2), GPT-Neo (gpt_neo), GPT-J (gptj), GPT-NeoX and Pythia (gpt_neox), Llama (llama), Mistral "
        "(mistral), Qwen 2 (qwen2), Qwen 3 (qwen3), OLMo 2 (olmo2) or Gemma 2 (gemma2)"
    ]


@pytest.mark.parametrize("size", [None, 0, -1, "768", 7.5, True, {"a": 1}, [1]])
def test_a_broken_size(size: object) -> None:
    expected = f"n_embd = {json.dumps(size)}: is not a size; copy the file again, it must give an integer >= 1"
    assert issues(GPT_2 | {"n_embd": size}) == [f"there/config.json: {expected}"]


@pytest.mark.parametrize("types", [None, "global", [[["global", "linear"], 12]], [["global", 24]], [[[], 1]]])
def test_broken_attention_types(types: object) -> None:
    (expected,) = issues(GPT_NEO | {"attention_types": types})
    assert expected.startswith(f"there/config.json: attention_types = {json.dumps(types)}: is not a list of [pattern, ")


@pytest.mark.parametrize(
    ("config", "changed", "expected"),
    [
        (GPT_NEO, {"window_size": "7"}, "is not a size; copy the file again, it must give an integer >= 1"),
        (GPT_NEO, {"window_size": None}, "is not a size; copy the file again, it must give an integer >= 1"),
        (GPT_NEO, {"vocab_size": 1}, "is not a size; copy the file again, it must give an integer >= 2"),
        (GPT_NEO, {"attention_types": [[["global"], 23]]}, "expands to 23 layers, not to num_layers; "),
        (GPT_NEO, {"attention_layers": ["global"] * 24}, "is not what attention_types expands to; copy the file"),
        (GPT_NEO, {"attention_layers": "global"}, "is not what attention_types expands to; copy the file again"),
        (GPT_NEO, {"activation_function": ["gelu_new"]}, "known are gelu_new, "),
        (GPT_NEO, {"activation_function": {}}, "known are gelu_new, "),
        (GPT_NEO, {"intermediate_size": {}}, "is not a size; copy the file again, it must give an integer >= 1"),
        (
            GPT_NEO,
            {"architectures": ["GPTNeoForQuestionAnswering"]},
            "known are GPTNeoForCausalLM, GPTNeoModel, GPTNeoForSequenceClassification; ",
        ),
        (
            GPT_2,
            {"architectures": ["GPT2ForTokenClassification"]},
            "known are GPT2LMHeadModel, GPT2Model, GPT2ForSequenceClassification; give ",
        ),
        (
            GPT_2,
            {"architectures": "GPT2LMHeadModel"},
            "known are GPT2LMHeadModel, GPT2Model, GPT2ForSequenceClassification; give weights of a ",
        ),
        (
            GPT_2,
            {"architectures": [["GPT2LMHeadModel"]]},
            "known are GPT2LMHeadModel, GPT2Model, GPT2ForSequenceClassification; give weights of a ",
        ),
        (GPT_2, {"scale_attn_weights": "false"}, "is not true or false; copy the file again"),
        (GPT_2, {"scale_attn_weights": None}, "is not true or false; copy the file again"),
        (GPT_2, {"tie_word_embeddings": "true"}, "only true is known; "),
        (GPT_2, {"add_cross_attention": 0}, "only false is known; "),
        (GPT_2, {"quantization_config": {"bits": 4}}, "only plain numbers are known as weights; give the weights "),
    ],
)
def test_a_value_that_contradicts_or_is_of_a_wrong_type(
    config: dict[str, Any], changed: dict[str, Any], expected: str
) -> None:
    ((key, value),) = changed.items()
    shown = json.dumps(value) if len(json.dumps(value)) <= 80 else json.dumps(value)[:77] + "..."
    (issue,) = issues(config | changed)
    assert issue.startswith(f"there/config.json: {key} = {shown}: {expected}")


def test_an_unknown_key_is_never_ignored() -> None:
    """Whatever its value, except where it is known to have no effect on the numbers."""
    for value in (4, False, None, {}):
        (line,) = issues(GPT_2 | {"attention_sinks": value, "torch_dtype": "float16", "summary_type": "mean"})
        assert line == (
            f"there/config.json: attention_sinks = {json.dumps(value)}: is not known of GPT-2, and may change what the "
            "model computes; remove the key if it does not, or give other weights"
        )


def test_what_says_the_same_is_taken() -> None:
    layers = ["global", "local"] * 12
    for named in ({"attention_layers": layers}, {"attention_layers": None}, {"architectures": ["GPTNeoModel"]}):
        assert model_keys(GPT_NEO | named) == model_keys(GPT_NEO)
    more = {"architectures": ["GPT2LMHeadModel"], "quantization_config": None, "add_cross_attention": False}
    assert model_keys(GPT_2 | more) == model_keys(GPT_2)


@settings(deadline=None)
@given(
    config=st.sampled_from([GPT_NEO, GPT_2]),
    keys=st.lists(st.sampled_from([*GPT_NEO, *GPT_2, "attention_layers", "architectures", "n_inner"]), min_size=1),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-1, 10**5) | st.floats() | st.text(max_size=3),
        lambda member: st.lists(member, max_size=2) | st.dictionaries(st.text(max_size=3), member, max_size=2),
        max_leaves=4,
    ),
)
def test_no_value_breaks_the_reading(config: dict[str, Any], keys: list[str], value: Any) -> None:
    try:
        keys_of_ours = model_keys(config | dict.fromkeys(keys, value))
    except ConfigError:
        return
    assert isinstance(keys_of_ours["n_embd"], int)


# From our keys to theirs.


def test_a_gpt_neo_to_be_exported() -> None:
    model = ModelConfig(
        **SIZES,
        attention_types=("global", "local"),
        local_attention_radius=5,
        activation_function="silu",
        res_dropout=0.1,
        attn_dropout=0.2,
        embed_dropout=0.3,
    )
    assert huggingface_config(model, eos_id=7) == {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "hidden_size": 8,
        "num_heads": 2,
        "num_layers": 2,
        "max_position_embeddings": 16,
        "vocab_size": 20,
        "embed_dropout": 0.3,
        "resid_dropout": 0.1,
        "attention_dropout": 0.2,
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "window_size": 5,
        "intermediate_size": None,
        "activation_function": "silu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 7,
        "eos_token_id": 7,
    }


@pytest.mark.parametrize(("has_biases", "scales"), [(True, True), (True, False), (False, True)])
def test_a_gpt_2_to_be_exported(has_biases: bool, scales: bool) -> None:
    config = huggingface_config(ModelConfig(**SIZES, qkv_bias=has_biases, scale_attn_weights=scales), eos_id=0)
    assert (config["model_type"], config["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    assert config["scale_attn_weights"] is scales
    assert config.get("_attn_implementation") == (None if scales else "eager")
    assert {key: config[key] for key in ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")} == {
        "n_embd": 8,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 16,
        "vocab_size": 20,
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"attention_types": ("linear", "none")}, ["attention_types = linear, none"]),
        ({"attention_types": ("local", "global"), "qkv_bias": True}, ["attention_types = local"]),
        ({"rotary_emb": True, "num_mem_kv": 3}, ["rotary_emb = true", "num_mem_kv = 3"]),
        ({"axial_pos_emb": (4, 4), "mlp_glu": True}, ["axial_pos_emb = [4, 4]", "mlp_glu = true"]),
        ({"macaron": True, "scalenorm": True, "rezero": True}, ["macaron = true", "scalenorm = true", "rezero = true"]),
        (
            {"share_parameters": True, "no_weight_tie": True, "moe_layers": (1,)},
            ["share_parameters = true", "no_weight_tie = true", "moe_layers = [1]"],
        ),
        (
            {"norm": "rmsnorm", "norm_epsilon": 1e-6, "norm_unit_offset": True, "norm_placement": "both"},
            ['norm = "rmsnorm"', "norm_unit_offset = true", 'norm_placement = "both"'],
        ),
        (
            {"parallel_residual": "one_norm", "n_inner": 24, "gated_mlp": True, "mlp_bias": False},
            ['parallel_residual = "one_norm"', "gated_mlp = true", "mlp_bias = false"],
        ),
        (
            {"final_norm": False, "head_bias": True, "embedding_scale": 2.0, "logit_softcap": 30.0},
            ["final_norm = false", "head_bias = true", "embedding_scale = 2.0", "logit_softcap = 30.0"],
        ),
        (
            {"n_kv_head": 1, "attention_scale": 0.5, "attn_output_bias": False, "qk_norm": "head"},
            ["rotary_emb = false", "n_kv_head = 1", 'qk_norm = "head"'],
        ),
        (
            {"mlm_training": True, "activation_function": "prelu"},
            ["activation_function = prelu", "mlm_training = true"],
        ),
    ],
)
def test_what_does_not_fit_is_said_at_once(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        huggingface_config(ModelConfig(**SIZES, **options), eos_id=0)
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == names
    assert all(line.endswith(" lacks it; export a SavedModel, or train without it") for line in lines)


def test_every_option_is_compared_or_known_to_be_left_out() -> None:
    """A new option of the model must be thought of here: it changes the model, so it may not be dropped silently."""
    of_training = {"scale_by_depth", "scale_by_in", "precision", "z_loss", "entmax_loss", "objective"}
    of_training |= {"recompute", "recompute_grad"}
    dropouts = {"embed_dropout", "res_dropout", "attn_dropout"}
    of_mixtures = {"moe_params", "moe_activation"}  # moe_layers is compared
    of_attention = {"linear_attention_normalization", "none_doubles_residual", "local_attention_radius"}
    known = of_training | dropouts | of_mixtures | of_attention | set(LORA_KEYS)  # adapters are merged
    assert set(keys_of(ModelConfig)) - set(COMPARED_KEYS) == known


@settings(deadline=None)
@given(
    layers=st.lists(st.sampled_from(["global", "local"]), min_size=1, max_size=9),
    radius=st.integers(1, 4096),
    activation=st.sampled_from(["gelu", "relu", "silu", "tanh", "sigmoid", "mish", "id"]),
    sizes=st.tuples(*[st.integers(1, 10**3)] * 4),
)
def test_there_and_back(layers: list[str], radius: int, activation: str, sizes: tuple[int, ...]) -> None:
    head_size, n_head, n_ctx, n_vocab = sizes
    model = ModelConfig(
        n_embd=head_size * n_head,
        n_head=n_head,
        n_layer=len(layers),
        n_ctx=n_ctx,
        n_vocab=n_vocab + 1,
        attention_types=tuple(layers),
        activation_function=activation,
        **({"local_attention_radius": radius} if "local" in layers else {}),
    )
    config = json.loads(json.dumps(huggingface_config(model, eos_id=0)))
    assert model_of(config) == model
    assert config["attention_layers"] == layers == list(ATTENTION.parse(config["attention_types"]))
    if "local" not in layers:
        for biased in ({"qkv_bias": True}, {"qkv_bias": True, "scale_attn_weights": True}):
            gpt_2 = dataclasses.replace(model, **biased)
            assert model_of(json.loads(json.dumps(huggingface_config(gpt_2, eos_id=0)))) == gpt_2


@pytest.mark.parametrize("name", ["gpt_neo_global", "gpt_neo_local", "gpt_neo_alternating", "gpt_2", "gpt_2_unscaled"])
def test_what_is_exported_is_what_transformers_writes(name: str) -> None:
    theirs = json.loads((GOLDEN / name / "config.json").read_text())
    ours = huggingface_config(model_of(theirs), eos_id=1)
    defaults = {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1} if "n_embd" in ours else {}
    if "window_size" in ours and "local" not in ours["attention_layers"]:
        defaults["window_size"] = theirs["window_size"]
    ours.pop("_attn_implementation", None)
    ours.pop("attention_types", None)  # of several patterns for the same layers, each writes its own
    assert {key: theirs[key] for key in ours} == ours | defaults
