"""Tables, figures and pages of a study, from results that were made up."""

import html.parser
import json
import re

import pytest
from helpers.study_rows import HEADER, made_up, row, write
from PIL import Image

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.report.page import Picture
from stipple_monai.results.statistics import compare_paired, holm
from stipple_monai.study import paper
from stipple_monai.study.organs import organ_table
from stipple_monai.study.report import DOI, write_report
from stipple_monai.study.tables import (
    TITLES,
    Results,
    comparison_table,
    dice_table,
    measures_table,
    not_won,
    position_table,
    rounds_table,
)


def test_dice_is_the_mean_over_cases_then_folds():
    rows = [
        row(fold=0, scan="a", organ=1, dice=0.2),
        row(fold=0, scan="a", organ=2, dice=0.4),
        row(fold=0, scan="b", organ=1, dice=0.5),
        row(fold=0, scan="b", organ=2, dice=""),
        row(fold=1, scan="c", organ=1, dice=0.8),
    ]
    table = dice_table(Results(rows), ["stipple", "baseline"], "t")
    assert table.header == ["Method", "50%", "paper"]
    # folds 40 and 80; sd of the two is 28.28
    assert table.rows == [["Network alone", "60.0 ± 28.3", "70.4 ± 3.4"]]


def test_a_single_fold_has_no_spread_and_missing_cells_are_dashes():
    rows = [row(dice=0.5), row("stipple", 0.33, dice=0.75)]
    table = dice_table(Results(rows), ["baseline", "stipple"], "t")
    assert table.rows == [
        ["Network alone", "50.0", "70.4 ± 3.4", "–", "–"],
        ["STIPPLE with pseudo-labels", "–", "74.1 ± 1.4", "75.0", "–"],
    ]


def test_patients_are_compared_with_seeds_averaged():
    scores = {"a": ([0.5, 0.7], [0.7, 0.9]), "b": ([0.4, 0.4], [0.5, 0.9]), "c": ([0.9], [0.8])}
    rows = []
    for scan, (baseline, stipple) in scores.items():
        for seed, (one, other) in enumerate(zip(baseline, stipple, strict=True)):
            rows += [row(scan=scan, seed=seed, dice=one)]
            rows += [row("stipple", scan=scan, seed=seed, dice=other)]
    rows.append(row("stipple", scan="not of the baseline", dice=1.0))
    (cells,) = comparison_table(Results(rows)).rows
    expected = compare_paired([80, 70, 80], [60, 40, 90])
    assert cells[:4] == ["STIPPLE with pseudo-labels", "50%", "3", "+13.33"]
    assert cells[4] == f"{expected.low:+.2f} to {expected.high:+.2f}"
    p, wilcoxon = f"{expected.t_test:.2g}", f"{expected.wilcoxon:.2g}"
    # a single comparison needs no correction
    assert cells[5:] == [p, p, wilcoxon, "5.5e-04"]


def test_p_values_are_corrected_for_the_methods_at_the_same_number_of_labels():
    dice = {
        "stipple": [0.7, 0.8, 0.7, 0.9],
        "cps": [0.6, 0.6, 0.5, 0.6],
        "bcp": [0.5, 0.6, 0.6, 0.6],
    }
    dice["baseline"] = [0.5, 0.6, 0.5, 0.6]
    rows = [row(m, scan=str(i), dice=d) for m, v in dice.items() for i, d in enumerate(v)]
    rows += [
        row(m, 0.1, scan=str(i), dice=dice[m][i]) for m in ("cps", "baseline") for i in range(4)
    ]
    found = {(cells[0], cells[1]): cells[5:7] for cells in comparison_table(Results(rows)).rows}
    methods = ("stipple", "cps", "bcp")
    tests = [compare_paired(dice[m], dice["baseline"]).t_test for m in methods]
    for method, p, corrected in zip(methods, tests, holm(tests), strict=True):
        assert found[TITLES[method], "50%"] == [f"{p:.2g}", f"{corrected:.2g}"]
    # a method alone at its number of labels
    assert len(set(found[TITLES["cps"], "10%"])) == 1


