"""The choice of the next token of every row, each by a rule of its own, all by one program.

What a row asks for is data: what no row asks for is skipped (`tf.cond`) and costs nothing. No filter sorts the
vocabulary: each finds how far from the likeliest token (or the most typical one) it must reach, by bisection over the
bits of float32. Tokens as far away as the last that a filter keeps are kept with it, also where that makes more than k.

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

LOWEST_TEMPERATURE = 1e-30  # below it float32 has too few digits to divide by
MAX_TOP = 5
BANNED = tf.float32.min  # finite: where everything is banned, nothing is
N_CACHED = 2**17  # so many tokens' distances and weights stay in a core's cache while they are searched again and again
INFINITY_BITS = 0x7F800000  # of float32; those of smaller numbers from 0 on are smaller, in the same order


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from its logits, in this order.

    Attributes:
        temperature: divides the logits after the penalties; 0: the likeliest token, and no filter is asked.
        top_k: only the k likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together hold this probability; 1: all.
        typical_p: only the tokens whose surprise is nearest to the expected one, that together hold this probability;
            1: all.
        min_p: only tokens with at least this share of the likeliest one's probability; 0: all.
        repetition_penalty: divides positive and multiplies negative logits of tokens of the prompt and the text; 1:
            none.
        presence_penalty: is taken from the logits of tokens that were written; 0: none.
        frequency_penalty: is taken from a token's logit as often as it was written; 0: none.
        no_repeat_ngram: no run of so many tokens comes twice in the prompt and the text; 0: any may.
        entmax_sampling: probabilities are the entmax of the logits, not their softmax.
        never_end: the end of the text is never written.
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


_TYPES = {field.name: type(field.default) for field in dataclasses.fields(SamplingParams)}
FLOAT_SETTINGS = tuple(name for name, value_type in _TYPES.items() if value_type is float)
INTEGER_SETTINGS = tuple(name for name, value_type in _TYPES.items() if value_type is not float)


def param_arrays(rules: Sequence[SamplingParams]) -> tuple[np.ndarray, np.ndarray]:
    """The rules of the rows as float32 [B, float_settings] and int32 [B, integer_settings]."""
    floats = [[getattr(rule, name) for name in FLOAT_SETTINGS] for rule in rules]
    integers = [[getattr(rule, name) for name in INTEGER_SETTINGS] for rule in rules]
    return np.array(floats, np.float32), np.array(integers, np.int32)


Settings = dict[str, tf.Tensor]
Change = Callable[[tf.Tensor], tf.Tensor]


def settings_of(floats: tf.Tensor, integers: tf.Tensor) -> Settings:
    """What the rows ask for, by the names of `SamplingParams`: [B, 1] each."""
    columns = [*tf.split(floats, len(FLOAT_SETTINGS), 1), *tf.split(integers, len(INTEGER_SETTINGS), 1)]
    return dict(zip([*FLOAT_SETTINGS, *INTEGER_SETTINGS], columns, strict=True))


def _changed(x: tf.Tensor, *changes: tuple[tf.Tensor, Change]) -> tf.Tensor:
    """x [B, V] after the changes, each in the rows that ask for it, bool [B, 1], and computed only if there is one."""

    def after_all() -> tf.Tensor:
        return functools.reduce(_changed_once, changes, x)

    is_any_asked = functools.reduce(tf.logical_or, [is_asked for is_asked, _ in changes])
    return tf.cond(tf.reduce_any(is_any_asked), after_all, lambda: x)


def _changed_once(x: tf.Tensor, asked: tuple[tf.Tensor, Change]) -> tf.Tensor:
    is_asked, change = asked
    return tf.cond(tf.reduce_any(is_asked), lambda: tf.where(is_asked, change(x), x), lambda: x)


# Penalties and bans.


@dataclasses.dataclass(frozen=True)
class History:
    """What the rows hold.

    Attributes:
        tokens: int32 [B, M], valid before `lengths`.
        prompt_lengths: int32 [B], how many of them are the prompt.
        lengths: int32 [B].
    """

    tokens: tf.Tensor
    prompt_lengths: tf.Tensor
    lengths: tf.Tensor

    def places(self) -> tf.Tensor:
        return tf.range(self.tokens.shape[1])

    def is_valid(self) -> tf.Tensor:
        """bool [B, M]."""
        return self.places() < self.lengths[:, None]

    def is_written(self) -> tf.Tensor:
        """bool [B, M]."""
        return self.is_valid() & (self.places() >= self.prompt_lengths[:, None])

    def counts(self, is_counted: tf.Tensor, n_vocab: int) -> tf.Tensor:
        """How often each token stands at the counted places, bool [B, M]: float32 [B, V]."""
        n_rows = self.tokens.shape[0]
        places = tf.where(is_counted, tf.range(n_rows)[:, None] * n_vocab + self.tokens, -1)  # -1: left out
        ones = tf.ones(places.shape, tf.float32)
        return tf.reshape(tf.math.unsorted_segment_sum(ones, places, n_rows * n_vocab), [n_rows, n_vocab])


def _repetition_penalised(settings: Settings, logits: tf.Tensor, history: History) -> tf.Tensor:
    """Source: Keskar et al. 2019, CTRL, section 4.1; negative logits, Hugging Face."""
    penalty = settings["repetition_penalty"]
    penalised = tf.where(logits < 0.0, logits * penalty, logits / penalty)
    return tf.where(history.counts(history.is_valid(), logits.shape[1]) > 0.0, penalised, logits)


def _presence_penalised(settings: Settings, logits: tf.Tensor, history: History) -> tf.Tensor:
    """Presence and frequency. Source: OpenAI's API reference."""
    counts = history.counts(history.is_written(), logits.shape[1])
    is_present = tf.cast(counts > 0.0, tf.float32)
    return logits - settings["presence_penalty"] * is_present - settings["frequency_penalty"] * counts


