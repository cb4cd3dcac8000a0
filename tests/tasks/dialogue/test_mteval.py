"""NIST and BLEU against the published demonstration, the figures of NIST's script, and sacrebleu."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from tasks.dialogue.mteval import ORDERS, bleu, count_matches, nist, tokenize
from tests.tasks.dialogue import demo

# Hypotheses, references, case-sensitive or not, and what NIST's script (version 14) printed for them.
PRINTED = [
    (
        ["the the the the the the the"],
        [["the cat is on the mat"]],
        False,
        [0.4528] * 4,
        [0.2857, 0.1543, 0.106, 0.0781],
    ),
    (
        ["It's $5.00, i.e. 1,000 - or 3-4 (a/b)!"],
        [["it's $5.00 , i.e. 1,000 - or 3 -4 ( a / b ) !"]],
        False,
        [3.7231, 3.8284, 3.8284, 3.8284],
        [0.9, 0.8706, 0.8385, 0.8032],
    ),
    (["Caf\u00c9 ROYAL"], [["caf\u00e9 royal"]], False, [0.5] * 4, [0.5, 0.5, 0.63, 0.7071]),
    (["The Cat sat"], [["the cat sat down"]], True, [0.4703] * 4, [0.2388, 0.2068, 0.1972, 0.2722]),
    (
        ['a < b & c > d "e"'],
        [["a &lt; b &amp; c &gt; d &quot;e&quot;"]],
        False,
        [3.1219, 3.233, 3.233, 3.233],
        [1.0] * 4,
    ),
    (["0 1 0 2 x"], [["0 1 0 3 x", "0 2 y 0"]], False, [2.3699, 3.9549, 3.9549, 3.9549], [1.0, 0.866, 0.63, 0.5]),
    (["p q r s t"], [["a b c d e"]], False, [0.0] * 4, [0.1, 0.0791, 0.0639, 0.0534]),
    (["x"], [["x y z"]], False, [0.0098] * 4, [0.1353] * 4),
    (
        ["", "a b c d"],
        [["a b", "c"], ["a b c e", "b c d"]],
        False,
        [1.8478, 2.4341, 3.2448, 3.2448],
        [0.7788, 0.7788, 0.7788, 0.6549],
    ),
    (
        ["i see the cat", "you know it .", "what is the matter with it ?"],
        [
            ["i saw the cat", "i can see a cat there", "the cat"],
            ["you know that .", "i know it", "you do"],
            ["what is it ?", "what is the matter ?", "is the matter with you ?"],
        ],
        False,
        [4.0416, 4.6391, 4.8613, 5.028],
        [1.0, 0.8165, 0.6057, 0.5217],
    ),
]
WORDS = ["a", "b", "c", "the", ".", ",", "!", "3", "1,5", "don't", "x-y", "3-4", "$", "(", ")", "Z"]
LINES = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def test_the_demonstration_has_its_published_figures() -> None:
    (counts,) = count_matches([demo.HYPOTHESES], demo.REFERENCES)
    assert [round(value, 4) for value in nist(counts)] == demo.NIST
    assert [round(value, 4) for value in bleu(counts)] == demo.BLEU


@pytest.mark.parametrize(("hypotheses", "references", "is_case_sensitive", "of_nist", "of_bleu"), PRINTED)
def test_figures_are_those_of_the_script(
    hypotheses: list[str],
    references: list[list[str]],
    is_case_sensitive: bool,
    of_nist: list[float],
    of_bleu: list[float],
) -> None:
    (counts,) = count_matches([hypotheses], references, is_case_sensitive)
    assert nist(counts) == pytest.approx(of_nist, abs=5.1e-5)
    assert bleu(counts) == pytest.approx(of_bleu, abs=5.1e-5)


@given(st.lists(st.tuples(LINES, LINES, LINES), min_size=1, max_size=5))
def test_bleu_is_that_of_sacrebleu(texts: list[tuple[str, str, str]]) -> None:
    hypotheses, *references = map(list, zip(*texts, strict=True))
    (counts,) = count_matches([hypotheses], [list(each) for each in zip(*references, strict=True)])
    if counts.matches_IN.sum() == 0 or counts.ngrams_IN.sum(0)[-1] == 0:
        return  # where they differ
    for order in ORDERS:
        metric = BLEU(tokenize="13a", lowercase=True, max_ngram_order=order, force=True)
        assert bleu(counts)[order - 1] == pytest.approx(metric.corpus_score(hypotheses, references).score / 100)


def test_several_systems_are_counted_as_each_alone() -> None:
    systems = [demo.HYPOTHESES, demo.FIRST_REFERENCES]
    together = count_matches(systems, demo.REFERENCES)
    alone = [count_matches([system], demo.REFERENCES)[0] for system in systems]
    assert [(nist(each), bleu(each)) for each in together] == [(nist(each), bleu(each)) for each in alone]


def test_a_part_of_the_counts_is_of_those_hypotheses() -> None:
    (counts,) = count_matches([demo.HYPOTHESES], demo.REFERENCES)
    assert bleu(counts.take([2])) == [1.0] * 4
    assert bleu(counts.take([0]))[0] == pytest.approx(1 / 10)


def test_contexts_may_have_different_numbers_of_references() -> None:
    (counts,) = count_matches([["a b", "c d"]], [["a b", "a b c d"], ["c"]])
    assert counts.mean_length_I.tolist() == [3, 1]
    assert counts.closest_length_I.tolist() == [2, 1]


def test_the_shorter_of_two_references_that_are_as_close_counts() -> None:
    (counts,) = count_matches([["a b c", "a b c"]], [["a b c d", "a b"], ["a", "a b c d"]])
    assert counts.closest_length_I.tolist() == [2, 4]


def test_tokens() -> None:
    assert tokenize("Hi, it's 3.5-4!") == ["hi", ",", "it's", "3.5", "-", "4", "!"]
    assert tokenize("Hi\u00c9", is_case_sensitive=True) == ["Hi\u00c9"]
