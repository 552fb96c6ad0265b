"""Rounds of self-training on a tiny phantom: what each leaves, each knob, and being killed."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.bright_scans import KNOBS, bright_scan
from helpers.forks import fork, kill_when, needs_fork
from monai.data import MetaTensor
from scipy import ndimage

from stipple_monai import DatasetError, SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, read_model
from stipple_monai.data import read_datalist, read_volume, write_datalist
from stipple_monai.files import read_csv
from stipple_monai.self_training.checks import GIVEN, check_unlabelled, round_sections
from stipple_monai.self_training.quality import measure_quality, write_quality
from stipple_monai.self_training.rounds import self_train

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    """Two labelled scans, two without label, one of them with a known truth, and a test scan."""
    root = tmp_path_factory.mktemp("data")
    items = [bright_scan(root, number) for number in range(5)]
    known, unknown = dict(items[2]), dict(items[3])
    known["truth"] = known.pop("label")
    del unknown["label"]
    path = root / "split.json"
    sections = {"training": [*items[:2], unknown], "unlabelled": [known], "test": items[4:]}
    write_datalist(path, sections)
    return path


@pytest.fixture(scope="module")
def two_rounds(datalist, tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds") / "out"
    assert self_train(datalist, out, shares=[0.3, 0.6], options=KNOBS) == out / "round_2"
    return out


def test_a_folder_of_rounds_segments_and_is_reported(datalist, two_rounds, tmp_path, capsys):
    maps = []
    for models in (two_rounds, two_rounds / "round_2"):
        out = tmp_path / models.name
        assert main(["segment", str(datalist), "--models", str(models), "--out", str(out)]) == 0
        (path,) = out.glob("*_seg.nii.gz")
        maps.append(np.asarray(nib.load(path).dataobj))
    assert np.array_equal(*maps)
    page = tmp_path / "rounds.html"
    assert main(["report", str(two_rounds), "--out", str(page)]) == 0, capsys.readouterr().err
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "Self-training" in text
    assert "## Pseudo-labels" in text


def test_it_starts_from_the_plan_that_train_would_make(datalist, tmp_path, capsys):
    out, plan = tmp_path / "out", tmp_path / "plan.yaml"
    settings = ["--set", *(f"{name}={value}" for name, value in KNOBS.items())]
    assert main(["plan", str(datalist), "--out", str(plan), *settings]) == 0
    assert main(["self-train", str(datalist), str(out), "--rounds", "0", *settings]) == 0
    assert (out / "plan.yaml").read_text("utf-8") == plan.read_text("utf-8")
    model = read_model(out)
    assert model.folder == out / "round_0" / "models"
    assert [path.name for path in model.overlays] == ["0_plan.yaml"]
    said = capsys.readouterr().out
    assert "epoch 2/2 | loss " in said
    assert f"next: stipple segment SCANS --models {out} --out results" in said
    begun = plan.read_text("utf-8")
    (out / "plan.yaml").write_text(f"# mine\n{begun}", encoding="utf-8")
    assert main(["self-train", str(datalist), str(out), "--rounds", "0", *settings]) == 0
    (out / "plan.yaml").write_text(f"{begun}\nstrength: 0.5\n", encoding="utf-8")
    assert main(["self-train", str(datalist), str(out), "--rounds", "0", *settings]) == 1
    differ = "got other strength (not given, now 0.5): put the values back, or train in another"
    assert f"{out / 'plan.yaml'} must be the plan that its folder was begun with, {differ}" in (
        capsys.readouterr().err
    )


def again(datalist, out, **changes):
    return self_train(datalist, out, **{"shares": [0.5], "options": KNOBS, **changes})


def begun(two_rounds, tmp_path, rounds=0):
    """A folder with the rounds up to one, which need not be trained again."""
    out = tmp_path / "out"
    link(two_rounds, out, *range(rounds + 1))
    return out


def link(two_rounds, out, *rounds):
    """Make a folder that was begun with nothing yet, and has these rounds."""
    out.mkdir()
    (out / "settings.json").write_text('{"gammas": []}', encoding="utf-8")
    for number in rounds:
        (out / f"round_{number}").symlink_to(two_rounds / f"round_{number}")


def files(folder):
    """All that a run leaves but logs, by name; arrays and weights as they are."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.relative_to(folder).parts
    }


