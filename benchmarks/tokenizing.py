"""Measures how fast text becomes tfrecords, compared with the bare tokenizer, and how much memory that takes.

    python3 benchmarks/tokenizing.py
    python3 benchmarks/tokenizing.py --memory 100 2000

The text is Python's standard library, repeated; a number in each document makes it unique. Speed: `create_tfrecords` as
a whole, from starting the processes to the manifest, on compressed JSON Lines, and `encode_batch` of `tokenizers` on
texts in memory, timed alternately on the same cores. Memory: the peak of all processes together, with shared pages
counted once, for inputs of the given sizes. It is measured with a fast tokenizer of whole words, because the question
is how much text waits between reading and writing. The last line is a JSON object with the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tokenizers
import zstandard
from tokenizers import models, pre_tokenizers, trainers

from configs.errors import UserError
from data.preprocessing.settings import Settings
from data.tokenization.bpe_training import train_byte_level_bpe

PROGRAM = Path(__file__).resolve().parent.parent / "data" / "create_tfrecords.py"
MB = 10**6
N_VOCAB = 16_384
CHUNK_SIZE = 1024
GROUP_CHARACTERS = 4 * MB  # the bare tokenizer's encodings take 100 times the memory of their texts
SECONDS_BETWEEN_SAMPLES = 0.1


@dataclasses.dataclass(frozen=True)
class Speeds:
    """The measured speeds; the ratios are medians of the repeats.

    Attributes:
        ratio: speed of `create_tfrecords` divided by that of `encode_batch`.
        ratio_fast: the same for `encode_batch_fast`, which keeps no offsets.
    """

    text_megabytes: float
    megabytes_per_second: float
    bare_megabytes_per_second: float
    bare_fast_megabytes_per_second: float
    ratio: float
    ratio_fast: float


def library_texts() -> list[str]:
    """Returns the modules of the standard library, without its tests."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    modules = (path for path in paths if not {"test", "tests", "site-packages", "dist-packages"} & set(path.parts))
    return [path.read_text(encoding="utf-8") for path in modules]


def numbered_texts(n_bytes: int) -> Iterator[str]:
    """Yields different documents of `n_bytes` bytes in all."""
    total = 0
    for number, text in enumerate(itertools.cycle(library_texts())):
        document = f"# {number}\n{text}"
        total += len(document.encode())
        yield document
        if total >= n_bytes:
            return


def write_archive(path: str, n_bytes: int) -> None:
    """Writes `numbered_texts` as one file of compressed JSON Lines."""
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for text in numbered_texts(n_bytes):
            stream.write(json.dumps({"text": text}).encode() + b"\n")


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Groups the texts for the bare tokenizer."""
    group, characters = [], 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def pipeline_seconds(folder: str, number: int, processes: int) -> float:
    """Returns the time of the whole command, without importing its packages."""
    from data.preprocessing.pipeline import create_tfrecords  # at the top, each worker would load TensorFlow

    settings = Settings(
        f"{folder}/text.jsonl.zst",
        name=f"run{number}",
        output_dir=f"{folder}/out",
        encoder_path=f"{folder}/tokenizer.json",
        chunk_size=CHUNK_SIZE,
        processes=processes,
    )
    started = time.perf_counter()
    create_tfrecords(settings)
    return time.perf_counter() - started


def tokenizer_seconds(encode: object, texts: Sequence[str]) -> float:
    """Returns the time of encoding alone, on all cores."""
    started = time.perf_counter()
    for group in groups(texts):
        encode(group, add_special_tokens=False)
    return time.perf_counter() - started


def measure_speed(n_bytes: int, repeats: int, processes: int) -> Speeds:
    """Times the pipeline and the bare tokenizer alternately."""
    texts = list(numbered_texts(n_bytes))
    megabytes = sum(len(text.encode()) for text in texts) / MB
    with tempfile.TemporaryDirectory() as folder:
        write_archive(f"{folder}/text.jsonl.zst", n_bytes)
        Path(f"{folder}/tokenizer.json").write_text(train_byte_level_bpe(texts[:300], N_VOCAB).to_json())
        bare = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        pipeline_seconds(folder, -1, processes)  # loads TensorFlow
        seconds = []
        for number in range(repeats):
            encoders = (bare.encode_batch, bare.encode_batch_fast)
            pipeline = pipeline_seconds(folder, number, processes)
            seconds.append((pipeline, *(tokenizer_seconds(encode, texts) for encode in encoders)))
    speeds = [statistics.median(megabytes / time for time in times) for times in zip(*seconds, strict=True)]
    ratios = [statistics.median(times[n] / times[0] for times in seconds) for n in (1, 2)]
    return Speeds(megabytes, *speeds, *ratios)


def write_word_tokenizer(path: str) -> None:
    """Writes a tokenizer of whole words."""
    words = tokenizers.Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=50_000, special_tokens=["<|endoftext|>", "<|unknown|>"])
    words.train_from_iterator(library_texts(), trainer)
    words.save(path)


def measure_memory(n_bytes: int, processes: int) -> float:
    """Returns the peak memory, in MB, of the command and its processes together."""
    with tempfile.TemporaryDirectory() as folder:
        write_archive(f"{folder}/text.jsonl.zst", n_bytes)
        write_word_tokenizer(f"{folder}/tokenizer.json")
        flags = {
            "input_dir": f"{folder}/text.jsonl.zst",
            "output_dir": f"{folder}/out",
            "encoder_path": f"{folder}/tokenizer.json",
            "chunk_size": CHUNK_SIZE,
            "files_per": 20_000,
            "processes": processes,
        }
        command = [sys.executable, str(PROGRAM)]
        command += [text for key, value in flags.items() for text in (f"--{key}", str(value))]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak_bytes = 0
        try:
            while run.poll() is None:
                peak_bytes = max(peak_bytes, sum(map(memory_bytes, [run.pid, *descendants(run.pid)])))
                time.sleep(SECONDS_BETWEEN_SAMPLES)
        finally:
            run.kill()
        if run.wait():
            raise RuntimeError("create_tfrecords.py failed")
        return peak_bytes / MB


def descendants(pid: int) -> Iterator[int]:
    """Yields the ids of all descendants of a process."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return
    for child in map(int, listed):
        yield child
        yield from descendants(child)


def memory_bytes(pid: int) -> int:
    """Returns the proportional set size of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare writing tfrecords with the bare tokenizer.")
    parser.add_argument("--megabytes", type=int, default=32, help="text to encode (default 32)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--processes", type=int, default=0, help="processes that encode; 0 for one per core")
    parser.add_argument("--memory", type=int, nargs="+", metavar="MB", help="measure memory for these sizes instead")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.memory:
            figures = {megabytes: measure_memory(megabytes * MB, parsed.processes) for megabytes in parsed.memory}
            for megabytes, peak in figures.items():
                print(f"{megabytes:>8,} MB of text  {peak:>8,.0f} MB of memory")
            print(json.dumps(figures | {"growth": max(figures.values()) / min(figures.values()) - 1}))
            return 0
        speeds = measure_speed(parsed.megabytes * MB, parsed.repeats, parsed.processes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for key, value in dataclasses.asdict(speeds).items():
        print(f"{key:<32}{value:>10.2f}")
    print(json.dumps(dataclasses.asdict(speeds) | {"cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
