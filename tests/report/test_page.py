"""Pages that need nothing beside them: what is written into them stays text."""

import base64
import html
import re

import pytest
from PIL import Image

from stipple_monai.report.page import (
    Lines,
    Mark,
    Page,
    Picture,
    PlaneView,
    Section,
    Slice,
    Table,
    Text,
    Viewer,
    render_html,
    write_page,
)

HOSTILE = "<script>alert(1)</script>'\"&</script><img src=x onerror=alert(2)>|`](x)"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGA"
    "AAAABJRU5ErkJggg=="
)


def viewer(still, text=HOSTILE):
    slices = [Slice(f"slice {i} {text}", PIXEL, {"truth": PIXEL}) for i in range(3)]
    mark = Mark(1, 50, 25, "#E69F00", text)
    planes = [PlaneView(p, 40, 30, "RLAP", slices, {text: 1}, [mark]) for p in ("axial", "coronal")]
    return Viewer(text, text, planes, [("truth", text)], [("#E69F00", text)], still)


def hostile_page(folder):
    picture = folder / "figures" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 4)).save(picture)
    blocks = [
        Text(HOSTILE, "warning"),
        Lines([HOSTILE]),
        Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, "1"]], HOSTILE),
        Picture(HOSTILE, picture, HOSTILE, HOSTILE),
        viewer(picture),
    ]
    return Page(HOSTILE, [HOSTILE], [Section(HOSTILE, blocks)])


def test_whatever_is_written_is_text(tmp_path):
    path = write_page(tmp_path / "p.html", hostile_page(tmp_path))
    text = path.read_text(encoding="utf-8")
    # two scripts: the viewer's data, which no browser runs, and the page's own
    assert re.findall("<script[^>]*>", text) == ['<script type="application/json">', "<script>"]
    assert text.count("</script>") == 2
    assert "<img src=x" not in text
    assert html.escape(HOSTILE, quote=False).split("'")[0] in text
    markdown = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "<img" not in markdown
    (row,) = [line for line in markdown.splitlines() if line.endswith("| 1 |")]
    assert row.count("|") - row.count(r"\|") == 3


def test_the_policy_lets_only_the_pages_script_run(tmp_path):
    text = render_html(hostile_page(tmp_path))
    (policy,) = re.findall('Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; img-src data:;")
    (digest,) = re.findall("script-src 'sha256-([^']+)'", html.unescape(policy))
    assert len(base64.b64decode(digest)) == 32
    assert "unsafe-eval" not in policy


def test_links_are_those_of_the_page_alone():
    page = Page("t", ["see https://doi.org/1 and https://evil.example"], [], ["https://doi.org/1"])
    assert re.findall('<a href="([^"]+)"', render_html(page)) == ["https://doi.org/1"]


def test_names_that_are_no_utf_8_are_written(tmp_path):
    name = b"scan_\xff.nii.gz".decode("utf-8", "surrogateescape")
    path = write_page(tmp_path / "p.html", Page(name, [name], []))
    assert "scan_?.nii.gz" in path.read_text(encoding="utf-8")
    assert "scan_?.nii.gz" in path.with_suffix(".md").read_text(encoding="utf-8")


def test_markdown_links_pictures_beside_it(tmp_path):
    picture = tmp_path / "figures" / "a b.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 4)).save(picture)
    page = Page("t", [], [Section("s", [Picture("A", picture, "c", "an a"), viewer(picture, "v")])])
    text = write_page(tmp_path / "p.html", page).with_suffix(".md").read_text(encoding="utf-8")
    assert "![an a](figures/a%20b.png)" in text
    assert "![v](figures/a%20b.png)" in text


def test_columns_are_numbers_texts_or_long_texts():
    cells = [
        ("12.5", "<0.1", "liver", "1.2.840", "", "x" * 25, "−3 × 4"),
        ("", "2 (1 to 3)", "–", "7", "", "y", "+1e-3"),
    ]
    table = Table("t", ["a"] * 7, cells)
    expected = ["number", "number", "text", "text", "text", "long", "number"]
    assert table.looks() == expected
    text = render_html(Page("t", [], [Section("s", [table])]))
    assert re.findall('<th scope="col" class="([a-z]+)"', text) == expected
    # seven columns: cards on a phone, each cell with the name of its column
    assert 'class="scroll wide"' in text
    assert text.count('data-name="a"') == 14


def test_many_rows_scroll_and_folded_tables_are_closed():
    few, many = (Table("t", ["a"], [["1"]] * n, folded=n > 14) for n in (14, 15))
    text = render_html(Page("t", [], [Section("s", [few, many])]))
    first, second = re.findall('<div class="(scroll[^"]*)"', text)
    assert (first, second) == ("scroll", "scroll tall")
    assert text.count("<details><summary>t</summary>") == 1


def test_a_sheet_of_pictures_can_be_reached_by_keys(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    sheet, plain = (Picture("A", tmp_path / "a.png", "", wide=wide) for wide in (True, False))
    text = render_html(Page("t", [], [Section("s", [sheet, plain])]))
    assert '<figure class="picture sheet" tabindex="0">' in text
    assert '<figure class="picture">' in text


@pytest.mark.parametrize(
    ("widths", "fits"), [((400, 400, 400), True), ((400, 400, 300), False), ((90, 90, 85), True)]
)
def test_planes_are_beside_each_other_where_each_is_large_enough(tmp_path, widths, fits):
    planes = [PlaneView("axial", width, 30, "RLAP", [], {}) for width in widths]
    shown = Viewer("t", "", planes, [], [], tmp_path)
    assert shown.fits is fits
    # of the 1184 pixels of a wide page, less two gaps
    assert (min(widths) / sum(widths) * (1184 - 26) >= 360) is fits
    assert shown.third == widths[2] / widths[0]


def test_a_page_is_html(tmp_path):
    with pytest.raises(ValueError, match=r"A page is written as '.html', got .*p.txt"):
        write_page(tmp_path / "p.txt", Page("t", [], []))