def weights(path):
    return torch.load(path, weights_only=True)


def relabelled(datalist):
    """The same scans, with the label of one under another name."""
    content = json.loads(datalist.read_text())
    other = datalist.parent / "other_label.nii.gz"
    shutil.copy(datalist.parent / content["training"][0]["label"], other)
    content["training"][0]["label"] = other.name
    path = datalist.parent / "relabelled.json"
    path.write_text(json.dumps(content))
    return path


def labels(folder):
    return [read_volume(p).numpy() for p in sorted(folder.glob("*_pseudo.nii.gz"))]


def test_every_round_leaves_its_state(two_rounds, datalist):
    content = json.loads(datalist.read_text())
    scans = [content["unlabelled"][0]["image"], content["training"][2]["image"]]
    models = {"curve.csv", "model.json", "model.pt", "provenance.json"}
    models |= {"prior_1.nii.gz", "prior_1_cases.npz"}
    pseudo = {"datalist.json", "quality.csv"}
    for scan in scans:
        name = Path(scan).name.removesuffix(".nii.gz")
        pseudo |= {f"{name}_pseudo.json", f"{name}_pseudo.nii.gz"}
    expected = {"settings.json", "rounds.csv", "round_0/datalist.json"}
    expected |= {f"round_{t}/models/{name}" for t in range(3) for name in models}
    expected |= {f"round_{t}/pseudo_labels/{name}" for t in (1, 2) for name in pseudo}
    assert set(files(two_rounds)) == expected


def test_the_test_section_takes_no_part(two_rounds, datalist):
    (test,) = read_datalist(datalist, "test")
    name = Path(test["image"]).name.removesuffix(".nii.gz")
    assert not [p for p in two_rounds.rglob("*") if name in p.name]
    for path in two_rounds.rglob("*.json"):
        assert name not in path.read_text(encoding="utf-8")


def test_a_round_trains_on_labels_and_new_pseudo_labels(two_rounds):
    for number, share in ((1, 0.3), (2, 0.6)):
        folder = two_rounds / f"round_{number}" / "pseudo_labels"
        items = read_datalist(folder / "datalist.json", "training")
        made = [item for item in items if "pseudo_label" in item]
        assert (len(items), len(made)) == (4, 2)
        for item in made:
            said = item["pseudo_label"]
            assert (said["round"], said["share"]) == (number, share)
            model = two_rounds / f"round_{number - 1}" / "models" / "model.pt"
            assert Path(said["model"]) == model
            assert Path(item["label"]).parent == folder
            assert len(item["organ_position"]) == 1


def test_rounds_are_scored_where_the_truth_is_known(two_rounds, datalist):
    rows = read_csv(two_rounds / "rounds.csv")
    assert [row["round"] for row in rows] == ["1", "1", "2", "2"]
    (known,) = read_datalist(datalist, "unlabelled")
    for row in rows:
        folder = two_rounds / f"round_{row['round']}" / "pseudo_labels"
        label = read_volume(folder / row["scan"].replace(".nii.gz", "_pseudo.nii.gz")).numpy()
        selected = label == 1
        assert int(row["selected_voxels"]) == selected.sum()
        if row["scan"] != Path(known["image"]).name:
            assert row["precision"] == row["recall"] == row["dice"] == ""
            continue
        true = read_volume(known["truth"]).numpy() == 1
        right = (selected & true).sum()
        if selected.any():
            assert float(row["precision"]) == pytest.approx(right / selected.sum(), abs=1e-4)
        assert float(row["recall"]) == pytest.approx(right / true.sum(), abs=1e-4)
        dice = 2 * right / (selected.sum() + true.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-4)


def test_quality_without_anything_to_divide_by():
    organ, nothing = (MetaTensor(torch.full((1, 2, 2, 2), v)) for v in (1, 0))
    ignored = MetaTensor(torch.full((1, 2, 2, 2), 255))
    assert measure_quality(nothing, nothing, organ=1) == [0, "", "", ""]
    assert measure_quality(ignored, organ, organ=1) == [0, "", 0.0, 0.0]
    assert measure_quality(organ, nothing, organ=1) == [8, 0.0, "", 0.0]
    assert measure_quality(organ, ignored, organ=1) == [8, "", "", ""]


