"""Builds the mesh graph of one step and lowers it to a TensorFlow function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from configs.errors import ConfigError
from configs.schema import ModelConfig, RunConfig
from meshtf import mtf, tf
from models import decode, gpt2, losses
from models.context import Context
from models.dims import Dims
from models.ops.dropout import Noise
from runtime import microbatches
from runtime.mesh import DeviceMesh, Placement
from runtime.optimizers import build_update, gradient_norms

Function = Callable[..., dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A compiled step.

    Attributes:
      function: takes host arrays, gives named tensors.
    """

    function: Function

    def __call__(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.function(*arrays).items()}

    def n_graph_nodes(self) -> int:
        """Nodes of the TensorFlow graph, those of the functions that it calls counted once each."""
        graph = self.function.graph.as_graph_def()
        return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def _lower(
    graph: mtf.Graph, mesh: mtf.Mesh, mesh_impl: DeviceMesh, outputs: dict[str, mtf.Tensor]
) -> dict[str, tf.Tensor]:
    lowering = mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
    return {name: lowering.export_to_tf_tensor(tensor) for name, tensor in outputs.items()}


def _new_mesh() -> tuple[mtf.Graph, mtf.Mesh]:
    graph = mtf.Graph()
    return graph, mtf.Mesh(graph, "mesh")


def _compile(
    function: Callable[..., dict[str, tf.Tensor]], *signature: tf.TensorSpec, by_xla: bool = False
) -> LoweredStep:
    return LoweredStep(tf.function(function, autograph=False, jit_compile=by_xla).get_concrete_function(*signature))


def _ids(*shape: int) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.int32)


def _check_batch_splits(batch_size: int, n_processors: int) -> None:
    """Checks what `load_config` leaves open, for a config may run on fewer devices than it was written for."""
    if batch_size % n_processors:
        raise ConfigError(
            f"train_batch_size = {batch_size} -- is split over {n_processors} devices, which does not divide it -- "
            "change train_batch_size, mesh_shape or the rule for batch in layout"
        )


def _training_outputs(
    model: ModelConfig, features: dict[str, mtf.Tensor], key: mtf.Tensor, n_parts: int
) -> dict[str, mtf.Tensor]:
    """Losses of one microbatch, of a size that those of all parts add up to the batch's."""
    batch_dim, sequence_dim = features["tokens"].shape.dims
    dims = Dims.of(model, batch_dim.size, sequence_dim.size)
    context = Context(key.mesh, model, dims, Noise(key, features["rows"]))
    passed = gpt2.forward(context, features["tokens"])
    token_losses = losses.token_losses(model, passed.logits, features["labels"])
    loss = token_losses.training_loss(features["weights"], model.z_loss)
    # Token weights add up over the parts; what experts say is a mean of each part.
    for mixture in passed.mixtures.values():
        loss += mixture.aux_loss / n_parts
    reported = {f"moe/{place}/{name}": value / n_parts for place, name, value in _reports(passed.mixtures)}
    return {"loss": loss, "token_loss": token_losses.mean(features["weights"]), **reported}


def _reports(mixtures: dict[str, gpt2.MoeReport]) -> Iterator[tuple[str, str, mtf.Tensor]]:
    for place, mixture in mixtures.items():
        yield place, "dropped", mixture.dropped
        yield place, "load", mixture.load