def test_where_stipple_did_not_win_is_said():
    def scores(stipple, attention):
        rows = []
        for i, (one, other) in enumerate(zip(stipple, attention, strict=True)):
            rows += [row("stipple", scan=str(i), dice=one)]
            rows += [row("attention_unet", scan=str(i), dice=other)]
        return Results(rows)

    low, high = [0.5, 0.6, 0.5, 0.6], [0.7, 0.8, 0.72, 0.81]
    (said,) = not_won(scores(low, high))
    assert said.startswith("At 50% of labels STIPPLE with pseudo-labels is not better than Att")
    assert "Attention U-Net: -20.75" in said
    assert not_won(scores(high, low)) == []
    (said,) = not_won(scores([0.5, 0.9, 0.5, 0.9], [0.55, 0.6, 0.55, 0.7]))
    assert "is not certainly better than Attention U-Net: +10.00 points" in said


def test_empty_predictions_are_counted_beside_the_distances():
    rows = [
        row(scan="a", dice=0.8, jaccard=0.6, hd95_mm=10, asd_mm=2, seconds=1),
        row(
            scan="b",
            dice=0.4,
            jaccard=0.2,
            hd95_mm=20,
            asd_mm=4,
            calibration_error=0.15,
            seconds=3,
            peak_memory_mib=300,
        ),
        row(scan="c", dice=0, jaccard=0, predicted_voxels=0, seconds=2),
        row(scan="d", dice="", jaccard="", predicted_voxels=0, true_voxels=0, seconds=2),
    ]
    (cells,) = measures_table(Results(rows)).rows
    expected = [
        "Network alone",
        "50%",
        "4",
        "0.400",
        "0.267",
        "15.0",
        "3.0",
        "1",
        "0.150",
        "2.00",
        "300",
    ]
    assert cells == expected


def test_positions_and_how_many_were_neutral():
    errors = [2.0, 4.0, 12.0, ""]
    rows = [
        row("stipple_single", scan=str(i), position_error_mm=e, confidence=0.6)
        for i, e in enumerate(errors)
    ]
    # a scan that has not the organ, and so no position to find
    rows.append(row("stipple_single", scan="without", dice="", true_voxels=0))
    rows.append(row("stipple_true_position", scan="0", dice=0.9))
    located, true = position_table(Results(rows)).rows
    assert located[0] == "KL, mean reference (ours)"
    assert located[4:] == ["6.0", "4.0", "10.4", "1"]
    assert true[4:] == ["–"] * 4


def test_organs_and_rounds():
    rows = [row(organ=1, dice=0.5), row(organ=4, dice=0.7), row(scan="b", organ=4, dice=0.9)]
    table = organ_table(Results(rows))
    assert table.header[2:] == ["n", "organ 1", "organ 4", "mean"]
    # scan a has both organs, scan b one: their means are 60 and 90
    assert table.rows == [["Network alone", "50%", "2", "50.0", "80.0", "75.0"]]
    assert organ_table(Results([row()])) is None
    known = {"method": "stipple", "proportion": "0.5", "fold": "0", "seed": "0", "round": "1"}
    rounds = [
        {**known, "selected_voxels": "10", "precision": "0.5", "recall": "0.2", "dice": "0.3"},
        {**known, "selected_voxels": "0", "precision": "", "recall": "0", "dice": "0"},
    ]
    (cells,) = rounds_table(rounds).rows
    assert cells == ["STIPPLE with pseudo-labels", "50%", "1", "2", "5", "0.500", "0.100", "0.150"]
    assert rounds_table([]) is None


