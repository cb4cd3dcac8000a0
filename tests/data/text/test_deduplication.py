"""Tests of data/text/deduplication.py."""

from __future__ import annotations

import random

import pytest

from data.text.deduplication import SeenDigests, digest_fraction
from data.text.documents import fingerprint


def test_a_digest_is_new_until_it_is_added():
    draw = random.Random(1)
    texts = [str(draw.randrange(3000)) for _ in range(5000)]
    seen, known = SeenDigests(), set()
    for text in texts:
        assert seen.add(fingerprint(text)) == (text not in known)
        known.add(text)


def test_a_digest_found_across_two_others_is_new():
    seen = SeenDigests()
    end = b"\1\2"  # all in one bucket
    assert seen.add(b"aaaaaaabbbbbbb" + end)
    assert seen.add(b"cccccccddddddd" + end)
    assert seen.add(b"bbbbbbbccccccc" + end)
    assert not seen.add(b"bbbbbbbccccccc" + end)
    assert seen.add(b"bbbbbbbccccccc" + b"\1\3")


def test_fractions_are_even():
    shares = [digest_fraction(fingerprint(str(n))) for n in range(4000)]
    assert all(0 <= share < 1 for share in shares)
    assert sum(share < 0.25 for share in shares) / 4000 == pytest.approx(0.25, abs=0.03)
