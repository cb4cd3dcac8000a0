"""Cleaning the text of documents, if a flag asks for it."""

from __future__ import annotations

import re

from configs.errors import DataError


def fix_text(text: str) -> str:
    """Repairs mis-decoded text and normalises it to NFKC.

    Raises:
        DataError: ftfy is not installed.
    """
    try:
        import ftfy  # an optional dependency
    except ImportError:
        raise DataError("ftfy is not installed; run `pip install ftfy`, or leave out --ftfy") from None
    return ftfy.fix_text(text, normalization="NFKC")


_HEADING = re.compile(r"^[ ]?((?:= )+)(\S.*?\S|\S)((?: =)+)[ ]?$", re.MULTILINE)

_JOINS = (
    (re.compile(r"(?<=\S) @([-,.])@ (?=\S)"), r"\1"),  # 1 @,@ 000   well @-@ known
    (re.compile(r'(?<!\S)" ([^"\n]*[^"\s]) "(?!\w)'), r'"\1"'),  # " quoted "
    (re.compile(r"([(\[]) (?=\S)"), r"\1"),
    (re.compile(r"(?<=\S) ([)\]])"), r"\1"),
    (re.compile(r"(?<=\S) ([,.;:!?]+)(?=[\s\"')\]]|$)"), r"\1"),
    (re.compile(r"(?<=\w) ('(?:s|t|re|ve|ll|d|m))\b"), r"\1"),  # it 's   didn 't
    (re.compile(r"(?<=s) '(?= \w)"), "'"),  # the players ' union
    (re.compile(r"(?<=\d) %"), "%"),
    (re.compile(r"([$£€]) (?=\d)"), r"\1"),
)


def detokenize_wikitext(text: str) -> str:
    """Undoes WikiText's tokenization of hyphens, numbers, punctuation, brackets, quotes and headings.

    Words, digits, line breaks and `<unk>` stay. Text without spaces before its punctuation does not change.

    Source: the conventions of the WikiText datasets (Merity et al. 2016, "Pointer Sentinel Mixture Models", s. 4).
    """
    text = _HEADING.sub(_join_heading, text)
    for pattern, replacement in _JOINS:
        text = pattern.sub(replacement, text)
    return text


def _join_heading(match: re.Match[str]) -> str:
    opening, title, closing = match[1].replace(" ", ""), match[2], match[3].replace(" ", "")
    if opening != closing:
        return match[0]
    return f"{opening} {title} {closing}"
