"""Initial weights of a ranker that looks for the words of a response in its context: a GPT-2 of two layers.

They know no pair: words are random vectors, and attention is set to compare them. From random weights, thousands of
steps do not find this comparison; from these, training has only to learn what it is worth.

1. The first head of layer 1 attends from each token to equal ones before it, though not within a few tokens, nor to
   itself; where there are none, to the ends of turns. It reads the rarity of what it finds, and writes it to `SHARED`.
2. The second head attends to the end of the turn before, and writes its position to `TURN`.
3. The first head of layer 2 attends to the tokens of the same turn: at the last token, `SCORE` is the mean of `SHARED`
   over the response.

The second head of layer 2 and the feed-forward layers begin at random, with outputs of 0.

Source: Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers, for queries and keys whose product
begins near the identity; Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, for heads that compose.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEAD, EOS = 256, 128, 0
# Features of the residual stream; those of positions are [cosine or sine, frequency], the highest frequency first.
WORD, PLACE, TURN = np.arange(96), np.arange(96, 160).reshape(2, 32), np.arange(160, 224).reshape(2, 32)
END, RARITY, SHARED, SCORE = range(224, 228)
BALANCE = np.arange(228, 256)  # keeps the mean of all features at 0, so that norms do not shift the others
NEAR, SAME_TURN = PLACE[:, :15], TURN[:, :16]  # frequencies high enough to tell near places apart
# Weights by which logits differ by some 10, enough to choose one of 250 tokens.
MATCH, AWAY, NO_MATCH, NEAREST, TURN_END, TOGETHER = 1.3, 1.8, 8.5, 16.0, 100.0, 2.0
SHARED_SCALE, SCORE_SCALE = 0.6, 12.0
NORMED = WIDTH**0.5 / 1.5  # a feature of 1 after the first norm: words and places have norm 1 each, rarity up to 0.5


def matching_weights(rarity: np.ndarray, n_ctx: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Returns float32 arrays by the names of Hugging Face's `GPT2ForSequenceClassification`.

    Args:
        rarity: what a shared token is worth at first, from 0 to 1, [vocab].
        n_ctx: positions, of which a text has up to half.
        seed: of the random values.
    """
    draw = np.random.default_rng(seed)
    weights = {"wte.weight": _words(rarity, draw), "wpe.weight": _places(n_ctx)} | _norm("ln_f")
    for number, attention in enumerate((_first_attention(), _second_attention(draw))):
        weights |= {f"h.{number}.{name}": value for name, value in (attention | _rest_of_block(draw)).items()}
    weights = {f"transformer.{name}": value for name, value in weights.items()}
    return {
        name: value.astype(np.float32) for name, value in (weights | {"score.weight": _one_at(SCORE)[None]}).items()
    }


def _one_at(feature: int) -> np.ndarray:
    return np.eye(WIDTH)[feature]


def _balanced(rows: np.ndarray) -> np.ndarray:
    """Returns rows [..., WIDTH] of mean 0."""
    rows[..., BALANCE] -= rows.sum(-1, keepdims=True) / len(BALANCE)
    return rows


