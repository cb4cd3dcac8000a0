"""Softmax attention of a sequence that is split over a mesh axis, where keys and values go round its processors.

Each processor keeps its own positions, and attends to those of the others one exchange after another; log_z merges the
parts. No processor ever has all keys, nor more than the keys of two others at once.

Causal attention would leave the first processors idle, since few keys are before them. Zigzag and striped assignments
of positions (Brandon et al. 2023, Striped Attention) balance the work, but then each slice holds positions from
everywhere: layers that look at near positions, states that pass from slice to slice, the capacity of experts and the
noise of every dropout would all have to know. So slices stay contiguous, and work moves instead: of two slices that are
far apart, the later one lends its queries to the earlier one, which has fewer keys of its own to see, and gets back
their outputs. The work of all processors is equal, half as many exchanges are needed, and about half as many bytes, as
no keys are sent to where nothing sees them.

Local attention fetches the keys within its radius alone.

Source: Liu et al. 2023, Ring Attention with Blockwise Transformers; Li et al. 2023, DistFlashAttn, section 3.1, for
lending queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import attention as kernels
from models.kernels.attention import AttentionParams, Halo
from models.kernels.compile import Kernel
from models.kernels.ring_attention import add_rows, merge_rows
from models.ops.grouping import SharedHeads
from models.ops.mesh_operation import mesh_axes, slice_starts

Sources = tuple[int | None, ...]  # by receiving processor of an axis: the sending one; None: it receives nothing


def returned(sources: Sources) -> Sources:
    """Returns the sources of an exchange that sends back."""
    return tuple(sources.index(target) if target in sources else None for target in range(len(sources)))


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One block of attention for each processor of an axis, of which another one holds the queries, or else the keys.

    Attributes:
        fetched: whose keys and values a processor receives, for its own queries.
        lent: whose queries a processor receives, for its own keys and values.
        own_rows: those of a processor's queries that see the keys that it has fetched.
        lent_rows: the queries that are lent.
    """

    fetched: Sources
    lent: Sources
    own_rows: slice
    lent_rows: slice

    @property
    def lends(self) -> bool:
        """Whether any queries are lent."""
        return any(source is not None for source in self.lent)

    @property
    def n_rows(self) -> int:
        """How many queries a block has."""
        return self.own_rows.stop - self.own_rows.start

    def starts(self, n_positions: int) -> list[tuple[int, int]]:
        """Returns where the queries and the keys of each processor's block begin, for slices of a length."""
        return [
            (
                (at if lent is None else lent) * n_positions
                + (self.own_rows if lent is None else self.lent_rows).start,
                (at if fetched is None else fetched) * n_positions,
            )
            for at, (fetched, lent) in enumerate(zip(self.fetched, self.lent, strict=True))
        ]


