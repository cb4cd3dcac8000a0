"""Routing of tokens to experts, and dispatch and combine of their rows, on slices.

Shape legend: B batch, T tokens of a row of the batch, K choices of a token, X experts, S slots of an expert for one
row of the batch, F features, N rows to dispatch (tokens, or copies of tokens).

A token is *sent* to the experts it is assigned to; those that exceed an expert's capacity are dropped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.noise import uniform
from models.kernels.packing import Packing


@dataclasses.dataclass(frozen=True)
class RoutingParams:
    """How tokens choose experts; fixed when the routing is compiled.

    Attributes:
        n_choices: the most experts that a token is sent to.
        second_policy: which second choices count, a key of `SECOND_POLICIES`.
        second_threshold: for the policies `threshold` and `random`.
        group_size: number of consecutive tokens that share the capacity.
        capacity: how many tokens of a group an expert takes; at most group_size.
    """

    n_choices: int
    second_policy: str
    second_threshold: float
    group_size: int
    capacity: int

    def n_groups(self, n_tokens: int) -> int:
        """Returns the number of groups of a row, the last of which may be shorter."""
        return -(-n_tokens // self.group_size)

    def n_slots(self, n_tokens: int) -> int:
        """Returns the most tokens of a row that one expert may take."""
        return min(n_tokens, self.n_groups(n_tokens) * self.capacity)


# (gate [B, T], threshold, numbers in (0, 1) [B, T]) -> which second choices count.
SECOND_POLICIES: dict[str, Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]] = {
    "all": lambda gate, threshold, numbers: tf.ones_like(gate, tf.bool),
    "none": lambda gate, threshold, numbers: tf.zeros_like(gate, tf.bool),
    "threshold": lambda gate, threshold, numbers: gate > threshold,
    "random": lambda gate, threshold, numbers: numbers * threshold < gate,
}


def _choices(logits: tf.Tensor, n_choices: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the experts of the largest logits, best first, and those logits: [B, T, X] -> [B, T, K] twice."""
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


