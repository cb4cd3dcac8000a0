"""The training, evaluation and diagnosis steps: each is a mesh graph, lowered to a TensorFlow function."""

from __future__ import annotations

from configs.errors import ConfigError
from configs.schema import ModelConfig, RunConfig, TrainingConfig
from meshtf import mtf, tf
from models import losses
from models.context import Context
from models.dims import Dims
from models.objectives import batch_loss, position_losses
from models.ops.dropout import Noise
from runtime.mesh.lowering import LoweredStep, compile_step, id_spec, lower, new_mesh
from runtime.mesh.placement import DeviceMesh, Placement
from runtime.training import grad_accumulation
from runtime.training.nan_diagnosis import count_forward, count_gradients
from runtime.training.optimizers import build_update, gradient_norms
from runtime.training.state_sharding import sharing_of


def check_batch_splits(training: TrainingConfig, n_processors: int) -> None:
    """Checks what `load_config` cannot: a config may run on fewer devices than it was written for.

    Args:
        training: the sizes of the batches.
        n_processors: over which batches are split.

    Raises:
        ConfigError: a batch cannot be split.
    """
    warmup = [("batch_size_warmup", size) for _, size in training.batch_size_warmup]
    for key, size in [("train_batch_size", training.train_batch_size), *warmup]:
        if size % n_processors:
            raise ConfigError(
                f"{key} = {size}: is split over {n_processors} devices, which does not divide it; "
                f"change {key} or mesh_shape, or split something else than batch in layout"
            )


def _training_outputs(
    model: ModelConfig, features: dict[str, mtf.Tensor], key: mtf.Tensor, microbatch_count: int
) -> dict[str, mtf.Tensor]:
    """Returns the losses of one microbatch, scaled so that their sum over microbatches is that of the batch."""
    batch_dim, sequence_dim = features["tokens"].shape.dims
    dims = Dims.of(model, batch_dim.size, sequence_dim.size)
    noise, segment_starts = Noise(key, features["rows"]), features.get("segment_starts")
    context = Context(key.mesh, model, dims, noise, segment_starts=segment_starts)
    (loss, mean), mixtures = batch_loss(context, features["tokens"], features["labels"], features["weights"])
    # Token weights add up over microbatches; the experts' values are means, so each is divided.
    reported = {}
    for place, mixture in mixtures.items():
        loss += mixture.aux_loss / microbatch_count
        reported[f"moe/{place}/dropped_fraction"] = mixture.dropped_fraction / microbatch_count
        reported[f"moe/{place}/load"] = mixture.expert_load / microbatch_count
    n_labels = mtf.reduce_sum(mtf.to_float(mtf.greater(features["weights"], 0.0)))
    return {"loss": loss, "token_loss": mean, "tokens": n_labels, **reported}


