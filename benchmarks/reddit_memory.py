"""Measures the peak memory of extracting conversations from made-up dumps of Reddit of several sizes.

    python3 benchmarks/reddit_memory.py --comments 100000 1000000

Partitions are smaller than by default, so that each size has many of them, as a month has. Peaks are VmHWM of
/proc/PID/status, read while the processes run. The last line is a JSON object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.process_memory import run_and_measure
from tests.data.dialogue.made_up_reddit import write_dumps

PROGRAM = Path(__file__).resolve().parent.parent / "data" / "dialogue" / "reddit.py"
MB = 10**6


def measure(n_comments: int, n_processes: int, partition_mb: int) -> dict[str, float]:
    """Extracts made-up dumps; returns the seconds it took and the peaks of memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        dumps, output = Path(folder, "dumps"), Path(folder, "conversations")
        write_dumps(dumps, n_comments)
        flags = ["--input_dir", dumps, "--output_dir", output, "--partition_mb", partition_mb]
        command = [sys.executable, PROGRAM, *flags, "--processes", n_processes]
        peaks = run_and_measure(list(map(str, command)))
        report = json.loads((output / "total.report").read_text())
    return {
        "comments": n_comments,
        "conversations": report["counts"]["conversations"],
        "partitions": report["dumps"][0]["partitions"],
        **dataclasses.asdict(peaks),
    }


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1; give a whole number above 0")
    return int(text)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of data/dialogue/reddit.py.")
    parser.add_argument("--comments", type=_count, nargs="+", required=True, help="sizes of the dumps")
    parser.add_argument("--processes", type=_count, default=2, help="processes that work")
    parser.add_argument("--partition_mb", type=_count, default=16, help="as for data/dialogue/reddit.py")
    arguments = parser.parse_args()
    results = []
    for n_comments in arguments.comments:
        figures = measure(n_comments, arguments.processes, arguments.partition_mb)
        results.append(figures)
        print(
            f"{n_comments:>12,} comments, {figures['partitions']:>4} partitions: {figures['seconds']:7.1f} s, peak "
            f"{figures['together'] / MB:6.0f} MB together, {figures['main_process'] / MB:6.0f} MB the first process, "
            f"{figures['largest_other_process'] / MB:6.0f} MB the largest other",
            flush=True,
        )
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
