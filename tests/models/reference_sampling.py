"""Reference sampling of a token in NumPy and float64, one row at a time; and many draws with the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from meshtf import tf
from models.kernels import sampling
from models.kernels.sampling import SamplingParams
from models.kernels.vocabulary import Vocabulary

ENTMAX_ALPHA = 1.3
EOS = 3


def entmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] -> [..., V]: tau by bisection."""
    exponent = 1.0 / (ENTMAX_ALPHA - 1.0)
    scaled = (ENTMAX_ALPHA - 1.0) * (np.float64(logits) - logits.max(-1, keepdims=True))
    low, high = np.full((*scaled.shape[:-1], 1), -1.0), np.zeros((*scaled.shape[:-1], 1))
    for _ in range(60):
        tau = (low + high) / 2
        is_below = (np.maximum(scaled - tau, 0.0) ** exponent).sum(-1, keepdims=True) > 1.0
        low, high = np.where(is_below, tau, low), np.where(is_below, high, tau)
    return np.maximum(scaled - low, 0.0) ** exponent


@dataclasses.dataclass(frozen=True)
class Text:
    """The tokens of a row; the first `n_prompt` are the prompt."""

    tokens: tuple[int, ...] = ()
    n_prompt: int = 0


def steered(rule: SamplingParams, logits: np.ndarray, text: Text) -> np.ndarray:
    """Logits after penalties and bans: [V] -> [V].

    Banned tokens have -inf, but if no token would be left, repetitions have 0.
    """
    logits, tokens = np.array(logits, np.float64), text.tokens
    ends = {EOS, *rule.end_ids}
    for token, bias in rule.logit_bias:
        logits[token] += bias
    for token in set(tokens) if rule.penalize_end else set(tokens) - ends:
        penalty = rule.repetition_penalty
        logits[token] *= penalty if logits[token] < 0 else 1.0 / penalty
    for token in tokens[text.n_prompt :]:
        logits[token] -= rule.frequency_penalty
    for token in set(tokens[text.n_prompt :]):
        logits[token] -= rule.presence_penalty
    if rule.never_end or len(tokens) - text.n_prompt < rule.min_tokens:
        logits[list(ends)] = -np.inf
    repeated, n_others = [], rule.no_repeat_ngram - 1
    for end in range(n_others, len(tokens)) if rule.no_repeat_ngram else ():
        is_exempt = tokens[end] in ends and not rule.penalize_end
        if tokens[end - n_others : end] == tokens[len(tokens) - n_others :] and not is_exempt:
            repeated.append(tokens[end])
    others = np.delete(logits, repeated)
    logits[repeated] = np.where(np.isinf(logits[repeated]) | np.isfinite(others).any(), -np.inf, 0.0)
    return logits


