"""Training on own data: what the folder holds, goes on with, and is used with."""

import contextlib
import csv
import io
import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers.bright_scans import KNOBS, bright_scan
from helpers.bundle_runs import files
from helpers.forks import fork, kill_when, needs_fork
from helpers.threshold_model import same_grid

from stipple_monai import DatasetError, SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, merged_configs, read_model, write_model
from stipple_monai.data import read_datalist, write_datalist
from stipple_monai.files import read_csv, write_csv
from stipple_monai.handlers import EpochLines
from stipple_monai.report import report
from stipple_monai.segmentation import segment
from stipple_monai.segmentation.folder import begin_results
from stipple_monai.training import (
    adopt,
    describe,
    evaluate,
    hardly_trained,
    mean_scores,
    next_command,
    train,
)
from stipple_monai.training import evaluation as module_of_evaluation
from stipple_monai.training import run as module

VALUE = 63
MORE = {"val_interval": 1, "optimizer#weight_decay": 0.001}
"""Knobs of the run; the second is within a part that only train.yaml has."""
pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    """Scans whose organ has the label value 63."""
    root = tmp_path_factory.mktemp("data")
    items = [bright_scan(root, number) for number in range(5)]
    for item in items:
        label = nib.load(item["label"])
        values = np.asarray(label.dataobj) * np.uint8(VALUE)
        nib.save(nib.Nifti1Image(values, label.affine), item["label"])
    path = root / "split.json"
    sections = {"training": items[:3], "validation": items[3:4], "test": items[4:]}
    content = {"labels": {"0": "background", str(VALUE): "spleen"}, "modality": {"0": "CT"}}
    write_datalist(path, sections, metadata=content)
    return path