def _ends_repeat(length: tf.Tensor, history: History) -> tf.Tensor:
    """Whether the token at each place ends a run of `length`, int32 [B, 1], whose others are the last ones of the row:
    bool [B, M].
    """
    tokens, places = history.tokens, history.places()

    def compare(back: tf.Tensor, is_same: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        last = tf.gather(tokens, tf.maximum(history.lengths - back, 0), batch_dims=1)
        return back + 1, is_same & ((tf.roll(tokens, back, 1) == last[:, None]) | (back >= length))

    longest = tf.minimum(tf.reduce_max(length), tokens.shape[1])
    has_others = history.is_valid() & (places >= length - 1)
    return tf.while_loop(lambda back, _: back < longest, compare, (1, has_others))[1]


def _without_repeats(settings: Settings, logits: tf.Tensor, history: History) -> tf.Tensor:
    """Source: Paulus et al. 2018, A Deep Reinforced Model for Abstractive Summarization, section 2.5."""
    is_end = _ends_repeat(settings["no_repeat_ngram"], history)
    return tf.where(history.counts(is_end, logits.shape[1]) > 0.0, BANNED, logits)


def steered_logits(settings: Settings, logits: tf.Tensor, history: History, eos_id: int) -> tf.Tensor:
    """The logits after penalties and bans: float32 [B, V] -> [B, V]."""
    has_presence = (settings["presence_penalty"] != 0.0) | (settings["frequency_penalty"] != 0.0)
    logits = _changed(
        logits,
        (settings["repetition_penalty"] != 1.0, lambda x: _repetition_penalised(settings, x, history)),
        (has_presence, lambda x: _presence_penalised(settings, x, history)),
        (settings["no_repeat_ngram"] > 0, lambda x: _without_repeats(settings, x, history)),
    )
    is_end = tf.range(logits.shape[1]) == eos_id
    return tf.where((settings["never_end"] > 0) & is_end, -float("inf"), logits)


# Filters. A weight is a token's probability divided by the likeliest one's, 0 where a filter has taken it out; a
# distance is minus its logarithm, which filters leave alone.


def _entmax_distances(distances: tf.Tensor) -> tf.Tensor:
    probabilities = entmax(-distances)
    return -tf.math.log(probabilities / tf.reduce_max(probabilities, -1, keepdims=True))


def _distances(settings: Settings, logits: tf.Tensor) -> tf.Tensor:
    """From the likeliest token down, so that no temperature takes a logit out of range."""
    temperature = tf.maximum(settings["temperature"], LOWEST_TEMPERATURE)
    distances = (tf.reduce_max(logits, -1, keepdims=True) - logits) / temperature
    return _changed(distances, (settings["entmax_sampling"] > 0, _entmax_distances))


def _nearest(distances: tf.Tensor, amounts: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """The tokens that are so near that together they hold the wanted amount, and no fewer: bool [B, V].

    Args:
        distances: [B, V], from 0 to infinity.
        amounts: [B, V], at least 0.
        wanted: [B, 1]; where it is more than there is, all; at least one token even for 0.
    """
    n_rows, n_vocab = distances.shape
    bits = tf.bitcast(distances, tf.int32)
    n_together = math.gcd(n_rows, max(1, N_CACHED // n_vocab))
    blocks = [tf.reshape(x, [n_rows // n_together, n_together, x.shape[1]]) for x in (bits, amounts, wanted)]
    reaches = tf.map_fn(lambda block: _reach(*block), tuple(blocks), fn_output_signature=tf.int32)
    return bits <= tf.reshape(reaches, [n_rows, 1])


def _reach(bits: tf.Tensor, amounts: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """The bits of the distance within which the wanted amount lies: int32 [B, 1], by bisection."""

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = low + (high - low) // 2
        held = tf.reduce_sum(tf.where(bits <= middle, amounts, 0.0), -1, keepdims=True)
        is_enough = (held >= wanted) & (held > 0.0)
        high = tf.where(is_enough, middle, high)
        # Exactly enough: nothing that counts lies between here and the answer.
        return tf.where(is_enough, tf.where(held == wanted, middle, low), middle + 1), high

    span = (tf.zeros(wanted.shape, tf.int32), tf.fill(wanted.shape, INFINITY_BITS))
    return tf.while_loop(lambda low, high: tf.reduce_any(low < high), halve, span)[1]


def _top_k(settings: Settings, distances: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Source: Fan et al. 2018, Hierarchical Neural Story Generation, section 5."""
    is_kept = _nearest(distances, tf.ones_like(weights), tf.cast(settings["top_k"], tf.float32))
    return tf.where(is_kept, weights, 0.0)


def _top_p(settings: Settings, distances: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1."""
    wanted = settings["top_p"] * tf.reduce_sum(weights, -1, keepdims=True)
    return tf.where(_nearest(distances, weights, wanted), weights, 0.0)


def _min_p(settings: Settings, weights: tf.Tensor) -> tf.Tensor:
    """Source: Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling, section 3."""
    return tf.where(weights < settings["min_p"], 0.0, weights)


def _typical(settings: Settings, distances: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Source: Meister et al. 2023, Locally Typical Sampling, section 4."""
    total = tf.reduce_sum(weights, -1, keepdims=True)
    # Surprise and entropy differ from a distance and its mean by the same number.
    expected = tf.reduce_sum(tf.where(weights > 0.0, weights * distances, 0.0), -1, keepdims=True) / total
    return tf.where(_nearest(tf.abs(distances - expected), weights, settings["typical_p"] * total), weights, 0.0)


def weights(settings: Settings, logits: tf.Tensor) -> tf.Tensor:
    """What the probability of each token to be drawn is proportional to, after temperature and filters: float32 [B, V]
    -> [B, V], above 0 for at least one token in each row.
    """
    distances = _distances(settings, logits)
    is_top_k = (settings["top_k"] > 0) & (settings["top_k"] < logits.shape[1])
    return _changed(
        tf.exp(-distances),
        (is_top_k, lambda left: _top_k(settings, distances, left)),
        (settings["top_p"] < 1.0, lambda left: _top_p(settings, distances, left)),
        (settings["min_p"] > 0.0, lambda left: _min_p(settings, left)),
        (settings["typical_p"] < 1.0, lambda left: _typical(settings, distances, left)),
    )


# The choice.


def _first_largest(x: tf.Tensor) -> tf.Tensor:
    """As tf.argmax, which XLA does not vectorise on CPUs: [B, V] -> int32 [B]."""
    last = x.shape[1] - 1
    return tf.reduce_min(tf.where(x == tf.reduce_max(x, -1, keepdims=True), tf.range(last + 1), last), -1)


def _drawn(settings: Settings, logits: tf.Tensor, seeds: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """A token for each row, by a race of exponential clocks that run as fast as the weights: int32 [B].

    Source: the Gumbel-max trick without its logarithms; Maddison et al. 2014, A* Sampling, section 2.
    """
    return _first_largest(weights(settings, logits) / exponential(seeds, lengths, logits.shape[1]))


def _likeliest(log_probs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The MAX_TOP likeliest tokens of each row and their log-probabilities, likeliest first."""
    missing = [[0, 0], [0, max(0, MAX_TOP - log_probs.shape[1])]]
    top = tf.math.top_k(tf.pad(log_probs, missing, constant_values=-float("inf")), MAX_TOP)
    return top.indices, top.values


@functools.cache
def sample_next_tokens(eos_id: int) -> Kernel:
    """(logits [B, V], floats [B, float_settings], integers int32 [B, integer_settings], seeds int32 [B], n_top int32
    [B], tokens int32 [B, M], prompt_lengths int32 [B], lengths int32 [B]) -> tokens int32 [B], log_probs [B],
    top_tokens int32 [B, top], top_log_probs [B, top].

    The log-probabilities are those of the logits as they come.
    """

    def kernel(
        logits: tf.Tensor, floats: tf.Tensor, integers: tf.Tensor, seeds: tf.Tensor, n_top: tf.Tensor, *held: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        logits, settings, history = tf.cast(logits, tf.float32), settings_of(floats, integers), History(*held)
        steered = steered_logits(settings, logits, history, eos_id)
        likeliest = _first_largest(steered)
        is_drawn = settings["temperature"][:, 0] > 0.0
        tokens = tf.cond(
            tf.reduce_any(is_drawn),
            lambda: tf.where(is_drawn, _drawn(settings, steered, seeds, history.lengths), likeliest),
            lambda: likeliest,
        )
        log_z = tf.reduce_logsumexp(logits, -1, keepdims=True)
        log_probs = tf.gather(logits, tokens, batch_dims=1) - log_z[:, 0]
        shape = [logits.shape[0], MAX_TOP]
        top = tf.cond(
            tf.reduce_any(n_top > 0),
            lambda: _likeliest(logits - log_z),
            lambda: (tf.zeros(shape, tf.int32), tf.zeros(shape)),
        )
        return tokens, log_probs, *top

    return compiled(kernel)
