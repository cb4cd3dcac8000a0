"""Entropy, Dist and length against a plain count, and within bounded memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from tasks.dialogue import diversity
from tasks.dialogue.diversity import measure_diversity
from tests.tasks.dialogue import demo

REPOSITORY = Path(__file__).resolve().parents[3]
MEASURE_LINES = """
import random, re, sys
from tasks.dialogue.diversity import measure_diversity
draw = random.Random(0)
WORDS = [f"word{number}" for number in range(50_000)]
lines = (" ".join(draw.choices(WORDS, k=12)) for _ in range(int(sys.argv[1])))
found = measure_diversity(lines)
assert found.n_texts == int(sys.argv[1]) and found.mean_words == 12
# Not `getrusage`, whose peak begins with that of the process that started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], found.entropy[0])
"""


def counted(texts: list[str]) -> tuple[list[float], list[float | None]]:
    """Entropy and Dist by counting tuples of words."""
    entropy, dist = [], []
    for n in (1, 2, 3, 4):
        counts = Counter(tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1))
        total = sum(counts.values())
        entropy.append(-sum(count / total * math.log(count / total) for count in counts.values()))
        dist.append(len(counts) / total if total else None)
    return entropy, dist[:2]


def test_the_demonstration_has_its_published_figures() -> None:
    found = measure_diversity(demo.HYPOTHESES)
    assert [round(value, 4) for value in found.entropy] == demo.ENTROPY
    assert [round(value, 4) for value in found.dist if value is not None] == demo.DIST
    assert found.mean_words == demo.MEAN_WORDS


def test_the_constant_baseline_has_its_published_figures() -> None:
    found = measure_diversity(["i do n't know what you mean ."] * 2208)
    assert [round(value, 4) for value in found.entropy] == [2.0794, 1.9459, 1.7918, 1.6094]
    assert found.entropy == pytest.approx([math.log(n) for n in (8, 7, 6, 5)])
    assert found.dist == (8 / 17664, 7 / 15456)
    assert (found.n_texts, found.mean_words) == (2208, 8)


@pytest.mark.parametrize("buffered", [1 << 19, 5])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(["a", "b", "c", "dd", "é", "."]), max_size=7).map(" ".join), max_size=9))
def test_figures_are_those_of_a_plain_count(monkeypatch: pytest.MonkeyPatch, buffered: int, texts: list[str]) -> None:
    monkeypatch.setattr(diversity, "BUFFERED_NGRAMS", buffered)
    monkeypatch.setattr(diversity, "PARTITION_BITS", 2)
    monkeypatch.setattr(diversity, "PARTITIONS", 4)
    monkeypatch.setattr(diversity, "BLOCK_WORDS", 4 if buffered == 5 else 1 << 17)
    monkeypatch.setattr(diversity, "REMEMBERED_WORDS", 2)
    found, (entropy, dist) = measure_diversity(texts), counted(texts)
    assert found.entropy == pytest.approx(entropy, abs=1e-12)
    assert list(found.dist) == dist
    assert found.n_empty == sum(not text for text in texts)


def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "BUFFERED_NGRAMS", 1)
    monkeypatch.setattr(diversity.NgramCounter, "_path", lambda self, part: "/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left on device; make room there"):
        measure_diversity(["a b c d"] * 9)


@pytest.mark.slow
def test_a_million_texts_need_no_more_memory_than_a_few() -> None:
    peaks = {}
    for n_texts in (100_000, 1_000_000):
        command = [sys.executable, "-c", MEASURE_LINES, str(n_texts)]
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        peak_kib, entropy = run.stdout.split()
        peaks[n_texts] = int(peak_kib) / 1024
        assert math.log(50_000) - 0.05 < float(entropy) <= math.log(50_000)
    assert peaks[1_000_000] < 160
    assert peaks[1_000_000] < 1.5 * peaks[100_000]