def _scalars(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Splits vectors into scalars: the load of each expert is a metric of its own."""
    vectors = {name for name, value in outputs.items() if value.shape.rank}
    split = {f"{name}/{index}": value for name in vectors for index, value in enumerate(tf.unstack(outputs[name]))}
    return {name: value for name, value in outputs.items() if name not in vectors} | split


def _training_shape(config: RunConfig) -> mtf.Shape:
    sizes = {"batch": config.training.train_batch_size, "sequence": config.model.n_ctx}
    return mtf.Shape([mtf.Dimension(name, size) for name, size in sizes.items()])


def _import_batch(mesh: mtf.Mesh, mesh_impl: DeviceMesh, shape: mtf.Shape, *own: tf.Tensor) -> dict[str, mtf.Tensor]:
    """Imports a training batch from this process's rows of tokens, labels, weights and, if any, segment starts."""
    names = ("tokens", "labels", "weights", "segment_starts")[: len(own)]
    features = {
        name: mtf.import_laid_out_tensor(mesh, mesh_impl.lay_out_rows(own_rows, shape), shape, name=name)
        for name, own_rows in zip(names, own, strict=True)
    }
    features["weights"] = losses.as_shares(features["weights"])
    features["rows"] = mtf.mtf_range(mesh, shape.dims[0], tf.int32)
    return features


def batch_dtypes(config: RunConfig) -> list[tf.DType]:
    """Returns the types of tokens, labels, weights and, if any dataset has segments, segment starts."""
    return [tf.int32, tf.int32, tf.float32, *[tf.int32] * config.data.has_segments]


def _batch_signature(config: RunConfig, placement: Placement) -> list[tf.TensorSpec]:
    """Returns the shapes and types of a process's rows of a batch."""
    shape = (len(placement.own_rows(config.training.train_batch_size)), config.model.n_ctx)
    return [tf.TensorSpec(shape, dtype) for dtype in batch_dtypes(config)]


def build_train_step(config: RunConfig, placement: Placement) -> LoweredStep:
    """Builds one training step.

    Returns:
        A step from (tokens int32 [batch, sequence], labels int32 [batch, sequence], weights float32 [batch, sequence],
        segment_starts int32 [batch, sequence] if any dataset has segments, learning_rate float32, update_number int32,
        noise_key int32) to `loss` (in nats, the mean by the weights, before the update), `tokens` (labels of a weight
        above 0), `grad_norm` (before clipping), of each mixture-of-experts layer `moe/{place}/dropped_fraction` and
        `moe/{place}/load/{expert}`, and with `log_grads` those of `gradient_norms`; it updates the variables, unless
        `grad_norm` is not finite. It takes this process's own rows of the batch.
    """
    check_batch_splits(config.training, placement.axis_size("batch"))
    mesh_impl = placement.implementation(config.training.train_batch_size)
    microbatch_count = grad_accumulation.n_microbatches(config, placement.axis_size("batch"))

    def step(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        *batch, learning_rate, update_number, noise_key = inputs
        graph, mesh = new_mesh()
        features = _import_batch(mesh, mesh_impl, _training_shape(config), *batch)
        key = mtf.import_tf_tensor(mesh, noise_key)

        def outputs_of(microbatch: dict[str, mtf.Tensor]) -> dict[str, mtf.Tensor]:
            return _training_outputs(config.model, microbatch, key, microbatch_count)

        sharing = sharing_of(config, mesh_impl)
        gradients, outputs = grad_accumulation.gradients(features, outputs_of, microbatch_count, sharing)
        trainable = list(graph.trainable_variables)
        schedule = [mtf.import_tf_tensor(mesh, scalar) for scalar in (learning_rate, update_number)]
        norm = build_update(trainable, gradients, config.training, *schedule, config.model.width_multiplier)
        norms = gradient_norms(trainable, gradients) if config.training.log_grads else {}
        del outputs["loss"]
        reported = {"loss": outputs.pop("token_loss"), "grad_norm": norm, **outputs, **norms}
        return _scalars(lower(graph, mesh, mesh_impl, reported))

    return compile_step(step, *_batch_signature(config, placement), tf.TensorSpec((), tf.float32), id_spec(), id_spec())


def build_diagnosis(config: RunConfig, placement: Placement) -> LoweredStep:
    """Builds the forward and backward pass of a training step without its update, counting values that are not finite.

    Returns:
        A step from the batch and the noise_key of `build_train_step` to counts by the names of
        `count_forward` and `count_gradients`.
    """
    mesh_impl = placement.implementation(config.training.train_batch_size)
    microbatch_count = grad_accumulation.n_microbatches(config, placement.axis_size("batch"))

    def step(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        *batch, noise_key = inputs
        graph, mesh = new_mesh()
        features = _import_batch(mesh, mesh_impl, _training_shape(config), *batch)
        key = mtf.import_tf_tensor(mesh, noise_key)

        def counted_outputs(microbatch: dict[str, mtf.Tensor]) -> dict[str, mtf.Tensor]:
            n_before = len(graph.operations)
            outputs = _training_outputs(config.model, microbatch, key, microbatch_count)
            return {"loss": outputs["loss"], **count_forward(graph.operations[n_before:])}

        sharing = sharing_of(config, mesh_impl)
        gradients, counts = grad_accumulation.gradients(features, counted_outputs, microbatch_count, sharing)
        del counts["loss"]
        counts |= count_gradients(graph.trainable_variables, gradients)
        return lower(graph, mesh, mesh_impl, counts)

    return compile_step(step, *_batch_signature(config, placement), id_spec())


def build_eval_step(config: RunConfig, placement: Placement) -> LoweredStep:
    """Builds one evaluation step, without dropout.

    Returns:
        A step from (tokens int32 [batch, sequence], labels int32 [batch, sequence], segment_starts int32
        [batch, sequence] if any dataset has segments) to `token_loss`, each token's nats, float32 [batch, sequence].
    """
    batch_size, length = config.evaluation.eval_batch_size, config.model.n_ctx

    def step(own: Placement, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        dims = Dims.of(config.model, batch_size, length)
        shape = mtf.Shape([dims.batch, dims.sequence])
        tokens, labels, *segments = (mtf.import_tf_tensor(mesh, rows, shape) for rows in inputs)
        context = Context(mesh, config.model, dims, segment_starts=segments[0] if segments else None)
        losses_of_tokens, _ = position_losses(context, tokens, labels)
        return lower(graph, mesh, own.implementation(batch_size), {"token_loss": losses_of_tokens})

    return placement.compile(step, *[id_spec(batch_size, length)] * (2 + config.data.has_segments))
