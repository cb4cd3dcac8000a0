"""Training on a TPU: one program takes many steps, replicated over the cores."""

from __future__ import annotations

import dataclasses

import numpy as np

from configs.schema import RunConfig
from meshtf import mtf, tf
from runtime.mesh.placement import Program
from runtime.mesh.tpu_mesh import ReplicaPlacement
from runtime.mesh.tpu_replicate import TpuPlacement
from runtime.training import steps

# Of a turn; they wait on the host that reads them, and on the cores, at 12 bytes a token.
MOST_TOKENS = 1 << 26


def steps_of_turn(config: RunConfig) -> int:
    """How many steps are taken in one turn, without leaving the device: `iterations`, or the largest part of them whose
    batches find room.
    """
    tokens = config.training.train_batch_size * config.model.n_ctx
    n_steps = min(config.training.iterations, max(1, MOST_TOKENS // tokens))
    while config.training.iterations % n_steps:
        n_steps -= 1
    return n_steps


def take_steps(
    config: RunConfig, placement: ReplicaPlacement, n_steps: tf.Tensor, *turn: tf.Tensor
) -> dict[str, tf.Tensor]:
    """The program of training: takes steps one after the other.

    Args:
        config: of the run.
        placement: of the replica.
        n_steps: int32 scalar, how many, at most as many as the turn has room for.
        turn: what a step of `build_train_step` takes, of all steps: [turn, ...].

    Returns:
        What a step gives, of all steps: [turn]; 0 for those that were not taken.
    """
    step = steps.build_train_step(config, placement).function
    names = list(step.structured_outputs)
    length = turn[0].shape[0]

    def take(index: tf.Tensor, *records: tf.Tensor) -> list[tf.Tensor]:
        reported = step(*[tf.gather(values, index) for values in turn])
        is_this = tf.range(length) == index
        kept = [tf.where(is_this, reported[name], record) for name, record in zip(names, records, strict=True)]
        return [index + 1, *kept]

    records = [tf.zeros([length], step.structured_outputs[name].dtype) for name in names]
    _, *records = tf.while_loop(lambda index, *_: index < n_steps, take, [tf.constant(0), *records])
    return dict(zip(names, records, strict=True))


@dataclasses.dataclass(frozen=True)
class _Destinations:
    """Where the rows of a batch must go: once to each host with a core that needs them.

    Attributes:
        rows: the host, and the rows.
        of_processors: which of them each processor reads.
    """

    rows: tuple[tuple[str, range], ...]
    of_processors: tuple[int, ...]

    @staticmethod
    def of(placement: TpuPlacement, batch_size: int) -> _Destinations:
        shape, mesh_impl = mtf.Shape([mtf.Dimension("batch", batch_size)]), placement.implementation(batch_size)
        (n_rows,) = mesh_impl.slice_shape(shape)
        begins = [mesh_impl.slice_begin(shape, processor)[0] for processor in range(placement.shape.size)]
        needed = list(zip(placement.hosts, begins, strict=True))
        distinct = list(dict.fromkeys(needed))
        rows = tuple((host, range(begin, begin + n_rows)) for host, begin in distinct)
        return _Destinations(rows, tuple(distinct.index(need) for need in needed))


@dataclasses.dataclass(frozen=True)
class TrainTurn:
    """Steps of training in one call.

    Attributes:
        function: takes the number of steps; tokens, labels and weights [turn, rows, sequence] for each destination; and
            what of a step is the same for all processors [turn].
        n_steps: the most that one call takes.
        destinations: of the rows.
        first_host: where calls begin.
    """

    function: Program
    n_steps: int
    destinations: _Destinations
    first_host: str

    def __call__(self, *turn: np.ndarray) -> dict[str, np.ndarray]:
        """Takes steps.

        Args:
            turn: what a step of `build_train_step` takes, of at most `n_steps` steps: [steps, ...].

        Returns:
            What a step gives, of all steps: [steps].
        """
        n_taken = len(turn[0])
        tokens, labels, weights, *scalars = (self._filled_up(values) for values in turn)
        rows = [_sent(host, own, tokens, labels, weights) for host, own in self.destinations.rows]
        with tf.device(self.first_host):
            outputs = self.function(tf.constant(n_taken), rows, *map(tf.constant, scalars))
        return {name: value.numpy()[:n_taken] for name, value in outputs.items()}

    def _filled_up(self, values: np.ndarray) -> np.ndarray:
        """One program for any number of steps: XLA would take minutes to compile another."""
        return np.pad(values, [(0, self.n_steps - len(values)), *[(0, 0)] * (values.ndim - 1)])


def _sent(host: str, rows: range, *values: np.ndarray) -> list[tf.Tensor]:
    """Rows of [turn, batch, sequence], on a host."""
    with tf.device(host):
        return [tf.identity(part[:, rows.start : rows.stop]) for part in values]


def build_train_turn(config: RunConfig, placement: TpuPlacement) -> TrainTurn:
    """Steps of training, see `TrainTurn`; a step is that of `build_train_step`, and takes whole batches."""
    length, n_steps = config.model.n_ctx, steps_of_turn(config)
    destinations = _Destinations.of(placement, config.training.train_batch_size)

    def run(n_taken: tf.Tensor, rows: list[list[tf.Tensor]], *scalars: tf.Tensor) -> dict[str, tf.Tensor]:
        def inputs_of(processor: int) -> list[tf.Tensor]:
            return [n_taken, *rows[destinations.of_processors[processor]], *scalars]

        def program(replica: ReplicaPlacement, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return take_steps(config, replica, *inputs)

        return placement.replicate(program, inputs_of)

    rows = [
        [tf.TensorSpec((n_steps, len(own), length), dtype) for dtype in (tf.int32, tf.int32, tf.float32)]
        for _, own in destinations.rows
    ]
    scalars = [tf.TensorSpec((n_steps,), dtype) for dtype in (tf.float32, tf.int32, tf.int32)]
    function = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int32), rows, *scalars)
    return TrainTurn(function, n_steps, destinations, placement.first_host)
