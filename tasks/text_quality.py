"""How repetitive and how varied generated texts are: a model that degenerates repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.dialogue.diversity import DIST_ORDERS, measure_diversity

REPEATED_ORDER = 4  # tokens


def measure_texts(texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> dict[str, float]:
    """Measures texts that were generated at one step.

    Args:
        texts: without their prompts.
        tokens: the ids of each.

    Returns:
        `repetition_4`, the mean share of the 4-grams of tokens that the same text has held before, texts without any
        left out (seq-rep-4 of Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, section 6), and
        `distinct_1` and `distinct_2`, the share of different words and pairs of words in all texts together (Li et al.
        2016, A Diversity-Promoting Objective Function). What no text is long enough for is left out.

    Raises:
        UserError: there is no room for temporary files.
    """
    repetitions = [share for ids in tokens if (share := repeated_share(ids)) is not None]
    measured = {f"repetition_{REPEATED_ORDER}": sum(repetitions) / len(repetitions)} if repetitions else {}
    dist = zip(DIST_ORDERS, measure_diversity(texts).dist, strict=True)
    return measured | {f"distinct_{order}": share for order, share in dist if share is not None}


def repeated_share(ids: Sequence[int]) -> float | None:
    """Returns the share of the 4-grams of a text that occur in it before; None if it is shorter than one."""
    ngrams = [tuple(ids[start : start + REPEATED_ORDER]) for start in range(len(ids) - REPEATED_ORDER + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None
