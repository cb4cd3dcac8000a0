"""How fast text becomes tfrecords, beside how fast the bare tokenizer encodes it; and how much memory that takes.

    python3 benchmarks/tokenizing.py
    python3 benchmarks/tokenizing.py --memory 100 2000

The text is Python's standard library, over and over, each document with a number of its own. Speed: `create_tfrecords`
as a whole, from starting the processes to the manifest, on compressed JSON Lines, against `tokenizers`' `encode_batch`
on texts in memory, on the same cores, in turn. Memory: the most that all processes together held (their shared pages
counted once), for inputs of so many MB; with a tokenizer of whole words, which is quick, as what is in question is what
waits between reading and writing. The last line is a JSON object with the figures.
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
from data.preprocessing.pipeline import create_tfrecords
from data.preprocessing.settings import Settings
from data.tokenization.bpe_training import train_byte_level_bpe

PROGRAM = Path(__file__).resolve().parent.parent / "data" / "create_tfrecords.py"
MB = 10**6
N_VOCAB = 16_384
CHUNK_SIZE = 1024
GROUP_CHARACTERS = 4 * MB  # of texts that the bare tokenizer gets at once: its encodings take 100 times their memory
SECONDS_BETWEEN_LOOKS = 0.1


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What was measured in turn; the ratios are medians of the repeats.

    Attributes:
        ratio: ours, of the bare `encode_batch`.
        ratio_fast: ours, of the bare `encode_batch_fast`, which keeps no offsets.
    """

    text_megabytes: float
    megabytes_per_second: float
    bare_megabytes_per_second: float
    bare_fast_megabytes_per_second: float
    ratio: float
    ratio_fast: float


def library_texts() -> list[str]:
    """The modules of the standard library, but for its tests."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    here = (path for path in paths if not {"test", "tests", "site-packages", "dist-packages"} & set(path.parts))
    return [path.read_text(encoding="utf-8") for path in here]


def numbered_texts(n_bytes: int) -> Iterator[str]:
    """So many bytes of documents, no two of them alike."""
    total = 0
    for number, text in enumerate(itertools.cycle(library_texts())):
        document = f"# {number}\n{text}"
        total += len(document.encode())
        yield document
        if total >= n_bytes:
            return


def write_archive(path: str, n_bytes: int) -> None:
    """Writes them as one file of compressed JSON Lines."""
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for text in numbered_texts(n_bytes):
            stream.write(json.dumps({"text": text}).encode() + b"\n")


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Groups of texts that the bare tokenizer is given at once."""
    group, characters = [], 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def seconds_of_ours(folder: str, number: int, processes: int) -> float:
    """The time that the whole command takes, but for importing its packages."""
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


def seconds_of_bare(encode: object, texts: Sequence[str]) -> float:
    """The time that encoding alone takes, on all cores."""
    started = time.perf_counter()
    for group in groups(texts):
        encode(group, add_special_tokens=False)
    return time.perf_counter() - started


def measure_speed(n_bytes: int, repeats: int, processes: int) -> Speeds:
    """Times both in turn."""
    texts = list(numbered_texts(n_bytes))
    megabytes = sum(len(text.encode()) for text in texts) / MB
    with tempfile.TemporaryDirectory() as folder:
        write_archive(f"{folder}/text.jsonl.zst", n_bytes)
        Path(f"{folder}/tokenizer.json").write_text(train_byte_level_bpe(texts[:300], N_VOCAB).to_json())
        bare = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        seconds_of_ours(folder, -1, processes)  # loads TensorFlow
        seconds = []
        for number in range(repeats):
            ours = seconds_of_ours(folder, number, processes)
            seconds.append((ours, *(seconds_of_bare(e, texts) for e in (bare.encode_batch, bare.encode_batch_fast))))
    speeds = [statistics.median(megabytes / taken for taken in side) for side in zip(*seconds, strict=True)]
    ratios = [statistics.median(bare_seconds[n] / bare_seconds[0] for bare_seconds in seconds) for n in (1, 2)]
    return Speeds(megabytes, *speeds, *ratios)


def write_word_tokenizer(path: str) -> None:
    """Writes a tokenizer of whole words."""
    words = tokenizers.Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=50_000, special_tokens=["<|endoftext|>", "<|unknown|>"])
    words.train_from_iterator(library_texts(), trainer)
    words.save(path)


def measure_memory(n_bytes: int, processes: int) -> float:
    """The most memory, in MB, that the command and its processes held together."""
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
        most = 0
        try:
            while run.poll() is None:
                most = max(most, sum(map(held_bytes, [run.pid, *children(run.pid)])))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            run.kill()
        if run.wait():
            raise RuntimeError("create_tfrecords.py failed")
        return most / MB


def children(pid: int) -> Iterator[int]:
    """The processes below one."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return
    for child in map(int, listed):
        yield child
        yield from children(child)


def held_bytes(pid: int) -> int:
    """A process's share of the memory in use."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare tokenising into tfrecords with the bare tokenizer.")
    parser.add_argument("--megabytes", type=int, default=32, help="text to encode (default 32)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each side is timed (default 5)")
    parser.add_argument("--processes", type=int, default=0, help="processes that encode; 0 for one a core")
    parser.add_argument("--memory", type=int, nargs="+", metavar="MB", help="measure memory for such inputs instead")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.memory:
            figures = {megabytes: measure_memory(megabytes * MB, parsed.processes) for megabytes in parsed.memory}
            for megabytes, held in figures.items():
                print(f"{megabytes:>8,} MB of text  {held:>8,.0f} MB of memory")
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
