"""Random access to files on a disk; test_create_in_bucket.py checks that one in a bucket is downloaded once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.tfrecord.random_access import MAX_OPEN_FILES, FileCache, IndexedFile
from data.tfrecord.records import decode_record, write_examples
from data.tfrecord.shards import Shard

N_FILES, N_RECORDS = 3 * MAX_OPEN_FILES, 50


def write_files(folder: Path) -> list[Shard]:
    """Writes record r of file f with f, r and r more ids."""
    for number in range(N_FILES):
        write_examples(f"{folder}/{number}.tfrecords", [[number, r, *range(r)] for r in range(N_RECORDS)])
    return [Shard(f"{folder}/{number}.tfrecords", N_RECORDS) for number in range(N_FILES)]


def test_threads_read_any_record_of_more_files_than_are_kept_open(tmp_path):
    shards, files = write_files(tmp_path), FileCache()
    draw = np.random.default_rng(0)
    numbers = np.stack([draw.integers(0, N_FILES, 4000), draw.integers(0, N_RECORDS, 4000)], axis=1).tolist()

    def read(number: tuple[int, int]) -> list[int]:
        shard, record = number
        return decode_record(files.open(shards[shard]).read(record), "", 0).ids_L[:2].tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, numbers)) == numbers


def test_a_file_is_opened_once_and_again_if_it_was_missing(tmp_path):
    files, shard = FileCache(), Shard(f"{tmp_path}/0.tfrecords", N_RECORDS)
    for _ in range(2):
        with pytest.raises(DataError, match="0.tfrecords: no such file; check the path"):
            files.open(shard)
    write_files(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(id, pool.map(files.open, [shard] * 100)))) == 1


def test_a_truncated_file_gives_its_complete_records(tmp_path):
    shard = write_files(tmp_path)[0]
    content = Path(shard.path).read_bytes()
    assert IndexedFile(shard).is_complete
    assert not IndexedFile(Shard(shard.path, N_RECORDS + 1)).is_complete
    Path(shard.path).write_bytes(content[:-1])
    file = IndexedFile(shard)
    assert not file.is_complete
    assert decode_record(file.read(N_RECORDS - 2), "", 0).ids_L[1] == N_RECORDS - 2
    for record in (N_RECORDS - 1, N_RECORDS):
        with pytest.raises(DataError, match=f"0.tfrecords: record {record} is truncated or damaged"):
            file.read(record)
