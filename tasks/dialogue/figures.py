"""The figures of a dialogue system, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.dialogue.diversity import Diversity, measure_diversity
from tasks.dialogue.mteval import bleu, count_matches, nist

# The columns of DialoGPT's report, and their figures here.
REPORT_COLUMNS = {
    **{f"nist{n}": f"NIST-{n}" for n in (1, 2, 3, 4)},
    **{f"bleu{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "meteor": "METEOR",
    **{f"entropy{n}": f"Entropy-{n}" for n in (1, 2, 3, 4)},
    "div1": "Dist-1",
    "div2": "Dist-2",
    "avg_len": "Mean words",
}


@dataclass(frozen=True)
class Figures:
    """The figures of one system.

    Attributes:
        diversity: of its hypotheses.
        nist: cumulative, of orders 1 to 4; empty without references.
        bleu: cumulative, of orders 1 to 4, as fractions; empty without references.
        meteor: as a fraction; None: not measured.
    """

    diversity: Diversity
    nist: Sequence[float] = ()
    bleu: Sequence[float] = ()
    meteor: float | None = None

    def rows(self) -> dict[str, float | None]:
        """Returns the figures by name, in the order in which they are shown."""
        tables: dict[str, Sequence[float | None]] = {
            "NIST": self.nist,
            "BLEU": self.bleu,
            "METEOR": (self.meteor,) if self.nist else (),
            "Entropy": self.diversity.entropy,
            "Dist": self.diversity.dist,
            "Mean words": (self.diversity.mean_words,),
        }
        return {
            name if len(values) == 1 else f"{name}-{order}": value
            for name, values in tables.items()
            for order, value in enumerate(values, start=1)
        }


def measure(hypotheses: Sequence[str], references: Sequence[Sequence[str]], is_case_sensitive: bool = False) -> Figures:
    """Measures hypotheses against one or more references for each; METEOR is measured by `measure_meteor`.

    Raises:
        UserError: there is no room for temporary files.
    """
    (counts,) = count_matches([hypotheses], references, is_case_sensitive)
    return Figures(measure_diversity(hypotheses), nist(counts), bleu(counts))


def measure_alone(hypotheses: Iterable[str]) -> Figures:
    """Measures hypotheses without references, in one pass and bounded memory.

    Raises:
        UserError: there is no room for temporary files.
    """
    return Figures(measure_diversity(hypotheses))


def format_table(systems: Mapping[str, Figures]) -> Iterator[str]:
    """Yields the lines of a table with a column for each system."""
    columns = {name: figures.rows() for name, figures in systems.items()}
    widths = {name: max(len(name), 8) for name in columns}
    yield "".join([" " * 10, *(f"  {name:>{width}}" for name, width in widths.items())])
    for row in next(iter(columns.values())):
        cells = (f"  {_shown(columns[name][row]):>{width}}" for name, width in widths.items())
        yield f"{row:<10}{''.join(cells)}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def as_json(figures: Figures) -> dict[str, Any]:
    """Returns the figures of a system as JSON shows them."""
    diversity = figures.diversity
    return {
        "lines": diversity.n_texts,
        "empty_lines": diversity.n_empty,
        "nist": list(figures.nist),
        "bleu": list(figures.bleu),
        "meteor": figures.meteor,
        "entropy": list(diversity.entropy),
        "dist": list(diversity.dist),
        "mean_words": diversity.mean_words,
    }


def format_report(systems: Mapping[str, Figures]) -> str:
    """Returns a table with tabs, one line for each system, with the columns of DialoGPT's report."""
    lines = [["fname", "n_lines", *REPORT_COLUMNS]]
    for name, figures in systems.items():
        values = [figures.rows().get(row) for row in REPORT_COLUMNS.values()]
        lines.append([name, str(figures.diversity.n_texts), *("" if each is None else str(each) for each in values)])
    return "".join("\t".join(line) + "\n" for line in lines)
