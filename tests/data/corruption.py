"""Ways to corrupt a real tfrecord file, and the errors that a check should report for each.

`write_corrupted(folder, number)` writes file `number` of an endless series, the same one at every call.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.tfrecord.records import serialize_example, write_examples
from meshtf import tf

N_CTX, N_VOCAB, EOS_ID = 4, 1000, 999
HEADER_BYTES, FRAME_BYTES = 12, 16


class Expected(NamedTuple):
    """What a check should report: the numbers of the invalid records, and a part of the message about the file."""

    records: list[int]
    message: str | None = None


Corruption = Callable[[Path, int, random.Random], Expected]


def write_good(path: Path, n_records: int, draw: random.Random) -> None:
    write_examples(str(path), [[draw.randrange(N_VOCAB) for _ in range(N_CTX + 1)] for _ in range(n_records)])


def write_with_one(path: Path, n_records: int, at: int, record: bytes) -> Expected:
    """Writes good records except for one."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(n_records):
            writer.write(record if number == at else serialize_example([7, 8, 9, 10, 11]))
    return Expected([at])


def starts_of(content: bytes) -> list[int]:
    """Returns where the records of an intact file begin, and its end."""
    starts = [0]
    while starts[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, starts[-1])
        starts.append(starts[-1] + FRAME_BYTES + length)
    return starts


def feature(**lists: object) -> bytes:
    return example({"text": tf.train.Feature(**lists)})


def example(features: dict[str, tf.train.Feature]) -> bytes:
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def ids_feature() -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[7, 8, 9, 10, 11]))


def truncated(path: Path, n: int, draw: random.Random) -> Expected:
    content = path.read_bytes()
    starts = starts_of(content)
    at = draw.randrange(n)
    path.write_bytes(content[: draw.randrange(starts[at] + 1, starts[at + 1])])
    if at == 0:
        return Expected([], "record 0 is truncated or damaged")
    return Expected([at], None if at == n - 1 else f"holds {at + 1} examples, but its name says {n}")


def truncated_between_records(path: Path, n: int, draw: random.Random) -> Expected:
    content, at = path.read_bytes(), draw.randrange(1, n)
    path.write_bytes(content[: starts_of(content)[at]])
    return Expected([], f"holds {at} examples, but its name says {n}")


def flipped(path: Path, place: Callable[[int, random.Random], int], draw: random.Random) -> Expected:
    content = bytearray(path.read_bytes())
    starts = starts_of(content)
    at = draw.randrange(len(starts) - 1)
    content[starts[at] + place(starts[at + 1] - starts[at], draw)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return Expected([at])


def bit_of_length(path: Path, n: int, draw: random.Random) -> Expected:
    return flipped(path, lambda size, draw: draw.randrange(8), draw)


def bit_of_checksum(path: Path, n: int, draw: random.Random) -> Expected:
    return flipped(path, lambda size, draw: draw.choice([*range(8, HEADER_BYTES), *range(size - 4, size)]), draw)


def bit_of_content(path: Path, n: int, draw: random.Random) -> Expected:
    return flipped(path, lambda size, draw: draw.randrange(HEADER_BYTES, size - 4), draw)


def hole(path: Path, n: int, draw: random.Random) -> Expected:
    content = path.read_bytes()
    starts, at = starts_of(content), draw.randrange(n - 1)
    path.write_bytes(content[: starts[at] + draw.randrange(1, 20)] + content[starts[at + 1] :])
    return Expected([at])


def garbage_at_the_end(path: Path, n: int, draw: random.Random) -> Expected:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 100)))
    return Expected([n], f"holds {n + 1} examples, but its name says {n}")


def huge_length(path: Path, n: int, draw: random.Random) -> Expected:
    """A record whose length has a valid checksum, and exceeds any memory."""
    content, at = path.read_bytes(), draw.randrange(n)
    starts = starts_of(content)
    length = struct.pack("<Q", draw.choice([2**33, 2**43, 2**62, 2**64 - 1, 2**64 - 17]))
    header = length + struct.pack("<I", masked_checksum(length))
    path.write_bytes(content[: starts[at]] + header + content[starts[at] + HEADER_BYTES :])
    return Expected([], "record 0 is truncated or damaged") if n == 1 else Expected([at])