@pytest.fixture(scope="module")
def trained(datalist, tmp_path_factory):
    """The folder of a run without plan, as the command leaves it, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "a"
    printed = Printed()
    with contextlib.redirect_stdout(printed.out), contextlib.redirect_stderr(printed.err):
        assert main(command(datalist, out)) == 0
    return out, printed


@dataclass
class Printed:
    """What a command printed; neither is a terminal."""

    out: io.StringIO = field(default_factory=io.StringIO)
    err: io.StringIO = field(default_factory=io.StringIO)


def command(datalist, out):
    settings = [f"{name}={value}" for name, value in (KNOBS | MORE).items()]
    return ["train", str(datalist), "--out", str(out), "--set", *settings]


def test_the_folder_is_whole(trained, datalist):
    out, _ = trained
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("plan.yaml", "settings.json", "model.json", "overlays", "model.pt", "last.pt"),
        *(
            f"prior_{VALUE}.nii.gz",
            f"prior_{VALUE}_cases.npz",
            "provenance.json",
            "curve.csv",
            "progress.png",
            "logs",
        ),
    }
    model = read_model(out)
    assert dict(model.organs) == {VALUE: "spleen"}
    assert model.knobs == KNOBS | MORE
    assert model.training["modality"] == "CT"
    assert model.training["spacing_mm"]["median"] == [2.0, 2.0, 6.0]
    assert model.training["intensity"]["mean"] == pytest.approx(70, abs=5)
    assert model.training["volumes_ml"][str(VALUE)]["mean"] > 5
    assert "torch" in model.versions
    assert len(read_csv(out / "curve.csv")) == 2


def test_a_line_an_epoch_and_the_next_command(trained, datalist):
    out, printed = trained
    lines = printed.out.getvalue().splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 2
    for part in ("epoch 2/2", "loss ", "validation Dice spleen ", "lr ", " s | ", "0:00 left"):
        assert part in epochs[1]
    assert lines[-2:] == [f"{out / 'model.pt'}", f"next: stipple evaluate {out} {datalist}"]
    # bars are for terminals
    assert "epoch" not in printed.err.getvalue()
    assert next_command(datalist, "x").startswith("stipple evaluate x")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((1.8, 0.2), False),
        ((1.8, 0.93), True),
        ((), False),
        # of a network that sees its prior
        ((0.6, 0.3, 0.2), False),
        ((0.6, 0.45, 0.42), True),
        ((0.4,), True),
    ],
)
def test_a_network_that_has_hardly_begun_to_learn_is_told_of(losses, said, tmp_path):
    write_csv(tmp_path / "curve.csv", ["epoch", "loss"], [[i, x] for i, x in enumerate(losses)])
    note = hardly_trained(tmp_path)
    assert (note is not None) == said
    assert not said or f"still {losses[-1]:.2f}, after {losses[0]:.2f} in the first" in note
    assert hardly_trained(tmp_path / "nowhere") is None


def test_a_trained_folder_is_left_as_it_is(trained, datalist):
    out, _ = trained
    before = (out / "model.pt").stat().st_mtime_ns
    again = {"options": KNOBS | MORE}
    assert train(datalist, out, **again) == out / "model.pt"
    assert (out / "model.pt").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match=r"with other .*, seed \(0, now 1\), see"):
        train(datalist, out, seed=1)


@pytest.mark.slow
def test_contents_count(datalist, tmp_path, monkeypatch):
    """Overlays, scans and labels are told by what they hold."""
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: None)
    shutil.copytree(datalist.parent, tmp_path / "data")
    mine, out = tmp_path / "mine.yaml", tmp_path / "out"
    mine.write_text(f"organs: [{VALUE}]\n", encoding="utf-8")
    copy = tmp_path / "data" / datalist.name
    copy.write_text(datalist.read_text().replace(str(datalist.parent), str(copy.parent)))

    def again(**more):
        return train(copy, out, overlays=[mine], options=KNOBS, **more)

    again()
    mine.write_text(f"organs: [{VALUE}]  # spleen\n", encoding="utf-8")
    again()
    mine.write_text(f"organs: [{VALUE}]\nval_interval: 2\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=f"begun with other configs: {mine}, see settings.json"):
        again()
    mine.write_text(f"organs: [{VALUE}]\n", encoding="utf-8")
    label = Path(read_datalist(copy, "training")[0]["label"])
    label.write_bytes(Path(read_datalist(copy, "training")[1]["label"]).read_bytes())
    with pytest.raises(DatasetError, match=r"begun with other data, see settings\.json"):
        again()


def test_a_folder_with_weights_of_somebody_else_is_refused(datalist, tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(DatasetError, match=r"not written by this package, got .*model\.pt"):
        train(datalist, tmp_path, options=KNOBS)
    assert (tmp_path / "model.pt").read_text() == "mine"


def test_segmenting_needs_nothing_else(trained, datalist, tmp_path):
    out, _ = trained
    items = json.loads(datalist.read_text(encoding="utf-8"))["test"]
    scan = datalist.parent / items[0]["image"]
    table = segment([scan], tmp_path / "seg", models=out)
    (row,) = read_csv(table)
    assert (row["organ"], row["name"]) == (str(VALUE), "spleen")
    (label,) = (tmp_path / "seg").glob("*_seg.nii.gz")
    found = np.unique(np.asarray(nib.load(label).dataobj))
    assert set(found) <= {0, VALUE}
    assert VALUE in found
    # MONAI's command, with the folder alone
    monai.bundle.run(
        config_file=files("inference", "volumes"),
        logging_file=False,
        datalist=str(datalist),
        models_dir=str(out),
        output_dir=str(tmp_path / "monai"),
        device=KNOBS["device"],
    )
    same = tmp_path / "monai" / label.name
    np.testing.assert_array_equal(nib.load(same).get_fdata(), nib.load(label).get_fdata())


def test_other_names_do_not_segment_again(trained, datalist, tmp_path, monkeypatch):
    out, _ = trained
    scan = datalist.parent / json.loads(datalist.read_text(encoding="utf-8"))["test"][0]["image"]
    segment([scan], tmp_path, models=out)
    monkeypatch.setattr("stipple_monai.segmentation.run.run_bundle", None)
    (row,) = read_csv(segment([scan], tmp_path, models=out, labels={VALUE: "Milz"}))
    assert row["name"] == "Milz"
    (row,) = read_csv(segment([scan], tmp_path, models=out))
    assert row["name"] == "spleen"


def test_flags_that_contradict_the_folder(trained, datalist, tmp_path, capsys):
    out, _ = trained
    scan = datalist.parent / json.loads(datalist.read_text(encoding="utf-8"))["test"][0]["image"]
    command = ["segment", str(scan), "--models", str(out), "--out", str(tmp_path / "x")]
    assert main([*command, "--set", "channels=[4,8]"]) == 1
    said = capsys.readouterr().err
    assert "`channels` must be [8, 16], with which" in said
    assert "was trained, got [4, 8]" in said
    assert main([*command, "--overlays", "phantom"]) == 1
    assert "`overlays` must be those of" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_named(trained, datalist, tmp_path):
    out, _ = trained
    other = tmp_path / "other"
    shutil.copytree(out, other)
    state = torch.load(other / "model.pt", weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: state[name][:4]}, other / "model.pt")
    scan = datalist.parent / json.loads(datalist.read_text(encoding="utf-8"))["test"][0]["image"]
    with pytest.raises(DatasetError, match=r"other/model.pt must hold weights .*size mismatch for"):
        segment([scan], tmp_path / "x", models=other)


def test_scores_and_a_report(trained, datalist, tmp_path, capsys):
    out, _ = trained
    assert main(["evaluate", str(out), str(datalist), "--out", str(tmp_path / "eval")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:3] == ["organ", "scans", "Dice"]
    assert said[1].split()[:2] == ["spleen", "1"]
    assert said[-2:] == [str(tmp_path / "eval" / name) for name in ("scores.csv", "report.html")]
    assert list((tmp_path / "eval").glob("*_seg.nii.gz"))
    (row,) = read_csv(tmp_path / "eval" / "scores.csv")
    assert row["organ"] == str(VALUE)
    assert float(row["dice"]) > 0
    assert 0 < float(row["calibration_error"]) < 1
    with pytest.raises(DatasetError, match=r"must be in .* got 'none'"):
        evaluate(out, datalist, tmp_path / "eval", section="none")
    bare = datalist.with_name("bare.json")
    scan = json.loads(datalist.read_text(encoding="utf-8"))["test"][0]["image"]
    bare.write_text(json.dumps({"test": [scan]}), encoding="utf-8")
    with pytest.raises(DatasetError, match="must have labelled scans to be scored"):
        evaluate(out, bare, tmp_path / "eval")
    page = report(out, tmp_path / "page.html")
    assert "spleen" in page.read_text(encoding="utf-8")


def test_scans_that_the_network_has_learnt_from_are_told_of(
    trained, datalist, tmp_path, monkeypatch
):
    out, _ = trained
    monkeypatch.setattr(module_of_evaluation, "run_bundle", broken)
    learnt = [item for name in ("training", "validation") for item in read_datalist(datalist, name)]
    (new,) = read_datalist(datalist, "test")
    # a link to a scan is that scan
    link = tmp_path / "linked.nii.gz"
    link.symlink_to(learnt[0]["image"])
    learnt[0] = {**learnt[0], "image": str(link)}
    names = [Path(item["image"]).name.removesuffix(".nii.gz") for item in learnt]

    def warned(items, section="test"):
        write_datalist(tmp_path / "mine.json", {section: items})
        with (
            warnings.catch_warnings(record=True) as found,
            pytest.raises(OSError, match="the disk is full"),
        ):
            evaluate(out, tmp_path / "mine.json", tmp_path / "eval", section=section)
        return [str(each.message) for each in found if "learnt" in str(each.message)]

    assert warned([new]) == []
    assert warned([new, *learnt[:2]]) == [
        f"The run in {out} has learnt from 2 of the 3 scans to be scored: {names[0]}, {names[1]}. "
        "Their scores say nothing of new scans: score scans that are in neither `training` nor "
        "`validation` of the run."
    ]
    (told,) = warned([*learnt, new], "all")
    assert f"4 of the 5 scans to be scored: {', '.join(names[:3])} and 1 more. Their" in told
    assert warned(learnt, "training") == []
    assert warned(learnt, "validation") == []


def flat(datalist, folder, *, names=("1/ct", "2/ct")):
    """The test scan's middle slice by itself, under names, and a datalist of these."""
    item = read_datalist(datalist, "test")[0]
    items = []
    for name in names:
        made = {"image": folder / f"{name}.nii.gz", "label": folder / f"{name}_label.nii.gz"}
        made["image"].parent.mkdir(parents=True, exist_ok=True)
        for key, path in made.items():
            volume = nib.load(item[key])
            middle = volume.shape[2] // 2
            nib.save(volume.slicer[:, :, middle : middle + 1], path)
        items.append({key: str(path) for key, path in made.items()})
    write_datalist(folder / "flat.json", {"test": items})
    return folder / "flat.json"


