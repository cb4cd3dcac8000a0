"""Sampling of the next token: one program for all rows, each with sampling parameters of its own.

The parameters are data, and what no row uses is skipped (`tf.cond`) and costs nothing. No filter sorts the vocabulary:
each finds its threshold, a distance from the most likely (or most typical) token, by bisection over the bits of
float32. Ties with the last token that a filter keeps are kept too, even if that makes more than k.

Shape legend: B batch, V vocab, M memory_length.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.entmax import entmax
from models.kernels.noise import exponential
from models.kernels.vocabulary import Vocabulary

MIN_TEMPERATURE = 1e-30  # float32 has too few digits to divide by less
MAX_TOP = 20
MAX_BIASES = 1024
MAX_ENDS = 4
BANNED = tf.float32.min  # finite: if no token is left, all that it bans are equally likely
VALUES_IN_CPU_CACHE = 2**17  # for each search, distances and probabilities of at most this many tokens at a time
INFINITY_BITS = 0x7F800000  # of float32; non-negative numbers and their bits are in the same order


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from its logits, in this order.

    Attributes:
        temperature: divides the logits after the penalties; 0: the most likely token, without any filter.
        top_k: keep the k most likely tokens; 0: all.
        top_p: keep the most likely tokens that together have this probability; 1: all.
        typical_p: keep the tokens whose surprisal is closest to the entropy, that together have this probability; 1:
            all.
        min_p: keep tokens with at least this fraction of the most likely token's probability; 0: all.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt and the text; 1:
            none.
        presence_penalty: subtracted from the logits of generated tokens; 0: none.
        frequency_penalty: subtracted from a token's logit once for each time it was generated; 0: none.
        no_repeat_ngram: no sequence of this many tokens occurs twice in prompt and text; 0: no limit.
        entmax_sampling: probabilities are the entmax of the logits instead of their softmax.
        never_end: no token that ends the text is sampled: neither eos nor one of `end_ids`.
        penalize_end: `repetition_penalty` and `no_repeat_ngram` act on these tokens too where the prompt holds them, as
            in Hugging Face's generate; otherwise they leave them alone, so that each turn of a dialogue can end.
        min_tokens: none of these tokens is sampled, and no stop string counts, before the text has this many tokens; 0:
            no limit.
        end_ids: tokens besides those of the vocabulary that end the text, at most `MAX_ENDS`.
        logit_bias: (token, number added to its logit before everything else), at most `MAX_BIASES` pairs.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    entmax_sampling: bool = False
    never_end: bool = False
    penalize_end: bool = False
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()


_TYPES = {field.name: type(field.default) for field in dataclasses.fields(SamplingParams)}
# The columns of the parameters as arrays, with the width of each.
FLOAT_SETTINGS = {name: 1 for name, value_type in _TYPES.items() if value_type is float} | {"biases": MAX_BIASES}
INTEGER_SETTINGS = {name: 1 for name, value_type in _TYPES.items() if value_type in (int, bool)} | {
    "ends": MAX_ENDS,
    "biased_tokens": MAX_BIASES,
}
N_FLOATS, N_INTEGERS = sum(FLOAT_SETTINGS.values()), sum(INTEGER_SETTINGS.values())


def param_arrays(rules: Sequence[SamplingParams]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the parameters of the rows as float32 [B, float_settings] and int32 [B, integer_settings]."""
    floats, integers = np.zeros((len(rules), N_FLOATS), np.float32), np.full((len(rules), N_INTEGERS), -1, np.int32)
    for row, rule in enumerate(rules):
        for array, names in ((floats, FLOAT_SETTINGS), (integers, INTEGER_SETTINGS)):
            values = [getattr(rule, name) for name in names if name in _TYPES]
            array[row, : len(values)] = values
        integers[row, -MAX_BIASES - MAX_ENDS :][: len(rule.end_ids)] = rule.end_ids
        for column, (token, bias) in enumerate(rule.logit_bias):
            integers[row, column - MAX_BIASES], floats[row, column - MAX_BIASES] = token, bias
    return floats, integers


Settings = dict[str, tf.Tensor]
Change = Callable[[tf.Tensor], tf.Tensor]


def settings_of(floats: tf.Tensor, integers: tf.Tensor) -> Settings:
    """Returns the parameters of the rows by the names of `SamplingParams`, each [B, 1].

    `end_ids` is in "ends" [B, MAX_ENDS], and `logit_bias` in "biased_tokens" and "biases", both [B, MAX_BIASES]; -1 is
    no token.
    """
    parts = [(floats, FLOAT_SETTINGS), (integers, INTEGER_SETTINGS)]
    return {
        name: column
        for array, widths in parts
        for name, column in zip(widths, tf.split(array, list(widths.values()), 1), strict=True)
    }