def with_unknown(truth, path):
    """The truth, but of a quarter of the scan nothing is known; it is stored with four axes."""
    volume = nib.load(truth)
    voxels = np.asarray(volume.dataobj).copy()
    voxels[16:, 16:] = 255
    nib.save(nib.Nifti1Image(voxels[..., None], volume.affine), path)
    return voxels


def test_where_the_truth_is_unknown_no_selection_is_right_or_wrong(datalist, tmp_path):
    (known,) = read_datalist(datalist, "unlabelled")
    truth = with_unknown(known["truth"], tmp_path / "truth.nii.gz")
    selected = np.roll(np.asarray(nib.load(known["truth"]).dataobj), 2, axis=0)
    label = nib.Nifti1Image(selected, nib.load(known["truth"]).affine)
    nib.save(label, tmp_path / "label.nii.gz")
    item = {"image": known["image"], "label": tmp_path / "label.nii.gz"}
    write_quality(tmp_path / "q.csv", [{**item, "truth": tmp_path / "truth.nii.gz"}], [1])
    (row,) = read_csv(tmp_path / "q.csv")
    chosen, true = (selected == 1) & (truth != 255), truth == 1
    right = (chosen & true).sum()
    assert int(row["selected_voxels"]) == selected.sum() > chosen.sum()
    assert float(row["precision"]) == pytest.approx(right / chosen.sum(), abs=1e-4)
    assert float(row["recall"]) == pytest.approx(right / true.sum(), abs=1e-4)
    dice = 2 * right / (chosen.sum() + true.sum())
    assert float(row["dice"]) == pytest.approx(dice, abs=1e-4)


