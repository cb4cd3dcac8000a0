"""lm-evaluation-harness for other benchmarks: tasks on local files, its process, and models that both sides read.

The harness lives in an environment of its own, which `make lm-eval` makes: lm-eval[api,hf] 0.4.13 with torch 2.13 and
transformers 5.23.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from configs.errors import UserError

DEFAULT_PYTHON = ".venv-lm-eval/bin/python"
PROCESS = Path(__file__).with_name("lm_eval_process.py")
END = "<|endoftext|>"
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
target_delimiter: " "
"""
CHOOSING = """output_type: multiple_choice
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""
# By the fields of a row: those of llm-foundry's files, and of one text.
FORMS = {
    ("context", "continuation"): """output_type: loglikelihood
doc_to_text: context
doc_to_target: "{{' ' + continuation}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    ("choices", "gold", "query"): CHOOSING
    + """doc_to_choice: choices
doc_to_target: gold
doc_to_text: """,
    ("context_options", "continuation", "gold"): CHOOSING
    + """doc_to_text: gold
doc_to_choice: context_options
doc_to_target: continuation
""",
    ("text",): """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}


@dataclass(frozen=True)
class Evaluation:
    """What the harness has found.

    Attributes:
        seconds: of scoring, tokenizing included; the making of requests and figures is not.
        items: of each task, in the order of its file.
        figures: of each task, as the harness names them.
    """

    seconds: float
    items: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Harness:
    """The harness with a model, in a process that waits for requests.

    Attributes:
        process: the process.
        versions: of its packages, and PyTorch's default number of threads.
    """

    process: subprocess.Popen
    versions: Mapping[str, Any]

    @property
    def default_threads(self) -> int:
        """The number of threads that PyTorch uses by default."""
        return self.versions["n_threads"]

    def evaluate(
        self, tasks: Sequence[str], batch_size: int, limit: int | None, n_threads: int | None = None
    ) -> Evaluation:
        """Evaluates the first `limit` items of tasks."""
        n_threads = n_threads or self.default_threads
        request = {"tasks": list(tasks), "batch_size": batch_size, "limit": limit, "n_threads": n_threads}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Evaluation(**_answer_of(self.process))


def _answer_of(process: subprocess.Popen) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit("lm-evaluation-harness has ended; its output is above")
    return json.loads(line)


def write_yaml(folder: Path, name: str, file: Path, cue: str) -> None:
    """Writes the harness's form of a task on a local file.

    Args:
        folder: of such forms.
        name: of the task.
        file: rows as lines of JSON.
        cue: what follows a query.
    """
    with open(file, encoding="utf-8") as lines:
        fields = tuple(sorted(json.loads(next(lines)).keys()))
    text = HEAD.format(name=name, file=file.resolve()) + FORMS[fields]
    if "query" in fields:
        text += json.dumps(f"{{{{query.strip()}}}}{cue}" if cue else "{{query}}") + "\n"
    (folder / f"{name}.yaml").write_text(text)


def check_python(python: str) -> None:
    """Checks that a Python can run the harness.

    Raises:
        UserError: it cannot.
    """
    if shutil.which(python) is None or subprocess.run([python, "-c", "import lm_eval, torch, accelerate"]).returncode:
        raise UserError(f"--lm_eval {python}: is no Python with lm_eval; `make lm-eval` makes .venv-lm-eval")


@contextlib.contextmanager
def started(python: str, kind: str, settings: Mapping[str, Any], tasks: Path) -> Iterator[Harness]:
    """Starts the harness; its process ends with the context.

    Args:
        python: of its environment.
        kind: the harness's name of a kind of model, such as hf.
        settings: of the model.
        tasks: the folder of `write_yaml`.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "cache")}
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "LMEVAL_LOG_LEVEL": "ERROR"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline | quiet
    command = [python, str(PROCESS), kind, json.dumps(settings), str(tasks)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        open(tasks / "log", "w+") as log,
        subprocess.Popen(command, env=environment, stderr=log, **pipes) as process,
    ):
        try:
            yield Harness(process, _answer_of(process))
        except SystemExit:
            log.seek(0)
            print(log.read()[-3000:], file=sys.stderr)
            raise
        finally:
            process.kill()


def hugging_face(folder: Path) -> dict[str, Any]:
    """Returns the harness's settings of a model in a Hugging Face folder, in float32."""
    return {"pretrained": str(folder), "dtype": "float32", "device": "cpu"}


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> str:
    """Returns a byte-level BPE tokenizer of texts as JSON; id 0 ends a text."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=n_vocab, special_tokens=[END], show_progress=False)
    return tokenizer.to_str()
