"""METEOR by its authors' own program: Denkowski and Lavie, "Meteor Universal" (2014)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import UserError
from storage.files import writing_to

SEGMENT = re.compile(r"^Segment \d+ score:\s+(\S+)", re.MULTILINE)
FINAL = re.compile(r"^Final score:\s+(\S+)", re.MULTILINE)
REMEDY = "pip install pycocoevalcap==1.2, which brings it, or give --meteor_jar"
IN_PACKAGE = os.path.join("meteor", "meteor-1.5.jar")


@dataclass(frozen=True)
class Meteor:
    """The figures of METEOR.

    Attributes:
        score: of all hypotheses.
        scores: of each hypothesis.
    """

    score: float
    scores: list[float]


class MeteorMissing(UserError):
    """METEOR cannot be measured here; the message says why in one line."""


def find_jar(path: str | None) -> str:
    """Returns the path of METEOR's program: the one given, or that of the package pycocoevalcap.

    Raises:
        MeteorMissing: it is not given and not installed, or Java is not.
        UserError: the file that is given is not there.
    """
    if path is not None and not os.path.isfile(path):
        raise UserError(f"--meteor_jar {path}: is not a file; give the path of meteor-1.5.jar")
    jars = [path] if path else [os.path.join(each, IN_PACKAGE) for each in _folders("pycocoevalcap")]
    if not jars or not os.path.isfile(jars[0]):
        raise MeteorMissing(f"METEOR is left out: no meteor-1.5.jar here; {REMEDY}")
    if shutil.which("java") is None:
        raise MeteorMissing("METEOR is left out: there is no program java; install Java 8 or later")
    return jars[0]


def _folders(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or []) if spec else []


def measure_meteor(
    jar: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]], is_normalized: bool = False
) -> Meteor:
    """Measures hypotheses, one or more references for each, with METEOR's settings for English.

    Args:
        jar: path of METEOR's program.
        hypotheses: one for each context.
        references: one or more for each context; the best one of them counts.
        is_normalized: the program splits punctuation itself, its flag `-norm`.

    Raises:
        MeteorMissing: the program fails.
        UserError: there is no room for temporary files.
    """
    n_refs = max(map(len, references))
    filled = [text for texts in references for text in [*texts, *[""] * (n_refs - len(texts))]]  # an empty one is worst
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("hypotheses", "references")]
        for path, texts in zip(paths, (hypotheses, filled), strict=True):
            with writing_to(folder), open(path, "w", encoding="utf-8") as file:
                file.writelines(f"{' '.join(text.split())}\n" for text in texts)
        command = ["java", "-Xmx2g", "-jar", jar, *paths, "-r", str(n_refs), "-l", "en", *["-norm"] * is_normalized]
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    score, scores = FINAL.search(run.stdout), SEGMENT.findall(run.stdout)
    if score is None or len(scores) != len(hypotheses):
        reason = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[0]
        raise MeteorMissing(f"METEOR is left out: java -jar {jar} ended with status {run.returncode}: {reason}")
    return Meteor(float(score[1]), [float(each) for each in scores])
