"""The one door to TensorFlow and mesh-TensorFlow.

mesh-tensorflow 0.1.21 was written for TensorFlow < 2.16: it imports `tensorflow.compat.v1.estimator` and two names
that were removed from `tensorflow.python.framework.ops`. This module restores them first; no other module touches
TensorFlow's internals.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import types
import zlib
from collections.abc import Iterator


@contextlib.contextmanager
def _quiet_standard_error() -> Iterator[None]:
    """Hides what TensorFlow's C++ code logs while it is loaded, before any log level is in force."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


# glibc gives threads arenas of their own, and memory that is freed in one is of no use to the others: with one for
# every 8 processors, a training step on two takes a tenth less. A user's own setting wins.
M_ARENA_MAX = -8
if "MALLOC_ARENA_MAX" not in os.environ and hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, max(1, (os.cpu_count() or 1) // 8))

# TensorFlow caches for 5 seconds which objects a bucket holds and their sizes, while other processes and Google's own
# client change them.
os.environ.setdefault("GCS_STAT_CACHE_MAX_AGE", "0")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable, unless a user has. It is deleted afterwards, or a child process would take it for the user's."""
    is_free = name not in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if is_free:
            del os.environ[name]


# TensorFlow imports Keras, which costs 0.7 s and 50 MiB and is not used here. This variable makes it look for tf_keras
# instead, and that package is not installed.
with _environment("TF_USE_LEGACY_KERAS", "1"):
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import tensorflow as tf
    else:
        # 3: errors reach the user once, as Python exceptions.
        with _environment("TF_CPP_MIN_LOG_LEVEL", "3"), _quiet_standard_error():
            import tensorflow as tf

            tf.config.list_physical_devices()  # searches for GPUs, and logs what it lacks

# XLA reads this when it first compiles. By default it uses half of a CPU's vector width; with AVX-512, the full width
# makes a training step 3 % faster. A user's own flags win.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")

from tensorflow.python.framework import ops as _ops  # noqa: E402
from tensorflow.python.framework import tensor_conversion_registry as _conversion  # noqa: E402


def _restore_names_that_mesh_tensorflow_imports() -> None:
    estimator = types.ModuleType("tensorflow.compat.v1.estimator")
    estimator.SessionRunHook = tf.compat.v1.train.SessionRunHook
    estimator.CheckpointSaverListener = tf.compat.v1.train.CheckpointSaverListener
    sys.modules["tensorflow.compat.v1.estimator"] = estimator
    tf.compat.v1.estimator = estimator
    tf.estimator = estimator
    _ops.register_tensor_conversion_function = _conversion.register_tensor_conversion_function
    _ops.register_dense_tensor_like_type = lambda tensor_type: None


_restore_names_that_mesh_tensorflow_imports()
logging.getLogger("tensorflow").setLevel(logging.ERROR)

import mesh_tensorflow as mtf  # noqa: E402
from mesh_tensorflow.placement_mesh_impl import PlacementMeshImpl  # noqa: E402

# The parts of TensorFlow's own strategies for multiple processes and for TPUs.
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier, xla_reduce_scatter  # noqa: E402
from tensorflow.core.protobuf.tensorflow_server_pb2 import ServerDef  # noqa: E402
from tensorflow.python.distribute.tpu_util import enclosing_tpu_context  # noqa: E402
from tensorflow.python.eager import context as eager_context  # noqa: E402
from tensorflow.python.lib.io._pywrap_record_io import RandomRecordReader as RecordReader  # noqa: E402
from tensorflow.python.ops import collective_ops  # noqa: E402

# The format of the traces that TensorFlow's profiler writes.
from tensorflow.tsl.profiler.protobuf import xplane_pb2  # noqa: E402

# Recomputation iterates over a set of tensors. Python's default hash, the address, would give each process another
# order of its graph, and collectives would not match.
mtf.Tensor.__hash__ = lambda tensor: zlib.crc32(tensor.name.encode())

pack_eager_tensors = _ops.pack_eager_tensors


@contextlib.contextmanager
def operation_scope(name: str) -> Iterator[None]:
    """Prefixes the names of the operations that are built inside, such as `h0/attn/einsum`; also a decorator."""
    with tf.compat.v1.variable_scope(name):
        yield


# A tensor as its slices on the processors of a mesh; each implementation of a mesh has a class of its own for it.
LaidOut = object

__all__ = [
    "LaidOut",
    "PlacementMeshImpl",
    "RecordReader",
    "ServerDef",
    "collective_ops",
    "eager_context",
    "enclosing_tpu_context",
    "mtf",
    "operation_scope",
    "pack_eager_tensors",
    "tf",
    "xplane_pb2",
    "xla_optimization_barrier",
    "xla_reduce_scatter",
]
