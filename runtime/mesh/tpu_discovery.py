"""Finds a TPU and initializes it.

Google's client asks a metadata server, and TensorFlow a host of the TPU, and both wait for minutes if there is no
answer. So the search has a time limit here, and the hosts are probed before TensorFlow connects to them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from configs.errors import DeviceError
from meshtf import tf

Result = TypeVar("Result")
Resolver = tf.distribute.cluster_resolver.TPUClusterResolver

REACH_SECONDS = 25.0  # to find the hosts and hear from them, so that the user gets an error within 30 s
START_SECONDS = 600.0  # for a TPU that answers; it may be large
COLAB_VARIABLE = "COLAB_TPU_ADDR"
# The first bytes of a gRPC client (RFC 9113, section 3.4): a preface, and an empty frame of settings. A server answers
# with its own settings, in a frame of type 4.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER_BYTES = 9
SETTINGS_FRAME = 4


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU that is ready.

    Attributes:
        topology: the coordinates and the hosts of its cores.
        job: TensorFlow's job name of the hosts.
    """

    topology: tf.tpu.experimental.Topology
    job: str


def find_tpu(name: str, reach_seconds: float = REACH_SECONDS, start_seconds: float = START_SECONDS) -> Tpu:
    """Finds a TPU and initializes it, which clears its memory.

    Args:
        name: that of a Google Cloud TPU, or the addresses of its hosts, such as `grpc://10.0.0.2:8470`, separated by
            commas; or `colab`, for that of a Colab notebook; or `local`, for a TPU of this machine.
        reach_seconds: how long to look for it.
        start_seconds: how long it may take to start once it is found.

    Raises:
        DeviceError: it does not exist, or does not answer.
    """
    deadline_seconds = time.monotonic() + reach_seconds
    # One more second, because a search that fails by itself gives a better reason.
    late = f"no answer within {reach_seconds:.0f} s"
    resolver, hosts = _with_timeout(reach_seconds + 1.0, lambda: _resolve(name), _unknown_name(name, late))
    reaching_seconds = _seconds_until(deadline_seconds) + 1.0
    _with_timeout(
        reaching_seconds, lambda: _connect(name, resolver, hosts, deadline_seconds), _unreachable(name, hosts, late)
    )
    topology = _with_timeout(
        start_seconds,
        lambda: _initialize(name, resolver),
        DeviceError(
            f"--tpu {name}: exists, but has not started after {start_seconds:.0f} s; check in Google Cloud's "
            "console that it is READY, and that no other program uses it"
        ),
    )
    return Tpu(topology, resolver.get_job_name() if hosts else "localhost")


def _with_timeout(seconds: float, action: Callable[[], Result], if_late: DeviceError) -> Result:
    """Runs an action in a thread, which is abandoned after a time limit, because it may wait forever."""
    answer: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def act() -> None:
        try:
            answer.set_result(action())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=act, name="TPU discovery", daemon=True).start()
    try:
        return answer.result(seconds)
    except concurrent.futures.TimeoutError:
        raise if_late from None


def _resolve(name: str) -> tuple[Resolver, Sequence[str]]:
    """Returns TensorFlow's resolver of the TPU, and `address:port` of its hosts; none for a local TPU."""
    if name == "local":
        return Resolver(tpu="local"), ()
    where = _colab_address() if name == "colab" else name
    try:
        resolver = Resolver(tpu=where)
        return resolver, resolver.cluster_spec().as_dict()[resolver.get_job_name()]
    except Exception as error:  # Google's client has no common exception
        raise _unknown_name(name, str(error)) from error


def _colab_address() -> str:
    address = os.environ.get(COLAB_VARIABLE)
    if not address:
        raise DeviceError(
            f"--tpu colab: {COLAB_VARIABLE} is not set: this is not a Colab notebook with a TPU; choose a TPU as "
            "the notebook's runtime; if the TPU is part of the machine, give --tpu local"
        )
    return f"grpc://{address.removeprefix('grpc://')}"


def _unknown_name(name: str, problem: str) -> DeviceError:
    return DeviceError(
        f"--tpu {name}: Google Cloud has no address for this name: {problem}; give the name of a TPU in the "
        "project and zone of this machine, or its address as grpc://10.0.0.2:8470"
    )


def _unreachable(name: str, hosts: Sequence[str], problem: str) -> DeviceError:
    return DeviceError(
        f"--tpu {name}: {', '.join(hosts)}: {problem}; check that the TPU runs (gcloud compute tpus list), and that "
        "this machine is in its network"
    )


def _connect(name: str, resolver: Resolver, hosts: Sequence[str], deadline_seconds: float) -> None:
    """Probes every host, and only then connects TensorFlow to them."""
    for host in hosts:
        _probe(name, host, deadline_seconds)
    with _device_errors(name):
        tf.config.experimental_connect_to_cluster(resolver, make_master_device_default=False)


def _probe(name: str, host: str, deadline_seconds: float) -> None:
    try:
        answer = _exchange_settings(host, deadline_seconds)
    except TimeoutError as error:
        raise _unreachable(name, [host], "no answer") from error
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(name, [host], getattr(error, "strerror", None) or str(error)) from error
    if len(answer) < FRAME_HEADER_BYTES or answer[3] != SETTINGS_FRAME:
        raise _unreachable(name, [host], "not a host of a TPU, because it does not speak gRPC")


def _exchange_settings(host: str, deadline_seconds: float) -> bytes:
    address, _, port = host.rpartition(":")
    with socket.create_connection((address, int(port)), _seconds_until(deadline_seconds)) as connection:
        connection.sendall(PREFACE)
        answer = b""
        while len(answer) < FRAME_HEADER_BYTES:
            connection.settimeout(_seconds_until(deadline_seconds))
            part = connection.recv(FRAME_HEADER_BYTES - len(answer))
            if not part:
                break
            answer += part
    return answer


def _seconds_until(deadline_seconds: float) -> float:
    return max(deadline_seconds - time.monotonic(), 0.01)  # 0 would mean not to wait at all


def _initialize(name: str, resolver: Resolver) -> tf.tpu.experimental.Topology:
    with _device_errors(name):
        return tf.tpu.experimental.initialize_tpu_system(resolver)


@contextlib.contextmanager
def _device_errors(name: str) -> Iterator[None]:
    """Turns TensorFlow's errors into errors for the user."""
    try:
        yield
    except tf.errors.NotFoundError as error:
        if name == "local":
            raise DeviceError(
                "--tpu local: TensorFlow finds no TPU on this machine; on a TPU VM install tensorflow-tpu instead "
                "of tensorflow; elsewhere give the TPU's name, or leave --tpu out to run on GPUs or the CPU"
            ) from error
        raise DeviceError(
            f"--tpu {name}: the host that answers has no TPU; give the name or the address of a TPU"
        ) from error
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "message", error)).strip().splitlines()[:1]
        raise DeviceError(
            f"--tpu {name}: cannot be started: {' '.join(reason)}; check that it runs the TensorFlow of this machine, "
            f"{tf.__version__}, and that no other program uses it"
        ) from error