def _is_sent(params: RoutingParams, chosen_logits: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Whether tokens are sent to each choice: the first always, the second by policy. [B, T, K] -> bool [B, T, K]."""
    first = tf.ones_like(chosen_logits[..., :1], tf.bool)
    if params.n_choices == 1:
        return first
    gate = tf.sigmoid(chosen_logits[..., 1] - chosen_logits[..., 0])
    second = SECOND_POLICIES[params.second_policy](gate, params.second_threshold, numbers)
    return tf.concat([first, second[..., None]], -1)


def _sent_before(params: RoutingParams, sent_by_token: tf.Tensor) -> tf.Tensor:
    """How many earlier tokens of the group were sent to each expert: int32 [B, T, X] -> [B, T, X]."""
    batch, n_tokens, n_experts = sent_by_token.shape
    n_groups = params.n_groups(n_tokens)
    size = min(n_tokens, params.group_size)
    padded = tf.pad(sent_by_token, [[0, 0], [0, n_groups * size - n_tokens], [0, 0]])
    before = tf.cumsum(tf.reshape(padded, [batch, n_groups, size, n_experts]), 2, exclusive=True)
    return tf.reshape(before, [batch, n_groups * size, n_experts])[:, :n_tokens]


def _sources(destinations: tf.Tensor, experts: tf.Tensor, n_experts: int, n_slots: int) -> tf.Tensor:
    """Which token * K + choice fills each slot; -1: none. [B, T, K] -> [X, B, S]."""
    batch, n_tokens, n_choices = destinations.shape
    row = tf.range(batch)[:, None, None]
    slot = destinations - experts * n_slots
    flat_slot = tf.where(destinations >= 0, (experts * batch + row) * n_slots + slot, -1)
    sources = tf.tile(tf.range(n_tokens * n_choices), [batch])
    # Each slot has at most one source; the maximum of none is far below 0, and sources without a slot are left out.
    filled = tf.math.unsorted_segment_max(sources, tf.reshape(flat_slot, [-1]), n_experts * batch * n_slots)
    return tf.reshape(tf.maximum(filled, -1), [n_experts, batch, n_slots])


@functools.cache
def route(params: RoutingParams) -> Kernel:
    """Returns the kernel that routes tokens.

    (logits float32 [B, T, X], counts int32 [B, X], positions int32 [B], lengths int32 [B], key, rows) -> experts
    int32 [B, T, K], destinations int32 [B, T, K], sources int32 [X, B, S], counts int32 [B, X], dropped_fraction
    float32 [B].

    `experts` are the choices, best first; a destination is expert * S + slot, or -1 where the choice does not count or
    exceeds the capacity; a source is token * K + choice, or -1 where the slot is empty. `counts` says how many tokens
    of a row's group before its position were sent to each expert, and on return also how many of the first `lengths`
    tokens were. `dropped_fraction` is the fraction of the assignments that exceed the capacity.

    Source: Lepikhin et al. 2020, GShard, section 2.2, for the capacity and the random second choice.
    """

    def kernel(
        logits: tf.Tensor, counts: tf.Tensor, positions: tf.Tensor, lengths: tf.Tensor, key: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        n_tokens, n_experts = logits.shape[1:]
        n_slots = params.n_slots(n_tokens)
        counts = tf.where((positions % params.group_size == 0)[:, None], 0, counts)
        experts, chosen_logits = _choices(logits, params.n_choices)
        numbers = uniform(key, rows, [positions[:, None]], tuple(logits.shape[:2]))
        is_sent = _is_sent(params, chosen_logits, numbers)
        is_expert = _is_expert(experts, n_experts) & is_sent[..., None]
        # The two choices of a token are different experts, so neither counts before the other.
        sent_by_token = tf.reduce_sum(tf.cast(is_expert, tf.int32), 2)
        before = _sent_before(params, sent_by_token)
        slot = tf.reduce_sum(tf.where(is_expert, before[:, :, None], 0), -1)
        n_taken = tf.reduce_sum(tf.where(is_expert, counts[:, None, None], 0), -1)
        has_room = slot + n_taken < params.capacity
        group = tf.range(n_tokens)[:, None] // params.group_size
        destinations = tf.where(is_sent & has_room, experts * n_slots + group * params.capacity + slot, -1)
        n_sent = tf.reduce_sum(tf.cast(is_sent, tf.float32), [1, 2])
        dropped_fraction = tf.reduce_sum(tf.cast(is_sent & ~has_room, tf.float32), [1, 2]) / n_sent
        counts += tf.gather(before + sent_by_token, lengths - 1, batch_dims=1)
        return experts, destinations, _sources(destinations, experts, n_experts, n_slots), counts, dropped_fraction

    return compiled(kernel)


@functools.cache
def route_packed(params: RoutingParams) -> Kernel:
    """Returns the kernel that routes the tokens of packed texts, each as if its text were alone.

    (logits float32 [B, T, X], key, rows, *packing int32 [B, T]) -> as `route`, but with as many slots as tokens: the
    continuations of a context may each fill the capacity that it has left.
    """

    def kernel(logits: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, *packing: tf.Tensor) -> tuple[tf.Tensor, ...]:
        packed, (n_tokens, n_experts) = Packing(*packing), logits.shape[1:]
        experts, chosen_logits = _choices(logits, params.n_choices)
        indices = packed.positions - tf.range(n_tokens)
        is_sent = _is_sent(params, chosen_logits, uniform(key, rows, [indices], tuple(logits.shape[:2])))
        is_expert = _is_expert(experts, n_experts) & is_sent[..., None]
        sent_by_token = tf.reduce_sum(tf.cast(is_expert, tf.int32), 2)
        counts = _sent_up_to(params, packed, sent_by_token)
        before = tf.reduce_sum(tf.where(is_expert, (counts - sent_by_token)[:, :, None], 0), -1)
        is_taken = is_sent & (before < params.capacity)
        taken = tf.cast(is_expert & is_taken[..., None], tf.int32)
        slots = tf.cumsum(tf.reduce_sum(taken, 2), 1, exclusive=True)
        slot = tf.reduce_sum(taken * slots[:, :, None], -1)
        destinations = tf.where(is_taken, experts * n_tokens + slot, -1)
        n_sent, n_dropped = (tf.reduce_sum(tf.cast(x, tf.float32), [1, 2]) for x in (is_sent, is_sent & ~is_taken))
        sources = _sources(destinations, experts, n_experts, n_tokens)
        return experts, destinations, sources, counts[:, -1], n_dropped / n_sent

    return compiled(kernel)


def _sent_up_to(params: RoutingParams, packed: Packing, sent_by_token: tf.Tensor) -> tf.Tensor:
    """How many of the tokens of its group that each token sees, itself included, were sent to each expert.

    int32 [B, T, X] -> [B, T, X].
    """
    group = packed.positions // params.group_size
    counted = packed.visible() & (group[:, :, None] == group[:, None])
    return tf.cast(tf.matmul(tf.cast(counted, tf.float32), tf.cast(sent_by_token, tf.float32)), tf.int32)


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
    """(experts int32 [B, T, K]) -> float32 [B, X], the fraction of tokens whose first choice is each expert."""

    def kernel(experts: tf.Tensor) -> tf.Tensor:
        is_first = tf.cast(_is_expert(experts[..., 0], n_experts), tf.float32)
        return tf.reduce_sum(is_first, 1) / experts.shape[1]

    return compiled(kernel)


@functools.cache
def gather_into_slots(n_own_experts: int, n_copies: int) -> Kernel:
    """Returns the kernel that dispatches rows to the slots of experts.

    (x [B, N, F], sources [X, B, S], first own expert) -> [own experts, B, S, F], each slot a copy of the row that
    fills it, or 0; each row of x stands for `n_copies` sources.
    """

    def kernel(x: tf.Tensor, sources: tf.Tensor, first_expert: tf.Tensor) -> tf.Tensor:
        batch, n_rows, n_features = x.shape
        own = tf.slice(sources, tf.stack([first_expert, 0, 0]), [n_own_experts, *sources.shape[1:]])
        flat_row = tf.range(batch)[:, None] * n_rows + tf.maximum(own, 0) // n_copies
        filled = tf.gather(tf.reshape(x, [batch * n_rows, n_features]), flat_row)
        return tf.where((own >= 0)[..., None], filled, tf.zeros([], x.dtype))

    return compiled(kernel)


@compiled
def sum_from_slots(slots: tf.Tensor, destinations: tf.Tensor, first_expert: tf.Tensor) -> tf.Tensor:
    """Sums the slots of this processor that each row was sent to, in float32, and returns them in the slots' dtype.

    [own experts, B, S, F], [B, N, copies], scalar -> [B, N, F].
    """
    n_experts, batch, n_slots, n_features = slots.shape
    flat = tf.reshape(slots, [n_experts * batch * n_slots, n_features])
    own = tf.where(destinations >= 0, destinations - first_expert * n_slots, -1)
    is_here = (own >= 0) & (own < n_experts * n_slots)
    own = tf.where(is_here, own, 0)
    flat_slot = (own // n_slots * batch + tf.range(batch)[:, None, None]) * n_slots + own % n_slots
    # One copy at a time, which XLA fuses into one pass; gathered together they would be written to memory first.
    copies = [
        tf.where(is_here[..., copy, None], tf.cast(tf.gather(flat, flat_slot[..., copy]), tf.float32), 0.0)
        for copy in range(destinations.shape[-1])
    ]
    return tf.cast(tf.add_n(copies), slots.dtype)
