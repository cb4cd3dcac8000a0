"""Which chat template a run has."""

from __future__ import annotations

import os
from collections.abc import Iterator

from commands.run_setup import Run
from configs.weights import tokenizer_beside
from data.dialogue.templates import DIALOGPT, OF_TOKENIZER, ChatTemplate, has_template, load_template


def choose_template(run: Run) -> ChatTemplate:
    """Returns the template of `--chat_template`, or else that of the tokenizer's folder, or else DialoGPT's.

    Raises:
        DataError: there is no such template, it is damaged, or the tokenizer lacks a token that it needs.
    """
    folder = next(filter(has_template, _tokenizer_folders(run)), None)
    name = run.options.chat_template or (OF_TOKENIZER if folder else DIALOGPT)
    return load_template(name, run.tokenizer, run.config.data.eos_id, folder)


def _tokenizer_folders(run: Run) -> Iterator[str]:
    """Yields the folders in which the template of the run's tokenizer may lie."""
    if run.options.init_from is not None and (beside := tokenizer_beside(run.options.init_from)):
        yield beside
    yield run.config.model_path
    for use in run.config.data.datasets:
        if path := use.dataset.tokenizer_path:
            yield path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
