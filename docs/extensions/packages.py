"""Drawings of the packages, made when the pages are built from the code as it is.

``{packages}`` draws the layers of import-linter's contract in `pyproject.toml`, top first, with
what each is for, and at the left an arc from each package to those that it imports. An arc that
others add up to is left out.

``{way}`` draws what a scan passes through: a line ``package: what happens`` each, from left to
right. A package that does not exist is a fault.
"""

from __future__ import annotations

import ast
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "stipple_monai"
ROW, NAME_AT, TEXT_AT, WIDTH = 30, 170, 330, 1000
COLUMN, CHARACTERS = 195, 22
# of the theme, light and dark
LINE, FILL, TEXT = (f"var(--pst-color-{name})" for name in ("primary", "surface", "text-base"))


def layers() -> list[list[str]]:
    """The contract's layers, top first; packages of one layer do not import each other."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in found]


def purpose(package: str) -> str:
    """The first sentence of a package's docstring."""
    path = SOURCE / package / "__init__.py"
    path = path if path.is_file() else SOURCE / f"{package}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("`", "").rstrip(".")


def imports(names: list[str]) -> dict[str, set[str]]:
    """Which packages each imports."""
    found: dict[str, set[str]] = {}
    for name in names:
        folder = SOURCE / name
        files = folder.rglob("*.py") if folder.is_dir() else [SOURCE / f"{name}.py"]
        text = "\n".join(path.read_text(encoding="utf-8") for path in files)
        found[name] = set(re.findall(r"^from stipple_monai\.(\w+)", text, re.MULTILINE)) - {name}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph, which has no circle, without arrows that a way over others replaces."""
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in below:
            below[name] = graph[name].union(*map(reach, graph[name]))
        return below[name]

    return {
        name: {other for other in direct if not any(other in reach(o) for o in direct)}
        for name, direct in graph.items()
    }


def box(x: float, y: float, width: float, height: float) -> str:
    """A rounded rectangle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" '
        f'fill="{FILL}" stroke="{LINE}"/>'
    )


def words(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    """A line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{TEXT}"{weight}>{escape(text)}</text>'
    )


def picture(parts: list[str], *, width: float, height: float, title: str) -> str:
    """SVG that is part of the page, so that it takes the theme's colours."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'style="width: 100%; max-width: {width}px; margin: 0.5rem 0 1.2rem" '
        'font-family="sans-serif" font-size="13">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>'
        f"{''.join(parts)}</svg>"
    )


def drawn_packages() -> str:
    """The layers, what they are for, and who imports whom."""
    order = [name for layer in layers() for name in layer]
    middle = {name: (number + 0.5) * ROW for number, name in enumerate(order)}
    parts = []
    for name, y in middle.items():
        parts.append(box(NAME_AT, y - 11, 140, 22))
        parts.append(words(NAME_AT + 70, y + 4, name, anchor="middle", bold=True))
        parts.append(words(TEXT_AT, y + 4, purpose(name)))
    for name, others in reduced(imports(order)).items():
        for other in sorted(others, key=order.index):
            start, end = middle[name] + 3, middle[other] - 3
            out = NAME_AT - min(NAME_AT - 6, 18 + (end - start) * 0.42)
            parts.append(
                f'<path d="M{NAME_AT} {start}C{out} {start} {out} {end} {NAME_AT - 1} {end}" '
                f'fill="none" stroke="{LINE}" stroke-opacity="0.6" marker-end="url(#tip)"/>'
            )
    title = "The packages, top first, each with arrows to those that it imports"
    return picture(parts, width=WIDTH, height=len(order) * ROW, title=title)


def lines_of(text: str) -> list[str]:
    """Words in lines that fit into a column."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= CHARACTERS else [*lines, word]
    return lines


def drawn_way(steps: list[tuple[str, str]], *, across: int = 5) -> str:
    """Boxes in reading order, each with an arrow to the next."""
    texts = [lines_of(text) for _, text in steps]
    tall = 36 + 17 * max(map(len, texts))
    parts = []
    for number, ((package, _), lines) in enumerate(zip(steps, texts, strict=True)):
        row, column = divmod(number, across)
        x, y = column * COLUMN + 8, row * (tall + 24) + 8
        parts.append(box(x, y, COLUMN - 26, tall))
        parts.append(words(x + 10, y + 20, package, bold=True))
        parts += [words(x + 10, y + 40 + 17 * i, line) for i, line in enumerate(lines)]
        if number + 1 < len(steps) and column + 1 < across:
            right, level = x + COLUMN - 26, y + tall / 2
            end = f"H{right + 25}"
        elif number + 1 < len(steps):
            right, level = x + (COLUMN - 26) / 2, y + tall
            end = f"v12H{8 + (COLUMN - 26) / 2}v11"
        else:
            continue
        parts.append(
            f'<path d="M{right} {level}{end}" fill="none" stroke="{LINE}" marker-end="url(#tip)"/>'
        )
    rows = -(-len(steps) // across)
    title = " → ".join(f"{package}: {text}" for package, text in steps)
    width, height = min(across, len(steps)) * COLUMN, rows * (tall + 24)
    return picture(parts, width=width, height=height, title=title)


class Packages(SphinxDirective):
    """The drawing of the packages."""

    def run(self) -> list[nodes.Node]:
        """Draw."""
        return [nodes.raw("", drawn_packages(), format="html")]


class Way(SphinxDirective):
    """The drawing of a way through them."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw."""
        parted = (line.partition(":") for line in self.content if line.strip())
        steps = [(package.strip(), text.strip()) for package, _, text in parted]
        known = {name for layer in layers() for name in layer}
        for package, _ in steps:
            if package not in known:
                place = (self.env.docname, self.lineno)
                logging.getLogger(__name__).warning("no package %s", package, location=place)
        return [nodes.raw("", drawn_way(steps), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("packages", Packages)
    app.add_directive("way", Way)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
