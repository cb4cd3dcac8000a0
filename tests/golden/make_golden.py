"""Makes the golden files: tiny Hugging Face models with random weights, their logits and their losses.

Run it in an environment with torch 2.13 and transformers 5 (`make parity` makes one):

    python tests/golden/make_golden.py

Each folder holds a config.json and model.safetensors, as `save_pretrained` writes them,
and expected.npz: tokens int64 [batch, sequence], logits float32 [batch, sequence, vocab], and the scalar loss, the mean
cross-entropy of the next tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
)

FOLDER = Path(__file__).parent
N_VOCAB, N_CTX, WINDOW = 48, 24, 5
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1}
SIZES = {
    **{"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": N_CTX},
    **{"intermediate_size": 20, "vocab_size": N_VOCAB, "pad_token_id": 1},
}
GROUPED = SIZES | {"num_key_value_heads": 2}
# What is hard of the newer families.
FAMILIES = {
    "gptj": {
        **{"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": N_CTX, "rotary_dim": 4, "vocab_size": N_VOCAB},
    },
    "gpt_neox": SIZES | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "llama": {
        **GROUPED,
        "rope_parameters": {
            **{"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 8},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    },
    "olmo2": GROUPED,
    "gemma2": GROUPED | {"head_dim": 6, "query_pre_attn_scalar": 9, "sliding_window": WINDOW},
}


def gpt_neo(attention_types: list, activation: str = "gelu_new") -> PreTrainedModel:
    """A GPT-Neo whose context is several times as long as the window of its local layers."""
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=N_VOCAB,
            max_position_embeddings=N_CTX,
            hidden_size=16,
            num_heads=2,
            num_layers=sum(len(pattern) * repeats for pattern, repeats in attention_types),
            attention_types=attention_types,
            window_size=WINDOW,
            activation_function=activation,
            **SPECIAL,
        )
    )


def gpt_2(scales: bool) -> PreTrainedModel:
    """A GPT-2 with or without scaled attention logits."""
    sizes = {"vocab_size": N_VOCAB, "n_positions": N_CTX, "n_embd": 16, "n_head": 2, "n_layer": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, scale_attn_weights=scales, **SPECIAL))


def of_family(model_type: str) -> PreTrainedModel:
    """A model of a newer family; its attention is eager, since no other has soft-capping."""
    config = AutoConfig.for_model(model_type, **FAMILIES[model_type], **SPECIAL, attn_implementation="eager")
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def disturb(model: PreTrainedModel) -> None:
    """Adds noise to every weight, so that no gain is 1, no bias is 0, and attention is far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3


def write(name: str, model: PreTrainedModel) -> None:
    """Writes the folder of one model."""
    disturb(model)
    model.eval().save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink()
    tokens = torch.randint(0, N_VOCAB, (2, N_CTX))
    with torch.no_grad():
        outputs = model(tokens, labels=tokens)
    arrays = {"tokens": tokens, "logits": outputs.logits, "loss": outputs.loss}
    np.savez_compressed(FOLDER / name / "expected.npz", **{key: value.numpy() for key, value in arrays.items()})


def main() -> None:
    """Makes every golden folder."""
    torch.manual_seed(0)
    write("gpt_neo_global", gpt_neo([[["global"], 2]]))
    write("gpt_neo_local", gpt_neo([[["local"], 2]], activation="silu"))
    write("gpt_neo_alternating", gpt_neo([[["global", "local"], 1], [["global"], 1]]))
    write("gpt_2", gpt_2(scales=True))
    write("gpt_2_unscaled", gpt_2(scales=False))
    for number, model_type in enumerate(FAMILIES):
        torch.manual_seed(number)
        write(model_type, of_family(model_type))


if __name__ == "__main__":
    main()
