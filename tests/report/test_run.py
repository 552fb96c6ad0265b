"""`python -m stipple_monai report`: what a path holds, and what its page says."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.series import write_series
from helpers.threshold_model import write_model, write_scan
from matplotlib.colors import to_rgb
from monai.data import MetaTensor
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from stipple_monai import DatasetError, PriorError, SpatialPrior, measure_position
from stipple_monai.__main__ import main
from stipple_monai.calibration import fit_calibration
from stipple_monai.data import read_sections, write_datalist
from stipple_monai.files import read_csv, sha256, write_csv, write_json
from stipple_monai.report.cases import Case, choose, label_values
from stipple_monai.report.priors import with_true_positions
from stipple_monai.report.provenance import settings_blocks
from stipple_monai.report.run import detect, report
from stipple_monai.segmentation.run import segment
from stipple_monai.self_training import QUALITY_COLUMNS
from stipple_monai.simulation import write_phantom
from stipple_monai.visualize import organ_colours

SHAPE = (14, 12, 8)
AFFINE = np.diag([-3.0, 2.0, 5.0, 1.0])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
]


def organ(size):
    mask = np.zeros(SHAPE, bool)
    mask[3 : 3 + size, 2:7, 2:6] = True
    return mask


def text_of(page):
    return page.read_text(encoding="utf-8")


def table(page, heading):
    """Rows of the Markdown's first table below a heading."""
    below = text_of(page.with_suffix(".md")).split(f"# {heading}\n", 1)[1]
    lines = [line for line in below.split("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of five scans, the model that segments them, and its results."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "data").mkdir()
    items = []
    for i in range(5):
        scan, label = folder / "data" / f"s{i}.nii.gz", folder / "data" / f"s{i}_label.nii.gz"
        write_scan(scan, organ(3 + i), AFFINE)
        truth = organ(3 + i)
        truth[3 : 3 + i] = False  # so that Dice falls from scan to scan
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), AFFINE), label)
        items.append({"image": scan, "label": label})
    sections = {"training": items[:2], "test": items[2:], "rest": []}
    datalist = folder / "data" / "dataset.json"
    write_datalist(datalist, sections, metadata={"labels": {"0": "none", "1": "liver"}})
    model = write_model(folder / "models")
    out = folder / "out"
    segment([i["image"] for i in items], out, labels={1: "liver"}, **model)
    return {"datalist": datalist, "models": model["models"], "out": out, "folder": folder}


def test_what_a_path_holds(made, tmp_path):
    assert detect(made["datalist"]) == "data set"
    assert detect(made["datalist"].parent) == "data set"
    assert detect(made["models"]) == "training"
    assert detect(made["models"] / "prior_1.nii.gz") == "prior"
    assert detect(made["out"]) == "predictions"
    shutil.copy(made["models"] / "prior_1.nii.gz", tmp_path)
    assert detect(tmp_path) == "prior"


def test_predictions_with_truth_priors_and_positions(made, tmp_path):
    page = report(
        made["out"], tmp_path / "p.html", datalist=made["datalist"], models=made["models"]
    )
    rows = table(page, "Every case")
    assert [row["case"] for row in rows] == ["s4", "s3", "s2", "s1", "s0"]
    for row in rows:
        i = int(row["case"][1])
        predicted = nib.load(made["out"] / f"s{i}_seg.nii.gz").get_fdata() == 1
        truth = nib.load(made["folder"] / "data" / f"s{i}_label.nii.gz").get_fdata() == 1
        dice = 200 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert float(row["Dice (%)"]) == pytest.approx(dice, abs=0.06)
        assert float(row["predicted volume (ml)"]) == pytest.approx(
            predicted.sum() * 0.03, abs=0.06
        )
        assert float(row["true volume (ml)"]) == pytest.approx(truth.sum() * 0.03, abs=0.06)
        assert row["organ"] == "liver"
        assert len(row["position R, A, S (mm)"].split(", ")) == 3
        assert 0 < float(row["confidence (0–1)"]) <= 1
        # where the truth has the prior, and where it was put
        prior = SpatialPrior.load(made["models"] / "prior_1.nii.gz")
        true = measure_position(made["folder"] / "data" / f"s{i}_label.nii.gz", prior)
        put = torch.tensor([float(v) for v in row["position R, A, S (mm)"].split(", ")])
        off = float((put - true).norm())
        assert float(row["position error (mm)"]) == pytest.approx(off, abs=0.15)
    text = text_of(page)
    for name, which in (("s4", "worst"), ("s2", "median"), ("s0", "best")):
        assert f"<h3>{name} ({which})</h3>" in text
    assert text.count('type="range"') == 9
    assert text.count('class="viewer"') == 5
    assert "Radiological convention" in text
    assert "What is missing" not in text
    assert "is another than that" not in text
    # what segment recorded
    assert "models.prior_1.nii.gz" in text
    assert page.with_suffix(".md").is_file()
    for picture in re.findall(r"\]\(([^)]+\.png)\)", text_of(page.with_suffix(".md"))):
        assert (tmp_path / picture).is_file()


