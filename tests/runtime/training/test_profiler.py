"""The most expensive operations of a trace: one made up by hand, and real steps against TensorBoard's plugin."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from meshtf import xplane_pb2
from runtime.mesh.placement import place
from runtime.training.multi_step import SingleStep
from runtime.training.profiler import PLUGIN_FOLDER, Profile, costs, profiled
from runtime.training.steps import build_train_step
from tests import tiny

MICROSECOND = 10**6  # picoseconds
START, DONE = "ExecutorState::ProcessAsync::Start", "ExecutorState::ProcessAsync::Done"


class Plane:
    """A plane of a trace, filled event by event."""

    def __init__(self, space: xplane_pb2.XSpace, name: str) -> None:
        self._plane = space.planes.add(name=name)

    def add(self, line: int, start: int, end: int, label: str, **values: str) -> None:
        """Adds an event from and to a microsecond; values that begin with "&" are given by reference."""
        while len(self._plane.lines) <= line:
            self._plane.lines.add()
        offset, duration = start * MICROSECOND, (end - start) * MICROSECOND
        event = self._plane.lines[line].events.add(
            metadata_id=self._id(self._plane.event_metadata, label), offset_ps=offset, duration_ps=duration
        )
        for key, value in values.items():
            stat = event.stats.add(metadata_id=self._id(self._plane.stat_metadata, key))
            if value.startswith("&"):
                stat.ref_value = self._id(self._plane.stat_metadata, value[1:])
            else:
                stat.str_value = value

    def _id(self, names: object, name: str) -> int:
        number = next((key for key in names if names[key].name == name), len(names) + 1)
        names[number].name = name
        return number


def microseconds(space: xplane_pb2.XSpace, n_steps: int = 1) -> dict[str, float]:
    found = costs(space.SerializeToString(), n_steps)
    assert [cost.seconds for cost in found] == sorted((cost.seconds for cost in found), reverse=True)
    assert sum(cost.share for cost in found) == pytest.approx(1.0)
    return {cost.name: pytest.approx(1e6 * cost.seconds) for cost in found}


def test_events_inside_others_count_once() -> None:
    space = xplane_pb2.XSpace()
    plane = Plane(space, "/host:CPU")
    plane.add(0, 0, 1000, "ExecutorState::Process")
    plane.add(0, 10, 60, "h0/attn/einsum/parallel_0/MatMul:_MklMatMul")
    plane.add(0, 60, 160, START, name="h0/attn/softmax_attention/parallel_1_2/PartitionedCall")
    plane.add(0, 70, 120, "CpuExecutable::ExecuteAsyncOnStream")
    plane.add(0, 75, 115, "multiply_add_fusion", hlo_op="multiply_add_fusion")
    plane.add(0, 130, 160, DONE, name="h0/attn/softmax_attention/parallel_1_2/PartitionedCall")
    plane.add(0, 140, 150, "h0/attn/einsum/parallel_1/MatMul:_MklMatMul")  # run from there, and counted for itself
    plane.add(0, 200, 230, "h0/attn/einsum/parallel_0/Reshape:Reshape")
    plane.add(0, 240, 260, START, name="&h0/attn/softmax_attention/parallel_0_2/PartitionedCall")
    plane.add(
        1,
        0,
        40,
        "microbatches/while/body/_12/microbatches/while/h1/mlp/einsum/gradients/einsum_1/parallel_0/MatMul:MatMul",
    )
    plane.add(1, 40, 45, "microbatches/while/h1/mlp/bias_add_1/parallel_3/Add:AddV2")
    plane.add(1, 45, 50, "microbatches/while/parallel_3/add:AddV2")
    plane.add(1, 50, 60, "EagerLocalExecute: __inference_step_5843")
    plane.add(1, 60, 70, "ReadVariableOp:ReadVariableOp")
    assert microseconds(space) == {
        "h0/attn/einsum": 50 + 10 + 30,
        "h0/attn/softmax_attention": 100 - 30 + 20,
        "h1/mlp/einsum/gradients/einsum_1": 40,
        "h1/mlp/bias_add_1": 5,
        "microbatches": 5,
    }
    assert microseconds(space, n_steps=2)["h1/mlp/einsum/gradients/einsum_1"] == 20


def test_kernels_of_gpus_count_where_there_are_any() -> None:
    space = xplane_pb2.XSpace()
    Plane(space, "/host:CPU").add(0, 0, 900, "h0/attn/einsum/parallel_0/MatMul:MatMul")
    for number, length in enumerate((30, 50)):
        plane = Plane(space, f"/device:GPU:{number}")
        plane.add(0, 0, length, "sm90_gemm", tf_op=f"&head/einsum/parallel_{number}/MatMul")
        plane.add(0, 60, 70, "MemcpyD2D", correlation_id="7")
    assert microseconds(space) == {"head/einsum": 80}


def run(config: object, folder: Path, devices: tuple[str, ...], n_traced: int, n_run: int) -> list[str]:
    placement, said = place(config.mesh, devices[: 4 if config.mesh.mesh_shape else 1]), []
    step = SingleStep(build_train_step(config, placement))
    placement.store.initialize(seed=1)
    *batch, rate, _, key = (np.asarray(value)[None] for value in tiny.step_inputs())
    with profiled(step, n_traced, str(folder), said.append) as steps:
        for number in range(5, 5 + n_run):
            steps(*batch, rate, np.array([number], np.int32), key)
    return said


def test_steps_after_the_first_two_are_traced(tmp_path: Path, devices: tuple[str, ...]) -> None:
    mesh = tiny.mesh_config("x:2,y:2", "batch:x,heads:y")
    config = tiny.run_config(mesh, {"recompute_grad": True}, {"tokens_per_mb_per_replica": 2 * tiny.MODEL.n_ctx})
    (said,) = run(config, tmp_path, devices, n_traced=2, n_run=5)
    assert re.match(rf"profile of steps 8 to 9: \S+ s a step; TensorBoard's profile plugin shows {tmp_path}", said)
    assert len(said.splitlines()) == 12 and "parallel" not in said and "while" not in said
    (file,) = (tmp_path / PLUGIN_FOLDER).glob("*/*.xplane.pb")
    names = {cost.name for cost in costs(file.read_bytes(), 2)}
    for part in ("embedding", "h0/attn", "h0/mlp", "h1/attn", "h1/mlp", "head", "loss", "optimizer"):
        assert any(name.startswith(part + "/") for name in names), part
    kernels = {"h0/attn/softmax_attention", "h1/mlp/einsum/gradients/einsum_1", "optimizer/elementwise_update"}
    assert kernels <= names


def test_a_run_that_ends_before_its_trace_says_so(tmp_path: Path, devices: tuple[str, ...]) -> None:
    for n_run, n_left in ((1, 4), (4, 1)):
        assert run(tiny.run_config(), tmp_path, devices, n_traced=3, n_run=n_run) == [
            f"--profile 3: training has ended {n_left} steps too early; no trace is written"
        ]
    assert not list(tmp_path.iterdir())


def test_the_profile_plugin_shows_the_same(tmp_path: Path, devices: tuple[str, ...]) -> None:
    convert = pytest.importorskip("xprof.convert.raw_to_tool_data", reason="needs the package xprof")
    run(tiny.run_config(), tmp_path, devices, n_traced=3, n_run=5)
    (file,) = (tmp_path / PLUGIN_FOLDER).glob("*/*.xplane.pb")
    table = json.loads(convert.xspace_to_tool_data([str(file)], "framework_op_stats", {"tqx": ""})[0])[0]
    columns = [column["id"] for column in table["cols"]]
    rows = [dict(zip(columns, (cell["v"] for cell in row["c"]), strict=True)) for row in table["rows"]]
    theirs = {row["operation"]: row["total_self_time"] for row in rows if row["type"] == "_MklMatMul"}
    ours = {cost.name: 3e6 * cost.seconds for cost in costs(file.read_bytes(), 3)}
    for name in ("h0/attn/einsum", "h0/mlp/einsum", "h1/mlp/einsum_1/gradients/einsum_1"):
        assert ours[name] == pytest.approx(theirs[f"{name}/parallel_0/MatMul"], rel=0.05), name


def test_the_table() -> None:
    assert Profile((3, 7), 0.2617, costs(b"", 5), "runs/a/plugins/profile").describe() == (
        "profile of steps 3 to 7: 0.262 s a step; TensorBoard's profile plugin shows runs/a/plugins/profile\n"
        "  share   ms a step  operation"
    )
