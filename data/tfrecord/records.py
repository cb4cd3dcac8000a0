"""The format of tfrecord files: writes token ids, parses them in a graph, and reads them on the host.

A record is a `tf.train.Example` with one int64 feature, `text`; the file is not compressed; its name ends in the number
of its records. Source: GPT-Neo, kept for its datasets. Paths may be local or `gs://`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from configs.errors import DataError
from data.tfrecord.framing import Frame, walk_frames
from meshtf import RecordReader, tf
from storage.files import writing_to

FEATURE = "text"
SUFFIX = ".tfrecords"
PARTIAL = ".partial"


def write_examples(path: str, examples: Iterable[Sequence[int] | np.ndarray]) -> int:
    """Writes one record per example, to a temporary name first, so that `path` only ever names a finished file.

    Args:
        path: the file to write; an existing one is replaced.
        examples: token ids, [n_ctx + 1] each.

    Returns:
        The number of examples written.

    Raises:
        UserError: the file cannot be written.
    """
    partial, count = path + PARTIAL, 0
    with writing_to(path, tf.errors.OpError):
        try:
            with tf.io.TFRecordWriter(partial) as writer:
                for example in examples:
                    writer.write(serialize_example(example))
                    count += 1
            tf.io.gfile.rename(partial, path, overwrite=True)
        except BaseException:  # also Ctrl-C: a partial file is removed
            remove_tree(partial)
            raise
    return count


def find_shards(directory: str, name: str) -> list[str]:
    """Returns the paths of the files `{name}_{number}_{process}_{number of its examples}.tfrecords`, in order."""
    if not tf.io.gfile.isdir(directory):
        return []
    pattern = re.compile(rf"{re.escape(name)}_\d+_\d+_\d+{re.escape(SUFFIX)}")
    return [f"{directory}/{file}" for file in sorted(tf.io.gfile.listdir(directory)) if pattern.fullmatch(file)]


@contextlib.contextmanager
def staging_folder(directory: str, name: str) -> Iterator[str]:
    """Yields an empty folder in which to write the files of a name, and removes it at the end in any case.

    Leftovers of a killed run are removed first.

    Raises:
        UserError: the directory cannot be written to.
    """
    folder = f"{directory}/.{name}{PARTIAL}"
    with writing_to(directory, tf.errors.OpError):
        remove_tree(folder)
        tf.io.gfile.makedirs(folder)
    try:
        yield folder
    finally:
        with writing_to(directory, tf.errors.OpError):
            remove_tree(folder)


# The first bytes of compressed files.
COMPRESSIONS = {
    b"\x1f\x8b\x08": "gzip",
    b"\x78\x01": "zlib",
    b"\x78\x5e": "zlib",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


def remove_tree(path: str) -> None:
    """Removes a file, or a folder with everything in it, if there is one; raises TensorFlow's errors as they are."""
    if tf.io.gfile.exists(path):
        remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
        remove(path)


def serialize_example(ids: Sequence[int] | np.ndarray) -> bytes:
    """Serializes token ids, any number of them, as one record."""
    values = tf.train.Int64List(value=np.asarray(ids, dtype=np.int64).tolist())
    features = tf.train.Features(feature={FEATURE: tf.train.Feature(int64_list=values)})
    return tf.train.Example(features=features).SerializeToString()


def parse_example(serialized: tf.Tensor, length: int) -> tf.Tensor:
    """Parses records inside a graph or a `tf.data` pipeline.

    Args:
        serialized: string tensor, [] or [batch].
        length: ids that each record must hold, n_ctx + 1.

    Returns:
        int64 ids, [length] or [batch, length]. A record of another length or type raises TensorFlow's
        `InvalidArgumentError` when it is run; `read_examples` then finds the record and explains what is wrong.
    """
    feature = tf.io.FixedLenFeature([length], tf.int64)
    return tf.io.parse_example(serialized, {FEATURE: feature})[FEATURE]


def read_examples(path: str) -> Iterator[np.ndarray]:
    """Yields the int64 ids of each record, [length]; reads on the host, in eager mode.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or holds a record of another format.
    """
    for index, record in enumerate(read_records(path)):
        yield decode_record(record, path, index)


def read_records(path: str) -> Iterator[bytes]:
    """Yields the bytes of each record.

    Raises:
        DataError: the file cannot be read, or is truncated or damaged.
    """
    count = 0
    try:
        reader = RecordReader(path)
        for frame in walk_frames(path):
            yield read_frame(reader, frame)
            count += 1
    except tf.errors.DataLossError:
        raise damaged_record_error(path, count) from None
    except tf.errors.OpError as error:
        raise unreadable_file_error(path, error) from None


def read_frame(reader: RecordReader, frame: Frame) -> bytes:
    """Reads one record, or raises TensorFlow's `DataLossError`."""
    if not frame.is_valid:  # TensorFlow would allocate whatever length the damaged header claims
        raise tf.errors.DataLossError(None, None, "no valid record begins there")
    return reader.read(frame.start)[0]


def unreadable_file_error(path: str, error: tf.errors.OpError) -> DataError:
    """Returns the error for a file that TensorFlow cannot read."""
    if isinstance(error, tf.errors.NotFoundError):
        return DataError(f"{path}: no such file; check the path")
    reason = error.message.splitlines()[0]
    return DataError(f"{path}: cannot be read ({reason}); check the path and its permissions")


def damaged_record_error(path: str, index: int) -> DataError:
    """Returns the error for a record that is truncated or fails its checksum, or is none in a compressed file."""
    if compression := compression_of(path):
        return DataError(f"{path}: is compressed with {compression}; unpack it, and give the file inside")
    return DataError(
        f"{path}: record {index} is truncated or damaged; copy the file again, or write it again with "
        "data/create_tfrecords.py"
    )


def compression_of(path: str) -> str | None:
    """Returns how a file is compressed, by its first bytes; None: it is not, or cannot be read."""
    with contextlib.suppress(tf.errors.OpError), tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(max(map(len, COMPRESSIONS)))
        return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)
    return None


def decode_record(record: bytes, path: str, index: int) -> np.ndarray:
    """Parses one record on the host and returns its int64 ids, [length].

    Raises:
        DataError: the record has another format; the message names `path` and `index`.
    """
    try:
        feature = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's own DecodeError is not part of TensorFlow's public API
        raise DataError(f"{path}: record {index} is not a tf.train.Example ({error}); {_REWRITE}") from None
    if FEATURE not in feature:
        raise DataError(
            f"{path}: record {index} has no feature {FEATURE!r}, only {sorted(feature) or 'none'}; {_REWRITE}"
        )
    kind = feature[FEATURE].WhichOneof("kind")
    if kind != "int64_list":
        raise DataError(f"{path}: record {index}: feature {FEATURE!r} is {kind}, not int64_list; {_REWRITE}")
    return np.array(feature[FEATURE].int64_list.value, dtype=np.int64)


_REWRITE = "write the file with data/create_tfrecords.py"
