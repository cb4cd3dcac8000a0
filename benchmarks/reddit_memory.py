"""Measures the peak memory of extracting conversations from made-up dumps of Reddit of several sizes.

    python3 benchmarks/reddit_memory.py --comments 100000 1000000

Partitions are smaller than by default, so that each size has many of them, as a month has. Peaks are VmHWM of
/proc/PID/status, read while the processes run. The last line is a JSON object with all figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.data.dialogue.made_up_reddit import write_dumps

PROGRAM = Path(__file__).resolve().parent.parent / "data" / "dialogue" / "reddit.py"
POLL_SECONDS = 0.02
MB = 10**6


def peak_bytes(pid: int) -> int:
    """Returns the peak resident memory of a process so far; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("VmHWM", "0").split()[0]) * 1024


def processes_of(pid: int) -> list[int]:
    """Returns a process and those that it has started, directly or not."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in processes_of(int(child)))]


def measure(n_comments: int, n_processes: int, partition_mb: int) -> dict[str, float]:
    """Extracts made-up dumps; returns the seconds it took and the peaks of memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        dumps, output = Path(folder, "dumps"), Path(folder, "conversations")
        write_dumps(dumps, n_comments)
        flags = ["--input_dir", dumps, "--output_dir", output, "--partition_mb", partition_mb]
        command = [sys.executable, PROGRAM, *flags, "--processes", n_processes]
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        peaks, together = {}, 0
        while process.poll() is None:
            alive = {pid: peak_bytes(pid) for pid in processes_of(process.pid)}
            peaks |= {pid: peak for pid, peak in alive.items() if peak}
            together = max(together, sum(alive.values()))
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(process.returncode)
        seconds = time.monotonic() - start
        report = json.loads((output / "total.report").read_text())
    largest = max((peak for pid, peak in peaks.items() if pid != process.pid), default=0)
    return {
        "comments": n_comments,
        "conversations": report["counts"]["conversations"],
        "partitions": report["dumps"][0]["partitions"],
        "seconds": seconds,
        "main_process": peaks[process.pid],
        "largest_other_process": largest,
        "together": together,
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