def exchanges(n_processors: int, n_positions: int, is_causal: bool) -> list[Exchange]:
    """Returns the exchanges after which each query has met all keys that it sees.

    Args:
        n_processors: of the axis.
        n_positions: of a slice.
        is_causal: no query sees later keys. Then processor p gets to see the p slices before its own: those up to half
            the axis away it fetches, and to those further away it lends its queries. Of slices half the axis apart, it
            does half of each.
    """
    if is_causal:
        return [_causal_exchange(n_processors, n_positions, shift) for shift in range(1, n_processors // 2 + 1)]
    rows, none = slice(0, n_positions), (None,) * n_processors
    sources = [tuple((at - shift) % n_processors for at in range(n_processors)) for shift in range(1, n_processors)]
    return [Exchange(each, none, rows, rows) for each in sources]


def _causal_exchange(n_processors: int, n_positions: int, shift: int) -> Exchange:
    fetched = tuple(at - shift if at >= shift else None for at in range(n_processors))
    lent = tuple(at - shift + n_processors if at < shift else None for at in range(n_processors))
    rows, half = slice(0, n_positions), n_positions // 2
    if 2 * shift < n_processors:
        return Exchange(fetched, lent, rows, rows)
    if n_positions % 2:
        return Exchange(fetched, (None,) * n_processors, rows, rows)
    return Exchange(fetched, lent, slice(0, half), slice(half, n_positions))


def halo_sizes(reach: int, n_positions: int) -> list[int]:
    """Returns how many keys are fetched from the neighbour 1, 2, ... slices away, to see `reach` positions far."""
    return [min(n_positions, reach - begin) for begin in range(0, reach, n_positions)]


@dataclasses.dataclass(frozen=True)
class Ring:
    """Attention over the processors of one mesh axis.

    Attributes:
        params: the mask and the dropout; the radius is None where every position is within it.
        mesh_impl: how tensors are laid out.
        axis: the mesh axis that positions are split over.
        shared: heads of queries, and those of keys, which go round before they are repeated.
        sequence: the dimension of positions.
    """

    params: AttentionParams
    mesh_impl: mtf.MeshImpl
    axis: int
    shared: SharedHeads
    sequence: mtf.Dimension

    @property
    def size(self) -> int:
        """The processors of the axis."""
        return self.mesh_impl.shape[self.axis].size

    @property
    def n_positions(self) -> int:
        """The positions of a slice."""
        return self.sequence.size // self.size

    @property
    def exchanges(self) -> list[Exchange]:
        """The exchanges of attention without a radius."""
        return exchanges(self.size, self.n_positions, self.params.is_causal)

    @property
    def reach(self) -> tuple[int, int]:
        """How many keys before and after its own a slice fetches, for attention with a radius."""
        before = min(self.params.radius - 1, self.sequence.size - self.n_positions)
        return before, 0 if self.params.is_causal else before

    @property
    def halo(self) -> Halo:
        """The keys around those of a slice, for attention with a radius."""
        return Halo(self.reach[0], self.sequence.size)

    def of_two_slices(self, kernel: Callable[..., Kernel]) -> Kernel:
        """Returns a kernel of attention between two slices; where it is causal, the queries come after the keys."""
        return kernel(dataclasses.replace(self.params, is_causal=False), True)

    def starts(self, by_processor: Sequence[tuple[int, int]]) -> LaidOut:
        """Laid-out int32 [3]: where heads, queries and keys begin, given the last two by processor of the axis."""
        heads = slice_starts(self.mesh_impl, [self.shared.heads])
        return self.mesh_impl.slicewise(
            lambda heads, at: tf.concat([heads, tf.constant(by_processor)[at]], 0), heads, self._coordinate()
        )

    def is_source(self, sources: Sources) -> LaidOut:
        """Laid-out bool: whether a processor receives from another."""
        table = [source is not None for source in sources]
        return self.mesh_impl.slicewise(lambda at: tf.constant(table)[at], self._coordinate())

    def _coordinate(self) -> LaidOut:
        return self.mesh_impl.laid_out_pcoord(self.axis)

    def either(self, condition: LaidOut, ones: Sequence[LaidOut], others: Sequence[LaidOut]) -> list[LaidOut]:
        """Returns ones or others by a condition of each processor."""
        return [self.mesh_impl.slicewise(tf.where, condition, *pair) for pair in zip(ones, others, strict=True)]

    def rows(self, x: LaidOut, rows: slice) -> LaidOut:
        """[B, S, ...] -> [B, rows, ...]."""
        return self.mesh_impl.slicewise(lambda whole: whole[:, rows], x)

    def statistics(self, x: LaidOut, rows: slice) -> LaidOut:
        """[B, H, S] -> [B, H, rows]."""
        return self.mesh_impl.slicewise(lambda whole: whole[:, :, rows], x)

    def receive(self, tensors: Sequence[LaidOut], sources: Sources, after: LaidOut) -> list[LaidOut]:
        """Returns the slices of other processors, all of one dtype in one message; zeros where there is no source.

        Nothing is sent before `after` is computed, so that what has arrived does not pile up.
        """
        slices = [x.to_laid_out_tensor().all_slices[0] for x in tensors]
        received: dict[int, LaidOut] = {}
        for dtype in dict.fromkeys(own.dtype for own in slices):
            chosen = [index for index, own in enumerate(slices) if own.dtype == dtype]
            shapes = [slices[index].shape for index in chosen]
            packed = self.mesh_impl.slicewise(_pack, after, *(tensors[index] for index in chosen))
            message = self.mesh_impl.receive(packed, self.axis, list(sources))
            parts = self.mesh_impl.slicewise(functools.partial(_unpack, shapes), message)
            received.update(zip(chosen, parts, strict=True))
        return [received[index] for index in range(len(tensors))]

    def whole(self, segments: Sequence[LaidOut]) -> Sequence[LaidOut]:
        """Returns where the segments of all positions begin, int32 [B, all positions]; few bytes beside keys."""
        return [self.mesh_impl.allconcat(of_keys, self.axis, 1) for of_keys in segments[1:]]

    def segments_at(self, whole: Sequence[LaidOut], starts: LaidOut, n_queries: int, n_keys: int) -> list[LaidOut]:
        """Returns the segments of a block's queries and keys, as far as there are segments."""

        def part(index: int, size: int, before: int = 0) -> Callable[..., tf.Tensor]:
            return lambda of_all, starts: tf.slice(of_all, [0, starts[index] + before], [of_all.shape[0], size])

        before, after = self.reach if self.params.radius is not None else (0, 0)
        if not whole:
            return []
        padded = self.mesh_impl.slicewise(lambda x: tf.pad(x, [[0, 0], [before, after]]), whole[0])
        sizes = ((1, n_queries), (2, n_keys))
        return [self.mesh_impl.slicewise(part(index, size, before), padded, starts) for index, size in sizes]


def ring_of(mesh_impl: mtf.MeshImpl, params: AttentionParams, queries: mtf.Tensor, keys: mtf.Tensor) -> Ring | None:
    """Returns the ring over which attention exchanges keys; None: positions are whole, or over two axes.

    Args:
        mesh_impl: how the tensors are laid out.
        params: the mask and the dropout.
        queries: [batch, sequence, heads, features_per_head].
        keys: [batch, memory_length, kv_heads, features_per_head].
    """
    (sequence, heads), (memory, kv_heads) = queries.shape.dims[1:3], keys.shape.dims[1:3]
    axes = mesh_axes(mesh_impl, [sequence])
    if not axes or axes != mesh_axes(mesh_impl, [memory]):
        return None
    if params.radius is not None and params.radius >= sequence.size:
        params = dataclasses.replace(params, radius=None)
    return Ring(params, mesh_impl, axes[0], SharedHeads(mesh_impl, heads, kv_heads), sequence)


def _pack(after: tf.Tensor, *tensors: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([after]):
        return tf.concat([tf.reshape(x, [-1]) for x in tensors], 0)


def _unpack(shapes: Sequence[tf.TensorShape], message: tf.Tensor) -> tuple[tf.Tensor, ...]:
    parts = tf.split(message, [shape.num_elements() for shape in shapes])
    return tuple(tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True))


# Without a radius.


def _block(
    ring: Ring,
    exchange: Exchange,
    of_keys: Sequence[LaidOut],
    of_queries: Sequence[LaidOut],
    own_of_queries: Sequence[LaidOut],
    after: LaidOut,
) -> tuple[list[LaidOut], list[LaidOut]]:
    """Exchanges what a block needs; returns what it has of the keys, and of the queries.

    Args:
        ring: the processors.
        exchange: who receives what.
        of_keys: keys and values.
        of_queries: the rows that are lent of queries, and of whatever has a row for each of them.
        own_of_queries: likewise, the rows that see what is fetched.
        after: what to wait for.
    """
    fetched = ring.receive(of_keys, exchange.fetched, after)
    if not exchange.lends:
        return fetched, list(own_of_queries)
    lent, is_lent = ring.receive(of_queries, exchange.lent, after), ring.is_source(exchange.lent)
    return ring.either(is_lent, of_keys, fetched), ring.either(is_lent, lent, own_of_queries)


def ring_attention(
    ring: Ring, queries: LaidOut, keys: LaidOut, values: LaidOut, key: LaidOut, rows: LaidOut, *segments: LaidOut
) -> tuple[LaidOut, LaidOut]:
    """Returns the outputs, laid out as the queries, and log_z float32 [batch, heads, sequence]."""
    if ring.params.radius is not None:
        return _local_attention(ring, queries, keys, values, key, rows, *segments)
    mesh_impl, whole = ring.mesh_impl, ring.whole(segments)
    starts = slice_starts(mesh_impl, [ring.shared.heads, ring.sequence, ring.sequence])
    kernel = kernels.attention(ring.params, True)
    wide = map(ring.shared.repeated, (keys, values))
    outputs, log_z = mesh_impl.slicewise(kernel, queries, *wide, starts, key, rows, *segments)
    dtype = outputs.to_laid_out_tensor().all_slices[0].dtype
    outputs, kernel = _cast(mesh_impl, outputs, tf.float32), ring.of_two_slices(kernels.attention)
    before = queries  # the first exchange waits for nothing, each other one for the block before the last
    for exchange in ring.exchanges:
        lent, own = (ring.rows(queries, part) for part in (exchange.lent_rows, exchange.own_rows))
        of_keys, (block_queries,) = _block(ring, exchange, (keys, values), (lent,), (own,), before)
        wide = map(ring.shared.repeated, of_keys)
        starts, before = ring.starts(exchange.starts(ring.n_positions)), log_z
        own_segments = ring.segments_at(whole, starts, exchange.n_rows, ring.n_positions)
        part = mesh_impl.slicewise(kernel, block_queries, *wide, starts, key, rows, *own_segments)
        merge, there = merge_rows(exchange.own_rows.start), ring.is_source(exchange.fetched)
        outputs, log_z = mesh_impl.slicewise(merge, outputs, log_z, *part, there)
        if exchange.lends:
            back = returned(exchange.lent)
            part, merge = ring.receive(part, back, part[1]), merge_rows(exchange.lent_rows.start)
            outputs, log_z = mesh_impl.slicewise(merge, outputs, log_z, *part, ring.is_source(back))
    return _cast(mesh_impl, outputs, dtype), log_z


def _cast(mesh_impl: mtf.MeshImpl, x: LaidOut, dtype: tf.DType) -> LaidOut:
    return mesh_impl.slicewise(lambda own: tf.cast(own, dtype), x)


def ring_attention_gradient(
    ring: Ring, queries: LaidOut, keys: LaidOut, values: LaidOut, key: LaidOut, rows: LaidOut, *others: LaidOut
) -> list[LaidOut]:
    """Returns the gradients of queries, keys and values, which go the way of the forward pass, and back.

    `others` are the segments, if there are any, outputs, log_z, d_outputs, and d_log_z or nothing.
    """
    mesh_impl, n_segments = ring.mesh_impl, 2 if ring.params.has_segments else 0
    segments, (outputs, log_z, d_outputs, *d_log_z) = others[:n_segments], others[n_segments:]
    row_sums = mesh_impl.slicewise(kernels.gradient_row_sums, outputs, d_outputs, *d_log_z)
    if ring.params.radius is not None:
        return _local_gradient(ring, queries, keys, values, key, rows, *segments, log_z, row_sums, d_outputs)
    starts, whole = slice_starts(mesh_impl, [ring.shared.heads, ring.sequence, ring.sequence]), ring.whole(segments)
    dtype = queries.to_laid_out_tensor().all_slices[0].dtype
    kernel = kernels.attention_block_gradient(ring.params, True)
    wide = map(ring.shared.repeated, (keys, values))
    inputs = (queries, *wide, starts, key, rows, *segments, log_z, row_sums, d_outputs)
    sums = [_cast(mesh_impl, x, tf.float32) for x in _narrowed(ring, mesh_impl.slicewise(kernel, *inputs))]
    kernel, before = ring.of_two_slices(kernels.attention_block_gradient), queries
    for exchange in ring.exchanges:
        lent, own = (
            [
                *(ring.rows(x, part) for x in (queries, d_outputs)),
                *(ring.statistics(x, part) for x in (log_z, row_sums)),
            ]
            for part in (exchange.lent_rows, exchange.own_rows)
        )
        of_keys, of_queries = _block(ring, exchange, (keys, values), lent, own, before)
        wide, (block_queries, block_d_outputs, *statistics) = map(ring.shared.repeated, of_keys), of_queries
        starts, before = ring.starts(exchange.starts(ring.n_positions)), sums[0]
        own_segments = ring.segments_at(whole, starts, exchange.n_rows, ring.n_positions)
        inputs = (block_queries, *wide, starts, key, rows, *own_segments)
        parts = mesh_impl.slicewise(kernel, *inputs, *statistics, block_d_outputs)
        sums = _add_block(ring, exchange, sums, _narrowed(ring, parts))
    return [_cast(mesh_impl, x, dtype) for x in sums]


def _narrowed(ring: Ring, gradients: Sequence[LaidOut]) -> list[LaidOut]:
    """Adds up the gradients of keys and values over the heads that share them."""
    d_queries, *of_keys = gradients
    return [d_queries, *map(ring.shared.summed, of_keys)]


def _add_block(ring: Ring, exchange: Exchange, sums: Sequence[LaidOut], parts: Sequence[LaidOut]) -> list[LaidOut]:
    """Adds the gradients of a block to d_queries, d_keys and d_values of those that queries and keys belong to."""
    d_queries, *of_keys = parts

    def added(sums: LaidOut, part: LaidOut, sources: Sources, begin: int = 0) -> LaidOut:
        return ring.mesh_impl.slicewise(add_rows(begin), sums, part, ring.is_source(sources))

    back = returned(exchange.fetched)
    sent_back = ring.receive(of_keys, back, d_queries)
    own = added(sums[0], d_queries, exchange.fetched, exchange.own_rows.start)
    of_sums = [added(total, part, back) for total, part in zip(sums[1:], sent_back, strict=True)]
    if exchange.lends:
        back = returned(exchange.lent)
        own = added(own, *ring.receive([d_queries], back, d_queries), back, exchange.lent_rows.start)
        of_sums = [added(total, part, exchange.lent) for total, part in zip(of_sums, of_keys, strict=True)]
    return [own, *of_sums]


# With a radius.


def _neighbours(ring: Ring) -> Iterator[tuple[Sources, slice, slice]]:
    """Yields what a processor fetches, for each neighbour in the order of their positions, but for itself.

    Yields:
        The source of each processor, which of the source's positions are sent, and where they are among all keys.
    """
    n_positions, (before, after) = ring.n_positions, ring.reach
    places = range(ring.size)
    for distance, size in reversed([*enumerate(halo_sizes(before, n_positions), 1)]):
        end = before - (distance - 1) * n_positions
        sources = tuple(at - distance if at >= distance else None for at in places)
        yield sources, slice(n_positions - size, n_positions), slice(end - size, end)
    for distance, size in enumerate(halo_sizes(after, n_positions), 1):
        begin = before + distance * n_positions
        sources = tuple(at + distance if at + distance < ring.size else None for at in places)
        yield sources, slice(0, size), slice(begin, begin + size)


def _local_inputs(
    ring: Ring, queries: LaidOut, keys: LaidOut, values: LaidOut, key: LaidOut, rows: LaidOut, *segments: LaidOut
) -> list[LaidOut]:
    """Returns what kernels need for a slice of queries, with the keys and values around it."""
    fetched = [
        (place, ring.receive([ring.rows(x, sent) for x in (keys, values)], sources, queries))
        for sources, sent, place in _neighbours(ring)
    ]
    before, after = ring.reach
    own = slice(before, before + ring.n_positions)
    parts = sorted([*fetched, (own, [keys, values])], key=lambda part: part[0].start)
    joined = [
        ring.mesh_impl.slicewise(lambda *slices: tf.concat(slices, 1), *(pair[index] for _, pair in parts))
        for index in (0, 1)
    ]
    n_positions, n_keys = ring.n_positions, before + ring.n_positions + after
    starts = ring.starts([(at * n_positions, at * n_positions - before) for at in range(ring.size)])
    own_segments = ring.segments_at(ring.whole(segments), starts, n_positions, n_keys)
    return [queries, *map(ring.shared.repeated, joined), starts, key, rows, *own_segments]


def _local_attention(ring: Ring, *inputs: LaidOut) -> tuple[LaidOut, LaidOut]:
    kernel = kernels.attention(ring.params, True, ring.halo)
    return ring.mesh_impl.slicewise(kernel, *_local_inputs(ring, *inputs))


def _local_gradient(ring: Ring, *inputs: LaidOut) -> list[LaidOut]:
    *forward, log_z, row_sums, d_outputs = inputs
    kernel = kernels.attention_block_gradient(ring.params, True, ring.halo)
    around = _local_inputs(ring, *forward)
    gradients = ring.mesh_impl.slicewise(kernel, *around, log_z, row_sums, d_outputs)
    d_queries, *around = _narrowed(ring, gradients)
    own = slice(ring.reach[0], ring.reach[0] + ring.n_positions)
    sums = [_cast(ring.mesh_impl, ring.rows(x, own), tf.float32) for x in around]
    for sources, sent, place in _neighbours(ring):
        back = returned(sources)
        parts = ring.receive([ring.rows(x, place) for x in around], back, d_queries)
        add, there = add_rows(sent.start), ring.is_source(back)
        sums = [ring.mesh_impl.slicewise(add, total, part, there) for total, part in zip(sums, parts, strict=True)]
    dtype = d_queries.to_laid_out_tensor().all_slices[0].dtype
    return [d_queries, *(_cast(ring.mesh_impl, x, dtype) for x in sums)]


def block_products(ring: Ring) -> int:
    """Returns how many pairs of a query and a key a processor computes, for one row and head."""
    if ring.params.radius is not None:
        return ring.n_positions * (ring.n_positions + sum(ring.reach))
    return ring.n_positions * (ring.n_positions + sum(exchange.n_rows for exchange in ring.exchanges))
