"""What transformers 4.57.1 makes of a model of ours; `tests/parity.py` runs it in that environment.

    python read_with_transformers.py FOLDER CHECKPOINT INPUTS OUTPUTS

It loads FOLDER by `AutoModelForCausalLM`, or, where CHECKPOINT is not empty, takes the weights of that TensorFlow
checkpoint by `load_tf_weights_in_gpt_neo` and only the config of FOLDER. INPUTS is an .npz with tokens [batch,
sequence] and a text; OUTPUTS is one with their logits and loss, and the ids of the text by `AutoTokenizer`.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM, PreTrainedModel


def load(folder: str, checkpoint: str) -> PreTrainedModel:
    """The model, of the folder or of the checkpoint."""
    if not checkpoint:
        return AutoModelForCausalLM.from_pretrained(folder)
    from transformers.models.gpt_neo.modeling_gpt_neo import load_tf_weights_in_gpt_neo

    config = AutoConfig.from_pretrained(folder)
    return load_tf_weights_in_gpt_neo(GPTNeoForCausalLM(config), config, checkpoint)


def main(folder: str, checkpoint: str, inputs_path: str, outputs_path: str) -> None:
    """Loads, computes and writes."""
    inputs = np.load(inputs_path)
    tokens = torch.from_numpy(inputs["tokens"])
    with torch.no_grad():
        outputs = load(folder, checkpoint).eval()(tokens, labels=tokens)
    ids = AutoTokenizer.from_pretrained(folder).encode(str(inputs["text"]))
    np.savez(outputs_path, logits=outputs.logits.numpy(), loss=outputs.loss.numpy(), ids=ids)


if __name__ == "__main__":
    main(*sys.argv[1:])
