"""Numbers in README and on the pages are those of the files in docs/results."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
PAGES = (ROOT / "README.md", DOCS / "results.md", DOCS / "decisions.md")


@pytest.fixture(scope="module")
def measured():
    sys.path.insert(0, str(DOCS / "extensions"))
    try:
        import measured as module  # noqa: PLC0415
    finally:
        sys.path.pop(0)
    return module


def without_figures(text):
    """A description has a folder behind it that differs between repository and site."""
    return re.sub(r"\]\([^)]*\.png\)", "](PNG)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_the_files_say(measured, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert len(measured.MARKED.findall(text)) == text.count("<!-- measured: ") > 0
    anew = measured.rendered(text, page, figures=tmp_path)
    remedy = "python docs/results/update.py writes it anew"
    assert without_figures(text) == without_figures(anew), remedy
    for path in tmp_path.glob("*.png"):
        kept = Image.open(DOCS / "images" / path.name)
        assert kept.text["Description"] == Image.open(path).text["Description"], remedy


def test_a_number_that_differs_is_found(measured, tmp_path):
    page = PAGES[0]
    text = page.read_text(encoding="utf-8")
    found = measured.MARKED.search(text)
    number = re.search(r"\d+\.\d", found["text"])
    start = found.start("text") + number.start()
    wrong = text[:start] + "99.9" + text[start + len(number[0]) :]
    assert measured.rendered(wrong, page, figures=tmp_path) != wrong


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_studies_tell_where_they_are_from(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for run in record["runs"] for cell in run["cells"]]
    assert len(cells) == len(set(cells)) > 0
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    commits = {run["commit"][:12] for run in record["runs"]}
    assert {row["commit"] for row in rows} == commits
    for row in rows:
        assert "/" not in row["scan"]
        assert 0 <= float(row["dice"] or 0) <= 1
        assert int(row["steps"]) > 0
    assert not re.search(r'"/', path.read_text(encoding="utf-8"))


def test_a_methods_dice_is_the_plain_mean_of_its_rows(measured):
    """The slow way round: patients, then folds, by hand."""
    for path in sorted(RESULTS.glob("*.json")):
        with path.with_suffix(".csv").open(encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r["method"] == "baseline" and r["dice"]]
        if len({row["organ"] for row in rows}) < 2:  # no mean over organs
            continue
        most = max(rows, key=lambda row: float(row["proportion"]))["proportion"]  # shown first
        folds = {}
        for row in (row for row in rows if row["proportion"] == most):
            patients = folds.setdefault(row["fold"], {})
            patients.setdefault((row["scan"], row["seed"]), []).append(100 * float(row["dice"]))
        means = [sum(sum(d) / len(d) for d in f.values()) / len(f) for f in folds.values()]
        shown = measured.KINDS["dice"](path.stem, measured.Place(PAGES[1], DOCS))
        line = next(line for line in shown.splitlines() if line.startswith("| Network alone |"))
        assert line.split("|")[-2].split("±")[0].strip() == f"{sum(means) / len(means):.1f}"
