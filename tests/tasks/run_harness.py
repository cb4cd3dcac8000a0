"""Evaluates tasks by lm-evaluation-harness 0.4.13 with the model of `hash_model.py`, to compare its items with ours.

python tests/tasks/run_harness.py tests/golden/lm_evaluation_harness.json
python tests/tasks/run_harness.py OUTPUT SPEC

It needs lm_eval 0.4.13, and NumPy; for a tokenizer also tokenizers. Without SPEC it makes the file that
`test_harness.py` reads, of the rows of `published_rows.py`. SPEC is a JSON object:

    tasks      names of tasks
    rows       the files of JSON lines of each data set, one of questions and one of examples, by its path and name
    yamls      a folder with tasks besides those of lm_eval
    n_ctx      the most tokens that the model reads
    n_shot     the number of few-shot examples, the first ones
    tokenizer  folder with vocab.json and merges.txt; null: tokens are bytes
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from hash_model import START_ID, Bytes, token_scores
from lm_eval import simple_evaluate
from lm_eval.api import samplers
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from published_rows import ROWS

DATASETS = {
    "lambada_openai": "EleutherAI/lambada_openai/default",
    "wikitext": "EleutherAI/wikitext_document_level/wikitext-2-raw-v1",
    "hellaswag": "Rowan/hellaswag",
    "piqa": "baber/piqa",
    "winogrande": "allenai/winogrande/winogrande_xl",
    "wsc273": "lighteval/winograd_wsc/wsc273",
    "arc_easy": "allenai/ai2_arc/ARC-Easy",
    "openbookqa": "allenai/openbookqa/main",
    "boolq": "aps/super_glue/boolq",
    "copa": "aps/super_glue/copa",
    "sciq": "allenai/sciq",
    "mathqa": "regisss/math_qa",
    "pubmedqa": "bigbio/pubmed_qa/pubmed_qa_labeled_fold0_source",
    "mmlu_high_school_physics": "cais/mmlu/high_school_physics",
}
# The harness puts questions without a training set among their own examples, and allows none for texts.
WITHOUT_EXAMPLES = ("lambada_openai", "wsc273", "wikitext")
N_CTX, N_SHOT = 160, 2
MEASURED = ("acc", "acc_norm", "acc_bytes")


class HashModel(TemplateLM):
    backend = "causal"

    def __init__(self, n_ctx: int, tokenizer: str | None) -> None:
        super().__init__()
        self.n_ctx, self._encode = n_ctx, _encoder(tokenizer)

    @property
    def eot_token_id(self) -> int:
        return START_ID

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        scored = [token_scores((context + ids)[-self.n_ctx - 1 :], len(ids)) for _, context, ids in requests]
        return [(float(each.log_probs.sum()), bool(each.is_greedy.all())) for each in scored]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        return [self._rolling(self._encode(request.args[0])) for request in requests]

    def _rolling(self, ids: list[int]) -> float:
        windows = map(make_disjoint_window, get_rolling_token_windows(ids, START_ID, self.n_ctx, 1))
        return sum(each for each, _ in self._loglikelihood_tokens([(None, *window) for window in windows]))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def _encoder(tokenizer: str | None) -> Callable[[str], list[int]]:
    if tokenizer is None:
        return lambda text: Bytes().encode_batch([text])[0]
    files = [str(Path(tokenizer, name)) for name in ("vocab.json", "merges.txt")]
    backend = importlib.import_module("tokenizers").ByteLevelBPETokenizer(*files)
    return lambda text: backend.encode(text).ids


def evaluate(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns for each task the figures, and for each item its requests, log-likelihoods and figures."""
    read = datasets.load_dataset

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        files = spec["rows"][path if name is None else f"{path}/{name}"]
        questions, examples = (read("json", data_files=file, split="train") for file in files)
        return datasets.DatasetDict(train=examples, dev=examples, validation=questions, test=questions)

    datasets.load_dataset = load
    samplers.SAMPLER_REGISTRY["default"] = samplers.FirstNSampler
    found = simple_evaluate(
        HashModel(spec["n_ctx"], spec.get("tokenizer")),
        tasks=spec["tasks"],
        task_manager=TaskManager(include_path=spec.get("yamls")),
        num_fewshot=spec.get("n_shot") or None,
        bootstrap_iters=100,
    )
    datasets.load_dataset = read
    return {name: _told(found["results"][name], samples) for name, samples in found["samples"].items()}


def _told(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    named = {name.removesuffix(",none"): value for name, value in figures.items() if isinstance(value, float)}
    by_number = sorted(samples, key=lambda sample: sample["doc_id"])
    return {"figures": named, "items": [_item(sample) for sample in by_number]}


def _item(sample: Mapping[str, Any]) -> dict[str, Any]:
    responses = [response[0] for response in sample["resps"]]
    sums = [response[0] if isinstance(response, tuple) else response for response in responses]
    figures = {name: sample[name] for name in MEASURED if name in sample}
    return {"requests": sample["arguments"], "log_likelihoods": sums, **figures}


def golden_specs(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the golden file holds, by the number of few-shot examples."""
    with_examples = [name for name in ROWS if name not in WITHOUT_EXAMPLES]
    return {
        "0": {"tasks": list(ROWS), "rows": _write(folder, 0), "n_ctx": N_CTX},
        str(N_SHOT): {"tasks": with_examples, "rows": _write(folder, N_SHOT), "n_ctx": N_CTX, "n_shot": N_SHOT},
    }


def _write(folder: Path, n_shot: int) -> dict[str, list[str]]:
    """Writes the rows after the first ones, which are the examples, and these."""
    files = {}
    for name, rows in ROWS.items():
        files[DATASETS[name]] = [str(folder / f"{name}_{n_shot}_{part}.jsonl") for part in ("questions", "examples")]
        for file, part in zip(files[DATASETS[name]], (rows[n_shot:], rows[:N_SHOT]), strict=True):
            Path(file).write_text("".join(json.dumps(row) + "\n" for row in part))
    return files


def main(output: str, spec: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if spec is None:
            found = {n_shot: evaluate(each) for n_shot, each in golden_specs(Path(folder)).items()}
        else:
            found = evaluate(json.loads(Path(spec).read_text()))
    Path(output).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*itertools.islice(sys.argv, 1, 3))
