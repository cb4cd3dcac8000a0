"""One process of several, each a replica of the program of a TPU; tests start it as
`python -m tests.runtime.tpu_worker HOSTS INDEX FOLDER CASE...`.

A case is one of `spmd_worker`. It runs one training step from the checkpoint in FOLDER/start/{model} and saves the
model to FOLDER/{case}; then it runs three more steps in one call, the second with a learning rate of 0. The results are
written to FOLDER/{index}.npz.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import UserError
from meshtf import tf
from models.variables import SlicedVariable
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import latest_checkpoint, restore
from runtime.checkpoint.writer import CheckpointWriter
from runtime.cluster.process_group import ProcessGroup
from runtime.cluster.rendezvous import connect
from runtime.cluster.spec import Cluster
from runtime.mesh.multi_process import FIRST_GROUP_KEY, Collectives, Group, ProcessPlacement, place_process
from runtime.mesh.placement import DeviceMesh
from runtime.mesh.tpu_mesh import Replica, ReplicaGroups, ReplicaPlacement
from runtime.training.tpu_steps import run_device_loop
from tests import tiny
from tests.runtime.spmd_worker import CASES, MATRIX, moved, own_inputs

N_STEPS = 3


class ProcessCrossReplicaOps:
    """The collectives of replicas, run by processes."""

    def __init__(self, own: int, collectives: Collectives) -> None:
        self._own = own
        self._collectives = collectives

    def cross_replica_sum(self, x: tf.Tensor, groups: ReplicaGroups) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        return self._collectives.reduce(x, _group(self._members(groups)), "Add")

    def reduce_scatter(self, x: tf.Tensor, groups: ReplicaGroups, dimension: int) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        members = self._members(groups)
        summed = self._collectives.reduce(x, _group(members), "Add")
        return tf.split(summed, len(members), dimension)[members.index(self._own)]

    def all_to_all(self, x: tf.Tensor, groups: ReplicaGroups, split_dimension: int, concat_dimension: int) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        members = self._members(groups)
        slices = tf.unstack(self._collectives.gather(x, _group(members)))
        own = members.index(self._own)
        return tf.concat([tf.split(part, len(members), split_dimension)[own] for part in slices], concat_dimension)

    def collective_permute(self, x: tf.Tensor, pairs: ReplicaGroups) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        everyone = sorted({number for pair in pairs for number in pair})
        if self._own not in everyone:
            return tf.zeros_like(x)
        slices = self._collectives.gather(x, _group(everyone))
        sources = {target: source for source, target in pairs}
        return slices[everyone.index(sources[self._own])] if self._own in sources else tf.zeros_like(x)

    def _members(self, groups: ReplicaGroups) -> Sequence[int]:
        (members,) = (group for group in groups if self._own in group)
        return members


def _group(members: Sequence[int]) -> Group:
    return Group(FIRST_GROUP_KEY + (zlib.crc32(str(list(members)).encode()) >> 2), len(members))


def as_replica(process: ProcessPlacement, processor: tf.Tensor) -> ReplicaPlacement:
    """Returns the placement of a process as the program of a TPU sees it; `processor` is its number."""
    mesh_impl = process.implementation(tiny.BATCH_SIZE)

    def handle_of(variable: SlicedVariable, _: DeviceMesh) -> tf.Tensor:
        (piece,) = process.store.slices_of(variable, mesh_impl).slices
        return piece.handle

    replica = Replica(processor, ProcessCrossReplicaOps(process.processor, process.collectives), handle_of)
    return ReplicaPlacement(process.shape, process.layout, process.devices, process.store, replica)


def stacked_inputs(process: ProcessPlacement, has_segments: bool) -> list[np.ndarray]:
    """Returns the stacked inputs of a call: equal for all steps except for the learning rate, 0 in the second step.

    They hold only this process's own rows of the batch.
    """
    *others, rates, numbers, keys = (np.stack([value] * N_STEPS) for value in own_inputs(process, has_segments))
    rates[1] = 0.0
    return [*others, rates, numbers, keys]


def train(name: str, group: ProcessGroup, folder: Path) -> dict[str, np.ndarray]:
    """Runs the steps, and saves the model after the first."""
    case = CASES[name]
    config = case.config()
    process = place_process(config.mesh, group.index, group.size, group.device)
    inputs = stacked_inputs(process, config.data.has_segments)

    def run(processor: tf.Tensor, n_steps: tf.Tensor, *stacked: tf.Tensor) -> dict[str, tf.Tensor]:
        return run_device_loop(config, as_replica(process, processor), n_steps, *stacked)

    function = tf.function(run, autograph=False)
    function = function.get_concrete_function(tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32), *inputs)
    number = tf.constant(group.index)
    restore(latest_checkpoint(f"{folder}/start/{case.model}"), process.store, tiny.BATCH_SIZE)
    first = function(number, tf.constant(1), *map(tf.constant, inputs))
    tiny.save(CheckpointWriter(f"{folder}/{name}", process.store, group), TrainingPosition(1, tiny.BATCH_SIZE))
    others = function(number, tf.constant(N_STEPS), *map(tf.constant, inputs))
    outputs = {key: value[0] for key, value in first.items()}
    return {**outputs, "first_losses": first["loss"], "next_losses": others["loss"]}


def move(group: ProcessGroup) -> dict[str, np.ndarray]:
    """Returns the outputs of `moved`."""
    mesh = tiny.mesh_config(f"x:{group.size}", "batch:x,heads:x")
    process = place_process(mesh, group.index, group.size, group.device)
    placement = as_replica(process, tf.constant(group.index))
    outputs = tiny.evaluate(moved, placement, ("batch columns", MATRIX))
    return {str(index): output for index, output in enumerate(outputs)}


def main() -> int:
    """Runs the jobs; returns the exit status."""
    hosts, index, folder, *jobs = sys.argv[1:]
    try:
        with connect(Cluster(tuple(hosts.split(",")), int(index)), wait_seconds=60.0) as group:
            results = {"moved": move(group)} if "moved" in jobs else {}
            results |= {name: train(name, group, Path(folder)) for name in jobs if name in CASES}
            arrays = {f"{job}/{key}": value for job, values in results.items() for key, value in values.items()}
            np.savez(f"{folder}/{index}.npz", **arrays)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
