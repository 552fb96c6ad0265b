"""Priors for probability maps that other tools wrote."""

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.threshold_model import same_grid
from scipy import ndimage

from stipple_monai import DatasetError, SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.commands import fuse as command
from stipple_monai.errors import PriorError
from stipple_monai.networks import Calibration
from stipple_monai.segmentation import fuse, mean_gain

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1]])
SHAPE = (40, 36, 24)
NAMES = [f"s{i}" for i in range(5)]


def ball(center, radii):
    grid = np.indices(SHAPE).astype(float)
    scaled = [(g - c) * s / r for g, c, s, r in zip(grid, center, (2, 2, 3), radii, strict=True)]
    return sum(x**2 for x in scaled) < 1


def organs(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers((12, 10, 8), (16, 14, 11))
    label = np.zeros(SHAPE, np.uint8)
    label[ball(first, rng.uniform(9, 17, 3))] = 1
    label[ball(first + np.array([14, 10, 4]), rng.uniform(8, 14, 3))] = 2
    return label


def probabilities(label, seed):
    """What an overconfident network says that sees organs where there are none."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 2, 2, 1.5))
    logits = 12 * np.stack([label == k for k in range(3)]) + 4.4 * noise / noise.std()
    e = np.exp(logits - logits.max(0))
    return (e / e.sum(0)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Maps as nnU-Net and as others write them, scans, labels, and priors of other labels."""
    root = tmp_path_factory.mktemp("fuse")
    for name in ("nnunet", "nifti", "scans", "labels", "priors"):
        (root / name).mkdir()
    for i, name in enumerate(NAMES):
        label = organs(i)
        p = probabilities(label, 100 + i)
        np.savez_compressed(
            root / f"nnunet/{name}.npz", probabilities=p.transpose(0, 3, 2, 1).astype(np.float16)
        )
        save(root / f"nifti/{name}_prob.nii.gz", np.moveaxis(p, 0, 3))
        save(root / f"labels/{name}.nii.gz", label)
        save(root / f"scans/{name}_0000.nii.gz", (100 * label).astype(np.int16))
    for i in range(10, 14):
        save(root / f"{i}.nii.gz", organs(i))
    files = [str(root / f"{i}.nii.gz") for i in range(10, 14)]
    for prior in SpatialPrior.estimate_several(files, organs=[1, 2]):
        prior.save(root / f"priors/prior_{prior.organ}.nii.gz")
    return root


def save(path, values):
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def mean_dice(out, data, names=NAMES):
    found = []
    for name in names:
        seg = np.asarray(nib.load(out / f"{name}_seg.nii.gz").dataobj)
        truth = np.asarray(nib.load(data / f"labels/{name}.nii.gz").dataobj)
        for k in (1, 2):
            both = 2 * ((seg == k) & (truth == k)).sum()
            found.append(both / ((seg == k).sum() + (truth == k).sum()))
    return float(np.mean(found))


def alone(data):
    found = []
    for i in range(len(NAMES)):
        p, truth = probabilities(organs(i), 100 + i).argmax(0), organs(i)
        for k in (1, 2):
            both = 2 * ((p == k) & (truth == k)).sum()
            found.append(both / ((p == k).sum() + (truth == k).sum()))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def fused(data):
    """Maps of nnU-Net with the scans that they are of, without a label."""
    fuse([data / "nnunet"], data / "fused", priors=data / "priors", like=[data / "scans"])
    return data / "fused"


def test_maps_of_nnunet_gain_by_priors_without_a_label(data, fused):
    assert mean_dice(fused, data) > alone(data) + 0.1
    assert same_grid(fused / "s0_seg.nii.gz", data / "scans/s0_0000.nii.gz")
    rows = list(csv.DictReader((fused / "volumes.csv").open(encoding="utf-8")))
    assert len(rows) == 10
    assert float(rows[0]["volume_ml"]) > 1
    assert 0 < float(rows[0]["confidence"]) <= 1
    assert not json.loads((fused / "calibration.json").read_text())["record"]["fitted"]
    assert not (fused / "gain.csv").exists()


def test_the_constants_know_the_labels_of_the_network(data, fused, tmp_path):
    one = tmp_path / "maps"
    one.mkdir()
    shutil.copy(data / "nifti/s0_prob.nii.gz", one)
    assert Calibration.load(fused / "calibration.json").record["labelled"] == [4, 4]
    fuse([one], tmp_path / "out", priors=data / "priors", labelled=24)
    assert Calibration.load(tmp_path / "out/calibration.json").scale == (0.5, 0.5)
    with pytest.raises(PriorError, match="`labelled` must be a number of label maps"):
        fuse([one], tmp_path / "no", priors=data / "priors", labelled=-1)
    assert not (tmp_path / "no").exists()


def test_maps_of_crops_are_placed_without_the_scans_vote(data, tmp_path, monkeypatch):
    one = tmp_path / "maps"
    one.mkdir()
    shutil.copy(data / "nifti/s0_prob.nii.gz", one)
    module = sys.modules["stipple_monai.segmentation.fuse"]
    votes, real = [], module.fuse_logits

    def noted(*args, scan_vote, **options):
        votes.append(scan_vote)
        return real(*args, scan_vote=scan_vote, **options)

    monkeypatch.setattr(module, "fuse_logits", noted)
    words = ["fuse", str(one), "--priors", str(data / "priors"), "--out", str(tmp_path / "out")]
    assert main([*words, "--no-scan-vote"]) == 0
    assert main([*words, "--overwrite"]) == 0
    assert votes == [False, True]
    with pytest.raises(DatasetError, match="must have no results made with other settings"):
        fuse([one], tmp_path / "out", priors=data / "priors", scan_vote=False)


def test_other_names_do_not_fuse_again(data, fused, tmp_path):
    out = shutil.copytree(fused, tmp_path / "out")
    before = (out / "s0_seg.nii.gz").stat().st_mtime_ns
    given = {"priors": data / "priors", "like": [data / "scans"]}
    fuse([data / "nnunet"], out, **given, labels={1: "Leber", 2: "Milz"})
    rows = list(csv.DictReader((out / "volumes.csv").open(encoding="utf-8")))
    assert {row["name"] for row in rows} == {"Leber", "Milz"}
    assert (out / "s0_seg.nii.gz").stat().st_mtime_ns == before


@pytest.mark.slow
def test_patients_numbers_of_four_digits_are_no_channels(data, fused, tmp_path):
    for i, name in enumerate(NAMES[:2]):
        for kind, old, new in (
            ("nnunet", f"{name}.npz", f"ct_000{i}.npz"),
            ("scans", f"{name}_0000.nii.gz", f"ct_000{i}_0000.nii.gz"),
            ("labels", f"{name}.nii.gz", f"ct_000{i}.nii.gz"),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copyfile(data / kind / old, tmp_path / kind / new)
    options = {"priors": data / "priors", "like": [tmp_path / "scans"]}
    fuse([tmp_path / "nnunet"], tmp_path / "out", **options)
    for i, name in enumerate(NAMES[:2]):
        one, two = fused / f"{name}_seg.nii.gz", tmp_path / f"out/ct_000{i}_seg.nii.gz"
        assert np.array_equal(nib.load(one).dataobj, nib.load(two).dataobj)
    fuse([tmp_path / "nnunet"], tmp_path / "b", calibrate=[tmp_path / "labels"], **options)
    rows = list(csv.DictReader((tmp_path / "b/gain.csv").open(encoding="utf-8")))
    assert {Path(row["scan"]).name[:7] for row in rows} == {"ct_0000", "ct_0001"}


@pytest.mark.slow
def test_nifti_with_a_channel_for_each_class_says_the_same(data, fused, tmp_path):
    fuse([data / "nifti"], tmp_path, priors=data / "priors")
    for name in NAMES:
        one, two = (
            np.asarray(nib.load(folder / f"{name}_seg.nii.gz").dataobj)
            for folder in (fused, tmp_path)
        )
        assert (one != two).mean() < 5e-3


@pytest.mark.slow
def test_the_gain_is_that_of_numbers_fitted_to_other_scans(data, tmp_path):
    options = {"priors": data / "priors", "like": [data / "scans"]}
    fuse([data / "nnunet"], tmp_path / "a", calibrate=[data / "labels"], **options)
    means = mean_gain(tmp_path / "a")
    assert [(name, scans) for name, scans, _, _ in means] == [("organ 1", 5), ("organ 2", 5)]
    assert np.mean([x[2] for x in means]) == pytest.approx(alone(data), abs=0.01)
    assert np.mean([x[3] for x in means]) == pytest.approx(mean_dice(tmp_path / "a", data))
    assert np.mean([x[3] for x in means]) > alone(data) + 0.1
    assert json.loads((tmp_path / "a/calibration.json").read_text())["record"]["scans"] == 5
    # those of two organs with one name stay apart
    named = {"labels": {1: "gland", 2: "gland"}, "calibrate": [data / "labels"]}
    fuse([data / "nnunet"], tmp_path / "a", **named, **options)
    assert mean_gain(tmp_path / "a") == [("gland", *row[1:]) for row in means]
    # a label changes nothing of its own scan
    (tmp_path / "labels").mkdir()
    for name in NAMES:
        label = organs(0) if name != "s0" else np.roll(organs(0), 8, axis=0)
        save(tmp_path / f"labels/{name}.nii.gz", organs(int(name[1])) if name != "s0" else label)
    fuse([data / "nnunet"], tmp_path / "b", calibrate=[tmp_path / "labels"], **options)
    one, two = (nib.load(tmp_path / f / "s0_seg.nii.gz").get_fdata() for f in "ab")
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_one_label_calibrates_others_and_not_its_own_scan(data, tmp_path):
    labels = [data / "labels/s0.nii.gz"]
    options = {"priors": data / "priors", "like": [data / "scans"]}
    fuse([data / "nnunet"], tmp_path / "a", calibrate=labels, **options)
    assert mean_gain(tmp_path / "a")[0][1] == 1
    assert mean_dice(tmp_path / "a", data, NAMES[1:]) > alone(data)


@pytest.mark.slow
def test_a_label_without_organs_tells_no_gain_and_nothing_of_others(data, tmp_path):
    (tmp_path / "labels").mkdir()
    save(tmp_path / "labels/s0.nii.gz", np.zeros(SHAPE, np.uint8))
    shutil.copy(data / "labels/s1.nii.gz", tmp_path / "labels")
    maps = [data / f"nifti/{name}_prob.nii.gz" for name in ("s0", "s1")]
    options = {"priors": data / "priors"}
    fuse(maps, tmp_path / "a", calibrate=[tmp_path / "labels"], **options)
    assert [scans for _, scans, _, _ in mean_gain(tmp_path / "a")] == [1, 1]
    # numbers for s1 would come from s0 alone: it has the constants
    fuse(maps[1:], tmp_path / "b", **options)
    one, two = (nib.load(tmp_path / f / "s1_seg.nii.gz").get_fdata() for f in "ab")
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_a_priors_own_label_is_left_out(data, tmp_path):
    """A prior of the labels that are scored says no more than one of the others."""
    files = [str(data / f"labels/{name}.nii.gz") for name in NAMES]
    (tmp_path / "p").mkdir()
    for prior in SpatialPrior.estimate_several(files, organs=[1, 2]):
        prior.save(tmp_path / f"p/prior_{prior.organ}.nii.gz")
    fuse([data / "nifti"], tmp_path / "o", priors=tmp_path / "p", calibrate=[data / "labels"])
    assert len(mean_gain(tmp_path / "o")) == 2
    only = tmp_path / "q"
    only.mkdir()
    SpatialPrior.estimate(files[:1], organ=1).save(only / "prior_1.nii.gz")
    with pytest.raises(ValueError, match=r"and leave one of them, got .0.: where none"):
        fuse(
            [data / "nifti/s0_prob.nii.gz"],
            tmp_path / "r",
            priors=only,
            calibrate=[data / "labels"],
        )


def test_channels_say_which_class_an_organ_is_and_others_are_background(data, tmp_path):
    p = probabilities(organs(0), 100)
    save(tmp_path / "s0_prob.nii.gz", np.moveaxis(p[[0, 2, 1]], 0, 3))
    priors = {"priors": data / "priors"}
    fuse([tmp_path / "s0_prob.nii.gz"], tmp_path / "a", channels={1: 2}, **priors)
    found = np.asarray(nib.load(tmp_path / "a/s0_seg.nii.gz").dataobj)
    assert set(np.unique(found)) == {0, 1}
    assert 2 * (found & (organs(0) == 1)).sum() / (found.sum() + (organs(0) == 1).sum()) > 0.6


def test_a_map_of_one_organ_needs_no_background(data, tmp_path):
    save(tmp_path / "s0.nii.gz", probabilities(organs(0), 100)[1])
    fuse([tmp_path / "s0.nii.gz"], tmp_path / "a", priors=data / "priors", channels={1: 1})
    assert nib.load(tmp_path / "a/s0_seg.nii.gz").get_fdata().any()


@pytest.mark.slow
def test_a_run_goes_on_and_other_settings_are_refused(data, tmp_path):
    options = {"priors": data / "priors"}
    fuse([data / "nifti"], tmp_path / "a", **options)
    before = (tmp_path / "a/s1_seg.nii.gz").stat().st_mtime_ns
    (tmp_path / "a/s0_volumes.json").unlink()
    fuse([data / "nifti"], tmp_path / "a", **options)
    assert (tmp_path / "a/s0_volumes.json").exists()
    assert (tmp_path / "a/s1_seg.nii.gz").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made with other settings"):
        fuse([data / "nifti"], tmp_path / "a", decision="argmax", **options)
    fuse([data / "nifti"], tmp_path / "a", decision="argmax", overwrite=True, **options)
    assert (tmp_path / "a/s1_seg.nii.gz").stat().st_mtime_ns != before


@pytest.mark.slow
def test_settings_without_results_do_not_count(data, tmp_path):
    with pytest.raises(ValueError, match="`channels` must be from 1 to 2"):
        fuse([data / "nifti"], tmp_path / "a", priors=data / "priors", channels={1: 7})
    fuse([data / "nifti"], tmp_path / "a", priors=data / "priors")


@pytest.mark.slow
def test_the_command_prints_the_gain(data, tmp_path, capsys):
    places = ["--priors", str(data / "priors"), "--out", str(tmp_path / "a")]
    arguments = [*places, "--calibrate", str(data / "labels"), "--labels", "1=first"]
    assert main(["fuse", str(data / "nifti"), *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("first: Dice 0.")
    assert said[0].endswith("cross-validated on 5 scans")
    assert said[-1].endswith("volumes.csv")
    assert not any("worse" in line for line in said)
    assert main(["fuse", str(data / "nifti"), *places, "--channels", "1=x", "--overwrite"]) == 1
    assert "must have labels from 0 to 255, got x" in capsys.readouterr().err


def test_the_command_says_where_the_prior_made_it_worse(tmp_path, monkeypatch, capsys):
    gained = [("liver", 3, 0.9, 0.8), ("spleen", 3, 0.7, 0.7)]
    monkeypatch.setattr(command, "fuse", lambda *_, **__: tmp_path / "volumes.csv")
    monkeypatch.setattr(command, "mean_gain", lambda out: gained)
    assert main(["fuse", str(tmp_path), "--priors", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "warning: the prior made liver worse: leave" in capsys.readouterr().out


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def broken(tmp_path, kind):
    path = tmp_path / "s0.npz"
    if kind == "pickle":
        return npz(path, probabilities=np.array([{"a": 1}], dtype=object))
    if kind == "other":
        return npz(path, softmax=np.zeros((2, 2, 2, 2)))
    if kind == "cut":
        path.write_bytes(b"PK\x03\x04")
        return path
    p = probabilities(organs(0), 100).transpose(0, 3, 2, 1)
    values = {
        "logits": np.log(p),
        "regions": p[1:],
        "axes": p.transpose(0, 3, 2, 1),
        "flat": p[0],
        "nan": np.where(p > 0.5, np.nan, p),
    }[kind]
    return npz(path, probabilities=values)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", r"must be a whole .npz file"),
        ("other", r"must hold `probabilities`, as nnU-Net v2 writes them, got \['softmax'\]"),
        ("cut", r"must be a whole .npz file"),
        ("logits", "must hold probabilities from 0 to 1"),
        ("regions", "must sum to 1 over the classes"),
        ("axes", r"must have the shape of its scan .*\(40, 36, 24\)"),
        ("flat", r"must be \(C, Z, Y, X\)"),
        ("nan", "must hold probabilities from 0 to 1, got nan"),
    ],
)
def test_what_is_no_map_is_refused(data, tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=message):
        fuse([path], tmp_path / "a", priors=data / "priors", like=[data / "scans"])
    assert not list((tmp_path / "a").glob("*.nii.gz"))


def test_maps_without_a_grid_priors_or_names_are_refused(data, tmp_path):
    options = {"priors": data / "priors"}
    with pytest.raises(ValueError, match="must have a scan that says where its voxels lie"):
        fuse([data / "nnunet"], tmp_path / "a", **options)
    with pytest.raises(ValueError, match="`priors` must be a folder with prior_ORGAN"):
        fuse([data / "nifti"], tmp_path / "a", priors=data / "scans")
    with pytest.raises(ValueError, match="which does not exist"):
        fuse([data / "none.npz"], tmp_path / "a", **options)
    with pytest.raises(ValueError, match="which has another ending"):
        fuse([data / "priors/prior_1_cases.npz", __file__], tmp_path / "a", **options)
    with pytest.raises(ValueError, match=r"got no \.npz or NIfTI in"):
        fuse([tmp_path], tmp_path / "a", **options)
    with pytest.raises(ValueError, match="must be probability maps, got none"):
        fuse([], tmp_path / "a", **options)
    with pytest.raises(ValueError, match="must have names of their own"):
        fuse([data / "nifti", data / "nnunet"], tmp_path / "a", **options)
    with pytest.raises(ValueError, match="`like` must be NIfTI files"):
        fuse([data / "nifti"], tmp_path / "a", like=[data / "none"], **options)
    with pytest.raises(ValueError, match="`calibrate` must be NIfTI files"):
        fuse([data / "nifti"], tmp_path / "a", calibrate=[data / "none"], **options)
    with pytest.raises(ValueError, match="`calibrate` must have labels that are called as the"):
        fuse([data / "nifti"], tmp_path / "a", calibrate=[data / "10.nii.gz"], **options)
    save(tmp_path / "s0.nii.gz", np.full(SHAPE, -1000, np.int16))
    with pytest.raises(ValueError, match=r"label maps, .*s0.nii.gz with -1000 to -1000: it may"):
        fuse([data / "nifti"], tmp_path / "a", calibrate=[tmp_path / "s0.nii.gz"], **options)
    # a scan beside its label, such as a and a_seg
    (tmp_path / "both").mkdir()
    shutil.copy(data / "scans/s0_0000.nii.gz", tmp_path / "both/s0.nii.gz")
    shutil.copy(data / "labels/s0.nii.gz", tmp_path / "both/s0_seg.nii.gz")
    with pytest.raises(ValueError, match=r"one label for each map, got .*s0.* and .*s0_seg"):
        fuse([data / "nifti"], tmp_path / "a", calibrate=[tmp_path / "both"], **options)
    with pytest.raises(ValueError, match="must not be an input"):
        fuse([data / "nifti"], data / "nifti", **options)


@pytest.mark.slow
def test_a_map_of_another_place_or_order_is_refused(data, tmp_path):
    options = {"priors": data / "priors"}
    label = organs(0)
    moved = nib.Nifti1Image(label, AFFINE @ np.diag([1, 1, 2, 1]))
    nib.save(moved, tmp_path / "s0.nii.gz")
    with pytest.raises(ValueError, match="must lie on the grid of its scan"):
        fuse(
            [data / "nifti/s0_prob.nii.gz"],
            tmp_path / "a",
            like=[tmp_path / "s0.nii.gz"],
            **options,
        )
    nib.save(nib.Nifti1Image(label.astype(np.float32) / 3, AFFINE), tmp_path / "t.nii.gz")
    (tmp_path / "l").mkdir()
    (tmp_path / "t.nii.gz").rename(tmp_path / "l/s0.nii.gz")
    with pytest.raises(ValueError, match=r"`label` must have whole numbers, got 0\.33"):
        fuse([data / "nifti"], tmp_path / "b", calibrate=[tmp_path / "l"], **options)
    save(tmp_path / "s1.nii.gz", np.flip(organs(1), (0, 1)))
    p = probabilities(organs(1), 101).transpose(0, 3, 2, 1)
    np.savez(tmp_path / "s1.npz", probabilities=p)
    with pytest.raises(ValueError, match="must agree with the segmentation beside it"):
        fuse([tmp_path / "s1.npz"], tmp_path / "c", **options)
    save(tmp_path / "s1.nii.gz", organs(1))
    fuse([tmp_path / "s1.npz"], tmp_path / "c", **options)
    # what lies beside is a scan, of negative or of many values, and tells no order
    shape = organs(1).shape
    many = np.arange(np.prod(shape)).reshape(shape) % 999
    for number, scan in enumerate((np.full(shape, -7), many)):
        nib.save(nib.Nifti1Image(scan.astype(np.int16), AFFINE), tmp_path / "s1.nii.gz")
        fuse([tmp_path / "s1.npz"], tmp_path / f"d{number}", **options)
        assert (tmp_path / f"d{number}" / "s1_seg.nii.gz").is_file()


def test_the_grid_file_is_a_sound_scan(data, tmp_path):
    options = {"priors": data / "priors"}
    (tmp_path / "s0.nii.gz").write_bytes(b"nothing")
    maps = [data / "nnunet/s0.npz"]
    with pytest.raises(ValueError, match="`path` must be a whole NIfTI file"):
        fuse(maps, tmp_path / "a", like=[tmp_path / "s0.nii.gz"], **options)
    metres = nib.Nifti1Image(np.zeros((4, 4, 4)), AFFINE)
    metres.header.set_xyzt_units("meter")
    nib.save(metres, tmp_path / "s0.nii.gz")
    with pytest.raises(ValueError, match=r"must be in mm, got meter in .*s0\.nii\.gz"):
        fuse(maps, tmp_path / "a", like=[tmp_path / "s0.nii.gz"], **options)
    nib.save(nib.Nifti1Image(np.zeros((4, 4)), AFFINE), tmp_path / "s0.nii.gz")
    with pytest.raises(ValueError, match="A scan must be 3D"):
        fuse(maps, tmp_path / "a", like=[tmp_path / "s0.nii.gz"], **options)


@pytest.mark.slow
def test_a_label_map_is_no_probability_map(data, tmp_path):
    """One of whole numbers is refused, one of 0 and 1 is warned of."""
    label = organs(0)
    save(tmp_path / "whole_prob.nii.gz", label)
    with pytest.raises(DatasetError, match=r"from 0 to 1, got .* to 2 in .*save no label map"):
        fuse([tmp_path / "whole_prob.nii.gz"], tmp_path / "a", priors=data / "priors")
    # the values that are told are the file's, without 1 - p
    save(tmp_path / "six_prob.nii.gz", 3 * label)
    with pytest.raises(DatasetError, match=r"from 0 to 1, got 0 to 6 in .*six_prob"):
        fuse([tmp_path / "six_prob.nii.gz"], tmp_path / "a", priors=data / "priors")
    save(tmp_path / "one_prob.nii.gz", (label == 1).astype(np.uint8))
    given = {"priors": data / "priors", "channels": {1: 1}, "progress": False}
    with pytest.warns(UserWarning, match=r"Look at .*one_prob\.nii\.gz: it has only .* 0 and 1"):
        fuse([tmp_path / "one_prob.nii.gz"], tmp_path / "b", **given)


@pytest.mark.slow
def test_labels_that_nothing_can_be_fitted_to_are_named(data, tmp_path):
    save(tmp_path / "s0.nii.gz", np.where(organs(0) == 1, 9, 0).astype(np.uint8))
    given = {"priors": data / "priors", "calibrate": [tmp_path / "s0.nii.gz"], "progress": False}
    with pytest.raises(DatasetError, match=r"`calibrate` must have a label .* got none in .*/s0"):
        fuse([data / "nifti/s0_prob.nii.gz"], tmp_path / "out", **given)
