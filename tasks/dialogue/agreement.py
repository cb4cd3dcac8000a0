"""Measures how scores of answers agree with human judgements.

python3 -m tasks.dialogue.agreement dstc7-task2-human_eval.tgz my_scores.tsv
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.command_line import CommandLine
from configs.errors import DataError
from configs.kinds import clean_path_flags
from storage.streams import run_program
from tasks.dialogue.cleaning import make_cleaner
from tasks.dialogue.diversity import measure_diversity
from tasks.dialogue.human_judgements import (
    JudgedAnswers,
    ScoreTable,
    is_archive,
    read_judged_answers,
    read_score_table,
)
from tasks.dialogue.meteor import MeteorMissing, find_jar, measure_meteor
from tasks.dialogue.mteval import MatchCounts, bleu, count_matches, nist
from tasks.dialogue.rank_correlation import Agreement, Correlation, agree

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        judgements: DSTC-7's archive or the folder in it, whose answers are measured too; or a table of judgements.
        scores: tables of scores.
        clean: DialoGPT's cleaning of texts before they are measured.
        meteor_jar: path of METEOR's program.
        json: prints JSON.
    """

    judgements: str
    scores: tuple[str, ...] = ()
    clean: bool = False
    meteor_jar: str | None = None
    json: bool = False


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(
        prog="python3 -m tasks.dialogue.agreement",
        description="Measure how scores of answers agree with human judgements: Spearman's rank correlation.",
    )
    table = "a line of systems, then for each context its key and a number for each system, with tabs"
    add = parser.add_argument
    add("judgements", help=f"DSTC-7's archive of human evaluations, whose answers are measured too; or {table}")
    add("scores", nargs="*", help=f"tables of scores: {table}")
    add("--clean", action="store_true", help="clean texts as DialoGPT does before they are measured; needs nltk")
    add("--meteor_jar", metavar="PATH", help="meteor-1.5.jar; default: that of the package pycocoevalcap")
    add("--json", action="store_true", help="print JSON")
    values = vars(parser.parse_args(arguments))
    values["scores"] = tuple(values["scores"])
    return Settings(**values | clean_path_flags(values, ("judgements", "scores", "meteor_jar")))


def measure_agreement(settings: Settings, say: Say) -> dict[str, Agreement]:
    """Compares every score with the judgements.

    Raises:
        UserError: a file cannot be used, or a package is missing.
    """
    found: dict[str, Agreement] = {}
    if is_archive(settings.judgements):
        judged = read_judged_answers(settings.judgements)
        human = judged.judgements
        found |= agreement_of_metrics(judged, settings, say)
    else:
        human = read_score_table(settings.judgements)
        if not settings.scores:
            raise DataError(f"{human.path}: is a table of judgements; give tables of scores to compare with it")
    for path in settings.scores:
        found[os.path.basename(path)] = agreement_of_tables(human, read_score_table(path), say)
    return found


def agreement_of_tables(human: ScoreTable, scores: ScoreTable, say: Say) -> Agreement:
    """Compares the contexts and systems that two tables have in common, and says what only one has.

    Raises:
        DataError: they have nothing in common.
    """
    common = {}
    for what in ("contexts", "systems"):
        common[what] = [name for name in getattr(human, what) if name in set(getattr(scores, what))]
        if not common[what]:
            raise DataError(f"{scores.path}: has none of the {what} of {human.path}; use their names")
    for table, what in itertools.product((human, scores), common):
        if n_others := len(getattr(table, what)) - len(common[what]):
            say(f"{table.path}: {n_others:,} {what} are left out, which the other table lacks")
    human_CS, score_CS = (table.select(common["contexts"], common["systems"]) for table in (human, scores))
    if np.isnan(human_CS + score_CS).all():
        raise DataError(f"{scores.path}: scores no answer that {human.path} judges; fill the cells")
    return agree(human_CS, score_CS)