def test_every_truth_is_read_before_the_first_training(datalist, tmp_path):
    """It scores the pseudo-labels of a round, hours later."""
    (known,) = read_datalist(datalist, "unlabelled")
    for name, change in (("value", lambda x: x + 2), ("grid", lambda x: x[1:])):
        truth, volume = tmp_path / f"{name}.nii.gz", nib.load(known["truth"])
        values = change(np.asarray(volume.dataobj))
        nib.save(nib.Nifti1Image(values, volume.affine), truth)
        item = {"image": known["image"], "truth": str(truth)}
        with pytest.raises(DatasetError, match=rf"must have .*{name}\.nii\.gz"):
            check_unlabelled([item], 1, "x", organs=[1])
    voxels = with_unknown(known["truth"], tmp_path / "truth.nii.gz")
    assert (voxels == 255).any()
    check_unlabelled([{**known, "truth": tmp_path / "truth.nii.gz"}], 1, "x", organs=[1])
    garbage = json.loads(datalist.read_text())
    (tmp_path / "truth.nii.gz").write_bytes(b"no image")
    garbage["unlabelled"][0]["truth"] = str(tmp_path / "truth.nii.gz")
    other = datalist.parent / "early.json"
    other.write_text(json.dumps(garbage))
    with pytest.raises(DatasetError, match=r"a whole NIfTI file, got .*truth\.nii\.gz"):
        again(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truth_may_have_values_that_count_as_background(datalist, tmp_path):
    (known,) = read_datalist(datalist, "unlabelled")
    truth = nib.load(known["truth"])
    voxels = np.asarray(truth.dataobj).copy()
    voxels[0, 0] = 13
    nib.save(nib.Nifti1Image(voxels, truth.affine), tmp_path / "truth.nii.gz")
    item = {"image": known["image"], "label": known["truth"], "truth": tmp_path / "truth.nii.gz"}
    write_quality(tmp_path / "quality.csv", [item], [1], [13])
    (row,) = read_csv(tmp_path / "quality.csv")
    assert float(row["dice"]) == pytest.approx(1, abs=0.02)
    with pytest.raises(DatasetError, match=r"got 13 in .*truth\.nii\.gz"):
        write_quality(tmp_path / "quality.csv", [item], [1])


def test_a_scan_of_several_files_is_named_by_the_first(datalist, tmp_path):
    (known,) = read_datalist(datalist, "unlabelled")
    item = {"image": [known["image"], "second.nii.gz"], "label": known["truth"]}
    write_quality(tmp_path / "quality.csv", [item], [1])
    (row,) = read_csv(tmp_path / "quality.csv")
    assert row["scan"] == Path(known["image"]).name


def test_more_rounds_go_on_and_other_settings_are_refused(two_rounds, datalist, tmp_path):
    out = tmp_path / "out"
    last = again(datalist, out, shares=[])
    assert last == out / "round_0"
    model = (out / "round_0" / "models" / "model.pt").stat().st_mtime_ns
    assert again(datalist, out, shares=[0.3]) == out / "round_1"
    assert (out / "round_0" / "models" / "model.pt").stat().st_mtime_ns == model
    # the same as in one go
    for name in ("curve.csv", "prior_1.nii.gz"):
        one, other = (f / "round_1" / "models" / name for f in (out, two_rounds))
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(DatasetError, match="was begun with other shares or counts"):
        again(datalist, out, shares=[0.4])
    with pytest.raises(
        DatasetError, match=r"other fine_tune \(null, now true\), seed \(0, now 1\), see settings"
    ):
        again(datalist, out, shares=[0.3], fine_tune=True, seed=1)
    with pytest.raises(DatasetError, match="was begun with other labels, see settings"):
        again(relabelled(datalist), out, shares=[0.3])
    assert again(datalist, out, shares=[]) == out / "round_0"
    assert len(json.loads((out / "settings.json").read_text())["gammas"]) == 1
    assert {row["round"] for row in read_csv(out / "rounds.csv")} == {"1"}


def test_an_overlay_that_changed_its_content_is_another(two_rounds, datalist, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("learning_rate: 0.01\n", encoding="utf-8")
    given = {"shares": [], "overlays": [overlay]}
    again(datalist, tmp_path / "out", **given)
    overlay.write_text("learning_rate: 0.01  # the same\n", encoding="utf-8")
    again(datalist, tmp_path / "out", **given)
    overlay.write_text("learning_rate: 0.02\n", encoding="utf-8")
    before = (tmp_path / "out" / "settings.json").read_text()
    with pytest.raises(DatasetError, match=f"begun with other configs: {overlay}, see settings"):
        again(datalist, tmp_path / "out", **given)
    assert (tmp_path / "out" / "settings.json").read_text() == before


def test_gamma_as_a_number_of_voxels(two_rounds, datalist, tmp_path):
    for name, counts in (("all", [7]), ("each", [[5]])):
        out = tmp_path / name
        link(two_rounds, out, 0)
        again(datalist, out, counts=counts, options={**KNOBS, "max_epochs": 1})
        found = [(label == 1).sum() for label in labels(out / "round_1" / "pseudo_labels")]
        assert len(found) == 2
        assert max(found) == np.ravel(counts)[0]


def test_knobs_of_the_selection_reach_it(two_rounds, datalist, tmp_path):
    counted = {}
    for name, knobs in {
        "all": {},
        "sure": {"minimum": 0.9},
        "largest": {"components": 1},
    }.items():
        out = tmp_path / name
        link(two_rounds, out, 0)
        again(datalist, out, shares=[1.0], **knobs, options={**KNOBS, "max_epochs": 1})
        counted[name] = labels(out / "round_1" / "pseudo_labels")
    for everything, sure, largest in zip(*counted.values(), strict=True):
        assert (everything != 255).all()
        assert ((sure == 1) <= (everything == 1)).all()
        parts, number = ndimage.label(everything[0] == 1)
        sizes = np.bincount(parts.ravel())[1:]
        assert (largest == 1).sum() == (sizes.max() if number else 0)
        assert (largest == 255).sum() == sizes.sum() - (sizes.max() if number else 0)
    assert sum((x == 255).sum() for x in counted["sure"]) > 0


def test_a_round_starts_from_scratch_or_from_the_one_before(two_rounds, datalist, tmp_path):
    still = {**KNOBS, "learning_rate": 0.0, "max_epochs": 1}
    found = {}
    by_certainty = {"shares": [None]}
    for name, asked in {
        "scratch": {},
        "tuned": {"fine_tune": True},
        "certain": by_certainty,
        "certain, scratch": {**by_certainty, "fine_tune": False},
    }.items():
        out = tmp_path / name
        link(two_rounds, out, 0)
        again(datalist, out, **asked, options=still)
        found[name] = weights(out / "round_1" / "models" / "model.pt")
    first = weights(two_rounds / "round_0" / "models" / "model.pt")
    learnt = [key for key in first if "running" not in key and "batches" not in key]
    kept = {
        name: all(torch.equal(now[key], first[key]) for key in learnt)
        for name, now in found.items()
    }
    assert kept == {"scratch": False, "tuned": True, "certain": True, "certain, scratch": False}


def test_priors_are_kept_or_estimated_again(two_rounds, datalist, tmp_path):
    first, second = (
        (two_rounds / f"round_{t}" / "models" / "prior_1.nii.gz").read_bytes() for t in (0, 1)
    )
    assert first == second
    out = begun(two_rounds, tmp_path)
    again(datalist, out, reestimate_prior=True, options={**KNOBS, "max_epochs": 1})
    found = SpatialPrior.load(out / "round_1" / "models" / "prior_1.nii.gz")
    items = read_datalist(out / "round_1" / "pseudo_labels" / "datalist.json", "training")
    volumes = [read_volume(item["label"]) for item in items]
    assert any((volume == 255).any() for volume in volumes)
    selected = [MetaTensor((v == 1).as_tensor().float(), affine=v.affine) for v in volumes]
    selected = [volume for volume in selected if volume.any()]
    expected = SpatialPrior.estimate(selected, center="groupwise")
    assert (found.case_count, expected.case_count) == (len(selected),) * 2
    assert len(selected) > 2
    assert torch.equal(found.probability, expected.probability)


def test_who_positions_the_pseudo_labels(two_rounds, datalist, tmp_path):
    """In round 2, round 0's own output or round 1's; a file of weights also in round 1."""
    positions = {}
    for name in ("newest", "first"):
        out = tmp_path / name
        link(two_rounds, out, 0, 1)
        options = {**KNOBS, "max_epochs": 1}
        again(datalist, out, shares=[0.3, 0.6], position_with=name, options=options)
        items = read_datalist(out / "round_2" / "pseudo_labels" / "datalist.json", "training")
        positions[name] = [i["organ_position"] for i in items if "pseudo_label" in i]
    before = read_datalist(two_rounds / "round_1" / "pseudo_labels" / "datalist.json", "training")
    own = [i["organ_position"] for i in before if "pseudo_label" in i]
    assert positions["first"] == own != positions["newest"]
    # a network without prior may locate already in round 1: here that of round 0, without its shell
    bare, other = tmp_path / "bare.pt", two_rounds / "round_1" / "models" / "model.pt"
    state = weights(two_rounds / "round_0" / "models" / "model.pt")
    torch.save({key.removeprefix("network."): value for key, value in state.items()}, bare)
    for name, path in (("bare", bare), ("other", other)):
        out = tmp_path / name
        link(two_rounds, out, 0)
        again(datalist, out, shares=[0.3], position_with=path, options=options)
        items = read_datalist(out / "round_1" / "pseudo_labels" / "datalist.json", "training")
        positions[name] = [i["organ_position"] for i in items if "pseudo_label" in i]
    assert positions["bare"] == own != positions["other"]


@pytest.fixture(scope="module")
def validated(datalist):
    """The same scans, and the one of the section `test` to validate on."""
    content = json.loads(datalist.read_text())
    path = datalist.parent / "validated.json"
    path.write_text(json.dumps({**content, "validation": content["test"], "test": []}))
    return path


def test_by_certainty_and_compared_where_the_truth_is_known(validated, tmp_path, capsys):
    out = tmp_path / "out"
    assert self_train(validated, out, options=KNOBS) == out / "round_1"
    for item in read_datalist(out / "round_1" / "pseudo_labels" / "datalist.json", "training"):
        said = item.get("pseudo_label")
        if said is not None:
            assert (said["selection"], said["share"], said["count"]) == ("certain", None, None)
            assert said["background_minimum"] == 0.7
    rows = read_csv(out / "comparison.csv")
    assert [row["round"] for row in rows] == ["0", "1"]
    for row in rows:
        curve = read_csv(out / f"round_{row['round']}" / "models" / "curve.csv")
        assert float(row["dice"]) == max(float(epoch["validation_dice"]) for epoch in curve)
    best = max(rows, key=lambda row: (float(row["dice"]), -int(row["round"])))
    assert [row["best"] == "yes" for row in rows] == [row is best for row in rows]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"best: round {best['round']}, use round_{best['round']}/models")
    # of no round that was not asked for
    (out / "comparison.csv").unlink()
    assert self_train(validated, out, shares=[], options=KNOBS) == out / "round_0"
    assert not (out / "comparison.csv").exists()


def test_half_of_a_round_is_labelled_and_its_weights_are_averaged(two_rounds, datalist, tmp_path):
    """By themselves where there are pseudo-labels, and not in round 0; each can be undone."""
    found = {}
    for name, knobs in {
        "default": {},
        "last": {"ema_decay": None},
        "alike": {"ema_decay": None, "labelled_share": None},
        "long": {"ema_decay": 0.999},
    }.items():
        (tmp_path / name).mkdir()
        out = begun(two_rounds, tmp_path / name)
        again(datalist, out, options={**KNOBS, "max_epochs": 1, **knobs})
        found[name] = weights(out / "round_1" / "models" / "model.pt")
    key = next(key for key, value in found["default"].items() if value.ndim == 4)
    assert not torch.equal(found["default"][key], found["last"][key])
    assert not torch.equal(found["alike"][key], found["last"][key])
    # both are the mean of all steps, which are less than 100
    assert torch.equal(found["default"][key], found["long"][key])
    assert set(found["default"]) == set(found["last"])
    options = {**KNOBS, "max_epochs": 1}
    for name, knobs in {"none": {}, "null": {"ema_decay": None}}.items():
        again(datalist, tmp_path / name, shares=[], options={**options, **knobs})
    first, second = (
        weights(tmp_path / name / "round_0" / "models" / "model.pt") for name in ("none", "null")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_full_pseudo_labels_without_prior(datalist, tmp_path):
    again(datalist, tmp_path / "out", shares=[1.0], overlays=["baseline"])
    found = labels(tmp_path / "out" / "round_1" / "pseudo_labels")
    assert len(found) == 2
    assert all((label != 255).all() for label in found)


def test_unlabelled_scans_of_the_decathlon(datalist, two_rounds, tmp_path):
    """Bare paths in section `test`, and nothing else without label."""
    content = json.loads(datalist.read_text())
    bare = [content["unlabelled"][0]["image"]]
    other = datalist.parent / "decathlon.json"
    other.write_text(json.dumps({"training": content["training"][:2], "test": bare}))
    with pytest.raises(DatasetError, match="`datalist` must have unlabelled scans for the rounds"):
        again(other, tmp_path / "none")
    sections = {"unlabelled_sections": ["test"]}
    again(other, tmp_path / "out", **sections, options={**KNOBS, "max_epochs": 1})
    assert len(labels(tmp_path / "out" / "round_1" / "pseudo_labels")) == 1
    with pytest.raises(DatasetError, match="`datalist` must have the section pool"):
        again(other, tmp_path / "none", unlabelled_sections=["pool"])
    other.write_text(json.dumps({"training": [content["training"][2]], "unlabelled": bare}))
    with pytest.raises(DatasetError, match="must have labelled scans in training"):
        again(other, tmp_path / "none")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"shares": [0.5, 0.0]}, r"`share` must lie in \(0, 1\], got 0.0"),
        ({"counts": [-1]}, "`count` must be whole numbers of at least 0, got -1"),
        ({"counts": [[3, 3]]}, r"`count` must be one number or one per organ \(1\), got 2"),
        ({"minimum": 1.5}, r"`minimum` must be a probability in \[0, 1\], got 1.5"),
        ({"components": 0}, "`components` must be at least 1, or None for all, got 0"),
        ({"position_with": "oldest"}, '`position_with` must be "newest", "first" or a file of'),
        ({"overlays": ["phantoms"]}, "Overlays must be names of configs .*, got phantoms"),
        ({"train_overlays": ["phantoms"]}, "Overlays must be names of configs .*, got phantoms"),
        ({"infer_overlays": ["phantoms"]}, "Overlays must be names of configs .*, got phantoms"),
        ({"options": {"seed": 1, "share": 1}}, "`options` must not have .*, got seed, share: give"),
    ],
)
def test_knobs_out_of_range_are_found_before_any_training(datalist, tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        again(datalist, tmp_path / "out", **knobs)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_cannot_locate(datalist, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DatasetError, match=r"weights of this network, got .*other\.pt: give those"):
        again(datalist, tmp_path / "out", position_with=tmp_path / "other.pt")
    assert not (tmp_path / "out").exists()


def test_labels_of_unlabelled_scans_are_for_scores_alone(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").touch()
    items = [{"image": f"{name}.nii.gz", "label": f"{name}.nii.gz"} for name in "ab"]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"training": items[:1], "unlabelled": items[1:]}), encoding="utf-8")
    (rest,) = round_sections(path, ["unlabelled"])["unlabelled"]
    assert "label" not in rest
    assert Path(rest["truth"]).name == "b.nii.gz"


