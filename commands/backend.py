"""The choice between a TPU and other devices: what is built differently on a TPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from configs.schema import RunConfig
from models.kernels.vocabulary import IdRanges
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.engine import Engine, Step, build_engine, build_static_batch_engine
from runtime.mesh.lowering import LoweredStep
from runtime.mesh.placement import Placement
from runtime.mesh.tpu_replicate import TpuPlacement
from runtime.planning.peak_flops import own_peak, tpu_peak
from runtime.training.multi_step import MultiStep, MultiStepBySize, SingleStep
from runtime.training.steps import build_diagnosis, build_train_step
from runtime.training.tpu_steps import build_device_loop


@dataclasses.dataclass(frozen=True)
class Backend:
    """The builders for one kind of placement.

    Attributes:
        build_training: builds the training steps.
        build_engine: builds the engine that generates `n_rows` texts at once.
        peak_flops: operations per second of all devices of the run; None: unknown.
        build_diagnosis: builds the step that locates NaN; None: it would take minutes to compile.
    """

    build_training: Callable[[RunConfig, Placement, ProcessGroup], MultiStep]
    build_engine: Callable[[RunConfig, Placement, int, Callable[[Step], Step], IdRanges], Engine]
    peak_flops: Callable[[RunConfig, Placement, ProcessGroup], float | None]
    build_diagnosis: Callable[[RunConfig, Placement], LoweredStep] | None


def _device_training(config: RunConfig, placement: Placement, group: ProcessGroup) -> MultiStep:
    def build(size: int) -> MultiStep:
        return SingleStep(group.synchronized(build_train_step(config.with_batch_size(size), placement)))

    return _by_batch_size(config, placement, build)


def _tpu_training(config: RunConfig, placement: TpuPlacement, group: ProcessGroup) -> MultiStep:
    return _by_batch_size(config, placement, lambda size: build_device_loop(config.with_batch_size(size), placement))


def _by_batch_size(config: RunConfig, placement: Placement, build: Callable[[int], MultiStep]) -> MultiStep:
    """Returns the steps of the largest batches, and with `batch_size_warmup` those of the others when they come."""
    training = config.training
    largest = build(training.train_batch_size)
    by_rows = {len(placement.own_rows(size)): size for _, size in training.batch_sizes}
    return largest if len(by_rows) == 1 else MultiStepBySize(build, by_rows, largest)


def _device_peak(config: RunConfig, placement: Placement, group: ProcessGroup) -> float | None:
    if group.size == 1:
        return own_peak(placement.devices, config.model.precision)
    group.barrier()  # processes that share a machine measure its speed while all compute, and wait for each other
    own = own_peak(placement.devices, config.model.precision, max_waiting=math.inf)
    return group.all_reduce_max(int((own or 0) / 1e9)) * 1e9 * group.size or None


def _tpu_peak(config: RunConfig, placement: TpuPlacement, group: ProcessGroup) -> float | None:
    return tpu_peak(placement.shape.size, placement.assignment.topology.mesh_shape[-1])


DEVICES = Backend(_device_training, build_engine, _device_peak, build_diagnosis)
TPU = Backend(_tpu_training, build_static_batch_engine, _tpu_peak, None)


def backend_of(placement: Placement) -> Backend:
    """Returns the builders for a placement."""
    return TPU if isinstance(placement, TpuPlacement) else DEVICES