def agreement_of_metrics(judged: JudgedAnswers, settings: Settings, say: Say) -> dict[str, Agreement]:
    """Measures the answers that were judged, and compares each metric with the judgements.

    Raises:
        UserError: a package is missing.
    """
    clean = make_cleaner() if settings.clean else str
    systems = [name for name in judged.judgements.systems if name in judged.answers]
    contexts = [key for key in judged.judgements.contexts if all(key in judged.answers[name] for name in systems)]
    measured = [key for key in contexts if judged.references.get(key)]
    if len(measured) < len(contexts):
        say(f"{len(contexts) - len(measured):,} of {len(contexts):,} contexts are left out, which have no reference")
    human_CS = judged.judgements.select(measured, systems)
    answers = [[clean(judged.answers[name][key]) for key in measured] for name in systems]
    references = [[clean(text) for text in judged.references[key]] for key in measured]
    say(f"{len(measured):,} contexts, {len(systems)} systems")
    found = _of_matches(human_CS, count_matches(answers, references))
    return found | _of_meteor(human_CS, answers, references, settings, say) | _of_diversity(human_CS, answers)


def _of_matches(human_CS: np.ndarray, counts_S: Sequence[MatchCounts]) -> dict[str, Agreement]:
    """Returns the agreement of NIST and BLEU, counted for each answer and over the answers of a system."""
    found = {}
    for name, metric in (("NIST", nist), ("BLEU", bleu)):
        of_systems_SN = np.array([metric(counts) for counts in counts_S])
        of_answers_CSN = np.array([[metric(counts.take([c])) for counts in counts_S] for c in range(len(human_CS))])
        for order in range(of_systems_SN.shape[1]):
            key = f"{name}-{order + 1}"
            found[key] = agree(human_CS, of_answers_CSN[:, :, order], of_systems_SN[:, order])
    return found


def _of_meteor(
    human_CS: np.ndarray, answers: Sequence[list[str]], references: list[list[str]], settings: Settings, say: Say
) -> dict[str, Agreement]:
    try:
        jar = find_jar(settings.meteor_jar)
        meteors = [measure_meteor(jar, texts, references) for texts in answers]
    except MeteorMissing as error:
        say(str(error))
        return {}
    scores_CS = np.array([meteor.scores for meteor in meteors]).T
    return {"METEOR": agree(human_CS, scores_CS, np.array([meteor.score for meteor in meteors]))}


def _of_diversity(human_CS: np.ndarray, answers: Sequence[list[str]]) -> dict[str, Agreement]:
    """Returns the agreement of what needs no references; only lengths are of a single answer."""
    diversities = [measure_diversity(texts) for texts in answers]
    rows = {
        f"{name}-{order + 1}": np.array([values[order] for values in of_systems], float)
        for name, of_systems in (("Entropy", [d.entropy for d in diversities]), ("Dist", [d.dist for d in diversities]))
        for order in range(len(of_systems[0]))
    }
    words_CS = np.array([[len(text.split()) for text in texts] for texts in answers], float).T
    return {name: agree(human_CS, None, row) for name, row in rows.items()} | {"Words": agree(human_CS, words_CS)}


def format_agreement(found: dict[str, Agreement]) -> Iterator[str]:
    """Yields the lines of a table: for each score its correlation, and the 95 % interval in brackets."""
    width = max(len(name) for name in found)
    yield f"{'':{width}}" + "".join(f"  {head:<22}" for head in ("systems", "answers", "answers of a context"))
    for name, each in found.items():
        yield f"{name:{width}}" + "".join(f"  {_shown(c):<22}" for c in (each.systems, each.answers, each.contexts))


def _shown(each: Correlation | None) -> str:
    if each is None or math.isnan(each.rho):
        return "-"
    interval = "" if math.isnan(each.low) else f" [{each.low:.3f}, {each.high:.3f}]"
    return f"{each.rho:.3f}{interval}"


def run(settings: Settings) -> int:
    """Measures and prints; returns the exit status."""
    found = measure_agreement(settings, lambda line: print(line, file=sys.stderr))
    if settings.json:
        values = {name: dataclasses.asdict(each) for name, each in found.items()}
        print(json.dumps(_without_nan(values), ensure_ascii=False, indent=2))
    else:
        print("\n".join(line.rstrip() for line in format_agreement(found)))
    return 0


def _without_nan(value: object) -> object:
    """Returns a value as JSON can hold it."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_program(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
