"""Prefill and decode programs. They take host arrays; the KV cache and the other state of the rows stay on the devices.

`models.decode` holds the decoding loop, and `models.ops.kv_cache` the layout of the KV cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from configs.schema import RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.decode import Decoder, DecodeState, Prompts
from models.dims import Dims
from models.kernels.sampling import N_FLOATS, N_INTEGERS
from models.kernels.vocabulary import IdRanges, Vocabulary
from models.ops.cross_entropy import label_scores
from models.ops.decoding import insert_rows, most_likely
from models.ops.sampling import RowParams
from runtime.mesh.lowering import LoweredStep, compile_step, id_spec, lower, lowered, new_mesh
from runtime.mesh.placement import DeviceMesh, Placement

# Integer inputs of each row: prompt length, length at which it ends, seed, number of most likely tokens to report.
ROW_INPUTS = ("lengths", "limits", "seeds", "n_top")
# Tensors of `Texts` that the programs return to the host.
EXPORTED = ("tokens", "log_probs", "top_tokens", "top_log_probs", "lengths", "ended")
LIMITS = "texts/limits"  # not kept, but passed to each call: rows without a limit are idle


def build_decoder(config: RunConfig, unused: IdRanges) -> Decoder:
    """Returns the decoder of a run's model, for texts of up to n_ctx tokens, without the unused ids."""
    vocabulary = Vocabulary(config.data.eos_id, unused, config.data.end_ids)
    return Decoder(config.model, vocabulary, config.model.n_ctx, config.prediction.cache_dtype)


def decoding_placement(placement: Placement, n_rows: int) -> Placement:
    """Returns the placement for decoding, which does not split positions, as texts have any length."""
    rules = dict(placement.without("sequence", "memory_length").layout)
    # Prompts that are prefilled are a smaller batch than all rows, so those have a dimension name of their own.
    if "batch" in rules and n_rows % placement.axis_size("batch") == 0:
        rules["cache_rows"] = rules["batch"]
    return dataclasses.replace(placement, layout=tuple(rules.items()))


def prompt_signature(n_rows: int, length: int) -> list[tf.TensorSpec]:
    """Returns the specs of the prompt arrays: tokens, row inputs, and sampling settings as floats and as integers."""
    floats = tf.TensorSpec((n_rows, N_FLOATS), tf.float32)
    return [id_spec(n_rows, length), id_spec(len(ROW_INPUTS), n_rows), floats, id_spec(n_rows, N_INTEGERS)]


def _import_prompts(
    mesh: mtf.Mesh, tokens: tf.Tensor, row_inputs: tf.Tensor, floats: tf.Tensor, integers: tf.Tensor
) -> Prompts:
    batch_dim = mtf.Dimension("batch", tokens.shape[0])

    def imported(x: tf.Tensor, *names: str) -> mtf.Tensor:
        dims = [mtf.Dimension(name, size) for name, size in zip(names, x.shape[1:], strict=True)]
        return mtf.import_tf_tensor(mesh, x, mtf.Shape([batch_dim, *dims]))

    of_rows = dict(zip(ROW_INPUTS, map(imported, tf.unstack(row_inputs)), strict=True))
    rules = RowParams(
        imported(floats, "float_settings"), imported(integers, "integer_settings"), of_rows["seeds"], of_rows["n_top"]
    )
    return Prompts(imported(tokens, "sequence"), of_rows["lengths"], of_rows["limits"], rules)


def _empty_state(decoder: Decoder, mesh: mtf.Mesh, batch_dim: mtf.Dimension) -> DecodeState:
    def zeros(*dims: mtf.Dimension, dtype: tf.DType = tf.int32) -> mtf.Tensor:
        return mtf.zeros(mesh, [batch_dim, *dims], dtype)

    floats = zeros(mtf.Dimension("float_settings", N_FLOATS), dtype=tf.float32)
    integers = zeros(mtf.Dimension("integer_settings", N_INTEGERS))
    return decoder.empty_state(RowParams(floats, integers, zeros(), zeros()), zeros(), zeros())


