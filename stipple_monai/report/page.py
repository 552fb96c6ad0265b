"""One HTML page that needs nothing beside it, and the same as Markdown.

A page is sections of blocks: paragraphs, lists, tables that sort, pictures, and viewers, in which
volumes are scrolled through. Everything that is written into it is text, whatever it holds: Jinja
escapes it, and the page's own policy lets no script run but the one of the template and nothing be
loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stipple_monai.files import write_text

NUMBER = re.compile(r"[<>≈+−-]?\s*\d[\d,]*(\.\d+)?(e[+−-]?\d+)?(?=$|[\s%(×])", re.IGNORECASE)
"""What a cell begins with that is sorted as a number, as in the page's script."""

SHORT = 24
"""Characters of a text that is not broken into lines."""


LEAST_SHARE = 0.315
"""Of the page's width, which makes a picture 360 pixels wide."""


class Text(NamedTuple):
    """A paragraph.

    ``kind``: ``"lead"`` is small and grey, ``"summary"`` is large, ``"warning"`` is for what is
    amiss.
    """

    text: str
    kind: str = ""


class Lines(NamedTuple):
    """A list; ``kind``: ``"alert"`` is for what a person must not overlook."""

    lines: Sequence[str]
    kind: str = ""


class Table(NamedTuple):
    """A table of text; columns of numbers are right-aligned, the others are left-aligned.

    A column is one of numbers, and sorted so, where all that stands in it begins with one; ``""``
    and ``–`` are missing and come last. On a phone, a table of many columns shows a card for each
    row. One that is ``folded`` is opened by a click on its title.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False

    def looks(self) -> list[str]:
        """Of each column, what the style sheet needs to know: number, text or long text."""
        looks = []
        for number in range(len(self.header)):
            cells = [row[number] for row in self.rows if row[number] not in ("", "–")]
            if cells and all(map(NUMBER.match, cells)):
                looks.append("number")
            else:
                looks.append("long" if max(map(len, cells), default=0) > SHORT else "text")
        return looks


class Picture(NamedTuple):
    """A PNG.

    Attributes:
        title: heading.
        path: of the PNG.
        caption: what is seen, and why this case.
        alt: what the picture shows, for those who cannot see it; the title where empty.
        small: two of them fit beside each other.
        wide: it has many parts beside each other: a phone pans over it instead of shrinking it.
    """

    title: str
    path: Path
    caption: str
    alt: str = ""
    small: bool = False
    wide: bool = False


class Slice(NamedTuple):
    """A slice of a viewer: where it is, its picture, and pictures to lay over it, as data URIs."""

    where: str
    image: str
    layers: Mapping[str, str]


class Mark(NamedTuple):
    """A point in a plane of a viewer.

    Attributes:
        slice: which of the kept slices it lies on.
        left: from the picture's left, %.
        top: from its top, %.
        colour: of the cross.
        text: what lies there.
    """

    slice: int
    left: float
    top: float
    colour: str
    text: str


@dataclass(frozen=True)
class PlaneView:
    """One plane of a viewer.

    Attributes:
        plane: axial, coronal or sagittal.
        width_mm: of the picture.
        height_mm: of the picture.
        sides: what lies left, right, at the top and at the bottom.
        slices: from inferior, posterior or left on.
        keys: the slices that matter, by what is seen there; the first is shown first.
        marks: positions.
    """

    plane: str
    width_mm: float
    height_mm: float
    sides: str
    slices: Sequence[Slice]
    keys: Mapping[str, int]
    marks: Sequence[Mark] = ()

    @property
    def scrolls(self) -> bool:
        """Whether there are more slices than those that matter."""
        return len(self.slices) > len(set(self.keys.values()))

    @property
    def start(self) -> int:
        """The slice that is shown first."""
        return next(iter(self.keys.values()), len(self.slices) // 2)


@dataclass(frozen=True)
class Viewer:
    """A volume on three planes, with layers that can be hidden.

    Attributes:
        title: heading.
        caption: what is seen, and why this case.
        planes: axial, coronal and sagittal.
        layers: names of the layers and what they look like, ``("truth", "white line")``.
        legend: colours and the names of what has them.
        still: PNG of the slices that are shown first, for the Markdown.
    """

    title: str
    caption: str
    planes: Sequence[PlaneView]
    layers: Sequence[tuple[str, str]]
    legend: Sequence[tuple[str, str]]
    still: Path

    @property
    def columns(self) -> str:
        """Widths of the planes, so that all have one scale."""
        return " ".join(f"minmax(0,{p.width_mm:.1f}fr)" for p in self.planes)

    @property
    def fits(self) -> bool:
        """Whether all planes are large enough beside each other on a wide screen."""
        return min(p.width_mm for p in self.planes) >= LEAST_SHARE * sum(
            p.width_mm for p in self.planes
        )

    @property
    def third(self) -> float:
        """Width of the last plane as a share of the first's, by which they have one scale."""
        return self.planes[-1].width_mm / self.planes[0].width_mm

    def data(self) -> list[dict[str, object]]:
        """What the page's script needs of the planes."""
        return [{"slices": [s._asdict() for s in p.slices], "start": p.start} for p in self.planes]