def test_voxels_that_are_to_be_ignored_count_nowhere(trained, datalist, tmp_path):
    out, _ = trained
    scans = flat(datalist, tmp_path / "flat", names=["one"])
    (item,) = read_datalist(scans, "test")
    label = nib.load(item["label"])
    values = np.array(label.dataobj)
    values[16:] = 255
    nib.save(nib.Nifti1Image(values, label.affine), item["label"])
    (row,) = read_csv(evaluate(out, scans, tmp_path / "eval"))
    segmented = np.asarray(nib.load(tmp_path / "eval" / "one_seg.nii.gz").dataobj) == VALUE
    predicted, true = segmented & (values != 255), values == VALUE
    assert segmented.sum() > predicted.sum() > 0
    dice = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert float(row["dice"]) == pytest.approx(dice, abs=1e-4)
    assert int(row["predicted_voxels"]) == predicted.sum()
    assert int(row["true_voxels"]) == true.sum()
    assert float(row["calibration_error"]) > 0


@pytest.mark.slow
def test_scans_of_one_name_have_label_maps_of_their_own_on_their_grid(trained, datalist, tmp_path):
    out, _ = trained
    scans = flat(datalist, tmp_path / "flat")
    evaluate(out, scans, tmp_path / "eval")
    found = sorted(path.name for path in (tmp_path / "eval").glob("*_seg.nii.gz"))
    assert found == ["1_ct_seg.nii.gz", "2_ct_seg.nii.gz"]
    for item, name in zip(read_datalist(scans, "test"), found, strict=True):
        assert same_grid(tmp_path / "eval" / name, item["image"])
    page = report(tmp_path / "eval", tmp_path / "page.html", datalist=scans, models=out)
    said = page.read_text(encoding="utf-8")
    assert "1_ct" in said
    assert "2_ct" in said
    assert "is not there" not in said