def _apply_changes(x: tf.Tensor, *changes: tuple[tf.Tensor, Change]) -> tf.Tensor:
    """Applies each change to the rows of x [B, V] where it is on, bool [B, 1], and computes none that is on nowhere."""

    def after_all() -> tf.Tensor:
        return functools.reduce(_apply_change, changes, x)

    is_any_on = functools.reduce(tf.logical_or, [is_on for is_on, _ in changes])
    return tf.cond(tf.reduce_any(is_any_on), after_all, lambda: x)


def _apply_change(x: tf.Tensor, conditional: tuple[tf.Tensor, Change]) -> tf.Tensor:
    is_on, change = conditional
    return tf.cond(tf.reduce_any(is_on), lambda: tf.where(is_on, change(x), x), lambda: x)


# Penalties and bans.


@dataclasses.dataclass(frozen=True)
class History:
    """The tokens of the rows so far.

    Attributes:
        tokens: int32 [B, M], valid before `lengths`.
        prompt_lengths: int32 [B], the tokens of the prompt among them.
        lengths: int32 [B].
    """

    tokens: tf.Tensor
    prompt_lengths: tf.Tensor
    lengths: tf.Tensor

    def positions(self) -> tf.Tensor:
        """Returns 0 ... M - 1."""
        return tf.range(self.tokens.shape[1])

    def is_valid(self) -> tf.Tensor:
        """Returns whether a row has a token at each position, bool [B, M]."""
        return self.positions() < self.lengths[:, None]

    def is_generated(self) -> tf.Tensor:
        """Returns whether the token at each position was generated, bool [B, M]."""
        return self.is_valid() & (self.positions() >= self.prompt_lengths[:, None])

    def counts(self, is_counted: tf.Tensor, n_vocab: int) -> tf.Tensor:
        """Counts how often each token occurs at the given positions, bool [B, M]: float32 [B, V]."""
        return _sums_by_token(tf.where(is_counted, self.tokens, -1), tf.ones(self.tokens.shape), n_vocab)


def _sums_by_token(tokens: tf.Tensor, values: tf.Tensor, n_vocab: int) -> tf.Tensor:
    """Adds up the values of each token of a row; -1 is no token: int32 [B, N], [B, N] -> float32 [B, V]."""
    n_rows = tokens.shape[0]
    indices = tf.where(tokens >= 0, tf.range(n_rows)[:, None] * n_vocab + tokens, -1)  # -1: left out
    return tf.reshape(tf.math.unsorted_segment_sum(values, indices, n_rows * n_vocab), [n_rows, n_vocab])


def _biased(settings: Settings, logits: tf.Tensor) -> tf.Tensor:
    """Source: OpenAI's API reference."""
    return logits + _sums_by_token(settings["biased_tokens"], settings["biases"], logits.shape[1])


def _repetition_penalized(settings: Settings, logits: tf.Tensor, history: History, is_exempt: tf.Tensor) -> tf.Tensor:
    """Source: Keskar et al. 2019, CTRL, section 4.1; negative logits, Hugging Face."""
    penalty = settings["repetition_penalty"]
    penalized = tf.where(logits < 0.0, logits * penalty, logits / penalty)
    is_repeated = history.counts(history.is_valid(), logits.shape[1]) > 0.0
    return tf.where(is_repeated & ~is_exempt, penalized, logits)


def _presence_penalized(settings: Settings, logits: tf.Tensor, history: History) -> tf.Tensor:
    """Presence and frequency. Source: OpenAI's API reference."""
    counts = history.counts(history.is_generated(), logits.shape[1])
    is_present = tf.cast(counts > 0.0, tf.float32)
    return logits - settings["presence_penalty"] * is_present - settings["frequency_penalty"] * counts


