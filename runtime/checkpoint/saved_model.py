"""Exports a model as a SavedModel, which TensorFlow Serving runs."""

from __future__ import annotations

from configs.schema import ModelConfig, RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.checkpoint.init_from import set_weights
from runtime.checkpoint.weight_sources import Weights
from runtime.mesh.lowering import lower, new_mesh
from runtime.mesh.placement import Placement, VariableStore
from storage.files import new_folder

INPUT_NAME = "input_example_tensor"
SIGNATURE = "serving_default"


def export_saved_model(directory: str, config: RunConfig, weights: Weights) -> None:
    """Writes a SavedModel with its variables, which runs on any device.

    Its signature `serving_default` takes `input_example_tensor`, int64 [batch, length], and gives `logits`, float32
    [batch, length, vocab]. The batch size is free, and the length up to n_ctx; a model that is not causal takes
    exactly n_ctx.

    Args:
        directory: a new or empty folder.
        config: the config of the run.
        weights: the variables of the run, by name.

    Raises:
        CheckpointError: the weights do not match the config.
        UserError: the folder is not empty, or cannot be written.
    """
    with new_folder(directory, tf.errors.OpError) as folder:
        module = _Served(config.model)
        set_weights(weights, module.store, "the run")
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.signature})


class _Served(tf.Module):
    """A model as a function of tokens, with its variables."""

    def __init__(self, model: ModelConfig) -> None:
        """Builds the graph; the variables are still 0."""
        super().__init__()
        # No device name: the serving program chooses the device.
        placement = Placement(mtf.Shape([]), (), ("",), VariableStore())
        specification = tf.TensorSpec((None, None), tf.int64, name=INPUT_NAME)
        function = tf.function(lambda tokens: _served_logits(model, placement, tokens), autograph=False)
        self.signature = function.get_concrete_function(specification)
        self.store = placement.store
        self.saved_variables = [piece for stored in placement.store for piece in stored.slices]


def _served_logits(model: ModelConfig, placement: Placement, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
    length = tf.shape(tokens)[1]
    with tf.control_dependencies(_checks(model, tokens, length)):
        # A causal model does not see the padding after a row.
        padded = tf.pad(tf.cast(tokens, tf.int32), [[0, 0], [0, model.n_ctx - length]])
    padded.set_shape((None, model.n_ctx))
    row_logits = tf.map_fn(
        lambda row: _row_logits(model, placement, row), padded, fn_output_signature=tf.float32, parallel_iterations=1
    )
    return {"logits": row_logits[:, :length]}


def _checks(model: ModelConfig, tokens: tf.Tensor, length: tf.Tensor) -> list[tf.Operation]:
    if model.is_causal:
        fits = tf.debugging.assert_less_equal(
            length, model.n_ctx, f"{INPUT_NAME} is too long: the model takes at most n_ctx = {model.n_ctx} tokens"
        )
    else:
        fits = tf.debugging.assert_equal(
            length, model.n_ctx, f"{INPUT_NAME} has a wrong length: the model takes n_ctx = {model.n_ctx} tokens"
        )
    are_ids = tf.debugging.Assert(
        tf.reduce_all((tokens >= 0) & (tokens < model.n_vocab)),
        [f"{INPUT_NAME} holds a number that is not an id: ids are 0 to n_vocab - 1 = {model.n_vocab - 1}"],
    )
    return [fits, are_ids]


def _row_logits(model: ModelConfig, placement: Placement, tokens: tf.Tensor) -> tf.Tensor:
    """Computes the logits of one row: int32 [sequence] -> float32 [sequence, vocab]."""
    graph, mesh = new_mesh()
    dims = Dims.of(model, 1, model.n_ctx)
    context = Context(mesh, model, dims)
    imported = mtf.import_tf_tensor(mesh, tokens[None], mtf.Shape([dims.batch, dims.sequence]))
    logits = mtf.cast(gpt2.logits(context, imported), tf.float32)
    return lower(graph, mesh, placement.implementation(1), {"logits": logits})["logits"][0]