def test_every_knob_that_is_given_is_one_of_the_configs():
    for name in GIVEN:
        texts = [p.read_text(encoding="utf-8") for p in (BUNDLE / "configs").glob("*.yaml")]
        assert any(f"\n{name}:" in text for text in texts), name


def test_each_command_gets_its_overlays(datalist, two_rounds, tmp_path):
    """Paths of files; what only one command may have would stop the others, or be seen in it."""
    train, infer = tmp_path / "train.yaml", tmp_path / "infer.yaml"
    train.write_text("max_epochs: 1\n")
    infer.write_text("minimum_confidence: 1.0\n")
    out = begun(two_rounds, tmp_path)
    knobs = {k: v for k, v in KNOBS.items() if k not in ("max_epochs", "minimum_confidence")}
    again(datalist, out, train_overlays=[train], infer_overlays=[infer], options=knobs)
    assert len(read_csv(out / "round_1" / "models" / "curve.csv")) == 1
    items = read_datalist(out / "round_1" / "pseudo_labels" / "datalist.json", "training")
    positions = [item["organ_position"] for item in items if "pseudo_label" in item]
    assert positions == [[[None] * 3]] * 2


def test_only_one_process_works_in_a_folder(datalist, two_rounds, tmp_path):
    out = begun(two_rounds, tmp_path, rounds=1)
    (out / "logs").mkdir()
    with FileLock(out / "logs" / "lock"):
        with pytest.raises(DatasetError, match="`out` must be a folder in which no other process"):
            again(datalist, out)
        assert not json.loads((out / "settings.json").read_text())["gammas"]
    again(datalist, out)