def test_predictions_that_the_truth_says_to_ignore_are_not_wrong(tmp_path):
    """Right wherever the truth is known; all that is predicted counts as its volume."""
    predicted = organ(6).astype(np.uint8)
    truth = predicted.copy()
    truth[:5] = 255
    write_scan(tmp_path / "x.nii.gz", organ(6), AFFINE)
    (tmp_path / "out").mkdir()
    for name, values in (("t", truth), ("out/x_seg", predicted)):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii.gz")
    items = [{"image": tmp_path / "x.nii.gz", "label": tmp_path / "t.nii.gz"}]
    write_datalist(tmp_path / "d.json", {"test": items}, metadata={"labels": {"1": "liver"}})
    page = report(tmp_path / "out", tmp_path / "p.html", datalist=tmp_path / "d.json")
    (row,) = table(page, "Every case")
    assert float(row["Dice (%)"]) == 100
    assert float(row["predicted volume (ml)"]) == pytest.approx(predicted.sum() * 0.03, abs=0.06)
    assert float(row["true volume (ml)"]) == pytest.approx((truth == 1).sum() * 0.03, abs=0.06)


def test_what_is_missing_is_said(made, tmp_path):
    shutil.copytree(made["out"], tmp_path / "out")
    (tmp_path / "out" / "s1_seg.nii.gz").unlink()
    moved = tmp_path / "out" / "s2_volumes.json"
    moved.write_text(moved.read_text().replace("s2.nii.gz", "gone.nii.gz"), encoding="utf-8")
    (tmp_path / "out" / "s3_seg.nii.gz").write_bytes(b"torn")
    page = report(tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    text = text_of(page)
    assert "s1: its prediction s1_seg.nii.gz is not there." in text
    assert re.search("s2: its scan .*gone.nii.gz is not there", text)
    assert re.search("s3: .*must be a whole NIfTI file", text)
    assert "No truth: no datalist was given (--datalist)." in text
    assert "No prior contours: no folder of priors was given (--models)." in text
    assert "mean confidence of their positions (there is no Dice)" in text
    assert "least confident" in text


def test_truth_is_that_of_the_same_scan(made, tmp_path):
    """Not of another patient's file of that name; and it may be stored in another order."""
    items = []
    for patient in ("one", "two"):
        (tmp_path / patient).mkdir()
        shutil.copy(made["folder"] / "data" / "s4.nii.gz", tmp_path / patient / "s4.nii.gz")
        items.append({"image": f"{patient}/s4.nii.gz", "label": f"{patient}/label.nii.gz"})
        empty = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE)
        nib.save(empty, tmp_path / patient / "label.nii.gz")
    write = {"test": [{k: tmp_path / v for k, v in item.items()} for item in items]}
    write_datalist(tmp_path / "list.json", write)
    page = report(made["out"], tmp_path / "p.html", datalist=tmp_path / "list.json")
    assert "0 with truth" in text_of(page)
    own = {"image": made["folder"] / "data" / "s4.nii.gz", "label": tmp_path / "turned.nii.gz"}
    label = nib.load(made["folder"] / "data" / "s4_label.nii.gz")
    nib.save(nib.as_closest_canonical(label), own["label"])
    write_datalist(tmp_path / "list.json", {"test": [*write["test"], own]})
    page = report(made["out"], tmp_path / "p.html", datalist=tmp_path / "list.json", overwrite=True)
    whole = report(made["out"], tmp_path / "q.html", datalist=made["datalist"])
    (one,) = [row for row in table(page, "Every case") if row["case"] == "s4"]
    assert one == next(row for row in table(whole, "Every case") if row["case"] == "s4")
    assert float(one["Dice (%)"]) > 50
    assert "1 with truth" in text_of(page)


