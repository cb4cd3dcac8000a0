"""The format of tfrecord files: writes records, parses them together, and reads them one by one.

A record is a `tf.train.Example` with one int64 feature, `text`; the file is not compressed; its name ends in the number
of its records. Source: GPT-Neo, kept for its datasets. Records of conversations also have `loss_weights`, one float for
each id, and `segments`, one int64 for each id. Paths may be local or `gs://`.

Shape suffixes: L ids of a record.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from data.tfrecord.framing import Frame, walk_frames
from meshtf import RecordReader, tf
from storage.files import writing_to

FEATURE, LOSS_WEIGHTS, SEGMENTS = "text", "loss_weights", "segments"
SUFFIX = ".tfrecords"
PARTIAL = ".partial"


@dataclass(frozen=True, eq=False)
class Record:
    """The content of one record.

    Attributes:
        ids_L: int64 token ids.
        loss_weights_L: float32, how much each id counts as a label, >= 0; None: 1 each.
        segments_L: int64, which conversation or document of the record each id belongs to: 1, 2, ... in order, and 0
            for the padding at the end; None: the record does not say.
    """

    ids_L: np.ndarray
    loss_weights_L: np.ndarray | None = None
    segments_L: np.ndarray | None = None

    def __getitem__(self, part: slice) -> Record:
        """Returns a part of the record."""
        arrays = (self.ids_L, self.loss_weights_L, self.segments_L)
        return Record(*(None if array is None else array[part] for array in arrays))


def write_examples(path: str, examples: Iterable[Sequence[int] | np.ndarray | Record]) -> int:
    """Writes one record per example, to a temporary name first, so that `path` only ever names a finished file.

    Args:
        path: the file to write; an existing one is replaced.
        examples: token ids, [n_ctx + 1] each, or records of them.

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


def serialize_example(example: Sequence[int] | np.ndarray | Record) -> bytes:
    """Serializes token ids, any number of them, as one record, with their weights and segments if it gives them."""
    record = example if isinstance(example, Record) else Record(np.asarray(example, dtype=np.int64))
    features = {FEATURE: _int64_feature(record.ids_L)}
    if record.loss_weights_L is not None:
        weights = tf.train.FloatList(value=np.asarray(record.loss_weights_L, dtype=np.float32).tolist())
        features[LOSS_WEIGHTS] = tf.train.Feature(float_list=weights)
    if record.segments_L is not None:
        features[SEGMENTS] = _int64_feature(record.segments_L)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _int64_feature(values: Sequence[int] | np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, dtype=np.int64).tolist()))


def parse_examples(serialized: Sequence[bytes], length: int | None) -> list[Record]:
    """Parses records together, in eager mode, which is much faster than one by one.

    Args:
        serialized: any number of records.
        length: ids that each must hold, n_ctx + 1; None: any number.

    Returns:
        The records, not yet validated. One of another length or type raises TensorFlow's `InvalidArgumentError`;
        `decode_record` then explains what is wrong.
    """
    text = tf.io.RaggedFeature(tf.int64) if length is None else tf.io.FixedLenFeature([length], tf.int64)
    more = {LOSS_WEIGHTS: tf.io.RaggedFeature(tf.float32), SEGMENTS: tf.io.RaggedFeature(tf.int64)}
    parsed = tf.io.parse_example(tf.constant(serialized), {FEATURE: text} | more)
    ids = _rows(parsed[FEATURE]) if length is None else parsed[FEATURE].numpy()
    weights, segments = (_rows_or_none(parsed[name], len(serialized)) for name in more)
    return [Record(*arrays) for arrays in zip(ids, weights, segments, strict=True)]


def _rows(ragged: tf.RaggedTensor) -> list[np.ndarray]:
    return np.split(ragged.values.numpy(), ragged.row_splits.numpy()[1:-1])


def _rows_or_none(ragged: tf.RaggedTensor, n_rows: int) -> Sequence[np.ndarray | None]:
    """Returns the values of each record, None for a record without the feature."""
    if ragged.values.shape[0] == 0:
        return [None] * n_rows
    return [row if len(row) else None for row in _rows(ragged)]


def find_record_issue(record: Record) -> str | None:
    """Returns what is wrong with the weights and segments of a record; None: nothing."""
    ids_L, weights_L, segments_L = record.ids_L, record.loss_weights_L, record.segments_L
    for name, values_L in ((LOSS_WEIGHTS, weights_L), (SEGMENTS, segments_L)):
        if values_L is not None and len(values_L) != len(ids_L):
            return f"holds {len(ids_L)} ids, but {len(values_L)} {name}"
    if weights_L is not None and not np.all((weights_L >= 0) & (weights_L < np.inf)):
        (wrong,) = weights_L[~((weights_L >= 0) & (weights_L < np.inf))][:1]
        return f"holds the loss weight {wrong:g}, which is not a number >= 0"
    if segments_L is not None and not _are_in_order(segments_L):
        return "holds segments that are not 1, 2, ... in order, with 0 for the padding at the end"
    return None


def _are_in_order(segments_L: np.ndarray) -> bool:
    """Whether segments are numbered 1, 2, ..., and nothing but zeros follows."""
    n_text = np.count_nonzero(segments_L)
    steps = np.diff(segments_L[:n_text], prepend=0)
    return not n_text or (steps[0] == 1 and bool(np.all((steps == 0) | (steps == 1))))


def read_examples(path: str) -> Iterator[np.ndarray]:
    """Yields the int64 ids of each record, [length]; reads on the host, in eager mode.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or holds a record of another format.
    """
    return (record.ids_L for record in decode_records(path))


def decode_records(path: str) -> Iterator[Record]:
    """Yields each record with its weights and segments; otherwise as `read_examples`."""
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


def decode_record(record: bytes, path: str, index: int) -> Record:
    """Parses one record on the host.

    Raises:
        DataError: the record has another format; the message names `path` and `index`.
    """
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's own DecodeError is not part of TensorFlow's public API
        raise DataError(f"{path}: record {index} is not a tf.train.Example ({error}); {_REWRITE}") from None
    if FEATURE not in features:
        raise DataError(
            f"{path}: record {index} has no feature {FEATURE!r}, only {sorted(features) or 'none'}; {_REWRITE}"
        )
    values = {}
    for name, (kind, dtype) in _FEATURES.items():
        if name in features:
            found = features[name].WhichOneof("kind")
            if found != kind:
                raise DataError(f"{path}: record {index}: feature {name!r} is {found}, not {kind}; {_REWRITE}")
            values[name] = np.array(getattr(features[name], kind).value, dtype=dtype)
    return Record(values[FEATURE], values.get(LOSS_WEIGHTS), values.get(SEGMENTS))


_FEATURES = {
    FEATURE: ("int64_list", np.int64),
    LOSS_WEIGHTS: ("float_list", np.float32),
    SEGMENTS: ("int64_list", np.int64),
}
_REWRITE = "write the file with data/create_tfrecords.py"
