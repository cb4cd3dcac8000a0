"""METEOR by its own program, where Java is there, and what is said where something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from configs.errors import UserError
from tasks.dialogue import meteor
from tasks.dialogue.meteor import MeteorMissing, find_jar, measure_meteor
from tests.tasks.dialogue import demo

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.mark.slow
@needs_java
def test_the_demonstration_has_its_published_figure() -> None:
    found = measure_meteor(find_jar(None), demo.HYPOTHESES, demo.REFERENCES)
    assert round(found.score, 4) == demo.METEOR
    assert [found.scores[0], found.scores[2]] == [0.0, 1.0]


@pytest.mark.slow
@needs_java
def test_it_splits_punctuation_if_asked() -> None:
    assert round(measure_meteor(find_jar(None), demo.HYPOTHESES, demo.REFERENCES, True).score, 4) == 0.2714


@pytest.mark.slow
@needs_java
def test_empty_texts_and_different_numbers_of_references() -> None:
    found = measure_meteor(find_jar(None), ["i love it", "", "a\rb"], [["no", "i love it", ""], ["b"], ["a b", "c"]])
    assert found.scores == [1.0, 0.0, 1.0]


@needs_java
def test_a_program_that_fails_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.jar").write_text("no archive")
    with pytest.raises(MeteorMissing, match=r"METEOR is left out: java -jar .*broken.jar ended with status 1: Error"):
        measure_meteor(find_jar(str(tmp_path / "broken.jar")), ["a"], [["a"]])


def test_a_path_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="--meteor_jar nowhere.jar: is not a file; give the path of meteor-1.5.jar"):
        find_jar("nowhere.jar")


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeteorMissing, match="METEOR is left out: no meteor-1.5.jar here; pip install pycocoevalcap"):
        find_jar(None)


def test_without_java_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "any.jar").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeteorMissing, match="METEOR is left out: there is no program java; install Java"):
        find_jar(str(tmp_path / "any.jar"))
