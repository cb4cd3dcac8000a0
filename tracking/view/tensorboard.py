"""Starts TensorBoard for recorded runs: their curves, and as texts the resolved config and the samples.

It is reachable from this machine only. Its files are in a temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from configs.errors import UserError
from storage.files import is_local
from tracking.record.store import Run, find_run
from tracking.supervise.child import TETHER
from tracking.supervise.supervisor import StopSignals
from tracking.view.report import NAMED_BY_STEP, read_samples

START_SECONDS = 120.0
POLL_SECONDS = 2.0
END_SECONDS = 5.0
ADDRESS = re.compile(r"http://\S+")


def show(store: Path, run_ids: Sequence[str], say: Callable[[str], None]) -> None:
    """Shows runs until a signal stops it, with updates from those that still run.

    Raises:
        UserError: a run is missing, or TensorBoard is not installed or does not start.
    """
    runs = [find_run(store, run_id) for run_id in dict.fromkeys(run_ids)]
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install -r requirements.txt")
    with tempfile.TemporaryDirectory(prefix="tensorboard_") as made:
        folders = [_run_folder(Path(made), run, say) for run in runs]
        with _server(Path(made)) as (process, address):
            say(f"TensorBoard shows {_names(runs)} at {address} until Ctrl-C")
            _serve(process, folders)


def _serve(process: subprocess.Popen[str], texts: Sequence[_TextEvents]) -> None:
    with StopSignals() as stop:
        while not stop.numbers:
            for one in texts:
                one.update()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            if process.poll() is not None and not stop.numbers:
                raise UserError(f"TensorBoard: has ended with exit status {process.returncode}; start it again")


def _names(runs: Sequence[Run]) -> str:
    return f"run{'s' * (len(runs) > 1)} {', '.join(str(run.id) for run in runs)}"


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yields the process and its address; it chooses a free port."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    tethered = [sys.executable, str(TETHER), str(os.getpid()), *command, "--reload_multifile", "true"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        tethered, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    try:
        yield process, _await_address(process)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_address(process: subprocess.Popen[str]) -> str:
    """Returns the address that it prints once it is ready; a thread drains its output so that it never blocks."""
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stderr or ()), daemon=True)
    reader.start()
    end_seconds = time.monotonic() + START_SECONDS
    while time.monotonic() < end_seconds and reader.is_alive():
        for line in list(output):
            if line.startswith("TensorBoard ") and (found := ADDRESS.search(line)):
                return found[0]
        time.sleep(0.05)
    last = next((line.strip() for line in reversed(output) if line.strip()), "it prints nothing")
    raise UserError(f"TensorBoard: does not start: {last[:300]}; fix that, or use --report")


def _run_folder(made: Path, run: Run, say: Callable[[str], None]) -> _TextEvents:
    """Makes a folder for a run, with a link to its curves."""
    folder = made / f"{run.id} {re.sub(r'[^-+.,=()A-Za-z0-9_ ]', '_', run.name)[:60]}"
    folder.mkdir()
    model_path = str(run.info.get("model_path", ""))
    if is_local(model_path):
        (folder / "metrics").symlink_to(Path(model_path).resolve(), target_is_directory=True)
    else:
        say(f"run {run.id}: its curves lie in {model_path}; they are shown by tensorboard --logdir {model_path}")
    return _TextEvents(folder / "texts", run)


class _TextEvents:
    """An event file with the texts of a run."""

    def __init__(self, folder: Path, run: Run) -> None:
        folder.mkdir()
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.texts"
        self._run = run
        self._written: set[str] = set()
        self._write("config", 0, json.dumps(run.config, indent=2, ensure_ascii=False))

    def update(self) -> None:
        """Adds samples written since the last call."""
        for path in find_run(self._run.folder.parent, self._run.folder.name).artifacts:
            named = NAMED_BY_STEP.fullmatch(path.name)
            if named and path.name not in self._written:
                self._written.add(path.name)
                later = f" of file {named[2]}" if named[2] else ""
                for number, (prompt, answer) in enumerate(read_samples(path)):
                    self._write(f"sample {number}{later}", int(named[1]), prompt + answer)

    def _write(self, tag: str, step: int, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # imported here, as TensorBoard is optional
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter

        as_code = "".join(f"    {line}\n" for line in text.splitlines())  # a Markdown code block
        tensor = TensorProto(dtype=DT_STRING, string_val=[as_code.encode()])
        value = Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata("", ""))
        with self._path.open("ab") as file:
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))
            RecordWriter(file).write(event.SerializeToString())
