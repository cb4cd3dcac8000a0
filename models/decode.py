"""Writing text: one pass over the prompts, then a compiled loop that adds a token to every row in each turn.

Each row is a text of its own, with its own length, settings and end, so that texts may come and go while others are
being written.
"""

from __future__ import annotations

import dataclasses

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.attention_kind import Cache
from models.context import Context
from models.dims import Dims
from models.kernels.sampling import MAX_TOP
from models.ops.decoding import write_rows
from models.ops.sampling import Choice, RowRules, choose


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What rows are to go on from, and how.

    Attributes:
        tokens: int32 [batch, sequence].
        lengths: int32 [batch], how many of them are the prompt, at least 1.
        limits: int32 [batch], length at which each row ends; at most that of the cache.
        rules: how each row's tokens are chosen.
    """

    tokens: mtf.Tensor
    lengths: mtf.Tensor
    limits: mtf.Tensor
    rules: RowRules


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the rows hold, and how far they are.

    Attributes:
        tokens: int32 [batch, memory_length], prompt and written ones, valid before `lengths`.
        log_probs: float32 [batch, memory_length], of the written ones; see `Choice`.
        top_tokens: int32 [batch, memory_length, top], likewise.
        top_log_probs: float32 [batch, memory_length, top], likewise.
        lengths: int32 [batch].
        prompt_lengths: int32 [batch].
        limits: int32 [batch], length at which each row ends.
        ended: int32 [batch], 1 once eos has been drawn; it is not written.
        next_tokens: int32 [batch], that the model has not seen: the last of each text.
    """

    tokens: mtf.Tensor
    log_probs: mtf.Tensor
    top_tokens: mtf.Tensor
    top_log_probs: mtf.Tensor
    lengths: mtf.Tensor
    prompt_lengths: mtf.Tensor
    limits: mtf.Tensor
    ended: mtf.Tensor
    next_tokens: mtf.Tensor

    def is_going_on(self) -> mtf.Tensor:
        """bool [batch]."""
        return mtf.logical_and(mtf.less(self.lengths, self.limits), mtf.equal(self.ended, mtf.zeros_like(self.ended)))