def test_other_priors_than_those_that_predicted_are_told(made, tmp_path):
    prior = SpatialPrior(np.ones((4, 4, 2)), spacing_mm=(3, 3, 10), organ=1)
    prior.save(tmp_path / "models" / "prior_1.nii.gz")
    page = report(made["out"], tmp_path / "p.html", models=tmp_path / "models")
    assert "prior_1.nii.gz is another than that which the predictions were made with" in text_of(
        page
    )


def test_scores_of_an_evaluation_are_taken_as_they_are(made, tmp_path):
    run = tmp_path / "eval"
    run.mkdir()
    scan = str(made["folder"] / "data" / "s0.nii.gz")
    shutil.copy(made["out"] / "s0_seg.nii.gz", run)
    header = ["scan", "organ", "dice", "jaccard", "hd95_mm", "asd_mm", "position_error_mm"]
    write_csv(
        run / "scores.csv",
        [*header, "confidence", "seconds"],
        [[scan, 1, 0.1234, 0.0657, "", "", 7.25, 0.5, 1.5]],
    )
    write_csv(
        run / "positions.csv",
        ["scan", "organ", "r_mm", "a_mm", "s_mm", "confidence"],
        [[scan, 1, -12.0, 8.0, 17.5, 0.5]],
    )
    (row,) = table(report(run, datalist=made["datalist"]), "Every case")
    assert (row["Dice (%)"], row["position error (mm)"]) == ("12.3", "7.2")
    # an empty column is left out
    assert "HD95 (mm)" not in row
    assert row["position R, A, S (mm)"] == "-12.0, 8.0, 17.5"
    assert row["time (s)"] == "1.50"


def test_a_data_set_and_what_is_wrong_with_it(made, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(made["datalist"].parent, data)
    other = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([-3.0, 2.0, 6.0, 1.0]))
    nib.save(other, data / "s1_label.nii.gz")
    (data / "s2.nii.gz").write_bytes(b"torn")
    page = report(data, models=made["models"])
    text = text_of(page)
    assert (
        "5 scans: training: 2 (2 with label or truth), test: 3 (3 with label or truth), rest: 0"
        in text
    )
    assert re.search("<li>s1: .*`label` must", text.replace("&#39;", "'"))
    assert re.search("<li>s2: .*must be a whole NIfTI file", text)
    scans = {row["case"]: row for row in table(page, "Scans")}
    assert scans["s0"]["spacing (mm)"] == "3 × 2 × 5"
    assert scans["s0"]["field of view (mm)"] == "42 × 24 × 40"
    assert scans["s0"]["axes"] == "LAS"
    assert "s2" not in scans
    organs = {row["case"]: row for row in table(page, "Organs")}
    voxels = (nib.load(data / "s3_label.nii.gz").get_fdata() == 1).sum()
    assert float(organs["s3"]["volume (ml)"]) == pytest.approx(voxels * 0.03, abs=0.06)
    assert organs["s3"]["intensity, mean (HU or a.u.)"] == "100.0"
    assert organs["s3"]["height (mm)"] == "20"
    assert organs["s3"]["at the edge"] == "no"
    assert "<h3>s4 (largest)</h3>" in text
    assert text.count('class="viewer"') == 3
    # priors at the true positions
    assert 'class="layer layer-prior' in text


