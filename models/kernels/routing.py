"""The routing of tokens to experts, and the rows that move along the routes, on slices.

Shape legend: B batch, T tokens of a row of the batch, K choices of a token, X experts, S slots of an expert for one
row of the batch, F features, N things to move.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.noise import uniform


@dataclasses.dataclass(frozen=True)
class RoutingRule:
    """How tokens choose experts; fixed when the routing is compiled.

    Attributes:
        n_choices: how many experts a token may claim.
        second_policy: which second choices are claimed, a key of `SECOND_POLICIES`.
        second_threshold: of the policies `threshold` and `random`.
        group_size: so many tokens after one another share the capacity.
        capacity: how many tokens of a group an expert takes; at most group_size.
    """

    n_choices: int
    second_policy: str
    second_threshold: float
    group_size: int
    capacity: int

    def n_groups(self, n_tokens: int) -> int:
        return -(-n_tokens // self.group_size)

    def n_slots(self, n_tokens: int) -> int:
        """The most tokens of a row that one expert may have to take."""
        return min(n_tokens, self.n_groups(n_tokens) * self.capacity)


def _random(gate: tf.Tensor, threshold: float, key: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    numbers = uniform(key, rows, tf.zeros([1], tf.int32), tuple(gate.shape))
    return numbers * threshold < gate


SECOND_POLICIES: dict[str, Callable[[tf.Tensor, float, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "all": lambda gate, threshold, key, rows: tf.ones_like(gate, tf.bool),
    "none": lambda gate, threshold, key, rows: tf.zeros_like(gate, tf.bool),
    "threshold": lambda gate, threshold, key, rows: gate > threshold,
    "random": _random,
}


def _choices(logits: tf.Tensor, n_choices: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The experts of the largest logits, best first, and those logits: [B, T, X] -> [B, T, K] twice."""
    experts, largest = [], []
    for _ in range(n_choices):
        expert = tf.argmax(logits, -1, tf.int32)
        experts.append(expert)
        largest.append(tf.reduce_max(logits, -1))
        logits = tf.where(_is_expert(expert, logits.shape[-1]), tf.float32.min, logits)
    return tf.stack(experts, -1), tf.stack(largest, -1)


def _is_expert(expert: tf.Tensor, n_experts: int) -> tf.Tensor:
    """[...] -> bool [..., X]."""
    return expert[..., None] == tf.range(n_experts)


