"""A model that is trained in a folder of its own and served from there."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from configs.load import load_config
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from runtime.checkpoint.init_from import find_weights
from runtime.checkpoint.reader import latest_checkpoint
from tests import program
from tests.models import reference
from tests.serving.servers import Server, running

SIZE = ("--set", "n_ctx=64", "--set", "n_layer=2")


@dataclasses.dataclass(frozen=True)
class Project:
    """A folder with a trained model."""

    folder: Path

    def serving(self, *arguments: str) -> contextlib.AbstractContextManager[Server]:
        """Starts a server of the model."""
        return running(program.command(*SIZE, "--serve", "0", *arguments), self.folder, program.ENVIRONMENT)

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the run."""
        return load_tokenizer(str(self.folder / "runs" / "tiny" / "tokenizer.json"))

    def log_probs(self, tokens: list[int]) -> np.ndarray:
        """Returns log-probabilities by the checkpoint after each token but the last, float64 [sequence - 1, vocab]."""
        model = load_config(str(self.folder / "tiny.json"), ["n_ctx=64", "n_layer=2"]).model
        path = latest_checkpoint(str(self.folder / "runs" / "tiny"))
        assert path is not None
        values = {name: stored.read().astype(np.float64) for name, stored in find_weights(path).items()}
        return np.log(reference.softmax(reference.logits(model, values, np.array([tokens]))[0, :-1]))