def test_what_was_being_written_when_a_process_was_killed_goes(datalist, two_rounds, tmp_path):
    out = begun(two_rounds, tmp_path)
    left = ["pseudo_labels.part/scan_2_image_pseudo.lock"]
    unfinished = f".part-{'0' * 32}"
    left += [
        f"models.part/{unfinished}-curve.csv",
        f"models.part/{unfinished}-model.pt",
        f"pseudo_labels.part/{unfinished}-datalist.json",
    ]
    for name in left:
        (out / "round_1" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "round_1" / name).touch()
    again(datalist, out, options={**KNOBS, "max_epochs": 1})
    expected = {name for name in files(two_rounds) if name.startswith("round_1")}
    assert {f"round_1/{name}" for name in files(out / "round_1")} == expected


def test_fine_tuning_from_given_weights_and_progress(datalist, two_rounds, tmp_path, capsys):
    """Weights among the options are those that every round starts from."""
    start = two_rounds / "round_2" / "models" / "model.pt"
    still = {**KNOBS, "learning_rate": 0.0, "max_epochs": 1, "initial_weights": str(start)}
    out = begun(two_rounds, tmp_path)
    again(datalist, out, options=still)
    found, given = weights(out / "round_1" / "models" / "model.pt"), weights(start)
    learnt = [key for key in given if "running" not in key and "batches" not in key]
    assert all(torch.equal(found[key], given[key]) for key in learnt)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    said = [line.split("] ", 1)[1].split(":", 1)[0:2] for line in lines]
    assert [text[0] for text in said] == ["round 0", "round 1", "organ 1", "round 1"]
    assert said[0][1] == " trained before"
    again(datalist, out, options=still)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.endswith("before") for line in lines] == [True] * 3


