"""Samples as text: cut at their end, framed, on the screen and in a file."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence

import numpy as np

from runtime.files import write_text

FRAME = "=" * 40


def cut_at(ids: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
    """The ids before the first eos."""
    ids = list(map(int, ids))
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def sample_texts(
    prompt_S: np.ndarray, written_BN: np.ndarray, eos_id: int, decode: Callable[[Sequence[int]], str], with_prompt: bool
) -> list[str]:
    """The text of each row of `written_BN` [batch, new_tokens], after the prompt [sequence] or without it."""
    # An empty prompt is an eos to the model, and nothing to the reader.
    before = [token for token in prompt_S.tolist() if token != eos_id] if with_prompt else []
    return [decode(before + cut_at(row, eos_id)) for row in written_BN]


def format_samples(texts: Sequence[str]) -> str:
    """All samples, each under a line with its number; GPT-Neo's frame."""
    framed = [f"{FRAME} SAMPLE {number} {FRAME}\n\n{text}\n\n{FRAME * 2}\n" for number, text in enumerate(texts)]
    return "\n".join(framed)


def write_predictions(model_path: str, sacred_id: str, step: int, texts: Sequence[str]) -> str:
    """Writes `predictions_{sacred_id}_{step}.txt` under the model path; returns its path."""
    path = posixpath.join(model_path, f"predictions_{sacred_id}_{step}.txt")
    write_text(path, format_samples(texts))
    return path