Block: TypeAlias = Text | Lines | Table | Picture | Viewer


class Section(NamedTuple):
    """Blocks below a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: heading.
        lead: paragraphs below it.
        sections: what follows.
        links: URLs that become links where they occur in the text.
        colours: of organs by their names, shown beside them in tables.
    """

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    links: Sequence[str] = field(default=())
    colours: Mapping[str, str] = field(default_factory=dict)


def write_page(path: str | os.PathLike[str], page: Page) -> Path:
    r"""Write a page as HTML, and as Markdown beside it.

    Bytes of a file's name that are no UTF-8 become question marks.

    Args:
        path: ``….html``; the Markdown has ``.md`` instead.
        page: what is written. Its pictures must be there.

    Returns:
        The path of the HTML.

    Raises:
        ValueError: ``path`` has another ending.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "page.html"
        >>> html = write_page(path, Page("A <page>", ["Text."], [])).read_text()
        >>> "<h1>A &lt;page&gt;</h1>" in html, path.with_suffix(".md").read_text()
        (True, '# A &lt;page&gt;\n\nText.\n')
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"A page is written as '.html', got {path}: its Markdown lies beside it.")
    for target, text in (
        (path.with_suffix(".md"), render_markdown(page, path.parent)),
        (path, render_html(page)),
    ):
        write_text(target, text, errors="replace")
    return path


def render_html(page: Page) -> str:
    """The page as HTML that loads nothing."""
    environment = Environment(
        loader=PackageLoader("stipple_monai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def linked(text: str) -> Markup:
        made = str(escape(text))
        for url in page.links:
            made = made.replace(str(escape(url)), str(Markup('<a href="{0}">{0}</a>').format(url)))
        return Markup(made)

    environment.filters |= {"linked": linked, "png": png_uri, "kind": _kind}
    source, _, _ = environment.loader.get_source(environment, "page.js")  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        page=page, script=Markup(source), digest=digest
    )


def render_markdown(page: Page, folder: str | os.PathLike[str]) -> str:
    """The page as Markdown; pictures are links relative to ``folder``."""
    parts = [f"# {_plain(page.title)}", *map(_plain, page.lead)]
    for section in page.sections:
        parts.append(f"## {_plain(section.title)}")
        for block in section.blocks:
            parts += _markdown(block, Path(folder))
    return "\n\n".join(part for part in parts if part) + "\n"


def png_uri(path: str | os.PathLike[str]) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def _kind(block: Block) -> str:
    return type(block).__name__.lower()


def _markdown(block: Block, folder: Path) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text)]
    if isinstance(block, Lines):
        return ["\n".join(f"- {_plain(line)}" for line in block.lines)]
    heading = f"### {_plain(block.title)}" if block.title else ""
    if isinstance(block, Table):
        lines = [block.header, ["---", *["---:"] * (len(block.header) - 1)], *block.rows]
        text = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        return [heading, text, _plain(block.note)]
    file = block.still if isinstance(block, Viewer) else block.path
    link = file.relative_to(folder).as_posix().replace(" ", "%20")
    alt = block.alt if isinstance(block, Picture) and block.alt else block.title
    return [heading, f"![{_plain(alt)}]({link})", _plain(block.caption)]


def _plain(text: str) -> str:
    """Text that Markdown neither takes for HTML nor for the end of a cell or line."""
    kept = " ".join(html.escape(text, quote=False).split())
    for sign in r"\`|[]":
        kept = kept.replace(sign, f"\\{sign}")
    return kept
