"""What rankers are given, and how candidates are ordered by their scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.dialogue.conversation import TurnRules, alternating, to_text
from data.dialogue.encoding import DialogueEncoder
from data.dialogue.pairs import ranked_ids
from runtime.generation.outputs import GeneratedText
from runtime.generation.reranking import (
    Candidate,
    MutualInformation,
    RankerEnsemble,
    Scores,
    backward_continuations,
    format_candidates,
    forward_continuations,
    rank,
    turns_of,
)
from runtime.generation.scoring import Continuations, TokenScores
from tests.data.dialogue.test_templates import PLAIN

EOS = 0


@dataclasses.dataclass(frozen=True)
class CountingScorer:
    """Gives each token of a continuation -(its id) times the length of the context."""

    n_ctx: int = 20
    eos_id: int = EOS

    def score(self, asked: list[Continuations]) -> list[list[TokenScores]]:
        return [[self._scores(each.context, choice) for choice in each.choices] for each in asked]

    def _scores(self, context: list[int], choice: list[int]) -> TokenScores:
        return TokenScores(-np.array(choice, float) * len(context), np.zeros(len(choice), bool))


def text(of: str) -> GeneratedText:
    return GeneratedText(of, (), (), "stop")


def test_turns_are_what_the_end_of_text_parts() -> None:
    assert turns_of([5, 6, EOS, 7, EOS], EOS) == [[5, 6], [7]]
    assert turns_of([EOS, EOS, 5, EOS, 6], EOS) == [[5], [6]]
    assert turns_of([EOS], EOS) == turns_of([], EOS) == []


def test_a_backward_model_is_given_what_it_was_trained_on() -> None:
    tokenizer = PLAIN
    turns = ["hello there", "how are you", "hello"]
    response = "fine thanks"
    encoder = DialogueEncoder(tokenizer, tokenizer.eos_id, 64, rules=TurnRules(reverse=True))
    record = encoder([to_text(alternating([*turns, response]))]).ids
    (asked,) = backward_continuations(
        [tokenizer.encode(turn) for turn in turns], [tokenizer.encode(response)], tokenizer.eos_id, 64
    )
    context, (source,) = asked.context, asked.choices
    assert [*context, *source] == record["id"].tolist()
    assert record["weight"].tolist() == [0.0] * len(context) + [1.0] * len(source)


def test_the_earliest_turns_are_left_out_where_they_do_not_fit() -> None:
    turns, responses = [[1, 1, 1], [2, 2], [3, 3]], [[9], [8, 8, 8]]
    assert backward_continuations(turns, responses, EOS, 10) == [
        Continuations([9, EOS], [[3, 3, EOS, 2, 2, EOS]]),
        Continuations([8, 8, 8, EOS], [[3, 3, EOS, 2, 2, EOS]]),
    ]
    assert backward_continuations([[3] * 30], [[9]], EOS, 10) == [Continuations([9, EOS], [[3] * 9])]
    assert backward_continuations([[3, 3]], [[9] * 30], EOS, 10) == [Continuations([9] * 30 + [EOS], [[3, 3, EOS]])]


def test_forward_contexts_are_the_turns_in_order() -> None:
    asked = forward_continuations([[1, 2], [3]], [[4], [5]], EOS, 10)
    assert asked == [Continuations([1, 2, EOS, 3, EOS], [[4, EOS], [5, EOS]])]
    assert forward_continuations([[1]], [[4] * 12], EOS, 10) == [Continuations([1, EOS], [[4] * 10])]
    assert forward_continuations([], [[4]], EOS, 10) == [Continuations([EOS], [[4, EOS]])]


def test_mutual_information_adds_the_weighted_forward_score() -> None:
    scorer = CountingScorer()
    plain = MutualInformation(scorer, None, 0.0, normalize=False).scores([[1, 2]], [[5], [6, 7]])
    assert plain == [Scores(-6.0, {"backward": -6.0}), Scores(-9.0, {"backward": -9.0})]
    both = MutualInformation(scorer, scorer, 0.5, normalize=True).scores([[1, 2]], [[5], [6, 7]])
    assert [each.parts for each in both] == [{"backward": -2.0, "forward": -7.5}, {"backward": -3.0, "forward": -13.0}]
    assert [each.score for each in both] == [-2.0 - 0.5 * 7.5, -3.0 - 0.5 * 13.0]


def test_a_ranker_reads_the_response_without_its_end() -> None:
    assert ranked_ids([[1, 2], [3]], [4, 5], EOS, 10) == [1, 2, EOS, 3, EOS, 4, 5]
    assert ranked_ids([[1, 2], [3]], [4, 5], EOS, 4) == [3, EOS, 4, 5]


@dataclasses.dataclass(frozen=True)
class FixedScorer:
    """Gives the responses these scores, which are logits."""

    logits: tuple[float, ...]

    def scores(self, turns: list, responses: list) -> list[float]:
        return list(self.logits)


def test_the_ensemble_is_that_of_dialogrpt() -> None:
    logits = {"updown": 0.3, "depth": -1.2, "width": 2.0, "human_vs_rand": 0.5, "human_vs_machine": -40.0}
    rankers = {name: FixedScorer((logit,)) for name, logit in logits.items()}
    p = {name: 1 / (1 + np.exp(-logit)) for name, logit in logits.items()}
    prior = (p["human_vs_rand"] + p["human_vs_machine"]) / 2
    feedback = 1.0 * p["updown"] + 0.48 * p["depth"] - 0.5 * p["width"]

    def score(*names: str) -> float:
        (scores,) = RankerEnsemble({name: rankers[name] for name in names}).scores([[1]], [[2]])
        assert scores.parts == pytest.approx({name: p[name] for name in names})
        return scores.score

    assert score(*rankers) == pytest.approx(prior * feedback)
    assert score("human_vs_rand", "updown") == pytest.approx(p["human_vs_rand"] * p["updown"])
    assert score("human_vs_rand", "human_vs_machine") == pytest.approx(prior)
    assert score("depth", "width") == pytest.approx(0.48 * p["depth"] - 0.5 * p["width"])
    assert score("width") == pytest.approx(p["width"])  # alone, a higher score is better
    two = RankerEnsemble({"mine": FixedScorer((1.0, -1.0))}).scores([[1]], [[2], [3]])
    assert [each.score for each in two] == pytest.approx([0.73105858, 0.26894142])


def test_the_best_comes_first_and_what_says_nothing_last() -> None:
    candidates = [text("a"), text(" "), text("b"), text("c")]
    scores = [Scores(-3.0, {}), Scores(0.0, {}), Scores(-1.0, {"x": -1.0}), Scores(-2.0, {})]
    ranked = rank(candidates, scores)
    assert [each.generated.text for each in ranked] == ["b", "c", "a", " "]
    assert ranked[0] == Candidate(candidates[2], scores[2])
    assert format_candidates(ranked[:1]) == '   -1.0000  (x -1.0000)  "b"'