def test_the_truth_is_only_read_to_score(datalist, tmp_path, monkeypatch):
    garbage = tmp_path / "truth.nii.gz"
    garbage.write_bytes(b"no image")
    content = json.loads(datalist.read_text())
    content["unlabelled"][0]["truth"] = str(garbage)
    other = datalist.parent / "garbage.json"
    other.write_text(json.dumps(content))
    scored = []
    monkeypatch.setattr("stipple_monai.self_training.checks.known_truth", lambda *_: None)
    monkeypatch.setattr(
        "stipple_monai.self_training.rounds.write_quality",
        lambda path, items, organs, background: scored.extend(items) or [["", 1, 0, "", "", ""]],
    )
    again(other, tmp_path / "out", options={**KNOBS, "max_epochs": 1})
    assert str(garbage) in [item.get("truth") for item in scored]


def test_as_a_config_of_the_bundle(datalist, two_rounds, tmp_path):
    out = begun(two_rounds, tmp_path, rounds=1)
    monai.bundle.run(
        config_file=str(BUNDLE / "configs" / "self_train.yaml"),
        bundle_root=str(BUNDLE),
        datalist=str(datalist),
        output_dir=str(out),
        shares=[0.3],
        options={k: v for k, v in KNOBS.items() if k != "device"},
        logging_file=False,
    )
    assert len(read_csv(out / "rounds.csv")) == 2