@pytest.mark.slow
def test_an_evaluation_takes_the_place_of_an_older_one_and_of_nothing_else(
    trained, datalist, tmp_path, monkeypatch
):
    out, _ = trained
    first, second, there = tmp_path / "a", tmp_path / "b", tmp_path / "eval"
    one = flat(datalist, first, names=["one"])
    two = flat(datalist, second, names=["two"])
    there.mkdir()
    (there / "mine.txt").write_text("mine", encoding="utf-8")
    evaluate(out, one, there)
    before = contents(there)
    with monkeypatch.context() as patch:
        patch.setattr(module_of_evaluation, "run_bundle", broken)
        with pytest.raises(OSError, match="the disk is full"):
            evaluate(out, two, there)
    assert contents(there) == before
    assert not (tmp_path / "eval.part").exists()
    evaluate(out, two, there)
    assert {path.name for path in there.glob("*_seg.nii.gz")} == {"two_seg.nii.gz"}
    (row,) = read_csv(there / "scores.csv")
    assert row["scan"].endswith("two.nii.gz")
    assert (there / "mine.txt").read_text(encoding="utf-8") == "mine"
    (there / ".stipple_monai.json").unlink()
    evaluate(out, one, there)
    assert {path.name for path in there.glob("*_seg.nii.gz")} == {"one_seg.nii.gz"}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "scores.csv").write_text("mine", encoding="utf-8")
    for folder, name in ((foreign, r"scores\.csv"), (out, r"provenance\.json")):
        with pytest.raises(DatasetError, match=f"was not written by this package, got .*{name}"):
            evaluate(out, one, folder)
    assert (foreign / "scores.csv").read_text(encoding="utf-8") == "mine"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def broken(*_, output_dir, **__):
    """A bundle that leaves half of its files."""
    (output_dir / "two_seg.nii.gz").touch()
    raise OSError("the disk is full")


def test_publishing_reads_the_folder(trained, tmp_path):
    out, _ = trained
    assert main(["publish", str(tmp_path / "spleen_stipple"), "--models", str(out)]) == 0
    config = (tmp_path / "spleen_stipple" / "configs" / "inference.yaml").read_text()
    assert "- 63" in config
    command = ["publish", str(tmp_path / "b"), "--models", str(out), "--set", "channels=[4]"]
    assert main(command) == 1