def _is_claimed(rule: RoutingRule, chosen_logits: tf.Tensor, key: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Whether each choice becomes a claim: the first always, the second by policy. [B, T, K] -> bool [B, T, K]."""
    first = tf.ones_like(chosen_logits[..., :1], tf.bool)
    if rule.n_choices == 1:
        return first
    gate = tf.sigmoid(chosen_logits[..., 1] - chosen_logits[..., 0])
    second = SECOND_POLICIES[rule.second_policy](gate, rule.second_threshold, key, rows)
    return tf.concat([first, second[..., None]], -1)


def _claims_before(rule: RoutingRule, claims_of_tokens: tf.Tensor) -> tf.Tensor:
    """How many claims on each expert the earlier tokens of the group made: int32 [B, T, X] -> [B, T, X]."""
    batch, n_tokens, n_experts = claims_of_tokens.shape
    n_groups = rule.n_groups(n_tokens)
    size = min(n_tokens, rule.group_size)
    padded = tf.pad(claims_of_tokens, [[0, 0], [0, n_groups * size - n_tokens], [0, 0]])
    before = tf.cumsum(tf.reshape(padded, [batch, n_groups, size, n_experts]), 2, exclusive=True)
    return tf.reshape(before, [batch, n_groups * size, n_experts])[:, :n_tokens]


def _sources(destinations: tf.Tensor, experts: tf.Tensor, n_experts: int, n_slots: int) -> tf.Tensor:
    """Which claim, counted in the row of the batch, fills each slot; -1: none. [B, T, K] -> [X, B, S]."""
    batch, n_tokens, n_choices = destinations.shape
    n_claims = n_tokens * n_choices
    row = tf.range(batch)[:, None, None]
    slot = destinations - experts * n_slots
    place = tf.where(destinations >= 0, (experts * batch + row) * n_slots + slot, -1)
    claims = tf.tile(tf.range(n_claims), [batch])
    # No two claims have one place; the largest of none is far below 0, and claims without a place are left out.
    filled = tf.math.unsorted_segment_max(claims, tf.reshape(place, [-1]), n_experts * batch * n_slots)
    return tf.reshape(tf.maximum(filled, -1), [n_experts, batch, n_slots])


@functools.cache
def route(rule: RoutingRule) -> Kernel:
    """(logits float32 [B, T, X], claims int32 [B, X], positions int32 [B], lengths int32 [B], key, rows) -> experts
    int32 [B, T, K], destinations int32 [B, T, K], sources int32 [X, B, S], claims int32 [B, X], dropped float32
    [B].

    `experts` are the choices, best first; a destination is expert * S + slot, or -1 where the choice was no claim or
    found no room; a source is token * K + choice, or -1 where the slot is empty. `claims` are those of the tokens
    before a row's position in its group, then also of the first `lengths` tokens here: for whole sequences 0 at first,
    for then each group begins anew. `dropped` is the share of the claims that found no room.
    """

    def kernel(
        logits: tf.Tensor,
        claims: tf.Tensor,
        positions: tf.Tensor,
        lengths: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        n_tokens, n_experts = logits.shape[1:]
        n_slots = rule.n_slots(n_tokens)
        claims = tf.where((positions % rule.group_size == 0)[:, None], 0, claims)
        experts, chosen_logits = _choices(logits, rule.n_choices)
        is_claimed = _is_claimed(rule, chosen_logits, key, rows)
        is_expert = _is_expert(experts, n_experts) & is_claimed[..., None]
        # A token's two choices differ, so that neither is before the other.
        claims_of_tokens = tf.reduce_sum(tf.cast(is_expert, tf.int32), 2)
        before = _claims_before(rule, claims_of_tokens)
        slot = tf.reduce_sum(tf.where(is_expert, before[:, :, None], 0), -1)
        n_taken = tf.reduce_sum(tf.where(is_expert, claims[:, None, None], 0), -1)
        has_room = slot + n_taken < rule.capacity
        group = tf.range(n_tokens)[:, None] // rule.group_size
        destinations = tf.where(is_claimed & has_room, experts * n_slots + group * rule.capacity + slot, -1)
        n_claims = tf.reduce_sum(tf.cast(is_claimed, tf.float32), [1, 2])
        dropped = tf.reduce_sum(tf.cast(is_claimed & ~has_room, tf.float32), [1, 2]) / n_claims
        claims += tf.gather(before + claims_of_tokens, lengths - 1, batch_dims=1)
        return experts, destinations, _sources(destinations, experts, n_experts, n_slots), claims, dropped

    return compiled(kernel)


@compiled
def chosen_logits(logits: tf.Tensor, experts: tf.Tensor) -> tf.Tensor:
    """[B, T, X], int32 [B, T, K] -> [B, T, K]."""
    return tf.gather(logits, experts, batch_dims=2)


@functools.cache
def chosen_logits_gradient(n_experts: int) -> Kernel:
    """(experts int32 [B, T, K], d_chosen [B, T, K]) -> d_logits [B, T, X]."""

    def kernel(experts: tf.Tensor, d_chosen: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(_is_expert(experts, n_experts), d_chosen[..., None], 0.0), 2)

    return compiled(kernel)


@functools.cache
def first_choices(n_experts: int) -> Kernel:
    """(experts int32 [B, T, K]) -> float32 [B, X], the share of tokens whose first choice is each expert."""

    def kernel(experts: tf.Tensor) -> tf.Tensor:
        is_first = tf.cast(_is_expert(experts[..., 0], n_experts), tf.float32)
        return tf.reduce_sum(is_first, 1) / experts.shape[1]

    return compiled(kernel)


@functools.cache
def gather_into_slots(n_own_experts: int, n_copies: int) -> Kernel:
    """(x [B, N, F], sources [X, B, S], first own expert) -> [own experts, B, S, F], each slot a copy of the thing
    that fills it, or 0; things have `n_copies` sources each.
    """

    def kernel(x: tf.Tensor, sources: tf.Tensor, first_expert: tf.Tensor) -> tf.Tensor:
        batch, n_things, n_features = x.shape
        own = tf.slice(sources, tf.stack([first_expert, 0, 0]), [n_own_experts, *sources.shape[1:]])
        place = tf.range(batch)[:, None] * n_things + tf.maximum(own, 0) // n_copies
        filled = tf.gather(tf.reshape(x, [batch * n_things, n_features]), place)
        return tf.where((own >= 0)[..., None], filled, tf.zeros([], x.dtype))

    return compiled(kernel)


@compiled
def sum_from_slots(slots: tf.Tensor, destinations: tf.Tensor, first_expert: tf.Tensor) -> tf.Tensor:
    """The sum of the slots that each thing went to, of those that lie here, in float32 and then in the slots' dtype.

    [own experts, B, S, F], [B, N, copies], scalar -> [B, N, F].
    """
    n_experts, batch, n_slots, n_features = slots.shape
    flat = tf.reshape(slots, [n_experts * batch * n_slots, n_features])
    own = tf.where(destinations >= 0, destinations - first_expert * n_slots, -1)
    is_here = (own >= 0) & (own < n_experts * n_slots)
    own = tf.where(is_here, own, 0)
    place = (own // n_slots * batch + tf.range(batch)[:, None, None]) * n_slots + own % n_slots
    # One copy after the other, which XLA fuses into one pass; gathered together they would be written out first.
    copies = [
        tf.where(is_here[..., copy, None], tf.cast(tf.gather(flat, place[..., copy]), tf.float32), 0.0)
        for copy in range(destinations.shape[-1])
    ]
    return tf.cast(tf.add_n(copies), slots.dtype)