def test_on_the_command_line(datalist, two_rounds, tmp_path, capsys):
    out = begun(two_rounds, tmp_path, rounds=1)
    knobs = [f"{k}={json.dumps(v)}" for k, v in KNOBS.items()]
    arguments = ["self-train", str(datalist), str(out), "--shares", "0.3", "--set", *knobs]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    further = f"next: stipple segment SCANS --models {out} --out results"
    assert said == [str(out / "round_1"), further]
    assert main([*arguments[:-1], "progress"]) == 1
    assert "`--set` must be pairs KNOB=VALUE, got progress" in capsys.readouterr().err


KILLED = {**KNOBS, "max_epochs": 3, "slices_per_scan": 8}


def organ_overlay(datalist):
    path = datalist.parent / "organ.yaml"
    path.write_text("organs: [1]\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(datalist, tmp_path_factory):
    """What a round leaves if it is left alone, and how many seconds it took."""
    out = tmp_path_factory.mktemp("uninterrupted")
    overlay = organ_overlay(datalist)
    start = time.monotonic()
    again(datalist, out, options=KILLED, overlays=[overlay])
    return out, time.monotonic() - start


def assert_same_files(out, expected):
    """Records and datalists name the folder of the model."""
    found, wanted = files(out), files(expected)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        assert found[name] == content.replace(str(expected).encode(), str(out).encode()), name


@needs_fork
def test_killed_at_any_moment_it_ends_with_the_same_files(datalist, uninterrupted, tmp_path):
    out = tmp_path / "out"
    options = [f"{name}={json.dumps(value)}" for name, value in KILLED.items()]
    overlay = organ_overlay(datalist)
    command = ["self-train", str(datalist), str(out), "--shares", "0.5"]
    command += ["--overlays", str(overlay), "--set", *options]
    moments = {
        "inside training": "round_0/models.part/checkpoint_epoch=1.pt",
        "between rounds": "round_0/models",
        "inside pseudo-labelling": "round_1/pseudo_labels.part/*_pseudo.json",
        "inside the next training": "round_1/models.part/checkpoint_epoch=2.pt",
    }
    for moment in moments.values():
        kill_when(lambda: list(out.glob(moment)), fork(lambda: main(command)))  # noqa: B023
        assert not (out / "rounds.csv").exists()
    assert main(command) == 0
    assert_same_files(out, uninterrupted[0])


def whole(path):
    """Read a file to its end, or fail."""
    if path.suffix == ".pt":
        assert torch.load(path, weights_only=True, map_location="cpu")
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        assert read_csv(path)
    elif path.name.endswith(".nii.gz"):
        assert read_volume(path).ndim == 4


def unfinished(path):
    return path.name.startswith(".part-") or path.name.endswith(".part")


@needs_fork
def test_killed_twenty_times_at_random(datalist, uninterrupted, tmp_path):
    expected, duration = uninterrupted
    out = tmp_path / "killed" / "out"
    options = {"options": KILLED, "overlays": [organ_overlay(datalist)]}
    rng, kills = random.Random(0), 0
    while kills < 20:
        child = fork(lambda: again(datalist, out, **options) and 0)
        time.sleep(rng.uniform(0, duration / 3))
        if os.waitpid(child, os.WNOHANG)[0]:
            # it was faster: from the start again
            shutil.rmtree(out)
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        for path in out.rglob("*"):
            if path.is_file() and not unfinished(path):
                whole(path)
    again(datalist, out, **options)
    assert_same_files(out, expected)