@pytest.mark.parametrize(
    ("overlays", "train_overlays", "share"),
    [((), (), 0.0), (["prior_afterwards"], (), 1.0), ((), ["baseline"], 1.0)],
)
def test_a_folder_knows_whether_its_network_saw_the_prior(
    datalist, tmp_path, overlays, train_overlays, share
):
    configs, known = BUNDLE / "configs", {"organs": [VALUE]}
    trained = {"overlays": overlays, "train_overlays": train_overlays, "knobs": known}
    model = describe(tmp_path, datalist, configs=configs, **trained)
    assert model.knobs == {**known, "prior_dropout": share}
    parser = merged_configs(configs, ["inference"], {"models_dir": str(tmp_path)})
    assert parser.get_parsed_content("inferer#prior_in_training") is (share < 1)


def test_a_folder_that_does_not_say_so_has_a_network_that_never_saw_the_prior(tmp_path):
    configs = BUNDLE / "configs"
    write_model(tmp_path, configs, organs={VALUE: "spleen"}, knobs={"organs": [VALUE]})
    parser = merged_configs(configs, ["inference"], {"models_dir": str(tmp_path)})
    assert parser.get_parsed_content("prior_dropout") == 1.0
    # weights by themselves, as MONAI's command leaves them, are of the default
    parser = merged_configs(configs, ["inference"], {"models_dir": str(tmp_path / "none")})
    assert parser.get_parsed_content("prior_dropout") == 0.0


@pytest.mark.slow
def test_without_prior(datalist, tmp_path):
    knobs = KNOBS | {"max_epochs": 1}
    train(datalist, tmp_path / "b", baseline=True, options=knobs)
    assert not list((tmp_path / "b").glob("prior_*"))
    (row,) = read_csv(evaluate(tmp_path / "b", datalist))
    assert row["position_error_mm"] == ""


@pytest.mark.slow
def test_the_papers_recipe(datalist, tmp_path):
    recipe = yaml.safe_load((BUNDLE / "configs" / "paper.yaml").read_text(encoding="utf-8"))
    knobs = {name: value for name, value in KNOBS.items() if name not in recipe}
    settings = [f"{name}={value}" for name, value in {**knobs, "max_epochs": 1}.items()]
    command = ["train", str(datalist), "--out", str(tmp_path / "p"), "--paper"]
    assert main([*command, "--set", *settings]) == 0
    known = read_model(tmp_path / "p").values()
    assert {name: known[name] for name in recipe} == recipe
    prior = SpatialPrior.load(tmp_path / "p" / f"prior_{VALUE}.nii.gz")
    assert (prior.bins, prior.smoothing_mm or None) == (recipe["bins"], None)


def test_old_weights_are_adopted(trained, datalist, tmp_path):
    out, _ = trained
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.pt", f"prior_{VALUE}.nii.gz"):
        shutil.copy(out / name, old)
    scan = datalist.parent / json.loads(datalist.read_text(encoding="utf-8"))["test"][0]["image"]
    with pytest.raises(DatasetError, match=r"has no model\.json"):
        segment([scan], tmp_path / "x", models=old)
    command = ["adopt", str(old), "--datalist", str(datalist), "--overlays", str(out / "plan.yaml")]
    settings = [f"{name}={value}" for name, value in KNOBS.items()]
    assert main([*command, "--set", *settings]) == 0
    assert dict(read_model(old).organs) == {VALUE: "spleen"}
    (row,) = read_csv(segment([scan], tmp_path / "x", models=old))
    assert row["name"] == "spleen"
    with pytest.raises(DatasetError, match=r"`models` must have no model\.json yet"):
        adopt(old)
    with pytest.raises(DatasetError, match=r"`models` must be a folder with model.pt"):
        adopt(tmp_path)
    (old / "model.pt").unlink()
    with pytest.raises(DatasetError, match=r"`models` must have model.pt and the priors, got"):
        evaluate(old, datalist)


