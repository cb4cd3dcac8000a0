"""The forms of task files: which fields a row has, and the item that it is.

Prompts are those of lm-evaluation-harness 0.4.13 where a row has the fields of the published dataset. Rows in the form
of mosaicml's llm-foundry are taken as they stand, with a blank before the continuation unless one is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.reader import shown
from data.dialogue.readers import BETWEEN_TURNS
from tasks.rows import Row
from tasks.task import CONTINUATION, DELIMITER, DIALOGUE, MULTIPLE_CHOICE, ROLLING, Exchange, Item, Question, Text

ANSWER = "\nAnswer:"


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        fields: by which a row is known.
        read: makes the item of a row.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], Item]


def read_item(row: Row, kind: str, cue: str = "") -> Item:
    """Returns the item of a row, by the form whose fields it has.

    Args:
        row: the row.
        kind: of the task.
        cue: follows the query of llm-foundry's multiple choice, such as `ANSWER`.

    Raises:
        DataError: the row fits no form, or a field is wrong.
    """
    forms = FORMS[kind]
    form = max(forms, key=lambda form: sum(field in row for field in form.fields) / len(form.fields))
    if 2 * sum(field in row for field in form.fields) < len(form.fields):
        known = " or ".join(", ".join(form.fields) for form in forms[:2])
        raise row.error("fields", f"are {shown(list(row.values))}", f"give {known}, or those of a known dataset")
    item = form.read(row)
    return _with_cue(item, cue) if cue and form.read is _multiple_choice else item


def _with_cue(question: Question, cue: str) -> Question:
    return replace(question, contexts=(question.contexts[0].strip() + cue,), delimiter=DELIMITER)


def _delimiter_between(context: str, continuation: str) -> str:
    return "" if context.endswith(DELIMITER) or continuation.startswith(DELIMITER) else DELIMITER


def _continuation(row: Row) -> Question:
    context, continuation = row.text("context"), row.filled_text("continuation")
    delimiter = _delimiter_between(context, continuation)
    return Question((context,), (delimiter + continuation,), delimiter="", line=row.line)


def _lambada(row: Row) -> Question:
    context, blank, word = row.filled_text("text").rpartition(" ")
    if not word or not context:
        raise row.error("text", "has no last word after a blank", "give two words or more, and no blank at the end")
    # The harness's examples have two blanks before the last word.
    return Question((context,), (blank + word,), delimiter="", example_delimiter=DELIMITER, line=row.line)


def _multiple_choice(row: Row) -> Question:
    context, choices = row.text("query"), row.texts("choices")
    is_blank_there = context.endswith(DELIMITER) or all(choice.startswith(DELIMITER) for choice in choices)
    return Question(
        (context,),
        choices,
        row.index("gold", len(choices)),
        delimiter="" if is_blank_there else DELIMITER,
        subject=row.text("category") if "category" in row else "",
        line=row.line,
    )


def _competing_contexts(row: Row) -> Question:
    contexts, continuation = row.texts("context_options"), row.filled_text("continuation")
    is_blank_there = continuation.startswith(DELIMITER) or all(context.endswith(DELIMITER) for context in contexts)
    delimiter = "" if is_blank_there else DELIMITER
    return Question(contexts, (continuation,), row.index("gold", len(contexts)), delimiter, line=row.line)


def _question(row: Row, context: str, choices: Sequence[str], gold: int, subject: str = "") -> Question:
    return Question((context,), tuple(choices), gold, subject=subject, line=row.line)


def _piqa(row: Row) -> Question:
    choices = (row.filled_text("sol1"), row.filled_text("sol2"))
    return _question(row, f"Question: {row.text('goal')}{ANSWER}", choices, row.index("label", 2))


def _hellaswag(row: Row) -> Question:
    context = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    choices = [_without_wikihow_marks(ending) for ending in row.texts("endings")]
    return _question(row, _without_wikihow_marks(context), choices, row.index("label", len(choices)))


def _without_wikihow_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Row) -> Question:
    before, gap, after = row.text("sentence").partition("_")
    if not gap:
        raise row.error("sentence", "has no _", "mark the gap with one")
    contexts = (before + row.filled_text("option1"), before + row.filled_text("option2"))
    return Question(contexts, (after.strip(),), row.index("answer", 2, first=1), line=row.line)


_POSSESSIVE = ("my", "his", "her", "our", "their")
_CAPITALIZED = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")


def _winograd(row: Row) -> Question:
    text, pronoun, place = row.text("text").replace("  ", " "), row.filled_text("pronoun"), row.count("pronoun_loc")
    if place + len(pronoun) > len(text):
        raise row.error(
            "pronoun_loc", f"is {shown(place)}, and the text has {len(text)} characters", "give where it begins"
        )
    options = [_as_pronoun(option, pronoun, text[place - 2 : place - 1] == ".") for option in row.texts("options")]
    contexts = tuple(text[:place] + option for option in options)
    rest = text[place + len(pronoun) :]
    return Question(contexts, (rest,), row.index("label", len(contexts)), line=row.line)


def _as_pronoun(option: str, pronoun: str, starts_sentence: bool) -> str:
    option += "'s" if pronoun.lower() in _POSSESSIVE else ""
    first = option.split()[0]
    return option if starts_sentence or first not in _CAPITALIZED else option.replace(first, first.lower())


def _labelled_choices(row: Row) -> tuple[tuple[str, ...], int]:
    """Returns the texts of choices that have labels, such as A to D, and the number of the right one."""
    inner = row.row("choices")
    texts, labels = inner.texts("text"), inner.texts("label")
    if len(texts) != len(labels):
        raise inner.error("label", f"has {len(labels)} labels for {len(texts)} texts", "give one for each")
    return texts, row.one_of("answerKey", labels)


def _arc(row: Row) -> Question:
    return _question(row, f"Question: {row.text('question')}{ANSWER}", *_labelled_choices(row))


def _openbookqa(row: Row) -> Question:
    return _question(row, row.text("question_stem"), *_labelled_choices(row))


def _boolq(row: Row) -> Question:
    context = f"{row.text('passage')}\nQuestion: {row.text('question')}?{ANSWER}"
    gold = row.index("label", 2) if "answer" not in row else int(row.flag("answer"))
    return _question(row, context, ("no", "yes"), gold)


_CONNECTORS = {"cause": "because", "effect": "therefore"}


def _copa(row: Row) -> Question:
    connector = list(_CONNECTORS.values())[row.one_of("question", list(_CONNECTORS))]
    choices = [row.filled_text(field) for field in ("choice1", "choice2")]
    # The harness's choices begin with a blank besides its delimiter.
    return _question(
        row,
        f"{row.filled_text('premise').strip()[:-1]} {connector}",
        [f" {choice[0].lower()}{choice[1:]}" for choice in choices],
        row.index("label", 2),
    )


def _sciq(row: Row) -> Question:
    context = f"{row.text('support').lstrip()}\nQuestion: {row.text('question')}{ANSWER}"
    fields = ("distractor1", "distractor2", "distractor3", "correct_answer")
    return _question(row, context, [row.filled_text(field) for field in fields], 3)


_LETTERS = ("A", "B", "C", "D")


def _mmlu(row: Row) -> Question:
    choices = row.texts("choices")
    if len(choices) != len(_LETTERS):
        raise row.error("choices", f"has {len(choices)} texts", f"give {len(_LETTERS)}")
    lines = [
        row.text("question").strip(),
        *(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)),
    ]
    subject = row.text("subject") if "subject" in row else ""
    return _question(row, "\n".join(lines) + ANSWER, _LETTERS, row.index("answer", len(_LETTERS)), subject)


_MATHQA_OPTION = re.compile(r"[abcd] \) .*?, |e \) .*?$")


def _mathqa(row: Row) -> Question:
    choices = [option[4:].rstrip(" ,") for option in _MATHQA_OPTION.findall(row.text("options"))]
    if len(choices) < 2 or not all(choices):
        raise row.error("options", "do not read a ) ..., b ) ..., c ) ..., d ) ..., e ) ...", "write them so")
    gold = row.one_of("correct", list("abcde")[: len(choices)])
    return _question(row, f"Question: {row.text('Problem')}{ANSWER}", choices, gold)


_DECISIONS = ("yes", "no", "maybe")


def _pubmedqa(row: Row) -> Question:
    abstract = "\n".join(row.texts("CONTEXTS", minimum=1))
    context = f"Abstract: {abstract}\nQuestion: {row.text('QUESTION')}{ANSWER}"
    return _question(row, context, _DECISIONS, row.one_of("final_decision", _DECISIONS))


def _text(row: Row) -> Text:
    text = row.filled_text("text")
    return Text(text, text, row.line)


def _wikitext(row: Row) -> Text:
    page = row.filled_text("page")
    return Text(_detokenize(page), page, row.line)


# What lm-evaluation-harness does to a page, in this order, its slips included: some rules are meant as patterns but
# match their own letters, and every lone N becomes a 1. `data.text.cleaning` has a detokenizer that is right.
_DETOKENIZING = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def _detokenize(page: str) -> str:
    for found, replacement in _DETOKENIZING:
        is_pattern = isinstance(found, re.Pattern)
        page = found.sub(replacement, page) if is_pattern else page.replace(found, replacement)
    return page


def _exchange(row: Row) -> Exchange:
    if row.is_text("context"):
        row = replace(row, values={**row.values, "context": row.filled_text("context").split(BETWEEN_TURNS)})
    return Exchange(row.texts("context", minimum=1), row.texts("references", minimum=1), row.line)


# The first one or two of each kind are those for a person's own file.
FORMS: Mapping[str, Sequence[Form]] = {
    CONTINUATION: (Form(("context", "continuation"), _continuation), Form(("text",), _lambada)),
    ROLLING: (Form(("text",), _text), Form(("page",), _wikitext)),
    DIALOGUE: (Form(("context", "references"), _exchange),),
    MULTIPLE_CHOICE: (
        Form(("query", "choices", "gold"), _multiple_choice),
        Form(("context_options", "continuation", "gold"), _competing_contexts),
        Form(("goal", "sol1", "sol2", "label"), _piqa),
        Form(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag),
        Form(("sentence", "option1", "option2", "answer"), _winogrande),
        Form(("text", "pronoun", "pronoun_loc", "options", "label"), _winograd),
        Form(("question", "choices", "answerKey"), _arc),
        Form(("question_stem", "choices", "answerKey"), _openbookqa),
        Form(("passage", "question", "label"), _boolq),
        Form(("premise", "choice1", "choice2", "question", "label"), _copa),
        Form(("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer"), _sciq),
        Form(("question", "choices", "answer"), _mmlu),
        Form(("Problem", "options", "correct"), _mathqa),
        Form(("QUESTION", "CONTEXTS", "final_decision"), _pubmedqa),
    ),
}
