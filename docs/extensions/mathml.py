"""Equations as MathML, made when the pages are built: browsers need no script and no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def inline(self: Any, node: nodes.math) -> None:
    """Write an equation within a line."""
    self.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def display(self: Any, node: nodes.math_block) -> None:
    """Write an equation on a line of its own, as wide as it is: a narrow screen scrolls it."""
    identifier = f' id="{node["ids"][0]}"' if node["ids"] else ""
    equation = convert(node.astext(), display="block")
    self.body.append(f'<div class="equation"{identifier}>{equation}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