@dataclasses.dataclass(frozen=True)
class State:
    """Everything that rows need to go on; the caches are valid before each row's last token."""

    texts: Texts
    rules: RowRules
    caches: list[Cache]

    def named(self) -> dict[str, mtf.Tensor]:
        """All tensors by name, each [batch, ...]."""
        parts = {"texts": vars(self.texts), "rules": vars(self.rules)}
        parts |= {f"cache_{number}": cache for number, cache in enumerate(self.caches)}
        return {f"{part}/{name}": part_of[name] for part, part_of in parts.items() for name in sorted(part_of)}

    def with_tensors(self, named: dict[str, mtf.Tensor]) -> State:
        """The same with other tensors, named as in `named`."""

        def part(name: str, keys: object) -> dict[str, mtf.Tensor]:
            return {key: named[f"{name}/{key}"] for key in keys}

        caches = [part(f"cache_{number}", cache) for number, cache in enumerate(self.caches)]
        return State(Texts(**part("texts", vars(self.texts))), RowRules(**part("rules", vars(self.rules))), caches)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model that writes.

    Attributes:
        model: its settings.
        eos_id: ends a text.
        memory_length: the most tokens of a text, its prompt among them.
        kept_dtype: of keys and values in the cache; None: that of the activations.
    """

    model: ModelConfig
    eos_id: int
    memory_length: int
    kept_dtype: str | None = None

    def _context(self, mesh: mtf.Mesh, n_rows: int, length: int) -> Context:
        return Context(mesh, self.model, Dims.of(self.model, n_rows, length, self.memory_length), None, self.kept_dtype)

    def blank(self, rules: RowRules, prompt_lengths: mtf.Tensor, limits: mtf.Tensor) -> State:
        """Rows that hold nothing yet.

        Args:
            rules: of the rows.
            prompt_lengths: int32 [batch].
            limits: int32 [batch].
        """
        mesh, batch_dim = limits.mesh, limits.shape.dims[0]
        context = self._context(mesh, batch_dim.size, 1)
        places, top = [batch_dim, context.dims.memory_length], mtf.Dimension("top", MAX_TOP)
        nothing = mtf.zeros(mesh, [batch_dim], tf.int32)
        texts = Texts(
            tokens=mtf.zeros(mesh, places, tf.int32),
            log_probs=mtf.zeros(mesh, places),
            top_tokens=mtf.zeros(mesh, [*places, top], tf.int32),
            top_log_probs=mtf.zeros(mesh, [*places, top]),
            lengths=nothing,
            prompt_lengths=prompt_lengths,
            limits=limits,
            ended=nothing,
            next_tokens=nothing,
        )
        return State(texts, rules, gpt2.empty_caches(context))

    def begin(self, prompts: Prompts) -> State:
        """Reads the prompts and chooses each row's first token."""
        mesh, (batch_dim, sequence_dim) = prompts.tokens.mesh, prompts.tokens.shape.dims
        context = self._context(mesh, batch_dim.size, sequence_dim.size)
        logits, caches = gpt2.prompt_logits(context, prompts.tokens, prompts.lengths)
        blank = self.blank(prompts.rules, prompts.lengths, prompts.limits)
        n_free = self.memory_length - sequence_dim.size
        tokens = mtf.rename_dimension(mtf.pad(prompts.tokens, [0, n_free], "sequence"), "sequence", "memory_length")
        texts = dataclasses.replace(blank.texts, tokens=tokens, lengths=prompts.lengths)
        return self._with_next(State(texts, prompts.rules, caches), logits)

    def _with_next(self, state: State, logits: mtf.Tensor) -> State:
        """Chooses the next token of every row, and writes it down where the row goes on."""
        texts = state.texts
        choice = choose(logits, state.rules, texts.tokens, texts.prompt_lengths, texts.lengths, self.eos_id)
        return dataclasses.replace(state, texts=_written(texts, choice, self.eos_id))

    def _turn(self, state: State) -> State:
        texts = state.texts
        context = self._context(texts.lengths.mesh, texts.lengths.shape.dims[0].size, 1)
        # A row that holds nothing yet is at no position.
        positions = mtf.maximum(texts.lengths - 1, mtf.zeros_like(texts.lengths))
        logits, caches = gpt2.next_logits(context, texts.next_tokens, positions, state.caches)
        return self._with_next(dataclasses.replace(state, caches=caches), logits)

    def advance(self, state: State, n_turns: mtf.Tensor) -> State:
        """Adds up to so many tokens, an int32 scalar, to every row that goes on."""
        mesh, names = n_turns.mesh, list(state.named())

        def state_of(tensors: tuple[mtf.Tensor, ...]) -> State:
            return state.with_tensors(dict(zip(names, tensors, strict=True)))

        def is_unfinished(n_left: mtf.Tensor, *tensors: mtf.Tensor) -> mtf.Tensor:
            nothing = mtf.constant(mesh, 0, dtype=tf.int32)
            n_going = mtf.reduce_sum(mtf.cast(state_of(tensors).texts.is_going_on(), tf.int32))
            return mtf.logical_and(mtf.greater(n_left, nothing), mtf.greater(n_going, nothing))

        def turn(n_left: mtf.Tensor, *tensors: mtf.Tensor) -> list[mtf.Tensor]:
            return [n_left - 1, *self._turn(state_of(tensors)).named().values()]

        _, *tensors = mtf.while_loop(is_unfinished, turn, [n_turns, *state.named().values()])
        return state_of(tuple(tensors))


def _written(texts: Texts, choice: Choice, eos_id: int) -> Texts:
    is_going_on = mtf.cast(texts.is_going_on(), tf.int32)
    is_eos = mtf.cast(mtf.equal(choice.tokens, mtf.constant(choice.tokens.mesh, eos_id, dtype=tf.int32)), tf.int32)
    is_written = is_going_on * (1 - is_eos)
    # A row that is not written to has its place behind the last one.
    n_places = texts.tokens.shape.dims[1].size
    places = texts.lengths * is_written + (1 - is_written) * n_places

    def write(whole: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
        return write_rows(whole, places, rows)

    return dataclasses.replace(
        texts,
        tokens=write(texts.tokens, choice.tokens),
        log_probs=write(texts.log_probs, choice.log_probs),
        top_tokens=write(texts.top_tokens, choice.top_tokens),
        top_log_probs=write(texts.top_log_probs, choice.top_log_probs),
        lengths=texts.lengths + is_written,
        ended=texts.ended + is_going_on * is_eos,
        next_tokens=choice.tokens,
    )
