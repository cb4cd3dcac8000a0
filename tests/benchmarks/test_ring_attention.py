"""What processes send along a split sequence is what the plan says, to the byte."""

from __future__ import annotations

import pytest

from benchmarks.ring_attention import counted, planned_bytes
from runtime.mesh.multi_process import place_process
from runtime.planning.dry_run import build_dry_step, dry_placement
from runtime.training.steps import build_train_step
from tests import tiny

LAYERS = {"n_layer": 3, "attention_types": ("global", "local", "linear")}


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_payload_of_four_processes_is_the_plans(precision: str) -> None:
    config = tiny.run_config(tiny.mesh_config("x:4", "sequence:x"), {**LAYERS, "precision": precision})
    sent = 0.0
    for processor in range(4):
        placement = counted(place_process(config.mesh, processor, 4, "/device:CPU:0"))
        build_train_step(config, placement)
        sent += placement.collectives.sent_bytes
    assert sent == planned_bytes(config, 4)


def test_what_goes_round_by_hand() -> None:
    """One global layer over two devices, which lend half of the queries: forward, and backward with gradients."""
    config = tiny.run_config(tiny.mesh_config("x:2", "sequence:x"), {"n_layer": 1, "attention_types": ("global",)})
    received = [
        each for each in build_dry_step(config, dry_placement(config.mesh, 2)).transfers if each.kind == "receive"
    ]
    piece, rows = 4 * 8 * 8 * 32, 4 * 8 * 8 * 4  # float32 [batch, half the sequence, features], and [..., heads]
    forward = 2 * piece + piece / 2 + (piece + rows) / 2  # keys and values; queries; outputs and log_z
    backward = 2 * piece + 2 * piece + 2 * (piece + rows) / 2 + piece / 2  # and back: d_keys, d_values; d_queries
    assert sum(each.sent_bytes for each in received) == (forward + backward) / 2  # on average over two devices
