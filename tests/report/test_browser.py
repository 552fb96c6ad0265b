"""A report in a real browser: it loads by itself, sorts, scrolls, hides, fits, and stays inert."""

import nibabel as nib
import numpy as np
import pytest
from helpers.chromium import chromium, open_page
from helpers.study_rows import made_up, write
from helpers.threshold_model import write_scan

from stipple_monai import SpatialPrior
from stipple_monai.files import write_csv
from stipple_monai.report.page import Page, Section, Table, write_page
from stipple_monai.report.run import report
from stipple_monai.study.report import write_report

SHAPE = (16, 14, 9)
AFFINE = np.diag([3.0, 2.0, 5.0, 1.0])
HOSTILE = "x<img src=x onerror=document.title='owned'>"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """Predictions of four scans, of which one has a hostile name and one was not scored."""
    folder = tmp_path_factory.mktemp("browser")
    run = folder / "run"
    run.mkdir()
    names = ["case_2", "case_10", HOSTILE, "case_1"]
    rows, places, items = [], [], []
    for i, name in enumerate(names):
        mask = np.zeros(SHAPE, bool)
        mask[4:9, 3:8, 2 : 5 + i % 3] = True
        scan = write_scan(folder / f"{name}.nii.gz", mask, AFFINE)
        image = nib.Nifti1Image(np.roll(mask, 1, 0).astype(np.uint8), AFFINE)
        nib.save(image, run / f"{name}_seg.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), folder / f"label_{i}.nii.gz")
        items.append({"image": scan.name, "label": f"label_{i}.nii.gz"})
        dice = ["0.5", "0.25", "", "0.95"][i]
        rows.append([str(scan), 1, dice, "", ["9.5", "12.25", "", "100"][i]])
        places.append([str(scan), 1, 18, 10, 15, 0.9])
    write_csv(run / "scores.csv", ["scan", "organ", "dice", "jaccard", "hd95_mm"], rows)
    header = ["scan", "organ", "r_mm", "a_mm", "s_mm", "confidence"]
    write_csv(run / "positions.csv", header, places)
    prior = SpatialPrior(np.ones((5, 5, 3)), spacing_mm=(3, 2, 5), organ=1)
    prior.save(folder / "models" / "prior_1.nii.gz")
    return report(run, folder / "page.html", models=folder / "models", labels={1: "organ"})


@pytest.fixture
def page(browser, page_path):
    opened, asked, said = open_page(browser, page_path, viewport={"width": 1280, "height": 900})
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", page_path.as_uri()))] == []
    opened.close()


def column(page, number, table=0):
    cells = page.locator("table.sorts").nth(table).locator(f"tbody >> td:nth-child({number})")
    return cells.all_inner_texts()


def test_a_page_loads_without_errors_or_requests(page):
    assert page.title() == page.locator("h1").inner_text()
    assert page.locator(".viewer").count() == 4


def test_every_picture_is_there_and_described(page):
    pictures = page.locator("img:visible")
    assert pictures.count() > 12
    for picture in pictures.all():
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert picture.get_attribute("alt")


def test_a_table_sorts_numbers_as_numbers_and_missing_last(page):
    every = page.locator("table.sorts").nth(1)
    heading = every.locator("th", has_text="HD95 (mm)")
    heading.get_by_role("button").click()
    assert column(page, 6, 1) == ["9.5", "12.2", "100.0", ""]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert column(page, 6, 1) == ["100.0", "12.2", "9.5", ""]
    assert heading.get_attribute("aria-sort") == "descending"
    every.locator("th", has_text="case").get_by_role("button").click()
    assert column(page, 1, 1) == ["case_1", "case_2", "case_10", HOSTILE]
    assert heading.get_attribute("aria-sort") is None


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["10%", "9%", "–", "100%"], ["9%", "10%", "100%", "–"]),
        (["−5.00", "+13.33", "1e-3", ""], ["−5.00", "1e-3", "+13.33", ""]),
        (["60.0 ± 28.3", "–", "7.5"], ["7.5", "60.0 ± 28.3", "–"]),
        (["1.2.840", "1.2.9", "a"], ["1.2.9", "1.2.840", "a"]),
        (["12,000", "9,500"], ["9,500", "12,000"]),
    ],
)
def test_what_counts_as_a_number(browser, tmp_path, cells, expected):
    table = Table("t", ["n"], [[cell] for cell in cells])
    path = write_page(tmp_path / "p.html", Page("t", [], [Section("s", [table])]))
    opened, _, said = open_page(browser, path)
    opened.get_by_role("button", name="n").click()
    assert column(opened, 1) == expected
    assert said == []
    opened.close()


def test_slices_are_scrolled_by_mouse_and_keys(page):
    figure = page.locator(".viewer .plane").first
    slider, where = figure.get_by_role("slider"), figure.locator(".where")
    image = figure.locator("img.scan")
    first, source = where.inner_text(), image.get_attribute("src")
    figure.locator(".stack").click()
    assert slider.evaluate("element => element === document.activeElement")
    page.keyboard.press("ArrowRight")
    assert where.inner_text() != first
    assert slider.get_attribute("aria-valuetext") == where.inner_text()
    assert where.inner_text() in image.get_attribute("alt")
    page.keyboard.press("End")
    assert where.inner_text() == "slice 9 of 9, S 40.0 mm"
    assert image.get_attribute("src") != source
    assert not figure.locator("img.layer-prediction").is_visible()
    page.keyboard.press("Home")
    assert where.inner_text() == "slice 1 of 9, S 0.0 mm"
    figure.get_by_role("button", name="largest area").click()
    assert where.inner_text() == first


