"""A real process that writes what main.py writes, without TensorFlow: metrics, checkpoints, samples, progress.

It fails as its flags say. `FOLDER/checkpoint` holds the step to resume from; a start drops the lines after it, as
main.py does, and the file `FOLDER.starts` counts the starts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sacred_id")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--steps_per_checkpoint", type=int, default=5)
    parser.add_argument("--seconds_per_step", type=float, default=0.0)
    parser.add_argument("--fail", default="", help="how:step:times, as crash:7:1; step 0 is before anything")
    parser.add_argument("--status", type=int, default=1)
    parser.add_argument("--group", help="control group with a limit of memory")
    parser.add_argument("--shown", type=int, default=1 << 30, help="the last step that progress shows")
    parser.add_argument("--ending", default=".txt", help="of the files of samples")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--yes", action="store_true")
    return parser.parse_args()


def _crash(arguments: argparse.Namespace) -> None:
    print("RuntimeError: something broke", file=sys.stderr)
    sys.exit(arguments.status)


def _hang(arguments: argparse.Namespace) -> None:
    time.sleep(120.0)


def _die(arguments: argparse.Namespace) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _eat(arguments: argparse.Namespace) -> None:
    """Takes more memory than its control group may have."""
    Path(arguments.group, "cgroup.procs").write_text(str(os.getpid()))
    eaten = [bytearray(b"x" * (1 << 20)) for _ in range(1024)]
    print(f"all {len(eaten)} MiB are eaten: there is no limit")


FAILURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "crash": _crash,
    "hang": _hang,
    "die": _die,
    "eat": _eat,
}


class Trainer:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_stopped = False
        if arguments.new:
            for path in self.folder.iterdir():
                path.unlink()
        self.start = self._count_start()
        signal.signal(signal.SIGTERM, signal.SIG_IGN if arguments.deaf else self._stop)

    def _count_start(self) -> int:
        starts = self.folder.with_suffix(".starts")
        number = len(starts.read_text()) + 1 if starts.exists() else 1
        starts.write_text("x" * number)
        return number

    def _stop(self, number: int, frame: object) -> None:
        self.is_stopped = True

    def _maybe_fail(self, step: int) -> None:
        how, at, times = (self.arguments.fail or "crash:-1:0").split(":")
        if step == int(at) and self.start <= int(times):
            FAILURES[how](self.arguments)

    def _save(self, step: int) -> None:
        beside = self.folder / "checkpoint.part"
        beside.write_text(str(step))
        os.replace(beside, self.folder / "checkpoint")

    def _restored_step(self) -> int:
        path = self.folder / "checkpoint"
        return int(path.read_text()) if path.exists() else 0

    def _drop_lines_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            beside = self.folder / "metrics.jsonl.part"
            beside.write_text("".join(kept))
            os.replace(beside, path)

    def run(self) -> int:
        print(f"arguments: {sys.argv[1:]}", flush=True)
        self._maybe_fail(0)
        step = self._restored_step()
        self._drop_lines_after(step)
        with (self.folder / "metrics.jsonl").open("a") as file:
            while step < self.arguments.steps and not self.is_stopped:
                step += 1
                self._measure(file, step)
                if step % self.arguments.steps_per_checkpoint == 0:
                    self._save(step)
                    name = f"predictions_{self.arguments.sacred_id}_{step}{self.arguments.ending}"
                    (self.folder / name).write_text(f"sample {step}")
                self._maybe_fail(step)
        self._save(step)
        if self.is_stopped:
            print(f"stopped at step {step}; the checkpoint is saved", flush=True)
            return 128 + signal.SIGTERM
        (self.folder / "loss.png").write_bytes(b"\x89PNG a plot")
        print(f"trained to step {step}", flush=True)
        return 0

    def _measure(self, file: object, step: int) -> None:
        time.sleep(self.arguments.seconds_per_step)
        loss = "nan" if step == 13 else 10.0 / step
        line = {"step": step, "split": "train", "time": round(time.time(), 3), "loss": loss, "start": self.start}
        file.write(json.dumps(line) + "\n")
        if step % self.arguments.steps_per_checkpoint == 0:
            line = {"step": step, "split": "eval", "time": round(time.time(), 3), "loss": 11.0 / step}
            file.write(json.dumps(line) + "\n")
        file.flush()
        if step <= self.arguments.shown:
            print(f"step {step}/{self.arguments.steps}  loss {loss}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(Trainer(_arguments()).run())