def _as_stored(x: tf.Tensor) -> tf.Tensor:
    """Returns integers as the bits of floats: TensorFlow has no int32 variables on a GPU."""
    return tf.bitcast(x, tf.float32) if x.dtype == tf.int32 else x


@dataclasses.dataclass(frozen=True)
class RowState:
    """The state of an engine's rows on the devices: KV caches, tokens and sampling settings.

    Attributes:
        decoder: the model that generates.
        placement: for decoding.
        n_rows: how many rows there are.
        slices: a variable for each slice of each tensor of `DecodeState`, except its limits.
    """

    decoder: Decoder
    placement: Placement
    n_rows: int
    slices: Mapping[str, tuple[tf.Variable, ...]]

    @staticmethod
    def of(decoder: Decoder, placement: Placement, n_rows: int) -> RowState:
        """Allocates the state of empty rows."""
        placement = decoding_placement(placement, n_rows)
        mesh_impl = placement.implementation(n_rows)
        empty = _empty_state(decoder, new_mesh()[1], mtf.Dimension("batch", n_rows)).named()
        slices = {
            name: tuple(_zeros(tensor, mesh_impl, device) for device in mesh_impl.devices)
            for name, tensor in empty.items()
            if name != LIMITS
        }
        return RowState(decoder, placement, n_rows, slices)

    def state(self, mesh: mtf.Mesh, mesh_impl: DeviceMesh, batch_name: str, limits: mtf.Tensor) -> DecodeState:
        """Returns the rows as tensors of a graph, [batch, ...] with the given name for that dimension."""
        # In a graph of its own: only names and shapes are needed, and this mesh may not divide this many rows.
        empty = _empty_state(self.decoder, new_mesh()[1], mtf.Dimension("batch", self.n_rows))

        def imported(name: str, like: mtf.Tensor) -> mtf.Tensor:
            values = [tf.bitcast(variable.read_value(), like.dtype) for variable in self.slices[name]]
            shape = mtf.Shape([mtf.Dimension(batch_name, self.n_rows), *like.shape.dims[1:]])
            return mtf.import_laid_out_tensor(mesh, mesh_impl.LaidOutTensor(values), shape, name=name)

        stored = {name: imported(name, like) for name, like in empty.named().items() if name != LIMITS}
        return empty.with_tensors(stored | {LIMITS: limits})

    def store(self, lowering: mtf.Lowering, mesh_impl: DeviceMesh, named: Mapping[str, mtf.Tensor]) -> None:
        """Writes the rows back to the variables."""
        for name, variables in self.slices.items():
            values = lowering.tensors[named[name]].to_laid_out_tensor().all_slices
            for device, variable, value in zip(mesh_impl.devices, variables, values, strict=True):
                with tf.device(device):
                    variable.assign(_as_stored(value), read_value=False)


def _zeros(like: mtf.Tensor, mesh_impl: DeviceMesh, device: str) -> tf.Variable:
    dtype = tf.float32 if like.dtype == tf.int32 else like.dtype
    with tf.device(device):
        return tf.Variable(tf.zeros(mesh_impl.slice_shape(like.shape), dtype), trainable=False)


def _exported(state: DecodeState) -> dict[str, mtf.Tensor]:
    return {name: getattr(state.texts, name) for name in EXPORTED}


