"""Live parity of reranking with Hugging Face: the scores of responses by models of transformers with the same weights.

Run it with `make parity`. It needs torch and transformers 5 besides our own packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from configs.load import load_config
from configs.schema import RunConfig
from configs.weights import is_state_dict
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.init_from import find_weights, load_initial_weights
from runtime.checkpoint.state_dict import model_of_state_dict
from runtime.generation.reranking import MutualInformation, RankerEnsemble, build_response_scorer
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


# Rankers, in each form that they come in.


def as_folder(model: GPT2ForSequenceClassification, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def as_pickle_folder(model: GPT2ForSequenceClassification, path: Path) -> Path:
    as_folder(model, path)
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


def as_released(model: GPT2ForSequenceClassification, path: Path) -> Path:
    """DialogRPT's own files: the state dict of a trunk and a score, with the masks of attention of that time."""
    masks = {f"transformer.h.{layer}.attn.bias": torch.tril(torch.ones(1, 1, N_CTX, N_CTX)) for layer in range(2)}
    torch.save(model.state_dict() | masks, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_exported(model: GPT2ForSequenceClassification, path: Path) -> Path:
    """Reads the model and writes it again."""
    config = run_config(as_folder(model, path))
    write_huggingface_folder(str(path / "again"), config, find_weights(str(path)), None)
    again = GPT2ForSequenceClassification.from_pretrained(path / "again")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    return path / "again"


def run_config(path: Path) -> RunConfig:
    if not is_state_dict(str(path)):
        return load_config(str(path), [f"eos_id={EOS}", "padding_id=0"])
    return dataclasses.replace(load_config("quickstart", [f"eos_id={EOS}"]), model=model_of_state_dict(str(path)))


def write_ranker(seed: int) -> GPT2ForSequenceClassification:
    """A ranker with heads of 64 features, as the released ones have."""
    torch.manual_seed(seed)
    sizes = SIZES | {"n_embd": 128}
    return GPT2ForSequenceClassification(
        GPT2Config(**sizes, initializer_range=0.1, num_labels=1, eos_token_id=EOS, pad_token_id=EOS)
    ).eval()


@pytest.mark.parametrize("form", [as_folder, as_pickle_folder, as_released, as_exported])
def test_rankers_on_fifty_contexts(form: Callable[..., Path], devices: tuple[str, ...], tmp_path: Path) -> None:
    names = ("updown", "depth", "width", "human_vs_rand", "human_vs_machine")
    models = {name: write_ranker(seed) for seed, name in enumerate(names)}
    rankers = {}
    for name, model in models.items():
        path = form(model, tmp_path / name)
        config = run_config(path)
        assert config.model.ranks
        placement = place(config.mesh, devices[:1])
        rankers[name] = build_response_scorer(config, placement)
        load_initial_weights(str(path), placement.store)
    for turns, responses in dialogues(50):
        for response, scores in zip(responses, RankerEnsemble(rankers).scores(turns, responses), strict=True):
            tokens = torch.tensor([[*ended(turns), *response]])
            with torch.no_grad():
                p = {name: float(torch.sigmoid(model(tokens).logits)) for name, model in models.items()}
            prior = (p["human_vs_rand"] + p["human_vs_machine"]) / 2
            feedback = p["updown"] + 0.48 * p["depth"] - 0.5 * p["width"]
            np.testing.assert_allclose([scores.parts[name] for name in names], list(p.values()), rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(scores.score, prior * feedback, rtol=0, atol=TOLERANCE)
