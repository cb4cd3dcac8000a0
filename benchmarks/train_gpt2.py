"""Trains a small GPT-2 with Hugging Face's own code, as weights for benchmarks/evaluation.py that are not ours.

    .venv-lm-eval/bin/python benchmarks/train_gpt2.py --text "texts/**/*.txt" --out runs/gpt2_of_hf

It needs torch and transformers, as `make lm-eval` installs them, and nothing of Neomesh. The tokenizer is trained on
the same text. The folder holds what `save_pretrained` writes.
"""

from __future__ import annotations

import argparse
import glob
import time
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

N_VOCAB, N_CTX = 4096, 256
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
SECONDS_BETWEEN_LINES = 20
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer whose first token ends a text."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=N_VOCAB, special_tokens=[END], show_progress=False)
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=END)


def draw_batches(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields windows of the text at random places, [batch, n_ctx], without end."""
    while True:
        starts = torch.randint(len(tokens) - N_CTX, (BATCH_SIZE,)).tolist()
        yield torch.stack([tokens[start : start + N_CTX] for start in starts])


def train(tokens: torch.Tensor, seconds: float) -> GPT2LMHeadModel:
    """Trains on a stream of tokens for some seconds."""
    sizes = {"vocab_size": N_VOCAB, "n_positions": N_CTX, "n_embd": 128, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    start = shown = time.monotonic()
    for step, batch in enumerate(draw_batches(tokens), start=1):
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES or now - start >= seconds:
            print(f"step {step}  loss {loss:.3f}", flush=True)
            shown = now
        if now - start >= seconds:
            return model.eval()
    raise AssertionError("the batches have no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a glob of UTF-8 files")
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--seconds", type=float, default=150.0, help="how long to train (default: 150)")
    given = parser.parse_args()
    torch.manual_seed(0)
    texts = [Path(path).read_text(errors="replace") for path in sorted(glob.glob(given.text, recursive=True))]
    if not texts:
        parser.error(f"--text {given.text}: matches no file; give a glob in quotes")
    tokenizer = train_tokenizer(texts)
    tokens = torch.tensor([token for text in texts for token in tokenizer.encode(text + END)])
    print(f"{len(texts)} files, {len(tokens):,} tokens", flush=True)
    train(tokens, given.seconds).save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)


if __name__ == "__main__":
    main()