def masked_checksum(content: bytes) -> int:
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum ^= byte
        for _ in range(8):
            checksum = (checksum >> 1) ^ (0x82F63B78 if checksum & 1 else 0)
    checksum ^= 0xFFFFFFFF
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def wrong_feature(path: Path, n: int, draw: random.Random) -> Expected:
    names = draw.choice([["ids"], [], ["Text", "text "], [""]])
    return write_with_one(path, n, draw.randrange(n), example({name: ids_feature() for name in names}))


def wrong_dtype(path: Path, n: int, draw: random.Random) -> Expected:
    record = draw.choice(
        [
            feature(float_list=tf.train.FloatList(value=[7.0] * (N_CTX + 1))),
            feature(bytes_list=tf.train.BytesList(value=[b"7"] * (N_CTX + 1))),
            feature(),
        ]
    )
    return write_with_one(path, n, draw.randrange(n), record)


def wrong_ids(path: Path, n: int, draw: random.Random) -> Expected:
    wrong = [[], [1], [1] * N_CTX, [1] * (N_CTX + 2), [1] * 5000, [1, 2, 3, 4, N_VOCAB], [-1, 2, 3, 4, 5], [2**62] * 5]
    return write_with_one(path, n, draw.randrange(n), serialize_example(draw.choice(wrong)))


def not_an_example(path: Path, n: int, draw: random.Random) -> Expected:
    return write_with_one(
        path, n, draw.randrange(n), draw.choice([b"", b"\xff" * 30, b"no protocol buffer", b"\n\x05a"])
    )


def empty(path: Path, n: int, draw: random.Random) -> Expected:
    path.write_bytes(b"")
    return Expected([], "is empty")


def not_a_tfrecord(path: Path, n: int, draw: random.Random) -> Expected:
    content = draw.choice([draw.randbytes(500), b'{"text": "no"}\n' * 40, bytes(1000), b"\x01", b"PK\x03\x04" * 9])
    path.write_bytes(content)
    return Expected([], "is compressed with zip" if content.startswith(b"PK") else "is not a tfrecord file")


def gzipped(path: Path, n: int, draw: random.Random) -> Expected:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return Expected([], "is compressed")


def wrong_count(path: Path, n: int, draw: random.Random) -> Expected:
    write_good(path, n + draw.choice([-1, 1, 5]) if n > 1 else n + 1, draw)
    return Expected([], f"but its name says {n}")


def folder_instead_of_file(path: Path, n: int, draw: random.Random) -> Expected:
    path.unlink()
    path.mkdir()
    return Expected([], "cannot be read")


def broken_link(path: Path, n: int, draw: random.Random) -> Expected:
    path.unlink()
    path.symlink_to(path.with_name("gone"))
    return Expected([], "no such file")


CORRUPTIONS: tuple[Corruption, ...] = (
    truncated,
    bit_of_content,
    wrong_feature,
    wrong_dtype,
    empty,
    huge_length,
    not_a_tfrecord,
    gzipped,
    bit_of_length,
    wrong_ids,
    not_an_example,
    truncated_between_records,
    bit_of_checksum,
    hole,
    garbage_at_the_end,
    wrong_count,
    folder_instead_of_file,
    broken_link,
)


def write_corrupted(folder: Path, number: int) -> tuple[Path, Expected]:
    """Writes file `number`: the number decides the kind of corruption, and seeds the rest."""
    draw = random.Random(number)
    n_records = draw.choice([2, 5, 40, 600])
    path = folder / f"f{number}_{n_records}.tfrecords"
    write_good(path, n_records, draw)
    return path, CORRUPTIONS[number % len(CORRUPTIONS)](path, n_records, draw)
