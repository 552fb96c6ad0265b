"""Pages whose text lies elsewhere in the repository, such as CONTRIBUTING.md, appear in the site.

Each is copied to ``docs/_outside`` before the sources are read, with its links set right, and
links of other pages to it lead to the copy. A text that does not exist has no page, and a pattern
such as ``report*`` in a table of contents need not match any.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
COPIES = DOCS / "_outside"
PAGES = {
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "benchmarks.md": ROOT / "benchmarks" / "README.md",
    "bundle.md": ROOT / "bundles" / "pancreas_stipple" / "docs" / "README.md",
    "examples.md": ROOT / "examples" / "README.md",
}
PATTERN = re.compile(r"^(\w\S*\*)\n", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")


def with_links(text: str, *, source: Path, page: Path) -> str:
    """The text of the file ``source``, with relative links as ``page`` needs them."""

    def moved(link: re.Match[str]) -> str:
        target = (source.parent / link[1]).resolve()
        if target.is_dir():
            target = target / "README.md"
        for name, original in PAGES.items():
            if target == original:
                target = COPIES / name
        return os.path.relpath(target, page.parent)

    return LINK.sub(moved, text)


def copy_pages(_: Sphinx) -> None:
    """Write the copies that are not there or not as they should be, and remove others."""
    COPIES.mkdir(exist_ok=True)
    for name, source in PAGES.items():
        page = COPIES / name
        if not source.is_file():
            page.unlink(missing_ok=True)
            continue
        text = with_links(source.read_text(encoding="utf-8"), source=source, page=page)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def set_links(app: Sphinx, name: str, content: list[str]) -> None:
    """Let the links of the site's own pages lead to the copies."""
    page = Path(app.env.doc2path(name))
    if page.parent != COPIES:
        text = with_links(content[0], source=page, page=page)
        content[0] = PATTERN.sub(lambda line: line[0] if any(DOCS.glob(line[1])) else "", text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Copy before the build, set links while it reads."""
    app.connect("builder-inited", copy_pages)
    app.connect("source-read", set_links)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
