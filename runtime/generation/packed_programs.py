"""Programs that score packed texts."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from models.ops.cross_entropy import label_scores
from models.ops.decoding import gather_positions
from models.ops.packing import Packing
from runtime.generation.engine import Step
from runtime.generation.packed_batches import BATCH_TOKENS, BatchShape, PackedBatches
from runtime.mesh.lowering import LoweredStep, id_spec, lower, new_mesh
from runtime.mesh.placement import Placement

# From a context with packed texts, their tokens, and the indices and labels of what is asked for, [batch, asked].
PackedOutputs = Callable[[Context, mtf.Tensor, mtf.Tensor, mtf.Tensor], dict[str, mtf.Tensor]]


def _log_probs(context: Context, tokens: mtf.Tensor, asked: mtf.Tensor, labels: mtf.Tensor) -> dict[str, mtf.Tensor]:
    log_probs, is_greedy = label_scores(gpt2.logits_at(context, tokens, asked), labels)
    return {"log_probs": log_probs, "is_greedy": is_greedy}


def _rank_scores(context: Context, tokens: mtf.Tensor, asked: mtf.Tensor, labels: mtf.Tensor) -> dict[str, mtf.Tensor]:
    return {"scores": gather_positions(gpt2.rank(context, tokens).scores, asked)}


def build_packed_scores(config: RunConfig, placement: Placement, shape: BatchShape) -> LoweredStep:
    """Builds a program that scores packed texts.

    Returns:
        A step from the arrays of `PackedBatch` to log_probs float32 [batch, asked], in nats, of what is asked for, and
        is_greedy int32 [batch, asked], 1 where it is the argmax, of equal logits the first. That of a ranking model
        returns scores float32 [batch, asked], of the texts up to there.
    """
    outputs_of = _rank_scores if config.model.ranks else _log_probs

    def step(own: Placement, *arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        dims = Dims.of(config.model, shape.n_rows, shape.length)
        asked_dim = mtf.Dimension("asked", shape.n_asked)

        def imported(x: tf.Tensor, dim: mtf.Dimension) -> mtf.Tensor:
            return mtf.import_tf_tensor(mesh, x, mtf.Shape([dims.batch, dim]))

        tokens, *packing = (imported(x, dims.sequence) for x in arrays[:4])
        context = Context(mesh, config.model, dims, packing=Packing(*packing))
        outputs = outputs_of(context, tokens, *(imported(x, asked_dim) for x in arrays[4:]))
        return lower(graph, mesh, own.implementation(shape.n_rows), outputs)

    specs = [id_spec(shape.n_rows, size) for size in [shape.length] * 4 + [shape.n_asked] * 2]
    return placement.without("sequence", "memory_length").compile(step, *specs)


def build_packed_batches(
    config: RunConfig,
    placement: Placement,
    synchronized: Callable[[Step], Step],
    batch_tokens: int = BATCH_TOKENS,
) -> PackedBatches:
    """Builds the batches that a run's model scores.

    Args:
        config: the run.
        placement: the devices and the layout.
        synchronized: see `ProcessGroup.synchronized`.
        batch_tokens: how many tokens are scored at once.
    """
    return PackedBatches(
        lambda shape: synchronized(build_packed_scores(config, placement, shape)),
        placement.axis_size("batch"),
        batch_tokens,
    )
