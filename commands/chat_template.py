"""Which chat template a run has."""

from __future__ import annotations

from collections.abc import Iterator

from commands.run_setup import Run
from configs.weights import tokenizer_beside
from data.dialogue.templates import DIALOGPT, OF_TOKENIZER, ChatTemplate, has_template, load_template
from data.tokenization.tokenizer import folder_of, is_pretrained_name


def choose_template(run: Run) -> ChatTemplate:
    """Returns the template of `--chat_template`, the run's conversations or the tokenizer's folder, or else DialoGPT's.

    Raises:
        DataError: there is no such template, it is damaged, or the tokenizer lacks a token that it needs.
    """
    folder = next(filter(has_template, _tokenizer_folders(run)), None)
    name = run.options.chat_template or _trained_with(run) or (OF_TOKENIZER if folder else DIALOGPT)
    return load_template(name, run.tokenizer, run.config.data.eos_id, folder)


def _trained_with(run: Run) -> str | None:
    """Returns the template of the first dataset of conversations; None: no dataset is known to be one."""
    datasets = [use.dataset for use in run.config.data.datasets]
    return next((each.chat_template for each in datasets if each.dialogue or each.chat_template != DIALOGPT), None)


def _tokenizer_folders(run: Run) -> Iterator[str]:
    """Yields the folders in which the template of the run's tokenizer may lie."""
    if run.options.init_from is not None and (beside := tokenizer_beside(run.options.init_from)):
        yield beside
    yield run.config.model_path
    for dataset in (use.dataset for use in run.config.data.datasets):
        path = dataset.tokenizer_path
        is_needed = dataset.chat_template == OF_TOKENIZER  # a name is looked up at Hugging Face only then
        if path and (is_needed or not is_pretrained_name(path)):
            yield from filter(None, [folder_of(path)])