def test_the_position_is_marked_on_its_slice_alone(page):
    figure = page.locator(".viewer .plane").first
    figure.get_by_role("button", name="position").click()
    assert figure.locator(".where").inner_text() == "slice 4 of 9, S 15.0 mm"
    mark = figure.locator(".mark")
    assert mark.is_visible()
    box, stack = mark.bounding_box(), figure.locator(".stack").bounding_box()
    # R 18 mm of −1.5 to 46.5, drawn from the right on; A 10 mm of −1 to 27
    across = (box["x"] + box["width"] / 2 - stack["x"]) / stack["width"]
    down = (box["y"] + box["height"] / 2 - stack["y"]) / stack["height"]
    assert across == pytest.approx(1 - 19.5 / 48, abs=0.01)
    assert down == pytest.approx(1 - 11 / 28, abs=0.01)
    page.keyboard.press("Tab")
    figure.get_by_role("slider").press("End")
    assert not mark.is_visible()


def test_layers_are_hidden_and_shown(page):
    viewer = page.locator(".viewer").first
    for name in ("prediction", "prior"):
        layer = viewer.locator(f"img.layer-{name}").first
        assert layer.is_visible()
        viewer.get_by_role("checkbox", name=name).press("Space")
        assert not layer.is_visible()
        viewer.get_by_role("checkbox", name=name).press("Space")
        assert layer.is_visible()


def test_proportions_and_scale_on_the_screen(page):
    boxes = [box.bounding_box() for box in page.locator(".viewer .stack").all()[:3]]
    sizes = [(48, 28), (48, 45), (28, 45)]
    scales = [box["width"] / width for box, (width, _) in zip(boxes, sizes, strict=True)]
    assert scales == pytest.approx([scales[0]] * 3, rel=0.02)
    for box, (width, height) in zip(boxes, sizes, strict=True):
        assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.01)


def test_a_phone_needs_no_sideways_scrolling(browser, page_path):
    size = {"width": 360, "height": 740}
    opened, _, said = open_page(browser, page_path, viewport=size, is_mobile=True, has_touch=True)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    left = [box.bounding_box()["x"] for box in opened.locator(".viewer .stack").all()[:3]]
    assert left == [left[0]] * 3
    slider = opened.get_by_role("slider").first
    slider.tap()
    assert said == []
    opened.close()


@pytest.mark.parametrize("width", [400, 1300])
def test_tables_are_not_cut(browser, page_path, width):
    """At 400 pixels a table of many columns is a card for each row, its cells with their names."""
    opened, _, _ = open_page(browser, page_path, viewport={"width": width, "height": 900})
    for box in opened.locator(".scroll:visible").all():
        assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 1
    cell = opened.locator("td", has_text="12.2").first
    name = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert name == ('"HD95 (mm)"' if width == 400 else "none")
    for details in opened.locator("details").all():
        assert details.get_attribute("open") is None
        details.locator("summary").click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


@pytest.mark.parametrize("width", [400, 800, 1300])
def test_pictures_are_large_enough(browser, page_path, width):
    opened, _, _ = open_page(browser, page_path, viewport={"width": width, "height": 900})
    boxes = [box.bounding_box() for box in opened.locator(".viewer .stack").all()[:3]]
    # the two of the front and the top; the third one is less wide, as the scan is
    assert min(box["width"] for box in boxes[:2]) >= 360
    if width > 400:
        assert boxes[2]["width"] / boxes[0]["width"] == pytest.approx(28 / 48, abs=0.01)
    opened.close()


def test_print_leaves_controls_out_and_fits(browser, page_path):
    opened, _, _ = open_page(browser, page_path, viewport={"width": 720, "height": 1000})
    opened.emulate_media(media="print", color_scheme="dark")
    assert not opened.get_by_role("slider").first.is_visible()
    assert opened.locator("img.scan").first.is_visible()
    assert opened.locator(".printed").first.is_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 720
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(background) == "rgb(255, 255, 255)"
    assert opened.pdf(format="A4")[:5] == b"%PDF-"
    opened.close()


def test_dark_is_respected(browser, page_path):
    opened, _, _ = open_page(browser, page_path, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(background) == "rgb(24, 24, 24)"
    opened.close()


def test_a_hostile_name_is_text(browser, page_path):
    opened, _, said = open_page(browser, page_path)
    assert opened.title() != "owned"
    assert opened.locator("td", has_text="x<img").first.inner_text() == HOSTILE
    assert opened.locator("img[src=x]").count() == 0
    assert said == []
    # and a script that came through would not run
    opened.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = 1";
        document.body.append(script);
    }""")
    assert opened.evaluate("window.ran") is None
    assert "Content Security Policy" in said[0]
    opened.close()


def test_the_studys_page_sorts_as_well(browser, tmp_path):
    write(tmp_path, "results.csv", made_up(["baseline", "stipple"], folds=2, seeds=1))
    path = write_report(tmp_path, title="A study", dataset="made up")
    opened, asked, said = open_page(browser, path)
    opened.locator("th", has_text="100%").first.get_by_role("button").click()
    values = [float(text.split()[0]) for text in column(opened, 2)]
    assert values == sorted(values)
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    opened.close()
