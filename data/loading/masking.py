"""Masked language modelling: chooses the positions to predict, and the tokens that replace them.

Everything here is a function of tokens and uniform random numbers, so that the caller makes a run repeatable.

Shape suffixes: B batch, S sequence (n_ctx), L ids of a record (n_ctx + 1), V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from configs.schema import DataConfig


@dataclass(frozen=True)
class MaskingRules:
    """How the tokens of a run are masked.

    Attributes:
        mask_prob: probability that a position is chosen for prediction.
        same_prob: probability that a chosen position keeps its token.
        random_prob: probability that a chosen position gets a random token; otherwise it gets the mask.
        mask_id: the id of the mask.
        cls_id: the id that every example begins with, or None.
        is_special_V: bool, [vocab]; ids that are never chosen, and never used as random tokens.
    """

    mask_prob: float
    same_prob: float
    random_prob: float
    mask_id: int
    cls_id: int | None
    is_special_V: np.ndarray

    @classmethod
    def of(cls, data: DataConfig, n_vocab: int) -> MaskingRules:
        """Reads the rules from a config; special ids are mask, cls, padding and those of `mlm_mask_ignore_ids`."""
        special = {data.mlm_mask_id, data.mlm_cls_token_id, data.padding_id, *data.mlm_mask_ignore_ids} - {None}
        return cls(
            mask_prob=data.mlm_mask_prob,
            same_prob=data.mlm_same_token_prob,
            random_prob=data.mlm_random_token_prob,
            mask_id=data.mlm_mask_id,
            cls_id=data.mlm_cls_token_id,
            is_special_V=np.isin(np.arange(n_vocab), sorted(special)),
        )


@dataclass(frozen=True)
class MaskingSamples:
    """Independent uniform numbers in [0, 1) for each position of a batch; float64, [batch, n_ctx].

    Attributes:
        choice_BS: decides whether the position is chosen.
        replacement_BS: decides whether a chosen position keeps its token, gets a random token, or gets the mask.
        token_BS: decides which random token.
    """

    choice_BS: np.ndarray
    replacement_BS: np.ndarray
    token_BS: np.ndarray


def example_tokens(tokens_BL: np.ndarray, cls_id: int | None) -> np.ndarray:
    """Returns the first tokens of each record, [batch, n_ctx], after the cls id, in the first segment, if there is one.

    Args:
        tokens_BL: of each its "id" and "segment".
        cls_id: the id that every example begins with, or None.
    """
    if cls_id is None:
        return tokens_BL[:, :-1]
    cls_B1 = tokens_BL[:, :1].copy()
    cls_B1["id"] = cls_id
    return np.concatenate([cls_B1, tokens_BL[:, :-2]], axis=1)


def mask_tokens(
    ids_BS: np.ndarray, is_label_BS: np.ndarray, samples: MaskingSamples, rules: MaskingRules
) -> tuple[np.ndarray, np.ndarray]:
    """Masks examples; the given ids are their labels.

    Args:
        ids_BS: of the examples.
        is_label_BS: bool; the others are never chosen.
        samples: decide.
        rules: how tokens are masked.

    Returns:
        The tokens that the model sees, [batch, n_ctx], and whether each position was chosen, bool [batch, n_ctx].
        Every example with a label that is not special has at least one chosen position.

    Source: Devlin et al., "BERT", NAACL 2019, section 3.1; the probabilities are GPT-Neo's keys.
    """
    chosen_BS = _choose(is_label_BS & ~rules.is_special_V[ids_BS], samples.choice_BS, rules.mask_prob)
    kept_BS = ~chosen_BS | (samples.replacement_BS < rules.same_prob)
    random_BS = samples.replacement_BS >= 1 - rules.random_prob
    return np.select([kept_BS, random_BS], [ids_BS, _random_ids(samples.token_BS, rules)], rules.mask_id), chosen_BS


def _choose(eligible_BS: np.ndarray, choice_BS: np.ndarray, mask_prob: float) -> np.ndarray:
    """Chooses each position independently; if none is chosen in an example, chooses that of its smallest number.

    If all numbers lie above the probability, the smallest is equally likely at every eligible position; if one lies
    below, the position of the smallest is chosen anyway.
    """
    candidates_BS = np.where(eligible_BS, choice_BS, 1.0)
    smallest_BS = candidates_BS == candidates_BS.min(axis=1, keepdims=True)
    return eligible_BS & ((candidates_BS < mask_prob) | smallest_BS)


def _random_ids(token_BS: np.ndarray, rules: MaskingRules) -> np.ndarray:
    ordinary = np.flatnonzero(~rules.is_special_V)
    assert ordinary.size, "every id is special: such a config must be refused before"
    return ordinary[(token_BS * ordinary.size).astype(np.int64)]
