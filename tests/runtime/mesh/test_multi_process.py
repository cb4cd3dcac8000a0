"""Several processes on this machine compute what one device computes."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.local_processes import free_ports
from configs.errors import CheckpointError, DeviceError
from configs.schema import SHARDINGS
from meshtf import mtf, tf
from models.variables import SlicedVariable, normal
from runtime.checkpoint import writer
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import DamagedError, latest_checkpoint, restore
from runtime.checkpoint.weight_sources import checkpoint_tensors
from runtime.checkpoint.writer import CheckpointWriter
from runtime.cluster.process_group import ProcessGroup
from runtime.mesh.multi_process import Collectives, Group, group_of, pair_of, pairs_in_rounds, place_process
from runtime.mesh.placement import Placement, VariableSlices, place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.runtime.spmd_worker import CASES, MATRIX, ONE_LAYER, SCORED, Case, score

REPOSITORY = Path(__file__).parents[3]
FAST = ("experts", "shard", "parameters")
OF_TWO = (
    "data",
    "model",
    "embd",
    "memory",
    "sequence",
    "shared",
    "groups",
    "groups_whole",
    "segments",
    "matrices",
    "adapters",
    "ring",
)
FOUR = ("four_data", "four_ring", "four_shard", "four_parameters")
OF_FOUR = (
    "mixed",
    "mixed_experts",
    "mixed_embd",
    "mixed_matrices",
    "mixed_adapters",
    "mixed_ring",
    "whole_sequence",
    "shard_mixed",
    "shard_experts",
    "parameters_mixed",
    "parameters_experts",
)


# Without other processes.


@settings(max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_a_group_has_one_key_and_no_other_group_has_it(sizes: list[int], data: st.DataObject) -> None:
    shape = mtf.Shape([mtf.Dimension(f"axis{index}", size) for index, size in enumerate(sizes)])
    members: dict[int, set[tuple]] = {}
    for mask in range(1, 2 ** len(sizes)):
        axes = [axis for axis in range(len(sizes)) if mask >> axis & 1]
        for processor in range(shape.size):
            coordinates = mtf.pnum_to_processor_coordinates(shape, processor)
            group = group_of(shape, processor, data.draw(st.permutations(axes)))
            assert group.size == np.prod([sizes[axis] for axis in axes])
            others = tuple(None if axis in axes else place for axis, place in enumerate(coordinates))
            members.setdefault(group.key, set()).add(others)
    assert all(len(groups) == 1 for groups in members.values())


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.integers(0, 8)), min_size=9, max_size=9))
def test_pairs_meet_without_waiting_in_a_circle(sources: list[int | None]) -> None:
    """In the order of the list, each process works through its own pairs; the first pair that is left always meets."""
    pairs = pairs_in_rounds(sources)
    assert sorted(pairs) == sorted((s, t) for t, s in enumerate(sources) if s is not None and s != t)
    queues = {at: [pair for pair in pairs if at in pair] for at in range(9)}
    while any(queues.values()):
        met = [pair for pair in pairs if all(queues[at][:1] == [pair] for at in pair)]
        assert met
        for source, target in met:
            del queues[source][0], queues[target][0]


def test_a_ring_takes_two_rounds() -> None:
    assert pairs_in_rounds([3, 0, 1, 2]) == [(3, 0), (1, 2), (0, 1), (2, 3)]


def test_a_pair_has_a_key_of_its_own() -> None:
    shape = mtf.Shape([mtf.Dimension("x", 2), mtf.Dimension("y", 3)])
    groups = {group_of(shape, processor, axes).key for processor in range(6) for axes in ([0], [1], [0, 1])}
    members: dict[int, set[int]] = {}
    for processor in range(6):
        coordinates = mtf.pnum_to_processor_coordinates(shape, processor)
        for axis, size in enumerate((2, 3)):
            for pair in itertools.permutations(range(size), 2):
                if coordinates[axis] in pair:
                    members.setdefault(pair_of(shape, processor, axis, pair).key, set()).add(processor)
    assert len(members) == 3 * 2 + 2 * 6 and not groups & set(members)
    assert all(len(processors) == 2 for processors in members.values())


def n_nodes(n_processes: int, layout: str, shard: str) -> int:
    mesh = tiny.mesh_config(f"x:{n_processes}", layout, shard)
    model = {"n_embd": 512, "n_vocab": 512, "n_ctx": 512}  # that 512 processes can share
    batch = {"train_batch_size": n_processes}  # as many tokens each: those of more blocks of the loss are in a loop
    config = tiny.run_config(mesh, {**ONE_LAYER, **model}, batch)
    return build_train_step(config, place_process(config.mesh, 1, n_processes, "/device:CPU:0")).n_graph_nodes()


@pytest.mark.parametrize("shard", SHARDINGS)
def test_a_graph_does_not_grow_with_the_mesh(shard: str) -> None:
    two = n_nodes(2, "batch:x", shard)
    assert n_nodes(512, "batch:x", shard) == pytest.approx(two, rel=0.02)


@pytest.mark.slow
@pytest.mark.processes
def test_a_graph_does_not_grow_with_the_batch_axis_beside_a_ring() -> None:
    counts = []
    for size in (1, 128):
        mesh = tiny.mesh_config(f"x:{size},y:4", "batch:x,sequence:y")
        config = tiny.run_config(mesh, {"attention_types": ("global", "local")}, {"train_batch_size": 512})
        placement = place_process(config.mesh, 1, 4 * size, "/device:CPU:0")
        counts.append(build_train_step(config, placement).n_graph_nodes())
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("n_processes", [8, 64, 512])
def test_a_graph_of_two_axes_does_not_grow_with_the_mesh(n_processes: int) -> None:
    layout = "batch:x,heads:y,vocab:y,intermediate_expanded:y,embed_sequence:y"
    counts = []
    for size in (1, n_processes // 4):
        model = {"n_head": 512, "n_embd": 512, "n_vocab": 512}
        mesh = tiny.mesh_config(f"x:{2 * size},y:2", layout)
        config = tiny.run_config(mesh, model, training={"train_batch_size": 512})
        placement = place_process(config.mesh, 1, 4 * size, "/device:CPU:0")
        counts.append(build_train_step(config, placement).n_graph_nodes())
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_an_exchange_copies_nothing() -> None:
    """The parts are by member already: names of processes sort like their numbers."""
    collectives, group, kinds = Collectives("/device:CPU:0"), Group(1, 12), {}
    for exchange in (collectives.all_to_all, collectives.gather, collectives.reduce_scatter):
        traced = tf.function(exchange, autograph=False).get_concrete_function(tf.TensorSpec([12, 4]), group)
        kinds[exchange.__name__] = {operation.type for operation in traced.graph.get_operations()}
    free = {"Placeholder", "Const", "NoOp", "Identity", "EnsureShape", "Bitcast"}
    assert kinds["all_to_all"] - free == {"CollectiveAllToAllV2"}
    assert kinds["gather"] - free == {"CollectiveGatherV2", "StridedSlice"}  # [None] shares the memory
    assert kinds["reduce_scatter"] - free == {"CollectiveAllToAllV2", "Sum"}


def test_a_mesh_for_another_number_of_processes_is_refused() -> None:
    with pytest.raises(DeviceError) as error:
        place_process(tiny.mesh_config("x:4", "batch:x"), 0, 2, "/device:CPU:0")
    assert str(error.value) == (
        "mesh_shape = x:4: needs 4 processes, 2 are there; give a mesh_shape whose sizes multiply to 2 "
        "(--set mesh_shape=x:2), that many processes, or --set elastic_mesh=true"
    )


def test_a_placement_describes_its_process() -> None:
    placement = place_process(tiny.mesh_config("", ""), 1, 2, "/device:CPU:0")
    assert placement.describe() == "all:2 (batch:all) on CPU:0, process 1 of 2"


# Checkpoints, each process writing its part.


def writer_of(processor: int, folder: Path, **group: object) -> CheckpointWriter:
    """Returns the writer of one of two processes, whose variable is all 0."""
    placement = place_process(tiny.mesh_config("x:2", "vocab:x"), processor, 2, "/device:CPU:0")
    add_table(placement, whole=np.zeros((4, 6), np.float32))
    return CheckpointWriter(str(folder), placement.store, ProcessGroup(processor, 2, **group))


def add_table(placement: Placement, whole: np.ndarray) -> VariableSlices:
    dims = mtf.Shape([mtf.Dimension("embd", 4), mtf.Dimension("vocab", 6)])
    variable = SlicedVariable(mtf.Mesh(mtf.Graph(), "mesh"), "gpt2/table", dims, normal(1.0))
    stored = placement.store.slices_of(variable, placement.implementation(1))
    stored.assign_whole(whole)
    return stored


def test_a_process_holds_only_its_own_slices() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    for processor, begin in enumerate([0, 3]):
        placement = place_process(tiny.mesh_config("x:2,y:2", "vocab:x"), 2 * processor, 4, "/device:CPU:0")
        stored = add_table(placement, whole)
        (piece,) = stored.slices
        np.testing.assert_array_equal(piece, whole[:, begin : begin + 3])
        assert (stored.begins, stored.distinct_slices()) == (((0, begin),), [0])
        copy = add_table(place_process(tiny.mesh_config("x:2,y:2", "vocab:x"), 2 * processor + 1, 4, "CPU:0"), whole)
        assert (copy.begins, copy.distinct_slices()) == (((0, begin),), [])


def test_a_process_lost_while_saving_leaves_the_previous_checkpoint(tmp_path: Path, devices: tuple[str, ...]) -> None:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    stored = add_table(placement, whole)
    path = tiny.save(CheckpointWriter(str(tmp_path), placement.store), TrainingPosition(1, 8))
    first = writer_of(0, tmp_path)
    first.save(TrainingPosition(2, 16))  # waits for the part of the other
    with pytest.raises(CheckpointError, match="process 1 has not written its part, and training ends; run the same"):
        first.abandon()
    assert latest_checkpoint(str(tmp_path)) == path
    stored.assign_whole(whole + 1)
    assert restore(path, placement.store, 8) == TrainingPosition(1, 8)
    np.testing.assert_array_equal(tiny.whole_value(stored), whole)
    # What was left of the save does not hinder the next.
    writers = [writer_of(processor, tmp_path) for processor in range(2)]
    assert not list(tmp_path.glob("*.parts"))
    for each in writers:
        newest = each.save(TrainingPosition(2, 16))
    for each in writers:
        each.finish()
    assert latest_checkpoint(str(tmp_path)) == newest
    assert restore(newest, placement.store, 8) == TrainingPosition(2, 16)
    assert not tiny.whole_value(stored).any()
    assert not list(tmp_path.glob("*.parts"))


def test_a_first_process_that_comes_late_removes_no_part_of_another_one(tmp_path: Path) -> None:
    leftover = tmp_path / "model.ckpt-1.parts"
    leftover.mkdir()
    meeting = threading.Barrier(2, timeout=60)

    def meet(number: int) -> int:
        meeting.wait()
        return number

    def save_second() -> None:
        second = writer_of(1, tmp_path, all_reduce_max=meet)
        second.save(TrainingPosition(2, 16))
        second.wait()

    thread = threading.Thread(target=save_second)
    thread.start()
    thread.join(timeout=0.5)
    assert thread.is_alive() and leftover.exists()
    first = writer_of(0, tmp_path, all_reduce_max=meet)
    thread.join()
    newest = first.save(TrainingPosition(2, 16))
    first.wait()
    assert latest_checkpoint(str(tmp_path)) == newest and not leftover.exists()


def test_no_process_but_the_first_waits_for_another_ones_part(tmp_path: Path) -> None:
    first, second = (writer_of(processor, tmp_path) for processor in range(2))
    newest = second.save(TrainingPosition(1, 8))
    second.wait()
    second.save(TrainingPosition(2, 16))
    second.wait()
    first.check()
    assert latest_checkpoint(str(tmp_path)) is None
    for step in (1, 2):
        newest = first.save(TrainingPosition(step, 8 * step))
    first.wait()
    assert latest_checkpoint(str(tmp_path)) == newest == str(tmp_path / "model.ckpt-2")
    assert checkpoint_tensors(f"{tmp_path}/model.ckpt-1")["global_step"].read() == 1


def test_a_part_that_is_not_visible_to_the_first_process_is_reported(
    tmp_path: Path, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "WRITING_SECONDS", 0.0)
    placement = place(tiny.mesh_config("", ""), devices[:1])
    add_table(placement, np.ones((4, 6), np.float32))
    path = tiny.save(CheckpointWriter(str(tmp_path / "shared"), placement.store), TrainingPosition(1, 8))
    tiny.save(writer_of(1, tmp_path / "elsewhere"), TrainingPosition(2, 16))
    with pytest.raises(CheckpointError, match="process 1 has not written its part, or it is not visible here"):
        tiny.save(writer_of(0, tmp_path / "shared"), TrainingPosition(2, 16))
    assert latest_checkpoint(str(tmp_path / "shared")) == path


def test_a_flipped_byte_is_named_with_the_file_of_its_process(tmp_path: Path, devices: tuple[str, ...]) -> None:
    writers = [writer_of(processor, tmp_path) for processor in range(2)]
    for each in writers:
        path = each.save(TrainingPosition(2, 16))
    writers[0].finish()
    file = Path(f"{path}.data-00001-of-00002")
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    alone = place(tiny.mesh_config("", ""), devices[:1])
    stored = add_table(alone, np.zeros((4, 6), np.float32))
    second = place_process(tiny.mesh_config("x:2", "vocab:x"), 1, 2, "/device:CPU:0")
    add_table(second, np.zeros((4, 6), np.float32))
    for store in (alone.store, second.store):
        with pytest.raises(DamagedError, match=f"^{file}: {stored.name}: cannot be read: .*Checksum does not match"):
            restore(path, store, 8)
    first = place_process(tiny.mesh_config("x:2", "vocab:x"), 0, 2, "/device:CPU:0")
    add_table(first, np.ones((4, 6), np.float32))
    assert restore(path, first.store, 8) == TrainingPosition(2, 16)  # its slice is whole


# With other processes.


def start(n_processes: int, folder: Path, *jobs: str) -> list[subprocess.Popen]:
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(n_processes))
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.spmd_worker", hosts, str(index), str(folder), *jobs],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(n_processes)
    ]


@dataclasses.dataclass(frozen=True)
class Expected:
    """The results of a model on one device.

    Attributes:
        outputs: of the step.
        after: all variables after it.
        next_loss: of the step that follows.
    """

    outputs: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]
    next_loss: float


def one_device(case: Case, folder: Path, device: str) -> Expected:
    """Saves the initial checkpoint, and runs the step on one device."""
    config = case.config(mesh_shape="")
    placement = place(config.mesh, [device])
    step = build_train_step(dataclasses.replace(config, mesh=tiny.mesh_config("", "")), placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    tiny.save(CheckpointWriter(f"{folder}/start/{case.model}", placement.store), TrainingPosition(0, 0))
    inputs = tiny.step_inputs(has_segments=config.data.has_segments)
    outputs = step(*inputs)
    after = tiny.values_of(placement.store)
    return Expected(outputs, after, float(step(*inputs)["loss"]))


@dataclasses.dataclass(frozen=True)
class Together:
    """The results of several processes.

    Attributes:
        folder: with their checkpoints, and the initial one.
        results: of each process.
        expected: of one device, by model.
    """

    folder: Path
    results: Sequence[Mapping[str, np.ndarray]]
    expected: Mapping[str, Expected]


def run_together(n_processes: int, folder: Path, device: str, *jobs: str) -> Together:
    cases = {CASES[job].model: CASES[job] for job in jobs if job in CASES}
    expected = {model: one_device(case, folder, device) for model, case in cases.items()}
    processes = start(n_processes, folder, *jobs)
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * n_processes, "\n".join(text[-2000:] for text in texts)
    return Together(folder, [dict(np.load(folder / f"{index}.npz")) for index in range(n_processes)], expected)


def check_case(together: Together, name: str, device: str) -> None:
    """Checks that loss, norm, update and checkpoint of all processes equal those of one device."""
    case = CASES[name]
    expected = together.expected[case.model]
    for results in together.results:
        for key, value in expected.outputs.items():
            np.testing.assert_allclose(results[f"{name}/{key}"], value, rtol=1e-5, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(results[f"{name}/next_loss"], expected.next_loss, rtol=0, atol=1e-5)
    config = case.config(mesh_shape="")
    placement = place(config.mesh, [device])
    build_train_step(config, placement)
    path = latest_checkpoint(f"{together.folder}/{name}")
    assert restore(path, placement.store, tiny.BATCH_SIZE) == TrainingPosition(1, tiny.BATCH_SIZE)
    for key, value in tiny.values_of(placement.store).items():
        tiny.assert_same_variable(key, value, expected.after[key])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(2, tmp_path_factory.mktemp("pair"), devices[0], "moved", *FAST)


def test_collectives_move_slices_as_on_one_device(pair: Together) -> None:
    shifted = np.zeros_like(MATRIX)
    shifted[:-3] = MATRIX[3:]
    reduced = [MATRIX.sum(0), MATRIX.max(0), MATRIX.min(0)]
    expected = [MATRIX, MATRIX, MATRIX, *reduced, np.roll(MATRIX, 1, 0), shifted, MATRIX.sum(0)]
    for results in pair.results:
        for index, value in enumerate(expected):
            np.testing.assert_allclose(results[f"moved/{index}"], value, rtol=0, atol=1e-6 if index in (3, 8) else 0)


@pytest.mark.parametrize("name", FAST)
def test_two_processes_train_as_one_device(pair: Together, devices: tuple[str, ...], name: str) -> None:
    check_case(pair, name, devices[0])


def test_each_process_writes_its_own_part(pair: Together) -> None:
    assert sorted(path.name for path in (pair.folder / "experts").iterdir()) == [
        "checkpoint",
        "model.ckpt-1.data-00000-of-00002",
        "model.ckpt-1.data-00001-of-00002",
        "model.ckpt-1.index",
    ]


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(2, tmp_path_factory.mktemp("long_pair"), devices[0], *SCORED, *OF_TWO)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_with_any_layout(long_pair: Together, devices: tuple[str, ...], name: str) -> None:
    check_case(long_pair, name, devices[0])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("layout", SCORED)
def test_two_processes_score_as_one_device(long_pair: Together, devices: tuple[str, ...], layout: str) -> None:
    alone = score(place(tiny.mesh_config("", ""), devices[:1]))
    assert 0 < alone["is_greedy"].mean() < 1
    for results in long_pair.results:
        np.testing.assert_allclose(results[f"{layout}/log_probs"], alone["log_probs"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(results[f"{layout}/is_greedy"], alone["is_greedy"])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, devices: tuple[str, ...]) -> Together:
    return run_together(4, tmp_path_factory.mktemp("four"), devices[0], *OF_FOUR)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes_on_two_axes(four: Together, devices: tuple[str, ...], name: str) -> None:
    check_case(four, name, devices[0])


@pytest.mark.slow
@pytest.mark.processes
def test_four_processes_on_one_axis(tmp_path: Path, devices: tuple[str, ...]) -> None:
    together = run_together(4, tmp_path, devices[0], "moved", *FOUR)
    test_collectives_move_slices_as_on_one_device(together)
    for name in FOUR:
        check_case(together, name, devices[0])


# Lost processes.


def loss_of(lost: int, reporter: int, process: subprocess.Popen) -> str:
    host = process.args[3].split(",")[lost]
    return (
        f"process {lost} ({host}): ended, hangs or is unreachable, so this process ({reporter}) ends too; see its "
        "last output, then restart all processes: they resume from the last checkpoint"
    )


def last_lines(processes: Sequence[subprocess.Popen], lost: int, how: signal.Signals) -> dict[int, str]:
    """Waits until all train, signals one, and returns the last lines of the others, which must end within 60 s."""
    try:
        for process in processes:
            assert any(line.startswith("step 2") for line in process.stdout)
        processes[lost].send_signal(how)
        deadline_seconds = time.monotonic() + 60
        others = [index for index in range(len(processes)) if index != lost]
        outputs = {}
        for index in others:
            text, _ = processes[index].communicate(timeout=deadline_seconds - time.monotonic())
            outputs[index] = text.splitlines()[-1]
        assert {processes[index].returncode for index in others} <= {2, 3}
        return outputs
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_lost_process_ends_the_other(tmp_path: Path, lost: int, how: signal.Signals) -> None:
    processes = start(2, tmp_path, "forever")
    assert last_lines(processes, lost, how) == {1 - lost: loss_of(lost, 1 - lost, processes[0])}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_all_others(tmp_path: Path, how: signal.Signals) -> None:
    processes = start(4, tmp_path, "forever")
    outputs = last_lines(processes, 2, how)
    assert outputs[0] == loss_of(2, 0, processes[0])
    # The others may learn of it from the first, which probes all.
    for index in (1, 3):
        assert outputs[index] in (loss_of(2, index, processes[0]), loss_of(0, index, processes[0]))
