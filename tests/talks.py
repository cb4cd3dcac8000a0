"""A small project of conversations, as a user has one: DialoGPT's TSV, and a model trained on it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np

from configs.load import load_config
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from runtime.checkpoint.init_from import find_weights
from runtime.checkpoint.reader import latest_checkpoint
from tests.models import reference
from tests.program import run_process

ANIMALS = ("cat", "dog", "cow", "fox", "hen", "owl")
PLACES = ("mat", "sea", "hill", "farm", "tree", "barn")
CONFIG = {
    "n_head": 2,
    "n_embd": 32,
    "n_layer": 2,
    "n_ctx": 64,
    "n_vocab": 300,
    "train_batch_size": 16,
    "train_steps": 200,
    "lr": 0.005,
    "lr_decay": "cosine",
    "iterations": 50,
    "model_path": "runs/tiny",
    "datasets": [{"id": "talks", "n_vocab": 300, "dialogue": "talks.tsv", "packing": "masked"}],
}


def conversation(draw: random.Random) -> list[str]:
    """Returns one to three questions, each with its answer."""
    turns = []
    for _ in range(draw.randint(1, 3)):
        number = draw.randrange(len(ANIMALS))
        animal, place = ANIMALS[number], PLACES[number]
        asks_where = draw.random() < 0.5
        turns += (
            [f"where is the {animal} ?", f"the {animal} is at the {place} ."]
            if asks_where
            else [f"who is at the {place} ?", f"it is the {animal} ."]
        )
    return turns


@dataclasses.dataclass(frozen=True)
class Talks:
    """A folder with a model that was trained to talk."""

    folder: Path

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the run."""
        return load_tokenizer(str(self.folder / "runs" / "tiny" / "tokenizer.json"))

    def most_likely_answer(self, turns: list[str], n_tokens: int) -> str:
        """Returns the answer to turns that are joined by the end of text, by NumPy from the checkpoint."""
        tokenizer, model = self.tokenizer(), load_config(str(self.folder / "tiny.json")).model
        path = latest_checkpoint(str(self.folder / "runs" / "tiny"))
        assert path is not None and tokenizer.eos_id is not None
        values = {name: stored.read().astype(np.float64) for name, stored in find_weights(path).items()}
        tokens = [token for turn in turns for token in (*tokenizer.encode(turn), tokenizer.eos_id)]
        answer: list[int] = []
        while len(answer) < n_tokens:
            logits = reference.logits(model, values, np.array([tokens + answer]))[0, -1]
            best = int(logits[: tokenizer.n_vocab].argmax())
            if best == tokenizer.eos_id:
                break
            answer.append(best)
        return tokenizer.decode(answer)


def train(folder: Path) -> Talks:
    """Writes conversations and trains a model on them."""
    draw = random.Random(1)
    talks = [conversation(draw) for _ in range(1000)]
    lines = ["1.0 " + " EOS 1.0 ".join(turns[:-1]) + "\t1.0 " + turns[-1] + "\n" for turns in talks]
    (folder / "talks.tsv").write_text("".join(lines))
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    training = run_process(folder)
    assert training.returncode == 0, training.stderr[-3000:]
    return Talks(folder)