def test_what_is_refused_before_anything_is_written(datalist, tmp_path):
    with pytest.raises(ValueError, match="`paper` must be given without plan or overlays"):
        train(datalist, tmp_path / "a", paper=True, overlays=["phantom"])
    with pytest.raises(ValueError, match="Knobs must be in the configs, got max_epoch"):
        train(datalist, tmp_path / "a", options={"max_epoch": 1})
    (tmp_path / "plan.yaml").write_text("max_epoch: 1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"got max_epoch in .*plan\.yaml: did you mean max_epochs"):
        train(datalist, tmp_path / "a", plan=tmp_path / "plan.yaml")
    with pytest.raises(ValueError, match="got the datalist"):
        train(datalist, tmp_path / "a", plan=datalist)
    assert not (tmp_path / "a").exists()
    (tmp_path / "none.json").write_text('{"training": []}', encoding="utf-8")
    with pytest.raises(DatasetError, match="must have labelled scans in training, got none"):
        train(tmp_path / "none.json", tmp_path / "b")


@pytest.mark.slow
def test_a_warning_where_plan_and_data_contradict(datalist, tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"organs: [{VALUE}, 7]\npercentiles: true\n", encoding="utf-8")
    options = KNOBS | {"max_epochs": 1}
    with pytest.raises(RuntimeError, match="estimate_priors"):
        train(datalist, tmp_path / "a", plan=plan, options=options)
    said = capsys.readouterr().out
    assert "warning: No label has organ 7 (labels have 63)" in said
    assert "warning: Scans are CT and `percentiles` is true" in said


@needs_fork
def test_one_window_for_several_modalities_is_refused(datalist, tmp_path):
    items = [{**item, "image": [item["image"]] * 2} for item in read_datalist(datalist, "training")]
    path, own = tmp_path / "split.json", tmp_path / "own.yaml"
    write_datalist(path, {"training": items}, metadata={"modality": {"0": "CT", "1": "PET"}})
    own.write_text("image_channels: 2\n", encoding="utf-8")
    for given in ({"overlays": [own]}, {"options": {"window_hu": [-160, 300]}}):
        with pytest.raises(ValueError, match=r"`window_hu` must not be given .* CT \+ PET"):
            train(path, tmp_path / "a", **given)


def test_a_killed_training_goes_on(trained, datalist, tmp_path):
    """It ends with the same weights as one that was left alone."""
    whole, _ = trained
    out = tmp_path / "a"
    child = fork(lambda: main(command(datalist, out)))
    kill_when(lambda: list(out.glob("checkpoint_*.pt")), child, every_s=0.02)
    assert not (out / "last.pt").exists()
    assert main(command(datalist, out)) == 0
    with (whole / "curve.csv").open() as one, (out / "curve.csv").open() as other:
        assert list(csv.reader(one)) == list(csv.reader(other))
    one, other = (torch.load(x / "last.pt", weights_only=True) for x in (whole, out))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_next_command_is_segment_where_nothing_can_be_tested(tmp_path):
    for test in ([], [{"image": "b.nii.gz"}]):
        sections = {"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}], "test": test}
        for name in "ab":
            (tmp_path / f"{name}.nii.gz").touch()
        path = tmp_path / "data.json"
        path.write_text(json.dumps(sections), encoding="utf-8")
        assert next_command(path, "x") == "stipple segment SCANS --models x --out results"


@pytest.mark.parametrize("foreign", ["model.pt", "brain.pt"])
def test_files_of_somebody_else_stay_as_they_are(datalist, tmp_path, monkeypatch, foreign):
    """Also those that are called as what ignite leaves when it is killed."""
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: None)
    mine = [foreign, "tmp_patient.txt", "tmp_patient", "tmpa1b2c3d4", "tmp/scan.nii.gz"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with contextlib.nullcontext() if foreign == "brain.pt" else pytest.raises(DatasetError):
        train(datalist, tmp_path, overlays=["phantom"], options={"organs": [VALUE]})
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    if foreign == "model.pt":
        there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert there == {*mine, "tmp"}


def test_a_training_scan_without_label_is_named(datalist, tmp_path):
    items = read_datalist(datalist, "training")
    bare = {name: value for name, value in items[1].items() if name != "label"}
    write_datalist(tmp_path / "bare.json", {"training": [items[0], bare]})
    message = rf"have a label for each scan in training, got .*{Path(bare['image']).name} without"
    with pytest.raises(DatasetError, match=f"{message} in .*bare.json: move it to `unlabelled`"):
        train(tmp_path / "bare.json", tmp_path / "out", options=KNOBS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dataset.json", "imagesTr"])
def test_the_folder_of_a_data_set_is_refused(datalist, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=f"must be a folder of its own, got .* has {name} of"):
        train(datalist, tmp_path, options=KNOBS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"spacing_mm": "5mm"}, r"`spacing_mm` must be a list of numbers such as .*, got '5mm'"),
        ({"slice_size": ["a", 48]}, r"`slice_size` must be a list of .*, got \['a', 48\]"),
        ({"learning_rate": "fast"}, r"`learning_rate` must be a number such as .*, got 'fast'"),
        ({"max_epochs": "two"}, "`max_epochs` must be a whole number"),
    ],
)
def test_a_wrong_knob_leaves_nothing(datalist, tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        train(datalist, tmp_path / "out", options=KNOBS | knobs)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_failed_first_try_does_not_block_the_next(datalist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: None)
    with pytest.raises(ValueError, match="`organs` must be values that labels have"):
        train(datalist, tmp_path, options=KNOBS | {"organs": [7]})
    assert "plan:" not in capsys.readouterr().out
    train(datalist, tmp_path, options=KNOBS)
    assert f"plan: {tmp_path / 'plan.yaml'}" in capsys.readouterr().out
    both = r"other options: max_epochs \(2, now 3\), options: organs \(not given, now \[63\]\)"
    with pytest.raises(DatasetError, match=f"begun with {both}, see settings.json there"):
        train(datalist, tmp_path, options=KNOBS | {"max_epochs": 3, "organs": [63]})


@pytest.mark.slow
def test_a_plan_that_was_edited_after_the_beginning_is_refused(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: None)
    train(datalist, tmp_path / "a", options=KNOBS)
    plan = tmp_path / "a" / "plan.yaml"
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace("\n\n", "\n\n# mine\n"), encoding="utf-8")
    train(datalist, tmp_path / "a", options=KNOBS)
    plan.write_text(f"{text}\nstrength: 0.5\nbatch_size: 999\n", encoding="utf-8")
    differ = (
        r"other batch_size \(\d+, now 999\), strength \(not given, now 0\.5\): put the values back"
    )
    with pytest.raises(DatasetError, match=rf"a/plan\.yaml must be the plan .*, got {differ}"):
        train(datalist, tmp_path / "a", options=KNOBS)
    plan.write_text(text.replace("cache_rate: 1.0", ""), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"got other cache_rate \(1\.0, now not given\): put"):
        train(datalist, tmp_path / "a", options=KNOBS)
    # the run has its copy
    plan.unlink()
    train(datalist, tmp_path / "a", options=KNOBS)
    assert not plan.exists()


