"""Tests of data/text/cleaning.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text.cleaning import detokenize_wikitext, fix_text

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("tokenized", "text"),
    [
        ("a well @-@ known 1 @,@ 234 @.@ 5", "a well-known 1,234.5"),
        ("film , television and theatre .", "film, television and theatre."),
        ("Why ? Because ! He said : no ; never .", "Why? Because! He said: no; never."),
        ("( born 1979 ) and [ sic ]", "(born 1979) and [sic]"),
        ('He said " yes , sir . " Then " no " .', 'He said "yes, sir." Then "no".'),
        ("it 's he didn 't we 've I 'm they 're you 'll she 'd", "it's he didn't we've I'm they're you'll she'd"),
        ("the players ' union", "the players' union"),
        ("50 % of $ 5 or £ 6", "50% of $5 or £6"),
        (" = Robert Boulter = \n", "= Robert Boulter =\n"),
        (" = = Career , early = = \n", "== Career, early ==\n"),
        (" = = = 2000 – 2005 = = = \n", "=== 2000 – 2005 ===\n"),
        ("the <unk> of <unk> , a town", "the <unk> of <unk>, a town"),
    ],
)
def test_wikitext_is_joined(tokenized, text):
    assert detokenize_wikitext(tokenized) == text


@pytest.mark.parametrize(
    "text",
    [
        "Vitamin N is not Vitamin 1.",
        "assert a = = b and '= =' in c",
        "= = unequal =",
        'She said "yes", then (slowly) "no". It\'s 5% of $7; really!',
        "see .gitignore and ./run at 10:30",
        "if x == y: return f(a, b)[0]  # 1,000.5",
        "rock 'n' roll",
    ],
)
def test_ordinary_text_is_not_altered(text):
    assert detokenize_wikitext(text) == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abN1 \n", max_size=40))
def test_words_digits_and_spaces_alone_are_never_altered(text):
    assert detokenize_wikitext(text) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b1", ",", ".", "@-@", '"', "(", ")", "=", "'s", "\n"]), max_size=12))
def test_letters_and_digits_stay_in_their_order(tokens):
    text = " ".join(tokens)
    kept = [character for character in detokenize_wikitext(text) if character.isalnum()]
    assert kept == [character for character in text if character.isalnum()]


def test_mis_decoded_text_is_repaired():
    assert fix_text("schÃ¶n ﬁne") == "schön fine"


def test_without_ftfy_the_error_says_what_to_do():
    script = (
        "import sys; sys.modules['ftfy'] = None\n"
        "from configs.errors import DataError\n"
        "from data.text.cleaning import fix_text\n"
        "try:\n    fix_text('a')\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "ftfy is not installed; run `pip install ftfy`, or leave out --ftfy\n"