def nearest(distances: np.ndarray, probabilities: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """The probabilities of the nearest tokens that reach this share, and the margin by which they are the nearest."""
    order = np.argsort(distances, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    farthest = distances[order][before < share].max()
    clearness = min(np.abs(before - share).min(), np.abs(distances[distances != farthest] - farthest).min(initial=1.0))
    kept = np.where(distances <= farthest, probabilities, 0.0)
    return kept / kept.sum(), clearness


def probabilities_and_clearness(rule: SamplingParams, logits: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities from penalized logits, and the margin between the filters' bounds and the nearest token."""
    scaled = (logits - logits.max()) / rule.temperature
    probabilities = entmax(scaled) if rule.entmax_sampling else np.exp(scaled) / np.exp(scaled).sum()
    clearness = [1.0]
    if rule.top_k:
        probabilities = np.where(probabilities < np.sort(probabilities)[::-1][: rule.top_k][-1], 0.0, probabilities)
        probabilities /= probabilities.sum()
    if rule.top_p < 1.0:
        probabilities, clear = nearest(-probabilities, probabilities, rule.top_p)
        clearness.append(clear)
    if rule.min_p > 0.0:
        clearness.append(np.abs(probabilities / probabilities.max() - rule.min_p).min())
        probabilities = np.where(probabilities < rule.min_p * probabilities.max(), 0.0, probabilities)
        probabilities /= probabilities.sum()
    if rule.typical_p < 1.0:
        surprise = -np.log(np.where(probabilities > 0.0, probabilities, 1e-300))
        distances = np.abs(surprise - (probabilities * surprise).sum())
        probabilities, clear = nearest(distances, probabilities, rule.typical_p)
        clearness.append(clear)
    return probabilities, min(clearness)


def probabilities(rule: SamplingParams, logits: np.ndarray, text: Text = Text()) -> np.ndarray:
    """The probability of each token: [V] -> [V]."""
    return probabilities_and_clearness(rule, steered(rule, logits, text))[0]


# Results of the kernels.


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch of rows: logits float32 [B, V], and the parameters, text and seed of each row."""

    logits: np.ndarray
    rules: Sequence[SamplingParams]
    texts: Sequence[Text]
    seeds: np.ndarray

    @staticmethod
    def repeated(logits: np.ndarray, rule: SamplingParams, seeds: np.ndarray, text: Text = Text()) -> Rows:
        n_rows = len(seeds)
        repeated_BV = np.broadcast_to(np.float32(logits), (n_rows, len(logits)))
        return Rows(repeated_BV, [rule] * n_rows, [text] * n_rows, np.int32(seeds))

    def history(self, memory_length: int = 16) -> list[np.ndarray]:
        """Tokens, followed by padding; lengths of the prompts and of the whole texts."""
        tokens = np.full((len(self.texts), memory_length), 1, np.int32)
        for row, text in zip(tokens, self.texts, strict=True):
            row[: len(text.tokens)] = text.tokens
        n_prompts, lengths = ([f(text) for text in self.texts] for f in (lambda t: t.n_prompt, lambda t: len(t.tokens)))
        return [tokens, np.int32(n_prompts), np.int32(lengths)]

    def inputs(self, n_top: int = 0) -> list[np.ndarray]:
        """The inputs of `sampling.sample_next_tokens`."""
        counts = np.full(len(self.rules), n_top, np.int32)
        return [self.logits, *sampling.param_arrays(self.rules), self.seeds, counts, *self.history()]

    def chosen(self, n_top: int = 0) -> list[np.ndarray]:
        """Sampled tokens and their log-probabilities, the most likely tokens and theirs, and what ended each text."""
        return [
            output.numpy()
            for output in sampling.sample_next_tokens(Vocabulary(EOS))(*map(tf.constant, self.inputs(n_top)))
        ]

    def probabilities(self) -> np.ndarray:
        """The probabilities from which the kernels sample, [B, V]."""
        logits, floats, integers, _, _, *history = map(tf.constant, self.inputs())
        return _probabilities(logits, floats, integers, history).numpy()


@tf.function(jit_compile=True, autograph=False)
def _probabilities(logits: tf.Tensor, floats: tf.Tensor, integers: tf.Tensor, history: list[tf.Tensor]) -> tf.Tensor:
    settings = sampling.settings_of(floats, integers)
    steered = sampling.penalized_logits(settings, logits, sampling.History(*history), Vocabulary(EOS))
    weights = sampling.filtered_probabilities(settings, steered)
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


# The 99.9 % points of the chi-square distribution, by degrees of freedom.
CHI_SQUARE_BOUND = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 63: 103.44}


def assert_drawn_with(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Checks the frequencies of tokens against probabilities with a chi-square test.

    The same test must reject equal probabilities for all possible tokens.
    """
    counts, is_possible = np.bincount(tokens, minlength=len(probabilities)), probabilities > 0.0
    assert is_possible.sum() > 1 and counts[~is_possible].sum() == 0
    bound = CHI_SQUARE_BOUND[int(is_possible.sum()) - 1]
    assert _chi_square(counts[is_possible], probabilities[is_possible]) < bound
    assert _chi_square(counts[is_possible], np.full(is_possible.sum(), 1.0 / is_possible.sum())) > 10 * bound


def _chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())