def _ends_repeated_ngram(length: tf.Tensor, history: History) -> tf.Tensor:
    """Finds repeated n-grams.

    Returns whether the token at each position ends an n-gram of `length` tokens, int32 [B, 1], that starts with the
    last tokens of the row: bool [B, M].
    """
    tokens, positions = history.tokens, history.positions()

    def compare(back: tf.Tensor, is_same: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        last = tf.gather(tokens, tf.maximum(history.lengths - back, 0), batch_dims=1)
        return back + 1, is_same & ((tf.roll(tokens, back, 1) == last[:, None]) | (back >= length))

    longest = tf.minimum(tf.reduce_max(length), tokens.shape[1])
    has_others = history.is_valid() & (positions >= length - 1)
    return tf.while_loop(lambda back, _: back < longest, compare, (1, has_others))[1]


def _ban_repeated_ngrams(settings: Settings, logits: tf.Tensor, history: History, is_exempt: tf.Tensor) -> tf.Tensor:
    """Source: Paulus et al. 2018, A Deep Reinforced Model for Abstractive Summarization, section 2.5."""
    is_end = _ends_repeated_ngram(settings["no_repeat_ngram"], history)
    return tf.where((history.counts(is_end, logits.shape[1]) > 0.0) & ~is_exempt, BANNED, logits)


def is_end(settings: Settings, vocabulary: Vocabulary, tokens: tf.Tensor) -> tf.Tensor:
    """Returns which tokens end a text of their row: int32 [B, N] or [N] -> bool [B, N]."""
    ends = tf.unstack(settings["ends"], axis=1)
    return functools.reduce(tf.logical_or, [tokens == end[:, None] for end in ends], vocabulary.is_end(tokens))


def penalized_logits(settings: Settings, logits: tf.Tensor, history: History, vocabulary: Vocabulary) -> tf.Tensor:
    """Returns the logits after penalties and bans: float32 [B, V] -> [B, V]; -inf for ids that are no token."""
    ends_text = is_end(settings, vocabulary, tf.range(logits.shape[1]))
    is_exempt = (settings["penalize_end"] == 0) & ends_text
    has_presence = (settings["presence_penalty"] != 0.0) | (settings["frequency_penalty"] != 0.0)
    logits = _apply_changes(
        logits,
        (settings["biased_tokens"][:, :1] >= 0, lambda x: _biased(settings, x)),
        (settings["repetition_penalty"] != 1.0, lambda x: _repetition_penalized(settings, x, history, is_exempt)),
        (has_presence, lambda x: _presence_penalized(settings, x, history)),
        (settings["no_repeat_ngram"] > 0, lambda x: _ban_repeated_ngrams(settings, x, history, is_exempt)),
    )
    is_too_short = (history.lengths - history.prompt_lengths)[:, None] < settings["min_tokens"]
    is_banned = ((settings["never_end"] > 0) | is_too_short) & ends_text
    return tf.where(is_banned | vocabulary.is_unused(logits.shape[1]), -float("inf"), logits)


# Filters. Probabilities are unnormalised here: divided by that of the most likely token, and 0 for tokens that a filter
# has removed. A distance is minus the logarithm of that quotient; filters do not change it.


def _entmax_distances(distances: tf.Tensor) -> tf.Tensor:
    probabilities = entmax(-distances)
    return -tf.math.log(probabilities / tf.reduce_max(probabilities, -1, keepdims=True))


def _distances(settings: Settings, logits: tf.Tensor) -> tf.Tensor:
    """Distances from the most likely token, so that no temperature takes a logit out of range."""
    temperature = tf.maximum(settings["temperature"], MIN_TEMPERATURE)
    distances = (tf.reduce_max(logits, -1, keepdims=True) - logits) / temperature
    return _apply_changes(distances, (settings["entmax_sampling"] > 0, _entmax_distances))


def _nearest(distances: tf.Tensor, amounts: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Returns the nearest tokens whose amounts together reach what is wanted: bool [B, V].

    Args:
        distances: [B, V], from 0 to infinity.
        amounts: [B, V], at least 0.
        wanted: [B, 1]; more than the sum of all amounts keeps all tokens, and 0 keeps one.
    """
    n_rows, n_vocab = distances.shape
    bits = tf.bitcast(distances, tf.int32)
    n_together = math.gcd(n_rows, max(1, VALUES_IN_CPU_CACHE // n_vocab))
    blocks = [tf.reshape(x, [n_rows // n_together, n_together, x.shape[1]]) for x in (bits, amounts, wanted)]
    reaches = tf.map_fn(lambda block: _reach(*block), tuple(blocks), fn_output_signature=tf.int32)
    return bits <= tf.reshape(reaches, [n_rows, 1])


def _reach(bits: tf.Tensor, amounts: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Finds the bits of the distance within which the wanted amount lies, by bisection: int32 [B, 1]."""

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = low + (high - low) // 2
        held = tf.reduce_sum(tf.where(bits <= middle, amounts, 0.0), -1, keepdims=True)
        is_enough = (held >= wanted) & (held > 0.0)
        high = tf.where(is_enough, middle, high)
        # Exactly enough: no token lies between here and the answer.
        return tf.where(is_enough, tf.where(held == wanted, middle, low), middle + 1), high

    span = (tf.zeros(wanted.shape, tf.int32), tf.fill(wanted.shape, INFINITY_BITS))
    return tf.while_loop(lambda low, high: tf.reduce_any(low < high), halve, span)[1]


def _top_k(settings: Settings, distances: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Source: Fan et al. 2018, Hierarchical Neural Story Generation, section 5."""
    is_kept = _nearest(distances, tf.ones_like(probabilities), tf.cast(settings["top_k"], tf.float32))
    return tf.where(is_kept, probabilities, 0.0)


def _top_p(settings: Settings, distances: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1."""
    wanted = settings["top_p"] * tf.reduce_sum(probabilities, -1, keepdims=True)
    return tf.where(_nearest(distances, probabilities, wanted), probabilities, 0.0)


def _min_p(settings: Settings, probabilities: tf.Tensor) -> tf.Tensor:
    """Source: Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling, section 3."""
    return tf.where(probabilities < settings["min_p"], 0.0, probabilities)


def _typical(settings: Settings, distances: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Source: Meister et al. 2023, Locally Typical Sampling, section 4."""
    total = tf.reduce_sum(probabilities, -1, keepdims=True)
    # Surprisal and entropy differ from a distance and its mean by the same number.
    expected = tf.reduce_sum(tf.where(probabilities > 0.0, probabilities * distances, 0.0), -1, keepdims=True) / total
    return tf.where(
        _nearest(tf.abs(distances - expected), probabilities, settings["typical_p"] * total), probabilities, 0.0
    )


def filtered_probabilities(settings: Settings, logits: tf.Tensor) -> tf.Tensor:
    """Applies temperature and filters.

    Returns unnormalised probabilities after temperature and filters: float32 [B, V] -> [B, V], above 0 for at least
    one token of each row.
    """
    distances = _distances(settings, logits)
    is_top_k = (settings["top_k"] > 0) & (settings["top_k"] < logits.shape[1])
    return _apply_changes(
        tf.exp(-distances),
        (is_top_k, lambda left: _top_k(settings, distances, left)),
        (settings["top_p"] < 1.0, lambda left: _top_p(settings, distances, left)),
        (settings["min_p"] > 0.0, lambda left: _min_p(settings, left)),
        (settings["typical_p"] < 1.0, lambda left: _typical(settings, distances, left)),
    )


# Sampling.


def _first_largest(x: tf.Tensor) -> tf.Tensor:
    """Computes tf.argmax, which XLA does not vectorise on CPUs: [B, V] -> int32 [B]."""
    last = x.shape[1] - 1
    return tf.reduce_min(tf.where(x == tf.reduce_max(x, -1, keepdims=True), tf.range(last + 1), last), -1)


def _sample(settings: Settings, logits: tf.Tensor, seeds: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Samples a token for each row: argmax of probability / exponential noise, int32 [B].

    Source: Maddison et al. 2014, A* Sampling, section 2: the Gumbel-max trick, here without logarithms.
    """
    return _first_largest(filtered_probabilities(settings, logits) / exponential(seeds, lengths, logits.shape[1]))


def _most_likely(log_probs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the MAX_TOP most likely tokens of each row and their log-probabilities, most likely first."""
    missing = [[0, 0], [0, max(0, MAX_TOP - log_probs.shape[1])]]
    top = tf.math.top_k(tf.pad(log_probs, missing, constant_values=-float("inf")), MAX_TOP)
    return top.indices, top.values


@functools.cache
def sample_next_tokens(vocabulary: Vocabulary) -> Kernel:
    """Returns the kernel that samples the next token of every row.

    (logits [B, V], floats [B, float_settings], integers int32 [B, integer_settings], seeds int32 [B], n_top int32
    [B], tokens int32 [B, M], prompt_lengths int32 [B], lengths int32 [B]) -> tokens int32 [B], log_probs [B],
    top_tokens int32 [B, top], top_log_probs [B, top], ended int32 [B]: 1 + a token that ends the text, 0 for others.

    Log-probabilities are those of the logits before temperature, penalties and filters. An id that is no token is
    neither sampled nor among the most likely ones.
    """

    def kernel(
        logits: tf.Tensor, floats: tf.Tensor, integers: tf.Tensor, seeds: tf.Tensor, n_top: tf.Tensor, *held: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        logits, settings, history = tf.cast(logits, tf.float32), settings_of(floats, integers), History(*held)
        penalized = penalized_logits(settings, logits, history, vocabulary)
        most_likely = _first_largest(penalized)
        is_sampled = settings["temperature"][:, 0] > 0.0
        tokens = tf.cond(
            tf.reduce_any(is_sampled),
            lambda: tf.where(is_sampled, _sample(settings, penalized, seeds, history.lengths), most_likely),
            lambda: most_likely,
        )
        log_z = tf.reduce_logsumexp(logits, -1, keepdims=True)
        log_probs = tf.gather(logits, tokens, batch_dims=1) - log_z[:, 0]
        shape = [logits.shape[0], MAX_TOP]
        top = tf.cond(
            tf.reduce_any(n_top > 0),
            lambda: _most_likely(vocabulary.without_unused(logits - log_z)),
            lambda: (tf.zeros(shape, tf.int32), tf.zeros(shape)),
        )
        ended = tf.where(is_end(settings, vocabulary, tokens[:, None])[:, 0], tokens + 1, 0)
        return tokens, log_probs, *top, ended

    return compiled(kernel)
