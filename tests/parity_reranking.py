"""Live parity of reranking with Hugging Face: the scores of responses by models of transformers with the same weights.

Run it with `make parity`. It needs torch and transformers 5 besides our own packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from configs.load import load_config
from runtime.checkpoint.init_from import load_initial_weights
from runtime.generation.reranking import MutualInformation
from runtime.generation.scoring import Scorer, build_scorer
from runtime.mesh.placement import place

TOLERANCE = 1e-4
N_VOCAB, N_CTX, EOS = 90, 64, 89
SIZES = {"vocab_size": N_VOCAB, "n_positions": N_CTX, "n_embd": 32, "n_layer": 2, "n_head": 2}

Dialogue = tuple[list[list[int]], list[list[int]]]


def dialogues(count: int) -> Iterator[Dialogue]:
    """Yields turns and responses of random ids: 1 to 4 turns of 1 to 8 ids, and 3 responses."""
    rng = np.random.default_rng(2)

    def some(n_texts: int) -> list[list[int]]:
        return [rng.integers(0, EOS, rng.integers(1, 9)).tolist() for _ in range(n_texts)]

    for _ in range(count):
        yield some(rng.integers(1, 5)), some(3)


def ended(turns: Sequence[Sequence[int]]) -> list[int]:
    return [token for turn in turns for token in (*turn, EOS)]


def write(folder: Path, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 whose weights are large enough for tokens of very different probabilities."""
    torch.manual_seed(seed)
    config = GPT2Config(**SIZES, initializer_range=0.2, eos_token_id=EOS, bos_token_id=EOS)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def ours(folder: Path, devices: tuple[str, ...]) -> Scorer:
    config = load_config(str(folder), [f"eos_id={EOS}", "padding_id=0"])
    placement = place(config.mesh, devices[:1])
    scorer = build_scorer(config, placement)
    load_initial_weights(str(folder), placement.store)
    return scorer


def theirs(model: GPT2LMHeadModel, context: Sequence[int], continuation: Sequence[int]) -> float:
    """Log P(continuation | context) from the loss of transformers, which is a mean over labels."""
    tokens = torch.tensor([[*context, *continuation]])
    labels = tokens.clone()
    labels[:, : len(context)] = -100
    with torch.no_grad():
        return -float(model(tokens, labels=labels).loss) * len(continuation)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_mutual_information_on_fifty_contexts(weight: float, devices: tuple[str, ...], tmp_path: Path) -> None:
    backward, forward = (write(tmp_path / name, seed) for seed, name in enumerate(("backward", "forward")))
    ranker = MutualInformation(ours(tmp_path / "backward", devices), ours(tmp_path / "forward", devices), weight, False)
    for turns, responses in dialogues(50):
        expected = [
            theirs(backward, ended([response]), ended(turns[::-1]))
            + weight * theirs(forward, ended(turns), ended([response]))
            for response in responses
        ]
        scores = [each.score for each in ranker.scores(turns, responses)]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
