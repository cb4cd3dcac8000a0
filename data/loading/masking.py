"""Masked language modelling: which tokens of an example are to be guessed, and what stands in their place.

Everything is a function of ids and of uniform numbers; whoever draws these makes a run repeatable.

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
        mask_prob: probability that a position is chosen, to be guessed.
        same_prob: probability that a chosen position keeps its token.
        random_prob: probability that a chosen position gets a random token; else it gets the mask.
        mask_id: the id of the mask.
        cls_id: the id that every example begins with; None: there is no such id.
        is_special_V: bool, [vocab]; ids that are neither chosen nor random tokens.
    """

    mask_prob: float
    same_prob: float
    random_prob: float
    mask_id: int
    cls_id: int | None
    is_special_V: np.ndarray

    @classmethod
    def of(cls, data: DataConfig, n_vocab: int) -> MaskingRules:
        """Takes the rules from a config; special are the ids of mask, cls and padding, and those to be ignored."""
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
class MaskingDraws:
    """Independent numbers, uniform in [0, 1), that decide about each position of a batch; float64, [batch, n_ctx].

    Attributes:
        choice_BS: whether the position is chosen.
        fate_BS: whether a chosen one keeps its token, gets a random one, or the mask.
        token_BS: which random token.
    """

    choice_BS: np.ndarray
    fate_BS: np.ndarray
    token_BS: np.ndarray


def example_ids(ids_BL: np.ndarray, cls_id: int | None) -> np.ndarray:
    """Returns the ids of the examples, [batch, n_ctx]: the first of each record, behind the cls id if there is one."""
    if cls_id is None:
        return ids_BL[:, :-1]
    return np.insert(ids_BL[:, :-2], 0, cls_id, axis=1)


def mask_tokens(ids_BS: np.ndarray, draws: MaskingDraws, rules: MaskingRules) -> tuple[np.ndarray, np.ndarray]:
    """Masks examples; the ids that came in are the labels.

    Returns:
        The tokens that the model sees, [batch, n_ctx], and whether each position was chosen, bool [batch, n_ctx].
        Every example with an id that is not special has a chosen position.

    Source: Devlin et al., "BERT", NAACL 2019, section 3.1; the shares are GPT-Neo's keys.
    """
    chosen_BS = _choose(~rules.is_special_V[ids_BS], draws.choice_BS, rules.mask_prob)
    kept_BS = ~chosen_BS | (draws.fate_BS < rules.same_prob)
    random_BS = draws.fate_BS >= 1 - rules.random_prob
    return np.select([kept_BS, random_BS], [ids_BS, _random_ids(draws.token_BS, rules)], rules.mask_id), chosen_BS


def _choose(eligible_BS: np.ndarray, choice_BS: np.ndarray, mask_prob: float) -> np.ndarray:
    """Chooses by independent draws; where these leave an example without a choice, its smallest draw makes one.

    The smallest of draws that all lie above the probability is at any eligible position with the same chance; where
    one of them lies below, it is chosen anyway.
    """
    drawn_BS = np.where(eligible_BS, choice_BS, 1.0)
    smallest_BS = drawn_BS == drawn_BS.min(axis=1, keepdims=True)
    return eligible_BS & ((drawn_BS < mask_prob) | smallest_BS)


def _random_ids(token_BS: np.ndarray, rules: MaskingRules) -> np.ndarray:
    ordinary = np.flatnonzero(~rules.is_special_V)
    assert ordinary.size, "the config was to be refused: every id is special"
    return ordinary[(token_BS * ordinary.size).astype(np.int64)]
