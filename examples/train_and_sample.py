"""Trains a byte-level GPT on a few lines of text and lets it continue a prompt, with Neomesh's modules as a library.

python3 examples/train_and_sample.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.load import load_config
from models.kernels.noise import noise_key
from models.kernels.sampling import SamplingParams
from runtime.generation.engine import build_engine
from runtime.generation.requests import GenerationRequest
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.training.lr_schedules import learning_rate
from runtime.training.steps import build_train_step

SETTINGS = {
    "n_layer": 2,
    "n_embd": 128,
    "n_head": 4,
    "n_ctx": 64,
    "n_vocab": 256,
    "attention_types": '[[["global"],2]]',
}
SETTINGS |= {
    "train_steps": 300,
    "opt_name": "adamw",
    "lr": 3e-3,
    "train_batch_size": 16,
    "lr_decay": "cosine",
    "warmup_steps": 10,
}

config = load_config("benchmark_small", [f"{key}={value}" for key, value in SETTINGS.items()])
placement = place(config.mesh, choose_devices(None, None))  # on every GPU, or the CPU; a mesh_shape makes it a mesh
train_step = build_train_step(config, placement)
placement.store.initialize(config.training.seed)

text_S = np.frombuffer((Path(__file__).parents[1] / "LICENSE").read_bytes(), np.uint8).astype(np.int32)
starts = np.random.default_rng(0)
for step in range(config.training.train_steps):
    begin_B = starts.integers(len(text_S) - 65, size=config.training.train_batch_size)
    window_BS = np.stack([text_S[begin : begin + 65] for begin in begin_B])  # an example and its next token
    tokens_BS, labels_BS = window_BS[:, :-1], window_BS[:, 1:]
    rate = learning_rate(step, config.training, config.model.n_embd)
    key = noise_key(config.training.seed, step)
    outputs = train_step(tokens_BS, labels_BS, np.ones_like(labels_BS, np.float32), rate, step, key)
    if step % 50 == 0 or step == config.training.train_steps - 1:
        print(f"step {step}  loss {outputs['loss']:.3f}")

engine = build_engine(config, placement, n_rows=1)
prompt = tuple(b"Permission is hereby ")
engine.prefill({0: GenerationRequest(prompt, SamplingParams(temperature=0.0), seed=0, max_new_tokens=40)})
print(bytes([*prompt, *engine.decode_steps(40)[0].tokens]).decode(errors="replace"))
