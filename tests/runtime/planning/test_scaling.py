"""Plans for devices of a kind: the speed of axes, the time of a step, and the table over many devices."""

from __future__ import annotations

import dataclasses

import pytest

from configs.layout import MeshShape
from configs.load import load_config
from configs.schema import SHARDINGS, MeshConfig, RunConfig
from runtime.planning.cost import StepCost, StepTime, cost_of, planned_cost, step_time
from runtime.planning.dry_run import dry_placement
from runtime.planning.flops import flops_of_token
from runtime.planning.machines import (
    DEVICE_KINDS,
    MACHINES,
    Machine,
    axis_speeds,
    machine_of,
    machine_of_kind,
)
from runtime.planning.peak_flops import GPU_PEAKS, TPU_PEAKS
from runtime.planning.plan import allocated_bytes, make_plan
from runtime.planning.scaling import format_scales, scales
from tests import tiny

# Servers of 8 devices with links of 400 bytes a second, and 50 a device between them.
SERVERS = Machine(1e12, 1000.0, 400.0, 0.5, 2000.0, n_linked=8, network_bytes_per_second=50.0)
LAYOUT = (("batch", "x"), ("heads", "y"), ("intermediate_expanded", "y"))


def config_of(**training: object) -> RunConfig:
    config = tiny.run_config(model={"n_layer": 4, "attention_types": ("local",) * 4}, training=training)
    return dataclasses.replace(config, mesh=MeshConfig(mesh_shape=(("x", 2), ("y", 2)), layout=LAYOUT))


@pytest.mark.parametrize(
    ("mesh_shape", "speeds"),
    [
        ((("x", 8),), {"x": 400}),  # in one server
        ((("x", 16),), {"x": 400}),  # 8 members share 8 adapters: 8 * 50
        ((("x", 2), ("y", 8)), {"x": 50, "y": 400}),  # each member of x is in a server of its own
        ((("x", 16), ("y", 2)), {"x": 200, "y": 400}),  # 4 members of x in a server: 4 * 50
        ((("x", 2), ("y", 32)), {"x": 50, "y": 400}),
        ((("x", 4), ("y", 2), ("z", 4)), {"x": 50, "y": 400, "z": 400}),
    ],
)
def test_an_axis_that_leaves_a_server_shares_its_adapters(mesh_shape: MeshShape, speeds: dict[str, float]) -> None:
    assert axis_speeds(mesh_shape, SERVERS) == speeds


def test_the_time_of_a_step_by_hand() -> None:
    cost = StepCost(flops=3000, moved_bytes=4000, memory_bytes=1, n_transfers=2, sent_bytes={"x": 100, "y": 800})
    time = step_time(cost, (("x", 2), ("y", 8)), SERVERS)
    assert time == StepTime(products=3.0, memory=2.0, links={"x": 2.0, "y": 2.0}, latency=1.0)
    assert time.total == 3.0 + 2.0 + 2.0 + 1.0  # memory traffic hides behind products
    assert time.limit == "products"
    slow = dataclasses.replace(SERVERS, network_bytes_per_second=1.0)
    assert step_time(cost, (("x", 2), ("y", 8)), slow).limit == "sending over x"
    assert step_time(cost, (("x", 2), ("y", 8)), dataclasses.replace(SERVERS, flops_per_second=1e9)).limit == (
        "memory traffic"
    )


@pytest.mark.parametrize("shard", SHARDINGS)
def test_deep_models_are_extrapolated_exactly(shard: str) -> None:
    config = config_of()
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, shard=shard))
    quick, built = (cost(config, config.mesh.mesh_shape, LAYOUT) for cost in (cost_of, planned_cost))
    for name in ("flops", "moved_bytes", "n_transfers"):
        assert getattr(quick, name) == pytest.approx(getattr(built, name), rel=1e-3)
    assert quick.sent_bytes == pytest.approx(built.sent_bytes, rel=1e-3)
    assert quick.memory_bytes == pytest.approx(built.memory_bytes, rel=0.05)
    plan = make_plan(config, dry_placement(config.mesh, 4))
    assert built.memory_bytes == allocated_bytes(plan.memory, plan.microbatch_count)
    assert sum(built.sent_bytes.values()) == sum(plan.sent_bytes.values())


def test_machine_of_devices() -> None:
    assert machine_of(["/device:GPU:0", "/device:GPU:1"]) == MACHINES["GPU"]
    one, two = (machine_of([f"/device:CPU:{index}" for index in range(count)]) for count in (1, 2))
    assert one.memory_bytes == 2 * two.memory_bytes > 0


def test_kinds_have_the_peaks_that_utilisation_is_measured_against() -> None:
    peaks = {name: sizes for pattern, *sizes in GPU_PEAKS for name in pattern.split("|")}
    peaks |= {kind: [peak, peak] for kind, peak in TPU_PEAKS.items()}
    for kind, device in DEVICE_KINDS.items():
        assert [device.bfloat16_tflops, device.float32_tflops] == peaks[kind]
    assert machine_of_kind("H100", "bfloat16").flops_per_second == 989e12
    assert machine_of_kind("H100", "float32").flops_per_second == 494e12


def test_the_batch_stays_until_each_row_of_devices_has_one_sequence() -> None:
    found = list(scales(config_of(train_batch_size=8), SERVERS, (1, 4, 32)))
    assert [scale.mesh_shape for scale in found] == [(("x", n), ("y", m)) for n, m in ((1, 1), (2, 2), (16, 2))]
    assert [scale.batch_size for scale in found] == [8, 8, 16]
    flops = [scale.cost.flops for scale in found]
    assert flops[0] / 4 == pytest.approx(flops[1], rel=0.05)  # what every device repeats is little
    assert [scale.cost.sent_bytes["x"] for scale in found][0] == 0
    alone = found[0]
    model = config_of().model
    own_flops = 8 * model.n_ctx * 3 * flops_of_token(model).forward  # a backward pass costs two forward passes
    assert alone.mfu == pytest.approx(own_flops / 1000.0 / alone.time.total)
    assert all(scale.fits for scale in found)


def test_what_does_not_fit_is_said() -> None:
    small = dataclasses.replace(SERVERS, memory_bytes=10.0)
    table = format_scales("H100", list(scales(config_of(), small, (1, 4)))).splitlines()
    assert table[0].split()[:2] == ["devices", "(H100)"] and "sent over y" in table[0]
    assert [line.endswith("memory: does not fit") for line in table[1:]] == [True, True]


def test_a_config_without_a_mesh_splits_the_batch() -> None:
    config = load_config("quickstart", [], None)
    config = dataclasses.replace(config, model=config_of().model, mesh=MeshConfig())
    (scale,) = scales(config, SERVERS, (4,))
    assert scale.mesh_shape == (("all", 4),) and scale.cost.sent_bytes["all"] > 0