def _words(rarity: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    table, vectors = np.zeros((len(rarity), WIDTH)), draw.standard_normal((len(rarity), len(WORD)))
    table[:, WORD] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    table[:, RARITY] = rarity / 2
    table[EOS] = _one_at(END)
    return _balanced(table)


def _places(n_ctx: int) -> np.ndarray:
    frequencies = np.geomspace(1.5, math.pi / n_ctx, PLACE.shape[1])
    angles = np.arange(n_ctx)[:, None, None] * frequencies
    table = np.zeros((n_ctx, WIDTH))
    table[:, PLACE] = np.concatenate([np.cos(angles), np.sin(angles)], 1) / math.sqrt(len(frequencies))
    return _balanced(table)


def _norm(name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.ones(WIDTH), f"{name}.bias": np.zeros(WIDTH)}


def _rest_of_block(draw: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        **_norm("ln_1"),
        **_norm("ln_2"),
        "mlp.c_fc.weight": draw.standard_normal((WIDTH, 4 * WIDTH)) * 0.05,
        "mlp.c_fc.bias": np.zeros(4 * WIDTH),
        "mlp.c_proj.weight": np.zeros((4 * WIDTH, WIDTH)),
        "mlp.c_proj.bias": np.zeros(WIDTH),
    }


class Attention:
    """The weights of a layer's attention, set feature by feature; all others are 0.

    Attributes:
        queries, keys, values: [WIDTH, WIDTH], each with biases; the first HEAD columns are of the first head.
        output: [WIDTH, WIDTH].
    """

    def __init__(self) -> None:
        self.queries, self.keys, self.values, self.output = np.zeros((4, WIDTH, WIDTH))
        self.query_bias = np.zeros(WIDTH)

    def compare(self, features: np.ndarray, first: int, query_scale: float, key_scale: float) -> None:
        """Multiplies features of queries and keys with one another, in the columns from `first` on."""
        columns = first + np.arange(features.size)
        self.queries[features.ravel(), columns], self.keys[features.ravel(), columns] = query_scale, key_scale

    def prefer(self, feature: int, column: int, logit: float) -> None:
        """Raises the logits of keys with a feature."""
        self.query_bias[column], self.keys[feature, column] = logit * math.sqrt(HEAD) / NORMED, 1

    def copy(self, sources: np.ndarray, targets: np.ndarray, first: int, scale: float) -> None:
        """Writes what is attended to from features to others, through the columns from `first` on."""
        columns = first + np.arange(sources.size)
        self.values[sources.ravel(), columns] = 1 / NORMED
        self.output[columns, targets.ravel()] = scale
        self.output[columns] = _balanced(self.output[columns])

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            "attn.c_attn.weight": np.concatenate([self.queries, self.keys, self.values], 1),
            "attn.c_attn.bias": np.concatenate([self.query_bias, np.zeros(2 * WIDTH)]),
            "attn.c_proj.weight": self.output,
            "attn.c_proj.bias": np.zeros(WIDTH),
        }


def _first_attention() -> dict[str, np.ndarray]:
    attention = Attention()
    # First head: equal words, further away; else the end of a turn.
    attention.compare(WORD, 0, MATCH, MATCH)
    attention.compare(NEAR, len(WORD), AWAY, -AWAY)
    attention.prefer(END, HEAD - 1, NO_MATCH)
    attention.copy(np.array([RARITY]), np.array([SHARED]), 0, SHARED_SCALE)
    # Second head: the nearest end of a turn; -sin(p - q) = cos p sin q - sin p cos q falls with the distance.
    lowest, columns = PLACE[:, -1], np.array([HEAD, HEAD + 1])
    attention.queries[lowest[::-1], columns], attention.keys[lowest, columns] = NEAREST, [-NEAREST, NEAREST]
    attention.prefer(END, HEAD + 2, TURN_END)
    attention.copy(PLACE, TURN, HEAD, 1.0)
    return attention.tensors()


def _second_attention(draw: np.random.Generator) -> dict[str, np.ndarray]:
    attention = Attention()
    attention.compare(SAME_TURN, 0, TOGETHER, TOGETHER)
    attention.copy(np.array([SHARED]), np.array([SCORE]), 0, SCORE_SCALE)
    for projection in (attention.queries, attention.keys, attention.values):
        projection[:, HEAD:] = draw.standard_normal((WIDTH, HEAD)) / math.sqrt(WIDTH)
    return attention.tensors()


def write_matching_weights(folder: Path, rarity: np.ndarray, n_ctx: int) -> None:
    """Writes them as a folder of Hugging Face, of the config and one file of weights."""
    sizes = {"n_embd": WIDTH, "n_head": WIDTH // HEAD, "n_layer": 2, "n_positions": n_ctx, "vocab_size": len(rarity)}
    config = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], **sizes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(matching_weights(rarity, n_ctx), folder / "model.safetensors")
