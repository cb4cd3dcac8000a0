"""The programs that write text: their inputs are host arrays, and what rows hold stays on the devices between calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from configs.schema import RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.decode import Decoder, Prompts, State
from models.dims import Dims
from models.kernels.sampling import FLOAT_SETTINGS, INTEGER_SETTINGS, MAX_TOP
from models.ops.decoding import insert_rows, scores
from models.ops.sampling import RowRules
from runtime.mesh.placement import DeviceMesh, Placement
from runtime.training.steps import LoweredStep, compile_step, id_spec, lower, new_mesh

# Of each row, in the order in which the programs take them: length of the prompt, length at which the row ends, seed,
# how many of the likeliest tokens to tell.
ROW_NUMBERS = ("lengths", "limits", "seeds", "n_top")
# What the host is told of the rows.
TOLD = ("tokens", "log_probs", "top_tokens", "top_log_probs", "lengths", "ended")
LIMITS = "texts/limits"  # given anew with each call: a row without one stands still


def decoder_of(config: RunConfig) -> Decoder:
    """What writes with a run's model, texts of up to n_ctx tokens."""
    return Decoder(config.model, config.data.eos_id, config.model.n_ctx, config.prediction.cache_dtype)


def for_decoding(placement: Placement, n_rows: int) -> Placement:
    """The placement with what decoding splits: rows and the model, but no positions, for a text has any number."""
    rules = dict(placement.without("sequence", "memory_length").layout)
    # Rows that are read in at a time are a batch of their own; the rows that they become lie as the whole batch does.
    if "batch" in rules and n_rows % placement.axis_size("batch") == 0:
        rules["held_rows"] = rules["batch"]
    return dataclasses.replace(placement, layout=tuple(rules.items()))


def prompt_signature(n_rows: int, length: int) -> list[tf.TensorSpec]:
    """Of the arrays that tell of prompts: tokens, row numbers, and the settings of the rows, in two parts."""
    floats = tf.TensorSpec((n_rows, len(FLOAT_SETTINGS)), tf.float32)
    return [id_spec(n_rows, length), id_spec(len(ROW_NUMBERS), n_rows), floats, id_spec(n_rows, len(INTEGER_SETTINGS))]


def _import_prompts(
    mesh: mtf.Mesh, tokens: tf.Tensor, row_numbers: tf.Tensor, floats: tf.Tensor, integers: tf.Tensor
) -> Prompts:
    batch_dim = mtf.Dimension("batch", tokens.shape[0])

    def imported(x: tf.Tensor, *names: str) -> mtf.Tensor:
        dims = [mtf.Dimension(name, size) for name, size in zip(names, x.shape[1:], strict=True)]
        return mtf.import_tf_tensor(mesh, x, mtf.Shape([batch_dim, *dims]))

    numbers = dict(zip(ROW_NUMBERS, map(imported, tf.unstack(row_numbers)), strict=True))
    rules = RowRules(
        imported(floats, "float_settings"), imported(integers, "integer_settings"), numbers["seeds"], numbers["n_top"]
    )
    return Prompts(imported(tokens, "sequence"), numbers["lengths"], numbers["limits"], rules)


def _blank(decoder: Decoder, mesh: mtf.Mesh, batch_dim: mtf.Dimension) -> State:
    def zeros(*dims: mtf.Dimension, dtype: tf.DType = tf.int32) -> mtf.Tensor:
        return mtf.zeros(mesh, [batch_dim, *dims], dtype)

    floats = zeros(mtf.Dimension("float_settings", len(FLOAT_SETTINGS)), dtype=tf.float32)
    integers = zeros(mtf.Dimension("integer_settings", len(INTEGER_SETTINGS)))
    return decoder.blank(RowRules(floats, integers, zeros(), zeros()), zeros(), zeros())


def _as_kept(x: tf.Tensor) -> tf.Tensor:
    """Integers as the bits of floats: TensorFlow has no int32 variables on a GPU."""
    return tf.bitcast(x, tf.float32) if x.dtype == tf.int32 else x


@dataclasses.dataclass(frozen=True)
class RowState:
    """What the rows of an engine hold, on the devices: a variable for each slice of each tensor of `State`, but its
    limits.
    """

    decoder: Decoder
    placement: Placement
    n_rows: int
    slices: Mapping[str, tuple[tf.Variable, ...]]

    @staticmethod
    def of(decoder: Decoder, placement: Placement, n_rows: int) -> RowState:
        placement = for_decoding(placement, n_rows)
        mesh_impl = placement.implementation(n_rows)
        blank = _blank(decoder, new_mesh()[1], mtf.Dimension("batch", n_rows)).named()
        slices = {
            name: tuple(_zeros(tensor, mesh_impl, device) for device in mesh_impl.devices)
            for name, tensor in blank.items()
            if name != LIMITS
        }
        return RowState(decoder, placement, n_rows, slices)

    def state(self, mesh: mtf.Mesh, mesh_impl: DeviceMesh, batch_name: str, limits: mtf.Tensor) -> State:
        """The rows as tensors [batch, ...] of a graph, where that dimension may have another name."""
        # In a graph of its own: only names and shapes are wanted, and this one may not split so many rows.
        blank = _blank(self.decoder, new_mesh()[1], mtf.Dimension("batch", self.n_rows))

        def imported(name: str, like: mtf.Tensor) -> mtf.Tensor:
            values = [tf.bitcast(variable.read_value(), like.dtype) for variable in self.slices[name]]
            shape = mtf.Shape([mtf.Dimension(batch_name, self.n_rows), *like.shape.dims[1:]])
            return mtf.import_laid_out_tensor(mesh, mesh_impl.LaidOutTensor(values), shape, name=name)

        held = {name: imported(name, like) for name, like in blank.named().items() if name != LIMITS}
        return blank.with_tensors(held | {LIMITS: limits})

    def keep(self, lowering: mtf.Lowering, mesh_impl: DeviceMesh, named: Mapping[str, mtf.Tensor]) -> None:
        """Writes the rows back."""
        for name, variables in self.slices.items():
            values = lowering.tensors[named[name]].to_laid_out_tensor().all_slices
            for device, variable, value in zip(mesh_impl.devices, variables, values, strict=True):
                with tf.device(device):
                    variable.assign(_as_kept(value), read_value=False)