def build_prefill(row_state: RowState, n_prompts: int, length: int) -> LoweredStep:
    """Builds the prefill program: reads prompts, samples the first token after each, and fills rows of the state.

    Returns:
        A step from (tokens int32 [batch, sequence], row inputs int32 [`ROW_INPUTS`, batch], floats float32 [batch,
        float_settings], integers int32 [batch, integer_settings], rows int32 [batch]) that returns nothing. Prompts
        with a row that does not exist are padding and are dropped.
    """
    mesh_impl = row_state.placement.implementation(n_prompts)

    def step(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        *prompts, rows = arrays
        prefilled = row_state.decoder.prefill(_import_prompts(mesh, *prompts))
        target_rows = mtf.import_tf_tensor(mesh, rows, mtf.Shape([prefilled.texts.lengths.shape.dims[0]]))
        all_rows = row_state.state(mesh, mesh_impl, "cache_rows", prefilled.texts.limits).named()
        named = {name: insert_rows(all_rows[name], prefilled.named()[name], target_rows) for name in row_state.slices}
        lowering = lowered(graph, mesh, mesh_impl)
        row_state.store(lowering, mesh_impl, named)
        return {}

    signature = [*prompt_signature(n_prompts, length), id_spec(n_prompts)]
    return compile_step(step, *signature, by_xla=row_state.placement.shape.size == 1)


def build_decode_steps(row_state: RowState) -> LoweredStep:
    """Builds the decode program: appends tokens to all unfinished rows.

    Returns:
        A step from (n_steps int32, the most tokens to append to a row, limits int32 [batch]) to the `EXPORTED` tensors
        of `Texts`, whole. Rows that have reached their limit do not change.
    """
    mesh_impl = row_state.placement.implementation(row_state.n_rows)

    def step(n_steps: tf.Tensor, limits: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        batch_shape = mtf.Shape([mtf.Dimension("batch", row_state.n_rows)])
        before = row_state.state(mesh, mesh_impl, "batch", mtf.import_tf_tensor(mesh, limits, batch_shape))
        state = row_state.decoder.decode_steps(before, mtf.import_tf_tensor(mesh, n_steps))
        lowering = lowered(graph, mesh, mesh_impl)
        row_state.store(lowering, mesh_impl, state.named())
        return {name: lowering.export_to_tf_tensor(tensor) for name, tensor in _exported(state).items()}

    return compile_step(step, id_spec(), id_spec(row_state.n_rows), by_xla=row_state.placement.shape.size == 1)


def build_generate(
    config: RunConfig, placement: Placement, n_rows: int, length: int, unused: IdRanges = ()
) -> LoweredStep:
    """Builds a program that prefills and decodes whole texts in one call, and keeps nothing on the devices.

    Returns:
        A step from the inputs of `build_prefill`, without rows, to the `EXPORTED` tensors of `Texts`, whole.
    """
    decoder = build_decoder(config, unused)

    def step(own: Placement, *prompts: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        n_steps = mtf.constant(mesh, decoder.memory_length, dtype=tf.int32)
        state = decoder.decode_steps(decoder.prefill(_import_prompts(mesh, *prompts)), n_steps)
        return lower(graph, mesh, own.implementation(n_rows), _exported(state))

    return decoding_placement(placement, n_rows).compile(step, *prompt_signature(n_rows, length))


def build_scores(
    config: RunConfig, placement: Placement, n_rows: int, length: int, unused: IdRanges, n_top: int
) -> LoweredStep:
    """Builds a program that scores the tokens of texts.

    Returns:
        A step from (tokens int32 [batch, sequence], labels int32 [batch, sequence], the token after each position) to
        log_probs float32 [batch, sequence], in nats, of the labels, and to the most likely labels, top_tokens int32
        [batch, sequence, top] and top_log_probs float32 [batch, sequence, top].
    """
    vocabulary = Vocabulary(config.data.eos_id, unused, config.data.end_ids)

    def step(own: Placement, *arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        dims = Dims.of(config.model, n_rows, length)
        shape = mtf.Shape([dims.batch, dims.sequence])
        tokens, labels = (mtf.import_tf_tensor(mesh, ids, shape) for ids in arrays)
        logits = gpt2.logits(Context(mesh, config.model, dims), tokens)
        log_probs, _ = label_scores(logits, labels)
        top = most_likely(logits, mtf.Dimension("top", n_top), vocabulary)
        outputs = {"log_probs": log_probs, **dict(zip(("top_tokens", "top_log_probs"), top, strict=True))}
        return lower(graph, mesh, own.implementation(n_rows), outputs)

    return placement.without("sequence", "memory_length").compile(step, *[id_spec(n_rows, length)] * 2)
