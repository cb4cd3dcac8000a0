"""The errors for a TPU that cannot be found, each within seconds."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import DeviceError
from runtime.mesh.tpu_discovery import REACH_SECONDS, find_tpu

REPOSITORY = Path(__file__).parents[3]
SEE = "check that the TPU runs (gcloud compute tpus list), and that this machine is in its network"
GIVE = "give the name of a TPU in the project and zone of this machine, or its address as grpc://10.0.0.2:8470"
SERVER = """
import socket, sys, time
from meshtf import tf
server = tf.distribute.Server({"worker": ["127.0.0.1:" + sys.argv[1]]}, job_name="worker", task_index=0)
print("ready", flush=True)
time.sleep(600)
"""
PROGRAM = """
import sys
from runtime.mesh.tpu_discovery import find_tpu
try:
    find_tpu(sys.argv[1], reach_seconds=20.0)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(2)
"""


@pytest.fixture(autouse=True)
def no_tpu_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLAB_TPU_ADDR", "TPU_NAME", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS", "TPU_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def answering(words: bytes) -> Iterator[int]:
    """A port that answers a connection with these bytes and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.sendall(words)
                    connection.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        yield listening.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def error_message(name: str, reach_seconds: float = 20.0) -> str:
    begun_seconds = time.monotonic()
    with pytest.raises(DeviceError) as error:
        find_tpu(name, reach_seconds)
    assert time.monotonic() - begun_seconds < reach_seconds + 2.0
    return str(error.value)


def test_the_longest_search_ends_within_half_a_minute() -> None:
    assert REACH_SECONDS + 2.0 < 30.0


def test_a_closed_port_is_reported() -> None:
    port = closed_port()
    name = f"grpc://127.0.0.1:{port}"
    assert error_message(name) == f"--tpu {name}: 127.0.0.1:{port}: Connection refused; {SEE}"


def test_a_host_that_accepts_but_never_answers_times_out() -> None:
    with silent_port() as port:
        name = f"grpc://127.0.0.1:{port}"
        assert error_message(name, 0.5) == f"--tpu {name}: 127.0.0.1:{port}: no answer; {SEE}"


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 a mail server\r\n", b"", b"\0\0\0\4"])
def test_a_host_that_does_not_speak_grpc_is_refused(words: bytes) -> None:
    with answering(words) as port:
        name = f"grpc://127.0.0.1:{port}"
        message = f"--tpu {name}: 127.0.0.1:{port}: not a host of a TPU, because it does not speak gRPC; {SEE}"
        assert error_message(name) == message


def test_a_silent_second_host_is_named() -> None:
    with silent_port() as port, answering(b"\0\0\0\4\0\0\0\0\0") as first:
        name = f"grpc://127.0.0.1:{first},127.0.0.1:{port}"
        assert error_message(name, 0.5) == f"--tpu {name}: 127.0.0.1:{port}: no answer; {SEE}"


def test_an_unresolvable_address_is_reported() -> None:
    message = error_message("grpc://no-such-host.invalid:8470")
    start = "--tpu grpc://no-such-host.invalid:8470: no-such-host.invalid:8470: "
    assert message.startswith(start) and message.endswith(f"; {SEE}")
    assert "resolution" in message or "not known" in message


def test_an_invalid_port_is_reported() -> None:
    message = error_message("grpc://a:b")
    assert message.startswith("--tpu grpc://a:b: a:b: invalid literal") and message.endswith(f"; {SEE}")


def test_a_name_without_a_metadata_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{closed_port()}")
    message = error_message("no-such-tpu")
    start = "--tpu no-such-tpu: Google Cloud has no address for this name: <urlopen error "
    assert message.startswith(start) and message.endswith(f"Connection refused>; {GIVE}")


def test_a_metadata_server_that_does_not_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port:
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
        message = f"--tpu my-tpu: Google Cloud has no address for this name: no answer within 0 s; {GIVE}"
        assert error_message("my-tpu", 0.2) == message


def test_colab_needs_its_variable() -> None:
    assert error_message("colab") == (
        "--tpu colab: COLAB_TPU_ADDR is not set: this is not a Colab notebook with a TPU; choose a TPU as the "
        "notebook's runtime; if the TPU is part of the machine, give --tpu local"
    )


def test_the_address_of_colab_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("COLAB_TPU_ADDR", f"127.0.0.1:{port}")
    assert error_message("colab") == f"--tpu colab: 127.0.0.1:{port}: Connection refused; {SEE}"


def ended(name: str) -> tuple[int, str]:
    """Exit status and words of a process of its own: TensorFlow can be connected to one cluster only."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM, name]
    run = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout


def test_a_machine_without_a_tpu_is_reported() -> None:
    assert ended("local") == (
        2,
        "DeviceError --tpu local: TensorFlow finds no TPU on this machine; on a TPU VM install tensorflow-tpu "
        "instead of tensorflow; elsewhere give the TPU's name, or leave --tpu out to run on GPUs or the CPU\n",
    )


@pytest.mark.slow
@pytest.mark.processes
def test_a_tensorflow_server_without_a_tpu_is_reported() -> None:
    port = closed_port()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            name = f"grpc://127.0.0.1:{port}"
            message = f"--tpu {name}: the host that answers has no TPU; give the name or the address of a TPU\n"
            assert ended(name) == (2, f"DeviceError {message}")
        finally:
            server.kill()