def test_the_next_command_can_be_copied(datalist, tmp_path):
    path = tmp_path / "Daten Müller" / "split.json"
    write_datalist(path, {"training": read_datalist(datalist, "training")})
    said = next_command(path, "Läufe Müller/a")
    assert said == "stipple segment SCANS --models 'Läufe Müller/a' --out results"
    write_datalist(path, {"test": read_datalist(datalist, "training")})
    said = next_command(path, "Läufe Müller/a")
    assert said == f"stipple evaluate 'Läufe Müller/a' '{path}'"


@pytest.mark.training
@pytest.mark.slow
def test_an_epoch_is_kept_before_it_is_told(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochLines, "_tell", interrupt)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(command(datalist, tmp_path / "a")) == 130
    (kept,) = (tmp_path / "a").glob("checkpoint_*")
    assert kept.name == "checkpoint_epoch=1.pt"
    assert "train: interrupted, the same command goes on" in said.getvalue()


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_results_do_not_go_into_the_folder_of_a_training(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: None)
    train(datalist, tmp_path, overlays=["phantom"], options={"organs": [VALUE]})
    before = sorted(tmp_path.rglob("*"))
    for name in ("settings.json", "model.json"):
        with pytest.raises(DatasetError, match=r"a folder of results, got .*, the folder of a tr"):
            begin_results(tmp_path, [], {}, overwrite=True)
        assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / name).unlink()
        before.remove(tmp_path / name)


def test_the_table_counts_scans_that_have_a_score(tmp_path):
    path = tmp_path / "scores.csv"
    header = ["scan", "organ", "dice", "hd95_mm", "asd_mm"]
    write_csv(path, header, [["a", 1, 0.5, 2, 1], ["b", 1, "", "", ""], ["a", 2, 0.25, "", ""]])
    liver, spleen = mean_scores(path, {1: "liver", 2: "spleen"})
    assert liver == ["liver", "1", "0.500", "2.000", "1.000"]
    assert spleen[:3] == ["spleen", "1", "0.250"]
