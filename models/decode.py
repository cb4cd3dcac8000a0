"""Generation: one pass over the prompts (prefill), then a compiled loop that adds a token to every row (decode).

Rows are independent: each has its own length, sampling parameters and limit, so that requests may join and leave while
others are decoded (continuous batching).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.attention_interface import Cache
from models.context import Context
from models.dims import Dims
from models.kernels.sampling import MAX_TOP
from models.kernels.vocabulary import Vocabulary
from models.ops.decoding import write_rows
from models.ops.sampling import NextTokens, RowParams, sample_next_tokens


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of some rows, and how to continue them.

    Attributes:
        tokens: int32 [batch, sequence].
        lengths: int32 [batch], the tokens of each prompt, at least 1; what follows them is padding.
        limits: int32 [batch], the length at which each row ends; at most that of the cache.
        sampling: of each row.
    """

    tokens: mtf.Tensor
    lengths: mtf.Tensor
    limits: mtf.Tensor
    sampling: RowParams


@dataclasses.dataclass(frozen=True)
class Texts:
    """The tokens of the rows.

    Attributes:
        tokens: int32 [batch, memory_length], prompt and generated tokens, valid before `lengths`.
        log_probs: float32 [batch, memory_length], of the generated tokens; see `NextTokens`.
        top_tokens: int32 [batch, memory_length, top], likewise.
        top_log_probs: float32 [batch, memory_length, top], likewise.
        lengths: int32 [batch].
        prompt_lengths: int32 [batch].
        limits: int32 [batch], the length at which each row ends.
        ended: int32 [batch], 1 + the token that has ended the text, which is not stored with it; 0 before.
        next_tokens: int32 [batch], the last token of each row, which the model has not seen yet.
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

    def is_active(self) -> mtf.Tensor:
        """Returns which rows are still generated, bool [batch]."""
        return mtf.logical_and(mtf.less(self.lengths, self.limits), mtf.equal(self.ended, mtf.zeros_like(self.ended)))


@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The state of the decoding loop; the caches are valid before each row's last token."""

    texts: Texts
    sampling: RowParams
    caches: list[Cache]

    def named(self) -> dict[str, mtf.Tensor]:
        """Returns all tensors by name, each [batch, ...]."""
        parts = {"texts": vars(self.texts), "sampling": self.sampling._asdict()}
        parts |= {f"cache_{number}": cache for number, cache in enumerate(self.caches)}
        return {f"{part}/{name}": part_of[name] for part, part_of in parts.items() for name in sorted(part_of)}

    def with_tensors(self, named: dict[str, mtf.Tensor]) -> DecodeState:
        """Returns the same state with other tensors, named as in `named`."""

        def part(name: str, keys: Iterable[str]) -> dict[str, mtf.Tensor]:
            return {key: named[f"{name}/{key}"] for key in keys}

        caches = [part(f"cache_{number}", cache) for number, cache in enumerate(self.caches)]
        return DecodeState(
            Texts(**part("texts", vars(self.texts))), RowParams(**part("sampling", RowParams._fields)), caches
        )


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Generates text with a model.

    Attributes:
        model: its settings.
        vocabulary: the ids that may be sampled.
        memory_length: the most tokens of a row, its prompt included.
        kept_dtype: dtype of the cached keys and values; None: that of the activations.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    memory_length: int
    kept_dtype: str | None = None

    def _context(self, mesh: mtf.Mesh, n_rows: int, length: int) -> Context:
        return Context(mesh, self.model, Dims.of(self.model, n_rows, length, self.memory_length), None, self.kept_dtype)

    def empty_state(self, sampling: RowParams, prompt_lengths: mtf.Tensor, limits: mtf.Tensor) -> DecodeState:
        """Returns the state of rows without tokens.

        Args:
            sampling: of each row.
            prompt_lengths: int32 [batch].
            limits: int32 [batch].
        """
        mesh, batch_dim = limits.mesh, limits.shape.dims[0]
        context = self._context(mesh, batch_dim.size, 1)
        token_dims, top = [batch_dim, context.dims.memory_length], mtf.Dimension("top", MAX_TOP)
        zeros = mtf.zeros(mesh, [batch_dim], tf.int32)
        texts = Texts(
            tokens=mtf.zeros(mesh, token_dims, tf.int32),
            log_probs=mtf.zeros(mesh, token_dims),
            top_tokens=mtf.zeros(mesh, [*token_dims, top], tf.int32),
            top_log_probs=mtf.zeros(mesh, [*token_dims, top]),
            lengths=zeros,
            prompt_lengths=prompt_lengths,
            limits=limits,
            ended=zeros,
            next_tokens=zeros,
        )
        return DecodeState(texts, sampling, gpt2.empty_caches(context))

    def prefill(self, prompts: Prompts) -> DecodeState:
        """Runs the prompts through the model, fills the caches, and samples the first token of each row."""
        mesh, (batch_dim, sequence_dim) = prompts.tokens.mesh, prompts.tokens.shape.dims
        context = self._context(mesh, batch_dim.size, sequence_dim.size)
        logits, caches = gpt2.prompt_logits(context, prompts.tokens, prompts.lengths)
        empty = self.empty_state(prompts.sampling, prompts.lengths, prompts.limits)
        n_free = self.memory_length - sequence_dim.size
        tokens = mtf.rename_dimension(mtf.pad(prompts.tokens, [0, n_free], "sequence"), "sequence", "memory_length")
        texts = dataclasses.replace(empty.texts, tokens=tokens, lengths=prompts.lengths)
        return self._with_next(DecodeState(texts, prompts.sampling, caches), logits)

    def _with_next(self, state: DecodeState, logits: mtf.Tensor) -> DecodeState:
        """Samples the next token of every row, and appends it to the rows that are active."""
        texts = state.texts
        following = sample_next_tokens(
            logits, state.sampling, texts.tokens, texts.prompt_lengths, texts.lengths, self.vocabulary
        )
        return dataclasses.replace(state, texts=_append(texts, following))

    def _decode_step(self, state: DecodeState) -> DecodeState:
        texts = state.texts
        context = self._context(texts.lengths.mesh, texts.lengths.shape.dims[0].size, 1)
        # Rows without tokens have length 0, but every row needs a valid position.
        positions = mtf.maximum(texts.lengths - 1, mtf.zeros_like(texts.lengths))
        logits, caches = gpt2.next_logits(context, texts.next_tokens, positions, state.caches)
        return self._with_next(dataclasses.replace(state, caches=caches), logits)

    def decode_steps(self, state: DecodeState, n_steps: mtf.Tensor) -> DecodeState:
        """Adds up to `n_steps` tokens, an int32 scalar, to every active row; stops when no row is active."""
        mesh, names = n_steps.mesh, list(state.named())

        def state_of(tensors: tuple[mtf.Tensor, ...]) -> DecodeState:
            return state.with_tensors(dict(zip(names, tensors, strict=True)))

        def has_active_rows(n_left: mtf.Tensor, *tensors: mtf.Tensor) -> mtf.Tensor:
            zero = mtf.constant(mesh, 0, dtype=tf.int32)
            n_active = mtf.reduce_sum(mtf.cast(state_of(tensors).texts.is_active(), tf.int32))
            return mtf.logical_and(mtf.greater(n_left, zero), mtf.greater(n_active, zero))

        def step(n_left: mtf.Tensor, *tensors: mtf.Tensor) -> list[mtf.Tensor]:
            return [n_left - 1, *self._decode_step(state_of(tensors)).named().values()]

        _, *tensors = mtf.while_loop(has_active_rows, step, [n_steps, *state.named().values()])
        return state_of(tuple(tensors))


def _append(texts: Texts, following: NextTokens) -> Texts:
    is_active = mtf.cast(texts.is_active(), tf.int32)
    is_appended = is_active * mtf.cast(mtf.equal(following.ended, mtf.zeros_like(following.ended)), tf.int32)
    # The position past the end stands for no update.
    n_positions = texts.tokens.shape.dims[1].size
    positions = texts.lengths * is_appended + (1 - is_appended) * n_positions

    def write(whole: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
        return write_rows(whole, positions, rows)

    return dataclasses.replace(
        texts,
        tokens=write(texts.tokens, following.tokens),
        log_probs=write(texts.log_probs, following.log_probs),
        top_tokens=write(texts.top_tokens, following.top_tokens),
        top_log_probs=write(texts.top_log_probs, following.top_log_probs),
        lengths=texts.lengths + is_appended,
        ended=texts.ended + is_active * following.ended,
        next_tokens=following.tokens,
    )