def _zeros(like: mtf.Tensor, mesh_impl: DeviceMesh, device: str) -> tf.Variable:
    dtype = tf.float32 if like.dtype == tf.int32 else like.dtype
    with tf.device(device):
        return tf.Variable(tf.zeros(mesh_impl.slice_shape(like.shape), dtype), trainable=False)


def _told(state: State) -> dict[str, mtf.Tensor]:
    return {name: getattr(state.texts, name) for name in TOLD}


def build_admission(held: RowState, n_prompts: int, length: int) -> LoweredStep:
    """Reads prompts, chooses the first token after each, and puts them into rows.

    Returns:
        A step from (tokens int32 [batch, sequence], row numbers int32 [`ROW_NUMBERS`, batch], floats float32 [batch,
        float_settings], integers int32 [batch, integer_settings], rows int32 [batch]), which gives nothing; a prompt
        whose row does not exist is left out.
    """
    mesh_impl = held.placement.implementation(n_prompts)

    def step(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        *prompts, rows = arrays
        begun = held.decoder.begin(_import_prompts(mesh, *prompts))
        places = mtf.import_tf_tensor(mesh, rows, mtf.Shape([begun.texts.lengths.shape.dims[0]]))
        whole = held.state(mesh, mesh_impl, "held_rows", begun.texts.limits).named()
        named = {name: insert_rows(whole[name], begun.named()[name], places) for name in held.slices}
        lowering = mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
        held.keep(lowering, mesh_impl, named)
        return {}

    signature = [*prompt_signature(n_prompts, length), id_spec(n_prompts)]
    return compile_step(step, *signature, by_xla=held.placement.shape.size == 1)


def build_advance(held: RowState) -> LoweredStep:
    """Adds tokens to the rows.

    Returns:
        A step from (the most tokens to add to a row, int32, limits int32 [batch]) to what `TOLD` names of `Texts`,
        whole. Rows that have reached their limit stand still.
    """
    mesh_impl = held.placement.implementation(held.n_rows)

    def step(n_turns: tf.Tensor, limits: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        batch_shape = mtf.Shape([mtf.Dimension("batch", held.n_rows)])
        before = held.state(mesh, mesh_impl, "batch", mtf.import_tf_tensor(mesh, limits, batch_shape))
        state = held.decoder.advance(before, mtf.import_tf_tensor(mesh, n_turns))
        lowering = mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
        held.keep(lowering, mesh_impl, state.named())
        return {name: lowering.export_to_tf_tensor(tensor) for name, tensor in _told(state).items()}

    return compile_step(step, id_spec(), id_spec(held.n_rows), by_xla=held.placement.shape.size == 1)


def build_whole_texts(config: RunConfig, placement: Placement, n_rows: int, length: int) -> LoweredStep:
    """Reads prompts and writes all that follows them, in one call that leaves nothing behind.

    Returns:
        A step from what `build_admission` takes, without rows, to what `TOLD` names of `Texts`, whole.
    """
    decoder, placement = decoder_of(config), for_decoding(placement, n_rows)
    mesh_impl = placement.implementation(n_rows)

    def step(*prompts: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        n_turns = mtf.constant(mesh, decoder.memory_length, dtype=tf.int32)
        state = decoder.advance(decoder.begin(_import_prompts(mesh, *prompts)), n_turns)
        return lower(graph, mesh, mesh_impl, _told(state))

    return compile_step(step, *prompt_signature(n_rows, length), by_xla=placement.shape.size == 1)


def build_scores(config: RunConfig, placement: Placement, length: int) -> LoweredStep:
    """How likely the tokens of one text are.

    Returns:
        A step from (tokens int32 [batch 1, sequence]) to log_probs float32 [batch, sequence], top_tokens int32 [batch,
        sequence, top] and top_log_probs float32 [batch, sequence, top], each of the token after that place.
    """
    mesh_impl = placement.without("sequence", "memory_length").implementation(1)

    def step(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        dims = Dims.of(config.model, 1, length)
        shape = mtf.Shape([dims.batch, dims.sequence])
        logits = gpt2.logits(Context(mesh, config.model, dims), mtf.import_tf_tensor(mesh, tokens, shape))
        following = mtf.import_tf_tensor(mesh, tf.roll(tokens, -1, 1), shape)
        names = ("log_probs", "top_tokens", "top_log_probs")
        scored = scores(logits, following, mtf.Dimension("top", MAX_TOP))
        return lower(graph, mesh, mesh_impl, dict(zip(names, scored, strict=True)))

    return compile_step(step, id_spec(1, length), by_xla=placement.shape.size == 1)