def test_a_training(made, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(made["models"], models)
    rows = [[1, 0.9, 0.1, ""], [2, 0.5, 0.4, 0.3], [3, 0.4, 0.5, 0.25]]
    write_csv(models / "curve.csv", ["epoch", "loss", "train_dice", "validation_dice"], rows)
    record = {"config": {"max_epochs": 3}, "versions": {"monai": "1.2.3"}}
    (models / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    torch.save({"model": {"w": torch.zeros(7)}}, models / "checkpoint_epoch=3.pt")
    (models / "last.pt").write_bytes(b"torn")
    with SummaryWriter(tmp_path / "eval") as writer:
        for step in range(5):
            writer.add_scalar("train_loss", 1 / (1 + step), step)
    page = report(models, datalist=made["datalist"])
    text = text_of(page)
    assert "Best validation Dice 0.3000 after epoch 2." in text
    assert [row["loss"] for row in table(page, "Learning curves")] == ["0.9", "0.5", "0.4"]
    (scalar,) = table(page, "TensorBoard")
    assert scalar["scalar, file"].startswith("train_loss")
    assert (scalar["values"], scalar["first"], scalar["last"]) == ("5", "1", "0.2")
    weights = {row["file"]: row for row in table(page, "Weights")}
    assert weights["checkpoint_epoch=3.pt"]["parameters"] == "7"
    assert weights["last.pt"]["tensors"] == "not readable"
    assert {"setting": "config.max_epochs", "value": "3"} in table(page, "Settings and versions")
    (prior,) = table(page, "Priors")
    assert (prior["name"], prior["cases"], prior["bin height (mm)"]) == ("liver", "1", "2.50")
    assert "Reference: s2, at the organ&#39;s true position" in text
    assert "<h3>s2 (reference)</h3>" in text
    assert 'class="layer layer-prior"' in text


def test_a_calibration(made, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(made["models"], models)
    assert "nothing was fitted, and inference takes constants" in text_of(report(models))
    label = (torch.arange(4000)[None] % 4 == 0).long()
    noise = torch.linspace(-9, 9, 4000).roll(1333)
    logits = torch.stack([torch.zeros(4000), 8 * label[0] + noise])
    fit = fit_calibration([logits], [0.1 + 0.5 * label], [label])
    fit.save(models / "calibration.json")
    page = report(models, overwrite=True)
    (row,) = table(page, "Calibration")
    assert (row["organ"], row["network (a)"]) == ("organ 1", f"{fit.scale[0]:.3f}")
    before, after = (
        float(row[f"calibration error, {name}"]) for name in ("network alone", "calibrated fusion")
    )
    assert after < before
    assert "Scans that the networks were not trained on" in text_of(page)


def test_an_empty_training_says_what_is_not_there(tmp_path):
    (tmp_path / "models").mkdir()
    torch.save({}, tmp_path / "models" / "model.pt")
    text = text_of(report(tmp_path / "models"))
    for said in (
        "There is no curve.csv",
        "There are no events of TensorBoard",
        "The folder has no priors",
        "The run kept no settings.",
    ):
        assert said in text


def test_a_prior_by_itself_is_drawn_on_black(made, tmp_path):
    shutil.copy(made["models"] / "prior_1.nii.gz", tmp_path)
    page = report(tmp_path / "prior_1.nii.gz", labels={1: "liver"})
    assert page == tmp_path / "prior_1_report.html"
    assert "No reference scan with a label was given (--datalist)" in text_of(page)
    assert "No reference scan shows the organ: on black" in text_of(page)
    (row,) = table(page, "Priors")
    assert (row["organ"], row["name"], row["centre"]) == ("1", "liver", "bbox")


def test_predictions_of_a_dicom_series(tmp_path, made):
    mask = organ(4)
    write_series(tmp_path / "ct", np.where(mask, 100, -100))
    segment([tmp_path / "ct"], tmp_path / "out", models=made["models"])
    text = text_of(report(tmp_path / "out"))
    assert text.count('class="viewer"') == 1
    assert "no picture" not in text


def test_several_organs_and_the_phantom(tmp_path):
    write_phantom(tmp_path, cases=1, size=24, organs="all")
    page = report(tmp_path)
    assert len(table(page, "Organs")) > 4
    assert "<h3>phantom_000</h3>" in text_of(page)
    assert "Settings: phantom.json" in text_of(page)


def test_the_chosen_are_told_apart_when_scores_are_equal():
    assert choose({"a": 0.5, "b": 0.5, "c": 0.5}) == {"a": "worst", "b": "median", "c": "best"}
    assert choose({"b": 0.9, "a": 0.1}) == {"a": "worst", "b": "best"}
    assert choose({}) == {}


def test_a_report_is_not_overwritten(made, tmp_path):
    target = tmp_path / "p.html"
    report(made["models"] / "prior_1.nii.gz", target)
    (tmp_path / "p_files" / "old.png").touch()
    before = target.read_bytes()
    with pytest.raises(
        DatasetError, match=r"`out` must not exist yet, got .*p.html: .*--overwrite"
    ):
        report(made["models"] / "prior_1.nii.gz", target)
    assert target.read_bytes() == before
    report(made["models"] / "prior_1.nii.gz", target, overwrite=True)
    # what is not the report's stays
    assert {p.name for p in (tmp_path / "p_files").iterdir()} == {"old.png", "prior_1.png"}


def test_names_that_are_markup_or_no_text(tmp_path):
    names = ["<script>alert(1)<b>.nii.gz", b"\xff\xfe.nii.gz".decode("utf-8", "surrogateescape")]
    for name in names:
        write_scan(tmp_path / name, organ(4), AFFINE)
        nib.save(nib.Nifti1Image(organ(4).astype(np.uint8), AFFINE), tmp_path / f"seg_{name}")
    items = [{"image": name, "label": f"seg_{name}"} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}), encoding="utf-8")
    page = report(tmp_path)
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in text_of(page)
    assert "<script>alert" not in text_of(page)
    assert "<script" not in text_of(page.with_suffix(".md"))
    assert text_of(page).count('class="viewer"') == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([".", "--out", "p.txt"], r"`out` must end in .html, got .*p.txt"),
        ([".", "--pictures", "-1"], "`pictures` must be 0 or more, got -1"),
        (["none"], r"`run` must be a datalist .*none, which does not exist"),
        (["empty"], r"`run` must be a datalist .*empty, where none of these is"),
        (["text.txt"], r"`run` must be a datalist .*text.txt, where none of these is"),
        (["empty.json"], r"`datalist` must list scans, got .*empty.json"),
        (["list.json"], "`path` must hold a JSON object, got .*list.json"),
        (["scan.nii.gz"], "scan.nii.gz is an image, but not a prior"),
        ([".", "--models", "empty"], r"`models` must hold prior_\*.nii.gz, got .*empty"),
        (["twice"], "Priors must be of different organs, got .*prior_2.*prior_1"),
        (["nothing"], "`run` must have predictions, got .*nothing: neither tables nor"),
        (["table"], r"table/scores.csv must be a table as the bundle writes it, got the row"),
        (["curve"], r"curve/curve.csv must be a table as the bundle writes it"),
        (["record"], "x_volumes.json` must be a record of a segmentation"),
    ],
)
def test_errors_are_a_line_and_leave_nothing(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "nothing", "record", "twice", "table", "curve"):
        Path(name).mkdir()
    Path("text.txt").touch()
    Path("empty.json").write_text('{"training": []}', encoding="utf-8")
    Path("dataset.json").write_text('{"training": ["scan.nii.gz"]}', encoding="utf-8")
    Path("list.json").write_text("[]", encoding="utf-8")
    write_scan("scan.nii.gz", organ(4), AFFINE)
    write_csv("nothing/scores.csv", ["scan", "organ"], [])
    write_csv("table/scores.csv", ["scan", "organ", "dice"], [["a", 1, "good"]])
    write_csv("curve/curve.csv", ["epoch", "loss"], [["first", 1]])
    Path("record/x_volumes.json").write_text("{}", encoding="utf-8")
    Path("record/volumes.csv").touch()
    for number in (1, 2):
        prior = SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1), organ=1)
        prior.save(f"twice/prior_{number}.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *given]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"^stipple_monai report: .*{message}", line)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_prior_folder_is_a_prior_error(made, tmp_path):
    with pytest.raises(PriorError, match="`models` must hold"):
        report(made["out"], tmp_path / "p.html", models=tmp_path)


def test_remarks_come_first_and_empty_columns_are_left_out(made, tmp_path):
    page = report(made["out"], tmp_path / "p.html")
    rows = table(page, "Every case")
    columns = list(rows[0])
    assert columns[:3] == ["case", "organ", "predicted volume (ml)"]
    assert columns[3:5] == ["confidence (0–1)", "remarks"]
    # there is no truth
    assert not {"Dice (%)", "true volume (ml)", "position error (mm)"} & set(columns)
    told = {
        Path(row["scan"]).name[:2]: row["remarks"] for row in read_csv(made["out"] / "volumes.csv")
    }
    assert any(told.values())
    assert {row["case"]: row["remarks"] for row in rows} == told
    text = text_of(page)
    assert text.index("What to look at") < text.index("Every case")
    for name, remarks in told.items():
        assert (f"{name}: liver: {remarks}." in text) == bool(remarks)
    marked = sum(bool(remarks) for remarks in told.values())
    assert f"5 scans, 0 with truth. {marked} scans with remarks" in text
    (summary,) = table(page, "Summary")
    volumes = sorted(float(row["predicted volume (ml)"]) for row in rows)
    assert summary["organ"] == "liver"
    spread = f"({volumes[0]:.1f} to {volumes[-1]:.1f})"
    assert summary["volume (ml)"] == f"{volumes[2]:.1f} {spread}"
    assert summary["scans with remarks"] == str(marked)
    assert "Dice (%)" not in summary


def test_an_evaluation_without_records_has_the_remarks_of_segment(made, tmp_path):
    told = {
        Path(row["scan"]).name[:2]: row["remarks"] for row in read_csv(made["out"] / "volumes.csv")
    }
    out = tmp_path / "evaluation"
    out.mkdir()
    for path in made["out"].glob("*_seg.nii.gz"):
        shutil.copy(path, out)
    page = report(out, datalist=made["datalist"], models=made["models"])
    assert {row["case"]: row["remarks"] for row in table(page, "Every case")} == told
    text = text_of(page)
    assert "is far from the" in text
    assert "which are its cases" in text
    # of columns that are not there nothing is said
    assert "Position: where" not in text
    assert "Time: network" not in text


def test_an_organ_that_is_rightly_absent_is_no_remark(made, tmp_path):
    out = tmp_path / "evaluation"
    out.mkdir()
    empty = np.zeros(SHAPE, np.uint8)
    write_scan(tmp_path / "s0.nii.gz", organ(4), AFFINE)
    for path in (out / "s0_seg.nii.gz", tmp_path / "label.nii.gz"):
        nib.save(nib.Nifti1Image(empty, AFFINE), path)
    item = {"image": tmp_path / "s0.nii.gz", "label": tmp_path / "label.nii.gz"}
    datalist = tmp_path / "dataset.json"
    write_datalist(datalist, {"test": [item]}, metadata={"labels": {"0": "none", "1": "liver"}})
    (row,) = table(report(out, datalist=datalist), "Every case")
    assert "remarks" not in row or not row["remarks"]
    nib.save(nib.Nifti1Image(organ(4).astype(np.uint8), AFFINE), tmp_path / "label.nii.gz")
    (row,) = table(report(out, datalist=datalist, overwrite=True), "Every case")
    assert row["remarks"] == "not found"


def test_positions_that_were_not_certain_are_no_missing_table(made, tmp_path):
    out = tmp_path / "evaluation"
    out.mkdir()
    shutil.copy(made["out"] / "s0_seg.nii.gz", out)
    row = {"scan": made["folder"] / "data" / "s0.nii.gz", "organ": 1, "confidence": 0.3}
    write_csv(out / "positions.csv", list(row), [list(row.values())])
    page = report(out, models=made["models"])
    assert "No positions: none was certain, so that no prior was used." in text_of(page)
    (row,) = table(page, "Every case")
    assert "no certain position (confidence 0.30), prior not used" in row["remarks"]


def test_one_colour_for_an_organ_on_a_page(tmp_path):
    """In tables, beside pictures and in plots alike."""
    write_phantom(tmp_path, cases=1, size=24, organs="all")
    page = report(tmp_path)
    text = text_of(page)
    names = [row["organ"] for row in table(page, "Organs")]
    for name, colour in zip(names, organ_colours(len(names)), strict=True):
        swatch = f'<span class="swatch" style="background:{colour}"></span>{name}<'
        # in the table and in the legend of the viewer
        assert text.count(swatch) >= 2, name
    plot = Image.open(tmp_path / "report_files" / "volumes.png").convert("RGB")
    there = {colour for _, colour in plot.getcolors(2**24)}
    for colour in organ_colours(len(names)):
        assert tuple(round(255 * v) for v in to_rgb(colour)) in there


def test_one_is_not_plural(made, tmp_path):
    (tmp_path / "out").mkdir()
    for path in made["out"].glob("s0_*"):
        shutil.copy(path, tmp_path / "out")
    text = text_of(report(tmp_path / "out"))
    assert "1 scan, 0 with truth" in text
    assert "1 scans" not in text


def test_settings_and_checksums_are_folded_away(made, tmp_path):
    text = text_of(report(made["out"], tmp_path / "p.html"))
    before, _, folded = text.partition("<details><summary>Settings: settings.json</summary>")
    digest = sha256(made["models"] / "prior_1.nii.gz")
    assert digest not in before
    assert digest in folded.partition("</details>")[0]
    trained = text_of(report(made["models"], tmp_path / "q.html"))
    assert sha256(made["models"] / "model.pt")[:16] not in trained.partition("<details>")[0]


def make_rounds(folder, *, validated):
    """The folder of a self-training of two rounds."""
    scores = [["0.6", "0.7"], ["0.5", "0.65"]] if validated else [["", ""], ["", ""]]
    for number in (0, 1):
        models = folder / f"round_{number}" / "models"
        models.mkdir(parents=True)
        rows = [[epoch + 1, 0.9 - 0.2 * epoch, 0.1, scores[number][epoch]] for epoch in (0, 1)]
        write_csv(models / "curve.csv", ["epoch", "loss", "train_dice", "validation_dice"], rows)
    labelled = {"image": folder / "a.nii.gz", "label": folder / "a_label.nii.gz"}
    names = {"labels": {"0": "none", "1": "liver"}}
    write_datalist(folder / "round_0" / "datalist.json", {"training": [labelled]}, metadata=names)
    place = folder / "round_1" / "pseudo_labels"
    place.mkdir()
    more = {"image": folder / "b.nii.gz", "label": place / "b.nii.gz", "pseudo_label": {"round": 1}}
    write_datalist(place / "datalist.json", {"training": [labelled, more, more]})
    quality = [["b.nii.gz", 1, 100, "0.9", "0.6", "0.72"], ["c.nii.gz", 1, 300, "0.7", "", "0.5"]]
    write_csv(place / "quality.csv", QUALITY_COLUMNS, quality)
    return folder


def test_a_self_training(tmp_path):
    run = make_rounds(tmp_path / "rounds", validated=True)
    assert detect(run) == "rounds"
    page = report(run)
    assert "Best: round 0." in text_of(page)
    first, second = table(page, "Summary")
    assert (first["scans with labels"], first["scans with pseudo-labels"]) == ("1", "0")
    assert (second["scans with labels"], second["scans with pseudo-labels"]) == ("1", "2")
    dice = "Dice on validation scans (%)"
    assert (first[dice], second[dice]) == ("70.0", "65.0")
    assert second["pseudo-labels: precision (%)"] == "80.0"
    organ = table(page, "Pseudo-labels")[0]
    assert (organ["organ"], organ["scans"], organ["recall (%)"]) == ("liver", "2", "60.0")
    assert organ["selected voxels, median"] == "200"
    assert f"round 1: stipple report {run}/round_1/models" in text_of(page)


def test_a_self_training_without_validation_says_so(tmp_path):
    page = report(make_rounds(tmp_path / "rounds", validated=False))
    assert "Which round is the best is not known" in text_of(page)
    assert "Dice on validation scans (%)" not in table(page, "Summary")[0]


def test_a_damaged_table_of_a_self_training(tmp_path):
    run = make_rounds(tmp_path / "rounds", validated=False)
    table_path = run / "round_1" / "pseudo_labels" / "quality.csv"
    write_csv(table_path, ["scan", "organ"], [["b", "liver"]])
    with pytest.raises(DatasetError, match=r"quality.csv must be a table as the self-training"):
        report(run)


def test_a_run_folder_begins_with_its_scores(made, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(made["models"], models)
    assert "Not tested yet: stipple evaluate" in text_of(report(models))
    scores = [["a", 1, "0.5", "10"], ["b", 1, "0.7", "20"]]
    write_csv(models / "evaluation" / "scores.csv", ["scan", "organ", "dice", "hd95_mm"], scores)
    page = report(models, overwrite=True)
    (row,) = table(page, "Summary")
    assert (row["test scans"], row["Dice (%)"], row["HD95 (mm)"]) == ("2", "60.0 ± 14.1", "15.0")
    assert "Not tested yet" not in text_of(page)
    for weights, old in (("0" * 64, True), (sha256(models / "model.pt"), False)):
        write_json(models / "evaluation" / "provenance.json", {"weights": {"model": weights}})
        assert (
            "are of other weights: run stipple ev" in text_of(report(models, overwrite=True))
        ) == old


def test_settings_that_cannot_be_read_and_empty_ones(tmp_path):
    for name, text in (("a.yaml", "a: ["), ("b.json", "{"), ("c.json", "{}"), ("d.yaml", "x: 1")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    paths = [tmp_path / name for name in ("a.yaml", "b.json", "c.json", "d.yaml", "e.yaml")]
    first, second, *settings = settings_blocks(paths)
    for block, path in zip((first, second), paths, strict=False):
        assert block.text.startswith(f"{path} cannot be read: ")
    found = {block.title: block.rows for block in settings}
    assert found == {"Settings: c.json": [["value", "{}"]], "Settings: d.yaml": [["x", "1"]]}
    assert settings_blocks(paths[4:], optional=True) == []


def test_a_self_training_that_goes_on(tmp_path):
    """Round 1 has its pseudo-labels and no network yet."""
    run = make_rounds(tmp_path / "rounds", validated=True)
    shutil.rmtree(run / "round_1" / "models")
    page = report(run)
    assert "Best: round 0." in text_of(page)
    assert "1 round trained." in text_of(page)
    _, second = table(page, "Summary")
    assert (second["scans with labels"], second["scans with pseudo-labels"]) == ("1", "2")
    assert second["Dice on validation scans (%)"] == ""
    quality = run / "round_1" / "pseudo_labels" / "quality.csv"
    names = ("a.nii.gz", "b.nii.gz", "c.nii.gz")
    found = [[name, 1, 100, "0.9", "0.6", f"0.{n}5"] for n, name in enumerate(names, 5)]
    write_csv(quality, QUALITY_COLUMNS, found)
    page = report(run, overwrite=True)
    assert "pseudo_labels.png" in text_of(page.with_suffix(".md"))
    # its labels are just being made
    shutil.rmtree(quality.parent)
    page = report(run, overwrite=True)
    assert "There are none yet." in text_of(page)
    _, second = table(page, "Summary")
    assert (second["scans with labels"], second["scans with pseudo-labels"]) == ("", "")


def test_a_prior_is_drawn_on_the_first_scan_that_shows_its_organ(made, tmp_path):
    items = [dict(item) for item in read_sections(made["datalist"])["training"]]
    scans = [tmp_path / name for name in ("torn.nii.gz", "empty.nii.gz")]
    for scan in scans:
        shutil.copy(items[0]["image"], scan)
        items.insert(0, {"image": scan, "label": tmp_path / f"label_of_{scan.name}"})
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), items[0]["label"])
    items[1]["label"].write_bytes(b"torn")
    write_datalist(tmp_path / "dataset.json", {"training": items})
    shutil.copy(made["models"] / "prior_1.nii.gz", tmp_path)
    prior = tmp_path / "prior_1.nii.gz"
    page = report(prior, datalist=tmp_path / "dataset.json", labels={1: "liver"})
    assert "Reference: s0, at the organ" in text_of(page)


def test_priors_stay_out_of_scans_without_their_organ(made):
    known = SpatialPrior.load(made["models"] / "prior_1.nii.gz")
    case = Case("a", "a.nii.gz")
    assert with_true_positions(case, None, {1: known}) is case
    label = MetaTensor(torch.from_numpy(organ(3)[None].astype(np.uint8)), affine=AFFINE)
    other = SpatialPrior(known.probability, spacing_mm=known.spacing_mm, organ=2)
    found = with_true_positions(case, label, {1: known, 2: other})
    assert found.positions == {1: measure_position(label, known).tolist()}


def test_a_data_set_of_few_scans_with_and_without_labels(made, tmp_path):
    items = [dict(item) for item in read_sections(made["datalist"])["training"]]
    bare = {"image": items[1].pop("label") and items[1]["image"]}
    names = {"labels": {"0": "none", "1": "liver", "2": "spleen"}}
    sections = {"training": items[:1], "unlabelled": [bare]}
    write_datalist(tmp_path / "dataset.json", sections, metadata=names)
    page = report(tmp_path / "dataset.json")
    text = text_of(page)
    assert "Section unlabelled; no label." in text
    assert re.search(r"Section training; all organs together \d+\.\d ml", text)
    assert re.search(r"\| s0 \|[^\n]* spleen \| 0\.0 \|", text_of(page.with_suffix(".md")))


def test_a_label_that_cannot_be_read_has_no_values(made, tmp_path):
    (tmp_path / "torn.nii.gz").write_bytes(b"torn")
    whole = read_sections(made["datalist"])["training"][0]["label"]
    assert label_values([tmp_path / "torn.nii.gz", whole]) == {1}


def test_a_training_that_was_never_validated_and_has_no_weights(tmp_path):
    (tmp_path / "models").mkdir()
    rows = [[1, 0.9, 0.1, ""]]
    path = tmp_path / "models" / "curve.csv"
    write_csv(path, ["epoch", "loss", "train_dice", "validation_dice"], rows)
    text = text_of(report(tmp_path / "models"))
    assert "Nothing was validated: model.pt is of the last epoch." in text
    assert "There are no weights (*.pt): the training did not end an epoch." in text


def test_a_folder_above_the_weights_is_a_training(tmp_path):
    (tmp_path / "demo" / "models").mkdir(parents=True)
    (tmp_path / "demo" / "models" / "model.pt").touch()
    assert detect(tmp_path / "demo") == "training"
    with pytest.raises(DatasetError, match=r"`run` must be a datalist .* where none of these is"):
        detect(tmp_path)
