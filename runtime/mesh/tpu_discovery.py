"""Finding a TPU and starting it.

Google's client asks a metadata server, and TensorFlow a host of the TPU, for minutes if nobody is there. So the search
has an end here, and the hosts are asked for a sign of life before TensorFlow speaks to them.
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

REACH_SECONDS = 25.0  # to find the hosts and hear from them: whoever waits is told within 30 s
START_SECONDS = 600.0  # for one that answers, and may be large
COLAB_VARIABLE = "COLAB_TPU_ADDR"
# What a client of gRPC says first (RFC 9113, section 3.4): a preface, and a frame of settings of which none is set. A
# server says its own settings, in a frame of type 4.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER_BYTES = 9
SETTINGS_FRAME = 4


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU that is ready.

    Attributes:
        topology: where its cores lie, and which host each belongs to.
        job: TensorFlow's, of the hosts.
    """

    topology: tf.tpu.experimental.Topology
    job: str


def find_tpu(name: str, reach_seconds: float = REACH_SECONDS, start_seconds: float = START_SECONDS) -> Tpu:
    """Finds a TPU and starts it; what it held before is lost.

    Args:
        name: of a TPU of Google Cloud; or the addresses of its hosts, as `grpc://10.0.0.2:8470`, apart by commas; or
            `colab`, for that of a Colab notebook; or `local`, for one that is part of this machine.
        reach_seconds: how long to look for it.
        start_seconds: how long it may take to start once it is reached.

    Raises:
        DeviceError: there is none, or it does not answer.
    """
    deadline_seconds = time.monotonic() + reach_seconds
    # One second more, for what ends by itself says better why.
    late = f"no answer within {reach_seconds:.0f} s"
    resolver, hosts = _within(reach_seconds + 1.0, lambda: _resolved(name), _unknown(name, late))
    reaching_seconds = _seconds_until(deadline_seconds) + 1.0
    _within(reaching_seconds, lambda: _reach(name, resolver, hosts, deadline_seconds), _silent(name, hosts, late))
    topology = _within(
        start_seconds,
        lambda: _started(name, resolver),
        DeviceError(
            f"--tpu {name}: is there, but has not started after {start_seconds:.0f} s; see in Google Cloud's "
            "console that it is READY and that no other program uses it"
        ),
    )
    return Tpu(topology, resolver.get_job_name() if hosts else "localhost")


def _within(seconds: float, action: Callable[[], Result], if_late: DeviceError) -> Result:
    """Does it in a thread of its own, which is left behind if it takes too long: what it waits for has no end."""
    answer: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def act() -> None:
        try:
            answer.set_result(action())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=act, name="looking for the TPU", daemon=True).start()
    try:
        return answer.result(seconds)
    except concurrent.futures.TimeoutError:
        raise if_late from None


def _resolved(name: str) -> tuple[Resolver, Sequence[str]]:
    """TensorFlow's description of the TPU, and `address:port` of its hosts; of one on this machine none."""
    if name == "local":
        return Resolver(tpu="local"), ()
    where = _colab_address() if name == "colab" else name
    try:
        resolver = Resolver(tpu=where)
        return resolver, resolver.cluster_spec().as_dict()[resolver.get_job_name()]
    except Exception as error:  # of Google's client, which has no kind of its own
        raise _unknown(name, str(error)) from error


def _colab_address() -> str:
    address = os.environ.get(COLAB_VARIABLE)
    if not address:
        raise DeviceError(
            f"--tpu colab: {COLAB_VARIABLE} is not set: this is no Colab notebook with a TPU of its own; choose a "
            "TPU as the notebook's runtime; where the TPU is part of the machine, give --tpu local"
        )
    return f"grpc://{address.removeprefix('grpc://')}"


def _unknown(name: str, problem: str) -> DeviceError:
    return DeviceError(
        f"--tpu {name}: Google Cloud tells no address for that name: {problem}; give the name of a TPU in the "
        "project and zone of this machine, or its address as grpc://10.0.0.2:8470"
    )


def _silent(name: str, hosts: Sequence[str], problem: str) -> DeviceError:
    return DeviceError(
        f"--tpu {name}: {', '.join(hosts)}: {problem}; see that the TPU runs (gcloud compute tpus list), and that "
        "this machine is in its network"
    )


def _reach(name: str, resolver: Resolver, hosts: Sequence[str], deadline_seconds: float) -> None:
    """Hears from every host, and only then has TensorFlow speak to them."""
    for host in hosts:
        _greet(name, host, deadline_seconds)
    with _refusals_told(name):
        tf.config.experimental_connect_to_cluster(resolver, make_master_device_default=False)


def _greet(name: str, host: str, deadline_seconds: float) -> None:
    try:
        answer = _answer_to_greeting(host, deadline_seconds)
    except TimeoutError as error:
        raise _silent(name, [host], "no answer") from error
    except (OSError, ValueError, OverflowError) as error:
        raise _silent(name, [host], getattr(error, "strerror", None) or str(error)) from error
    if len(answer) < FRAME_HEADER_BYTES or answer[3] != SETTINGS_FRAME:
        raise _silent(name, [host], "no host of a TPU, for it does not speak gRPC")


def _answer_to_greeting(host: str, deadline_seconds: float) -> bytes:
    address, _, port = host.rpartition(":")
    with socket.create_connection((address, int(port)), _seconds_until(deadline_seconds)) as connection:
        connection.sendall(GREETING)
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


def _started(name: str, resolver: Resolver) -> tf.tpu.experimental.Topology:
    with _refusals_told(name):
        return tf.tpu.experimental.initialize_tpu_system(resolver)


@contextlib.contextmanager
def _refusals_told(name: str) -> Iterator[None]:
    """Turns TensorFlow's errors into ours."""
    try:
        yield
    except tf.errors.NotFoundError as error:
        if name == "local":
            raise DeviceError(
                "--tpu local: TensorFlow finds no TPU on this machine; on a TPU VM install tensorflow-tpu in place "
                "of tensorflow; elsewhere give the TPU's name, or leave --tpu out to run on GPUs or the CPU"
            ) from error
        raise DeviceError(
            f"--tpu {name}: what answers there has no TPU; give the name or the address of a TPU"
        ) from error
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        said = str(getattr(error, "message", error)).strip().splitlines()[:1]
        raise DeviceError(
            f"--tpu {name}: cannot be started: {' '.join(said)}; see that it has the TensorFlow of this machine, "
            f"{tf.__version__}, and that no other program uses it"
        ) from error
