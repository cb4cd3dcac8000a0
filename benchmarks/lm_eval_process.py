"""Runs lm-evaluation-harness in a process of its own, which benchmarks/evaluation.py starts.

It needs lm_eval, torch and transformers, and nothing of Neomesh. The arguments are a kind of model, its settings as
JSON and a folder of YAML files of tasks. Each line of standard input is a request as a JSON object, and each line of
standard output the response to one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

SCORING = ("loglikelihood", "loglikelihood_rolling")
PACKAGES = ("lm_eval", "torch", "transformers")


class Clock:
    """Counts the seconds of scoring, tokenizing included; the making of requests and figures is not."""

    def __init__(self, model: LM) -> None:
        """Replaces the scoring methods of the model by timed ones."""
        self.seconds = 0.0
        for name in SCORING:
            setattr(model, name, self._timed(getattr(model, name)))

    def _timed(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return score(*arguments, **settings)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def item_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the requests of one item, their log-likelihoods in nats, and its figures."""
    figures = {name: sample[name] for name in sample["metrics"]}
    responses = [response[0] for response in sample["resps"]]
    scores = [response if isinstance(response, float) else response[0] for response in responses]
    greedy = [None if isinstance(response, float) else response[1] for response in responses]
    found = {"log_likelihoods": scores, "is_greedy": greedy, "figures": figures}
    return found | {"doc_id": sample["doc_id"], "requests": [arguments[:2] for arguments in sample["arguments"]]}


def evaluate(model: LM, tasks: TaskManager, clock: Clock, request: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluates `tasks` with `batch_size` on the first `limit` items of each, on `n_threads`."""
    torch.set_num_threads(request["n_threads"])
    clock.seconds = 0.0
    model.batch_size_per_gpu = model._batch_size = request["batch_size"]
    settings = {"limit": request["limit"], "bootstrap_iters": 1000, "log_samples": True}
    found = simple_evaluate(model, tasks=request["tasks"], task_manager=tasks, **settings)
    items = {name: [item_of(sample) for sample in samples] for name, samples in found["samples"].items()}
    return {"seconds": clock.seconds, "items": items, "figures": found["results"]}


def private_output() -> TextIO:
    """Returns standard output, and sends what others print to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def main() -> None:
    output = private_output()
    kind, settings, folder = sys.argv[1:]
    model = get_model(kind)(**json.loads(settings))
    clock = Clock(model)
    tasks = TaskManager(include_path=folder, include_defaults=False)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(json.dumps(versions | {"n_threads": torch.get_num_threads()}), file=output, flush=True)
    for line in sys.stdin:
        print(json.dumps(evaluate(model, tasks, clock, json.loads(line)), default=str), file=output, flush=True)


if __name__ == "__main__":
    main()
