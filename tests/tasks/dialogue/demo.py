"""The demonstration that is published with DSTC-7's script, and its figures."""

from __future__ import annotations

from pathlib import Path

HYPOTHESES = ["i do n't know .", "he is a rocket scientist .", "i love it !"]
FIRST_REFERENCES = ["ok that 's fine", "he is a trader", "i love it !"]
SECOND_REFERENCES = ["well it 's ok", "he is an engineer", "i 'm not a fan"]
REFERENCES = [list(texts) for texts in zip(FIRST_REFERENCES, SECOND_REFERENCES, strict=True)]
NIST = [1.8338, 2.0838, 2.1949, 2.1949]
BLEU = [0.4667, 0.441, 0.4017, 0.3224]
METEOR = 0.2832
ENTROPY = [2.5232, 2.4849, 2.1972, 1.7918]
DIST = [0.8667, 1.0]
MEAN_WORDS = 5.0


def write(folder: Path, **files: list[str]) -> list[str]:
    """Writes files of lines; returns their paths."""
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [str(folder / f"{name}.txt") for name in files]


def write_demo(folder: Path) -> list[str]:
    return write(folder, hyp=HYPOTHESES, ref0=FIRST_REFERENCES, ref1=SECOND_REFERENCES)
