"""Live parity with Hugging Face for each family of models: logits both ways, greedy text, and a short fine-tuning.

Run it with `make parity`. It needs torch and transformers 5 besides our own packages. The models are tiny and random,
and have what is hard of their family: grouped queries, lengths beyond the sliding window, each scaling of rotations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from configs.huggingface import family_for
from configs.schema import ModelConfig
from data.tokenization.tokenizer import load_tokenizer
from models.kernels.sampling import SamplingParams
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.init_from import find_weights, load_initial_weights
from runtime.generation.engine import build_engine
from runtime.generation.requests import GenerationRequest
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.answers import Answer, assert_equal, model_of, our_answer
from tests.parity_generation import written

torch.set_num_threads(1)  # the products are too small for two threads

N_VOCAB, N_CTX, N_NEW, EOS = 64, 48, 16, 1
STEPS, RATE = 50, 1e-3
GPT_SIZES = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": N_CTX}
SIZES = {
    **{"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": N_CTX},
    **{"intermediate_size": 40, "num_key_value_heads": 2},
}
NEO_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
LLAMA_3 = {
    **{"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 12}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2, wider": ("gpt2", GPT_SIZES | {"n_inner": 40, "layer_norm_epsilon": 1e-3, "activation_function": "gelu"}),
    "GPT-Neo, narrower": (
        "gpt_neo",
        {
            **{"hidden_size": 32, "num_heads": 4, "num_layers": 2, "max_position_embeddings": N_CTX, "window_size": 7},
            **{"attention_types": [[["global", "local"], 1]], "intermediate_size": 40},
        },
    ),
    "GPT-J": ("gptj", GPT_SIZES | {"rotary_dim": 4, "n_inner": 40}),
    "Pythia": ("gpt_neox", NEO_SIZES | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    "GPT-NeoX, in sequence": (
        "gpt_neox",
        NEO_SIZES | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new"},
    ),
    "Llama": ("llama", SIZES | {"rope_parameters": LLAMA_3}),
    "Llama, linear, with biases": (
        "llama",
        {
            **SIZES,
            **{"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}, "head_dim": 16},
            **{"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        },
    ),
    "Llama, yarn": ("llama", SIZES | {"rope_parameters": YARN}),
    "Llama, yarn with mscale": ("llama", SIZES | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}}),
    "Mistral": ("mistral", SIZES | {"sliding_window": 7, "head_dim": 16}),
    "Qwen 2": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "Qwen 3": ("qwen3", SIZES | {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "OLMo 2": ("olmo2", SIZES),
    "Gemma 2": ("gemma2", SIZES | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}),
}


def made(name: str) -> PreTrainedModel:
    """A tiny model of theirs whose every weight is random, also its norms and biases."""
    model_type, settings = MODELS[name]
    ids = {"vocab_size": N_VOCAB, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": EOS}
    # Eager attention has soft-capping in every family that has it.
    config = AutoConfig.for_model(model_type, **ids, **settings, attn_implementation="eager")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_table = "embed_tokens" in key and model_type == "gemma2"  # which is multiplied by the root of its width
            parameter.add_(torch.randn_like(parameter) * (0.1 if is_table else 0.15))
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("theirs") / "model"
    made(request.param).save_pretrained(path)
    return path


def loaded(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def their_answer(path: Path, tokens: np.ndarray) -> Answer:
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        output = loaded(path)(ids, labels=ids)
    return Answer(output.logits.numpy(), float(output.loss))


def batch(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, N_VOCAB, (2, N_CTX), dtype=np.int32)


def test_their_weights_give_the_same_logits_here(folder: Path, devices: tuple[str, ...]) -> None:
    tokens, model = batch(1), model_of(folder)
    expected = their_answer(folder, tokens)
    assert np.abs(expected.logits).max() > 1.0
    assert_equal(our_answer(folder, model, tokens, devices), expected, tolerance=1e-4)


def test_our_export_gives_the_same_logits_there(folder: Path, tmp_path: Path, devices: tuple[str, ...]) -> None:
    tokens, model = batch(2), model_of(folder)
    config = tiny.run_config(model=vars(model))
    write_huggingface_folder(str(tmp_path / "ours"), config, find_weights(str(folder)), None)
    theirs, ours = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "ours"))
    assert ours["model_type"] == theirs["model_type"] == family_for(model).model_type
    assert_equal(their_answer(tmp_path / "ours", tokens), our_answer(folder, model, tokens, devices), tolerance=1e-4)
    assert model_of(tmp_path / "ours").n_layer == model.n_layer


def test_twenty_prompts_have_the_same_greedy_text(folder: Path, devices: tuple[str, ...]) -> None:
    model, rng = model_of(folder), np.random.default_rng(7)
    config = tiny.run_config(model=vars(model))
    placement = place(config.mesh, devices[:1])
    engine = build_engine(config, placement, n_rows=8)
    load_initial_weights(str(folder), placement.store)
    lengths = np.linspace(1, N_CTX - N_NEW, 20).astype(int)
    prompts = [rng.integers(2, N_VOCAB, length).tolist() for length in lengths]
    requests = [GenerationRequest(tuple(prompt), SamplingParams(0.0), 0, N_NEW) for prompt in prompts]
    eos, theirs = config.data.eos_id, loaded(folder)
    for prompt, text in zip(prompts, written(engine, requests), strict=True):
        tokens = torch.tensor([prompt])
        given = {"attention_mask": torch.ones_like(tokens), "eos_token_id": eos, "pad_token_id": eos}
        with torch.no_grad():
            output = theirs.generate(tokens, do_sample=False, max_new_tokens=N_NEW, **given)[0, len(prompt) :].tolist()
        assert [eos if token == -1 else token for token in text] == output


def their_losses(model: torch.nn.Module, batches: list[np.ndarray]) -> list[float]:
    """Fine-tunes what the model trains, in evaluation mode, as the dropout of some configs is above 0."""
    trained = [own for own in model.parameters() if own.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, (0.9, 0.95), 1e-8, weight_decay=0.0)
    losses = []
    for ids in batches:
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def our_losses(folder: Path, model: ModelConfig, batches: list[np.ndarray], device: str) -> list[float]:
    optimizer = {"opt_name": "adamw", "lr": RATE, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
    training = optimizer | {"gradient_clipping": None, "train_batch_size": len(batches[0])}
    config = tiny.run_config(model=vars(model) | {"z_loss": 0.0}, training=training)
    placement = place(config.mesh, [device])
    step = build_train_step(config, placement)
    load_initial_weights(str(folder), placement.store)
    weights = np.full((len(batches[0]), N_CTX), 1.0 / batches[0][:, 1:].size, np.float32)
    return [
        float(step(ids[:, :-1], ids[:, 1:], weights, np.float32(RATE), np.int32(number), np.int32(7))["loss"])
        for number, ids in enumerate(batches)
    ]


def test_fifty_steps_of_fine_tuning_have_the_same_losses(folder: Path, devices: tuple[str, ...]) -> None:
    rng = np.random.default_rng(11)
    few = rng.integers(2, N_VOCAB, (4, 2, N_CTX + 1), dtype=np.int32)  # seen again and again, so that the loss falls
    batches = [few[number % len(few)] for number in range(STEPS)]
    theirs, ours = their_losses(loaded(folder), batches), our_losses(folder, model_of(folder), batches, devices[0])
    print(f"loss {theirs[0]:.4f} to {theirs[-1]:.4f}, largest difference {np.abs(np.subtract(theirs, ours)).max():.1e}")
    assert theirs[-1] < theirs[0] - 0.3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


# Tokenizers.

TEXTS = (
    *(
        "",
        " ",
        "a",
        "Hello world",
        " leading",
        "trailing ",
        "two  spaces",
        "tab\tand\nline\n\nbreaks\r\n",
        "naïve café",
    ),
    *("語言", "It's, they're; we'll!", "3.14159 and 1,000,000", "f(x) = x**2 + 1", "👍🏽 emoji", "ﬁ ligature", "<s>"),
    *("a\u0301 combined", "</s> spelled", "<|endoftext|>", "\u00a0nbsp", "ЖЖЖ", "مرحبا", "    indented\n        code"),
    *("A" * 50, "the the the"),
)


def trained(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer that puts `<s>` first, as its kind does: by a template, or by none."""
    words, names = [*TEXTS, *Path(__file__).read_text().splitlines()], ["<s>", "</s>", "<pad>"]
    if kind == "metaspace":
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token=None))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
        )
        names += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, special_tokens=names[:3], initial_alphabet=alphabet)
    backend.train_from_iterator(words, trainer)
    if kind == "metaspace":
        backend.add_tokens(names[3:])
    if kind != "plain":
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)]
        )
    return backend


@pytest.mark.parametrize("kind", ["plain", "template", "metaspace"])
def test_a_hundred_prompts_have_the_ids_of_their_tokenizer(kind: str, tmp_path: Path) -> None:
    trained(kind).save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": kind != "plain"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path)).reading_special_tokens
    texts = [*TEXTS, *(f"{one} {other}" for one in TEXTS[3:8] for other in TEXTS[5:20])]
    assert len(texts) == 100
    for text in texts:
        assert [*ours.start_ids, *ours.encode(text)] == theirs(text).input_ids, text
    assert (ours.eos_id, ours.padding_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.start_ids == (() if kind == "plain" else (theirs.bos_token_id,))
