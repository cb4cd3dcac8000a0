"""The table of tasks, and tasks from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from configs.errors import ConfigError, did_you_mean
from tasks import mmlu
from tasks.forms import ANSWER
from tasks.task import CONTINUATION, KINDS, MULTIPLE_CHOICE, ROLLING, Task

_TASKS = (
    Task("lambada_openai", CONTINUATION, "lambada_openai.jsonl"),
    Task("lambada_standard", CONTINUATION, "lambada_standard.jsonl"),
    Task("wikitext", ROLLING, "wikitext.jsonl"),
    Task("hellaswag", MULTIPLE_CHOICE, "hellaswag.jsonl", fewshot_file="hellaswag_train.jsonl"),
    Task("piqa", MULTIPLE_CHOICE, "piqa.jsonl", fewshot_file="piqa_train.jsonl", cue=ANSWER),
    Task("winogrande", MULTIPLE_CHOICE, "winogrande.jsonl", fewshot_file="winogrande_train.jsonl"),
    Task("winograd_wsc", MULTIPLE_CHOICE, "winograd_wsc.jsonl"),
    Task("arc_easy", MULTIPLE_CHOICE, "arc_easy.jsonl", fewshot_file="arc_easy_train.jsonl", cue=ANSWER),
    Task("arc_challenge", MULTIPLE_CHOICE, "arc_challenge.jsonl", fewshot_file="arc_challenge_train.jsonl", cue=ANSWER),
    Task("openbookqa", MULTIPLE_CHOICE, "openbook_qa.jsonl", fewshot_file="openbook_qa_train.jsonl"),
    Task("boolq", MULTIPLE_CHOICE, "boolq.jsonl", fewshot_file="boolq_train.jsonl", cue=ANSWER),
    Task("copa", MULTIPLE_CHOICE, "copa.jsonl", fewshot_file="copa_train.jsonl"),
    Task("sciq", MULTIPLE_CHOICE, "sciq.jsonl", fewshot_file="sciq_train.jsonl"),
    Task("mathqa", MULTIPLE_CHOICE, "mathqa.jsonl", fewshot_file="mathqa_train.jsonl"),
    Task("pubmedqa", MULTIPLE_CHOICE, "pubmedqa.jsonl", fewshot_file="pubmedqa_train.jsonl"),
    Task(
        "mmlu",
        MULTIPLE_CHOICE,
        "mmlu.jsonl",
        fewshot_file="mmlu_dev.jsonl",
        description="The following are multiple choice questions (with answers) about {subject}.\n\n",
        cue=ANSWER,
        groups=mmlu.GROUPS,
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}


def make_task(setting: str | Mapping[str, Any]) -> Task:
    """Returns the task that an entry of `eval_tasks` names or describes.

    Args:
        setting: the name of a task in the table; or fields of `Task`, which of a task in the table replace its own.

    Raises:
        ConfigError: there is no such task, or fields are missing.
    """
    values = {"name": setting} if isinstance(setting, str) else dict(setting)
    name = values["name"]
    if values.get("fewshot_file") and "n_shot" not in values:
        file = values["fewshot_file"]
        raise ConfigError(f"{name}: fewshot_file = {file}: has no effect without n_shot; give n_shot, or leave it out")
    if name in TASKS:
        if (kind := values.get("kind", TASKS[name].kind)) != TASKS[name].kind:
            problem = f"the table's task of this name is of the kind {TASKS[name].kind}"
            raise ConfigError(f"{name}: kind = {kind}: {problem}; leave it out, or give your task another name")
        return replace(TASKS[name], **values)
    if missing := [key for key in ("file", "kind") if key not in values]:
        remedy = did_you_mean(name, TASKS, f"give its {' and '.join(missing)}, or one of {', '.join(TASKS)}")
        raise ConfigError(f"eval_tasks = {name}: is not in the table of tasks, and has no {missing[0]}; {remedy}")
    if values["kind"] not in KINDS:
        raise ConfigError(f"{name}: kind = {values['kind']}: is no kind of task; give one of {', '.join(KINDS)}")
    return Task(**values)
