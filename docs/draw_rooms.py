"""Draws docs/assets/rooms.svg, the packages of the code and what they import: `python docs/draw_rooms.py`.

Layers come from the layers contracts in pyproject.toml, arrows from the imports themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "rooms.svg"
JOBS = {
    "main.py": "command line",
    "run_experiment.py": "recorded, supervised runs",
    "commands": "one file a command",
    "serving": "OpenAI's API over HTTP",
    "inputs.py": "batches of a run",
    "runtime": "execution",
    "tasks": "published evaluations",
    "tracking": "experiments, without TensorFlow",
    "data": "text to token ids",
    "models": "token ids to tensors",
    "storage": "files, locks, buckets",
    "configs": "typed settings",
    "meshtf.py": "the one door to TensorFlow",
}
TOP = [["main.py", "run_experiment.py"]]
BESIDE = {"runtime": ["inputs.py"], "configs": ["meshtf.py"]}  # modules at the root, in the layer of a package
WIDTH, PADDING, GAP, LINE = 1000, 14, 46, 17
FLOOR = (
    '<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="middle" fill="{fill}">{text}</text>'
)
BOX = '<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="#b8c4cf"/>'
ARROW = (
    '<path d="M{x1} {y1} C{x1} {middle} {x2} {middle} {x2} {y2}" fill="none" stroke="#2f6f9f" marker-end="url(#head)"/>'
)


def contracts() -> dict[str, list[list[str]]]:
    """Returns the layers of each container of packages by its name, the top-level ones under ""."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = {}
    for block in text.split("[[tool.importlinter.contracts]]")[1:]:
        if layers := re.search(r"^layers = (\[.*?\])", block, re.MULTILINE | re.DOTALL):
            containers = re.search(r"^containers = (\[.*?\])", block, re.MULTILINE)
            for name in ast.literal_eval(containers[1]) if containers else [""]:
                found[name] = [re.findall(r"[\w.]+", layer) for layer in ast.literal_eval(layers[1])]
    return found


def floors(layers: list[list[str]]) -> list[list[str]]:
    """Returns the packages from the top layer down, with the modules at the root."""
    return TOP + [[*(name for room in layer for name in BESIDE.get(room, [])), *layer] for layer in layers]


def imports(room: str) -> Iterator[str]:
    """Yields the top-level packages that a package's modules import."""
    paths = [ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py")
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in (full.split(".")[0] for full in names):
                found = name if name in JOBS else f"{name}.py"
                if found in JOBS and found != room:
                    yield found


def room_lines(room: str, inside: list[list[str]]) -> list[str]:
    """Returns the text of a package: its name, its job, and its sub-packages, a line for each of their layers."""
    return [room, JOBS[room], *(" · ".join(layer) for layer in inside)]


def draw() -> str:
    """Returns the picture as SVG."""
    layers = contracts()
    boxes: dict[str, tuple[float, float, float, float]] = {}
    shapes: list[str] = []
    top = PADDING
    for floor in floors(layers[""]):
        texts = {room: room_lines(room, layers.get(room, [])) for room in floor}
        height = LINE * max(map(len, texts.values())) + PADDING
        share = (WIDTH - PADDING * (len(floor) + 1)) / len(floor)
        for index, room in enumerate(floor):
            left = PADDING + index * (share + PADDING)
            boxes[room] = (left, top, share, height)
            shapes.append(BOX.format(x=round(left), y=top, width=round(share), height=height, fill="#f2f5f8"))
            shapes += text_lines(texts[room], left + share / 2, top)
        top += height + GAP
    return "\n".join([*header(top - GAP + PADDING), *arrows(boxes), *shapes, "</svg>", ""])


def text_lines(lines: list[str], middle: float, top: float) -> Iterator[str]:
    """Yields the lines of a package, the first one bold."""
    for number, line in enumerate(lines):
        weight, fill = ("bold", "#1f2933") if number == 0 else ("normal", "#52606d" if number == 1 else "#2f6f9f")
        y = top + LINE * (number + 1)
        yield FLOOR.format(x=round(middle), y=y, size=15 if number == 0 else 12, weight=weight, fill=fill, text=line)


def header(height: float) -> list[str]:
    """Returns the beginning of the file: its size, the background, the head of an arrow."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        'role="img" aria-label="The packages of the code, and what they import">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#2f6f9f"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]


def direct_imports() -> dict[str, list[str]]:
    """Returns what each package imports, without what it reaches through another one, and without what all import."""
    used = {room: set(imports(room)) - {"configs", "meshtf.py"} for room in JOBS}

    def reached(room: str) -> set[str]:
        return used[room].union(*(reached(target) for target in used[room]))

    return {room: sorted(used[room] - set().union(*map(reached, used[room]))) for room in JOBS}


def arrows(boxes: dict[str, tuple[float, float, float, float]]) -> Iterator[str]:
    """Yields an arrow from each package to each that it imports directly."""
    used = direct_imports()
    sources = {room: sorted((r for r in boxes if room in used[r]), key=lambda r: boxes[r][0]) for room in boxes}
    for room in boxes:
        left, top, width, height = boxes[room]
        for number, target in enumerate(sorted(used[room], key=lambda target: boxes[target][0]), start=1):
            target_left, target_top, target_width, _ = boxes[target]
            if target_top == top:
                y = top + height / 2
                yield ARROW.format(x1=left, y1=y, x2=target_left + target_width + 2, y2=y, middle=y)
                continue
            x1 = round(left + width * number / (len(used[room]) + 1))
            share = (sources[target].index(room) + 1) / (len(sources[target]) + 1)
            x2 = round(target_left + target_width * share)
            y1, y2 = top + height, target_top - 2
            yield ARROW.format(x1=x1, y1=y1, x2=x2, y2=y2, middle=(y1 + y2) / 2)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8", newline="\n")
