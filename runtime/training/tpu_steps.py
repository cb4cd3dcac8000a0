"""Training on a TPU: one program runs many steps, replicated over the cores."""

from __future__ import annotations

import dataclasses

import numpy as np

from configs.schema import RunConfig
from meshtf import mtf, tf
from runtime.mesh.placement import Program
from runtime.mesh.tpu_mesh import ReplicaPlacement
from runtime.mesh.tpu_replicate import TpuPlacement
from runtime.training import steps

MAX_LOOP_TOKENS = 1 << 26  # inputs of a loop wait on their host and on the cores, at 12 to 16 bytes a token


def steps_per_loop(config: RunConfig) -> int:
    """Returns how many steps run in one call: `iterations`, or its largest divisor whose batches fit."""
    tokens = config.training.train_batch_size * config.model.n_ctx
    n_steps = min(config.training.iterations, max(1, MAX_LOOP_TOKENS // tokens))
    while config.training.iterations % n_steps:
        n_steps -= 1
    return n_steps


def run_device_loop(
    config: RunConfig, placement: ReplicaPlacement, n_steps: tf.Tensor, *inputs: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Runs training steps in a loop on the device.

    Args:
        config: the run.
        placement: as the replica sees it.
        n_steps: int32 scalar, how many steps to run, at most the first dimension of `inputs`.
        inputs: those of `build_train_step`, stacked: [max_steps, ...].

    Returns:
        The outputs of `build_train_step`, stacked: [max_steps]; 0 for steps that were not run.
    """
    step = steps.build_train_step(config, placement).function
    names = list(step.structured_outputs)
    max_steps = inputs[0].shape[0]

    def run_one(index: tf.Tensor, *stacked: tf.Tensor) -> list[tf.Tensor]:
        outputs = step(*[tf.gather(values, index) for values in inputs])
        is_own = tf.range(max_steps) == index
        return [index + 1, *(tf.where(is_own, outputs[name], x) for name, x in zip(names, stacked, strict=True))]

    stacked = [tf.zeros([max_steps], step.structured_outputs[name].dtype) for name in names]
    _, *stacked = tf.while_loop(lambda index, *_: index < n_steps, run_one, [tf.constant(0), *stacked])
    return dict(zip(names, stacked, strict=True))


@dataclasses.dataclass(frozen=True)
class _Destinations:
    """Where the rows of a batch go: once to each host with a core that needs them.

    Attributes:
        rows: pairs of a host and its rows.
        of_processors: for each processor, the index of the pair that it reads.
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
class DeviceLoop:
    """Several training steps in one call, looping on the device; a `MultiStep`.

    Attributes:
        function: takes the number of steps; the arrays of a batch, [max_steps, rows, sequence], for each destination;
            and the scalars of each step, [max_steps], which all processors share.
        max_steps: the most steps of one call.
        destinations: where rows go.
        first_host: where calls begin.
    """

    function: Program
    max_steps: int
    destinations: _Destinations
    first_host: str

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the steps.

        Args:
            inputs: those of `build_train_step`, for at most `max_steps` steps: [steps, ...].

        Returns:
            The outputs of `build_train_step`: [steps].
        """
        n_steps = len(inputs[0])
        *batch, rate, number, key = (self._padded(values) for values in inputs)
        rows = [_rows_on(host, own, *batch) for host, own in self.destinations.rows]
        with tf.device(self.first_host):
            outputs = self.function(tf.constant(n_steps), rows, *map(tf.constant, (rate, number, key)))
        return {name: value.numpy()[:n_steps] for name, value in outputs.items()}

    def _padded(self, values: np.ndarray) -> np.ndarray:
        # One program serves any number of steps: XLA would take minutes to compile another.
        return np.pad(values, [(0, self.max_steps - len(values)), *[(0, 0)] * (values.ndim - 1)])


def _rows_on(host: str, rows: range, *values: np.ndarray) -> list[tf.Tensor]:
    """Copies rows of arrays [steps, batch, sequence] to a host."""
    with tf.device(host):
        return [tf.identity(part[:, rows.start : rows.stop]) for part in values]


def build_device_loop(config: RunConfig, placement: TpuPlacement) -> DeviceLoop:
    """Builds a loop of `build_train_step`'s steps, each of which takes a whole batch."""
    length, max_steps = config.model.n_ctx, steps_per_loop(config)
    destinations = _Destinations.of(placement, config.training.train_batch_size)

    def run(n_steps: tf.Tensor, rows: list[list[tf.Tensor]], *scalars: tf.Tensor) -> dict[str, tf.Tensor]:
        def inputs_of(processor: int) -> list[tf.Tensor]:
            return [n_steps, *rows[destinations.of_processors[processor]], *scalars]

        def program(replica: ReplicaPlacement, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return run_device_loop(config, replica, *inputs)

        return placement.replicate(program, inputs_of)

    rows = [
        [tf.TensorSpec((max_steps, len(own), length), dtype) for dtype in steps.batch_dtypes(config)]
        for _, own in destinations.rows
    ]
    scalars = [tf.TensorSpec((max_steps,), dtype) for dtype in (tf.float32, tf.int32, tf.int32)]
    function = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int32), rows, *scalars)
    return DeviceLoop(function, max_steps, destinations, placement.first_host)