class Page(html.parser.HTMLParser):
    """Every tag is closed, and what is loaded from elsewhere is remembered."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        if tag not in {"img", "meta", "br"}:
            self.open.append(tag)
        self.links += [(tag, v) for k, v in attrs if k in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path):
    methods = ["baseline", "stipple_single", "relabelling", "stipple", "stipple_true_position"]
    rows = made_up([*methods, "mean_teacher", "stipple_bins_1", "stipple_bins_all", "mine"])
    rows[0]["scan"] = "<b>&|.nii.gz"
    write(tmp_path, "results.csv", rows)
    curves = [
        {"method": m, "proportion": "0.5", "fold": str(f), "seed": "0", "round": "0"}
        | {"epoch": str(e), "loss": str(1 / e + f / 10), "train_dice": "", "validation_dice": ""}
        for m in ("baseline", "stipple_single")
        for f in range(2)
        for e in range(1, 6)
    ]
    write(tmp_path, "curves.csv", curves)
    return tmp_path


@pytest.mark.slow
def test_the_page_needs_nothing_beside_it(folder):
    picture = folder / "figures" / "case.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 4)).save(picture)
    path = write_report(
        folder,
        title="A <study>",
        dataset="made up",
        notes=["Said beforehand."],
        pictures=[Picture("Recovered miss", picture, "where & why")],
    )
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    for tag, link in page.links:
        assert link.startswith("data:image/png;base64,") or (tag, link) == ("a", DOI)
    titles = [image["alt"] for image in page.images]
    assert titles == [
        "Dice by label proportion (figure 3)",
        "Dice by number of bins (figure 6)",
        "Learning curves: training loss",
        "What positioning costs",
        "Recovered miss",
    ]
    assert "A &lt;study&gt;" in text
    assert "where &amp; why" in text
    assert "9 methods, 3 folds, 2 seeds, 13 scans tested" in text
    assert "Said beforehand." in text
    for name in (
        "table 1",
        "table 2",
        "table 3",
        "table 4",
        "Draw by draw",
        "Further methods",
        "not the same data",
    ):
        assert name in text
    assert ">mine<" in text


@pytest.mark.slow
def test_the_markdown_says_the_same_and_its_links_are_there(folder):
    write_report(folder, title="t", dataset="")
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == 4
    assert all((folder / link).is_file() for link in links)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len([line for line in lines if line.startswith("| ---")]) == 7
    assert "| STIPPLE |" in text


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(folder):
    first = write_report(folder, title="t", dataset="d").read_bytes()
    assert write_report(folder, title="t", dataset="d").read_bytes() == first


def test_a_single_cell_is_enough(tmp_path):
    write(tmp_path, "results.csv", [row()])
    text = write_report(tmp_path, title="t", dataset="d").read_text(encoding="utf-8")
    assert "1 method, 1 fold, 1 seed, 1 scan tested" in text
    assert "<img" not in text


def test_a_folder_without_results(tmp_path):
    with pytest.raises(DatasetError, match=r"`folder` must have a results.csv with rows, got"):
        write_report(tmp_path, title="t", dataset="d")
    (tmp_path / "results.csv").write_text(",".join(HEADER))
    with pytest.raises(DatasetError, match=r"`folder` must have a results.csv with rows, got"):
        write_report(tmp_path, title="t", dataset="d")


def test_what_says_nothing_is_left_out(tmp_path):
    """Columns of dashes alone, and the table of rivals where there is none."""
    write(tmp_path, "results.csv", made_up(["baseline", "stipple"], proportions=(0.19,)))
    text = write_report(tmp_path, title="t", dataset="d").with_suffix(".md").read_text("utf-8")
    headers = [line for line in text.splitlines() if line.startswith("| Method")]
    assert "| Method | 19% |" in headers
    assert not any("paper" in line for line in headers)
    assert "other data, for orientation only" not in text
    assert "table 3" not in text


def study_folder(folder):
    """One that was run, but for its cells."""
    write(folder, "results.csv", made_up(["baseline", "stipple"], organs=(1, 2)))
    names = {"labels": {"0": "none", "1": "liver", "2": "spleen"}, "training": []}
    (folder / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    told = {"title": "My study", "dataset": "ten scans", "notes": ["A note."]}
    known = {"study": {"datalist": str(folder / "dataset.json")}, "methods": {}, "told": told}
    (folder / "study.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_report_command_writes_a_studys_report_anew(tmp_path, capsys):
    folder = study_folder(tmp_path)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# My study\n")
    assert "Data: ten scans." in text
    assert "A note." in text
    assert "| Method | labels | n | liver | spleen | mean |" in text


def test_a_studys_report_stays_in_its_folder(tmp_path, capsys):
    folder = study_folder(tmp_path)
    assert main(["report", str(folder), "--out", str(tmp_path / "p.html")]) == 1
    assert "`out` must not be given for a study" in capsys.readouterr().err
    (folder / "study.json").write_text("[]", encoding="utf-8")
    assert main(["report", str(folder)]) == 1
    assert "must be JSON that this command wrote" in capsys.readouterr().err


def test_the_papers_figures_are_the_papers():
    """Some cells of its tables, typed a second time."""
    assert paper.DICE["stipple"][0.1] == (54.45, 6.37)
    assert paper.DICE["baseline"][1.0] == (76.13, 0.94)
    assert paper.DICE["mean_teacher"][0.5] == (72.68, 3.05)
    assert paper.DICE["stipple_naive_position"][0.7] == (72.84, 3.15)
    assert 1.0 not in paper.DICE["relabelling"]
    assert paper.T_TEST[0.3] == pytest.approx(6.40e-6 / 100)
    assert set(paper.DICE) | set(paper.PATCH_3D) <= set(TITLES)