def _scalars(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Vectors taken apart: the load of each expert is a metric of its own."""
    vectors = {name for name, value in outputs.items() if value.shape.rank}
    parts = {f"{name}/{index}": part for name in vectors for index, part in enumerate(tf.unstack(outputs[name]))}
    return {name: value for name, value in outputs.items() if name not in vectors} | parts


def build_train_step(config: RunConfig, placement: Placement) -> LoweredStep:
    """One step of training.

    Returns:
      A step from (tokens int32 [batch, sequence], labels int32 [batch, sequence], weights float32 [batch, sequence],
      learning_rate float32, update_number int32, noise_key int32) to `loss` (in nats, the mean by the weights, before
      the update), `grad_norm` (before clipping), of each mixture-of-experts layer `moe/{place}/dropped` and
      `moe/{place}/load/{expert}`, and with `log_grads` `grads/norm/{variable}`; it updates the variables. It is given
      the rows of the batch that are this process's own.
    """
    batch_size, length = config.training.train_batch_size, config.model.n_ctx
    _check_batch_splits(batch_size, placement.axis_size("batch"))
    mesh_impl = placement.implementation(batch_size)
    n_parts = microbatches.n_microbatches(config, placement.axis_size("batch"))
    shape = mtf.Shape([mtf.Dimension("batch", batch_size), mtf.Dimension("sequence", length)])

    def step(
        tokens: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        learning_rate: tf.Tensor,
        update_number: tf.Tensor,
        noise_key: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        graph, mesh = _new_mesh()
        examples = {"tokens": tokens, "labels": labels, "weights": weights}
        features = {
            name: mtf.import_laid_out_tensor(mesh, mesh_impl.lay_out_rows(own_rows, shape), shape, name=name)
            for name, own_rows in examples.items()
        }
        features["weights"] = losses.as_shares(features["weights"])
        features["rows"] = mtf.mtf_range(mesh, shape.dims[0], tf.int32)
        key = mtf.import_tf_tensor(mesh, noise_key)
        gradients, outputs = microbatches.gradients(
            features, lambda part: _training_outputs(config.model, part, key, n_parts), n_parts
        )
        trainable = list(graph.trainable_variables)
        schedule = [mtf.import_tf_tensor(mesh, scalar) for scalar in (learning_rate, update_number)]
        norm = build_update(trainable, gradients, config.training, *schedule)
        norms = gradient_norms(trainable, gradients) if config.training.log_grads else {}
        del outputs["loss"]
        reported = {"loss": outputs.pop("token_loss"), "grad_norm": norm, **outputs, **norms}
        return _scalars(_lower(graph, mesh, mesh_impl, reported))

    own_shape = (len(placement.own_rows(batch_size)), length)
    ids, weights = _ids(*own_shape), tf.TensorSpec(own_shape, tf.float32)
    return _compile(step, ids, ids, weights, tf.TensorSpec((), tf.float32), _ids(), _ids())


def build_eval_step(config: RunConfig, placement: Placement) -> LoweredStep:
    """Losses without dropout.

    Returns:
      A step from (tokens int32 [batch, sequence], labels int32 [batch, sequence]) to `token_loss`, each token's
      nats, float32 [batch, sequence].
    """
    batch_size, length = config.evaluation.eval_batch_size, config.model.n_ctx
    mesh_impl = placement.implementation(batch_size)

    def step(tokens: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = _new_mesh()
        dims = Dims.of(config.model, batch_size, length)
        shape = mtf.Shape([dims.batch, dims.sequence])
        logits = gpt2.logits(Context(mesh, config.model, dims), mtf.import_tf_tensor(mesh, tokens, shape))
        token_losses = losses.token_losses(config.model, logits, mtf.import_tf_tensor(mesh, labels, shape))
        return _lower(graph, mesh, mesh_impl, {"token_loss": token_losses.loss})

    return _compile(step, _ids(batch_size, length), _ids(batch_size, length))


def build_generation(
    config: RunConfig, placement: Placement, prompt_length: int, request: decode.Request
) -> LoweredStep:
    """A continuation of one prompt, by `predict_batch_size` rows at once.

    Returns:
      A step from (prompt int32 [sequence], noise_key int32) to `written`, int32 [batch, new_tokens].
    """
    batch_size = config.prediction.predict_batch_size
    # A cache grows to any length, which the mesh need not divide.
    mesh_impl = placement.without("sequence", "memory_length").implementation(batch_size)
    batch_dim, prompt_dim = mtf.Dimension("batch", batch_size), mtf.Dimension("sequence", prompt_length)

    def step(prompt: tf.Tensor, noise_key: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = _new_mesh()
        noise = Noise(mtf.import_tf_tensor(mesh, noise_key), mtf.mtf_range(mesh, batch_dim, tf.int32))
        repeated = tf.repeat(prompt[None], batch_size, axis=0)
        prompts = mtf.import_tf_tensor(mesh, repeated, mtf.Shape([batch_dim, prompt_dim]))
        return _lower(graph, mesh, mesh_impl, {"written": decode.generate(config.model, prompts, noise, request)})

    # XLA compiles for one device: with it the loop has no overhead for each small operation.
    return _compile(step, _ids(prompt_length), _ids(), by_xla=placement.shape.size == 1)
