"""`python -m stipple_monai segment`: scans of any source, their results, and what is refused."""

import csv
import json
import os
import re
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.forks import fork, kill_when, needs_fork
from helpers.real_data import DATA, real
from helpers.series import voxels_of_seg, write_series
from helpers.threshold_model import same_grid, write_model, write_model_file, write_scan

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.bundle import run_bundle
from stipple_monai.data import write_datalist
from stipple_monai.networks import Calibration
from stipple_monai.results import finished, read_records, series_files, write_tables
from stipple_monai.segmentation import run as module
from stipple_monai.segmentation.run import find_scans, segment

CHAOS = DATA / "dicom" / "chaos_ct" / "DICOM_anon"
SHAPE = (12, 10, 6)
AFFINE = np.diag([-3.0, 2.0, 5.0, 1.0])

pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def organ(seed=0, shape=SHAPE):
    """A box of voxels in a scan, another one for each seed."""
    mask = np.zeros(shape, bool)
    mask[3 + seed % 3 : 8, 2:7, 1:5] = True
    return mask


def scans(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    made = [write_scan(folder / name, organ(i), AFFINE) for i, name in enumerate(names)]
    return made[0] if len(made) == 1 else made


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def names_in(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def state(folder):
    """Every file and when it was written."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


def results(*names, more=()):
    endings = ("_seg.nii.gz", "_volumes.json", *more)
    tables = {"settings.json", "volumes.csv", "volumes.json", "logs"}
    return tables | {f"{name}{ending}" for name in names for ending in endings}


def rows(folder):
    with (folder / "volumes.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# inputs


@pytest.mark.slow
def test_a_folder_a_file_a_series_and_a_datalist_together(tmp_path, model):
    scans(tmp_path / "folder", "a.nii.gz", "b.nii", "._b.nii", "pat.1.nii")
    (tmp_path / "folder" / "readme.txt").touch()
    file = scans(tmp_path / "files", "c.nii.gz")
    hu = np.where(organ(2), 100, -100)
    lps = write_series(tmp_path / "1.2.840.7", hu)
    listed = scans(tmp_path / "listed", "d.nii.gz", "e.nii.gz")
    datalist = tmp_path / "listed" / "data.json"
    sections = {"test": [{"image": listed[0], "label": listed[0]}], "other": []}
    write_datalist(datalist, sections, metadata={"labels": {"0": "none", "1": "spleen"}})
    inputs = [tmp_path / "folder", file, file, tmp_path / "1.2.840.7", datalist]
    out = tmp_path / "out"
    assert segment(inputs, out, **model) == out / "volumes.csv"
    found = ("a", "b", "pat.1", "c", "1.2.840.7", "d")
    assert names_in(out) == results(*found)
    assert [row["name"] for row in rows(out)] == ["spleen"] * 6
    np.testing.assert_array_equal(voxels(out / "a_seg.nii.gz"), organ(0))
    np.testing.assert_array_equal(voxels(out / "1.2.840.7_seg.nii.gz"), organ(2))
    np.testing.assert_allclose(nib.load(out / "1.2.840.7_seg.nii.gz").affine, lps, atol=1e-5)
    for row in rows(out):
        name = Path(row["scan"]).name.split(".nii")[0]
        image = nib.load(out / f"{name}_seg.nii.gz")
        ml = voxels(out / f"{name}_seg.nii.gz").sum() * np.prod(image.header.get_zooms()) / 1000
        assert float(row["volume_ml"]) == pytest.approx(ml, abs=1e-3)
        assert 0 < float(row["confidence"]) <= 1
        assert all(row[axis] for axis in ("r_mm", "a_mm", "s_mm"))
    assert set(json.loads((out / "volumes.json").read_text())) == set(found)


def test_another_section_and_images_of_several_files(tmp_path):
    made = scans(tmp_path, "t1.nii.gz", "t2.nii.gz", "z.nii.gz")
    datalist = tmp_path / "data.json"
    write_datalist(datalist, {"mine": [{"image": [str(p) for p in made[:2]]}], "test": []})
    assert find_scans([datalist, made[2]], section="mine") == [
        {"image": [str(p) for p in made[:2]], "name": "t1"},
        {"image": str(made[2]), "name": "z"},
    ]


@pytest.mark.slow
def test_equal_file_names_are_told_apart(tmp_path, model):
    for i in (0, 1):
        write_scan_in = tmp_path / f"patient{i}"
        write_scan_in.mkdir()
        write_scan(write_scan_in / "ct.nii.gz", organ(i), AFFINE)
    out = tmp_path / "out"
    segment([tmp_path / "patient0", tmp_path / "patient1"], out, **model)
    assert names_in(out) == results("patient0_ct", "patient1_ct")
    for i in (0, 1):
        np.testing.assert_array_equal(voxels(out / f"patient{i}_ct_seg.nii.gz"), organ(i))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.nii.gz", "Inputs must be NIfTI files, folders or datalists, got .*does not exist"),
        ("a.txt", "Inputs must be NIfTI files, folders or datalists, got .*another ending"),
        ("empty", "A folder must hold one DICOM series, got 0"),
        ("none.json", "`path` must be a datalist"),
        ("torn.nii.gz", "`path` must be a whole NIfTI file, got .*torn.nii.gz, which cannot"),
        ("cut.nii.gz", "`image` must be a scan that MONAI can read, got .*cut.nii.gz: "),
        ("text.nii", "`path` must be a whole NIfTI file, got .*text.nii, which cannot"),
        ("micron.nii.gz", "`path` must be in mm, got micron in .*micron.nii.gz"),
        (
            "flat.nii.gz",
            "`path` must have an invertible affine, got .*flat",
        ),
        ("nan.nii.gz", "`image` must be finite, got 1 .*nan.nii.gz"),
        ("series.nii.gz", "`image` must .*series.nii.gz"),
        ("same", "Scans must have names of their own"),
        ("\udcff.nii.gz", r"A scan's path must be UTF-8, as the tables are, got '.*udcff.nii.gz"),
    ],
)
def test_bad_inputs_end_with_one_line(tmp_path, model, capsys, given, message):
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    whole = scans(tmp_path, "whole.nii.gz").read_bytes()
    (tmp_path / "torn.nii.gz").write_bytes(whole[:20])
    noise = np.random.default_rng(0).integers(-999, 999, (30, 30, 30)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, AFFINE), tmp_path / "cut.nii.gz")
    data = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.nii").write_text("no scan")
    write_scan(tmp_path / "micron.nii.gz", organ(), AFFINE, units=("micron", "unknown"))
    broken = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    broken.header["srow_z"] = 0
    nib.save(
        nib.Nifti1Image(np.zeros(SHAPE, np.int16), None, broken.header), tmp_path / "flat.nii.gz"
    )
    holes = np.zeros(SHAPE, np.float32)
    holes[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(holes, AFFINE), tmp_path / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 3), np.int16), AFFINE), tmp_path / "series.nii.gz")
    (tmp_path / "same").mkdir()
    shutil.copy(tmp_path / "whole.nii.gz", tmp_path / "\udcff.nii.gz")
    scans(tmp_path / "same", "x.nii", "x.nii.gz")
    out = tmp_path / "out"
    overlay, models = str(model["models"] / "threshold.yaml"), str(model["models"])
    command = ["segment", str(tmp_path / given), "--models", models, "--out", str(out)]
    assert main([*command, "--overlays", overlay]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"^stipple_monai segment: {message}", line)
    assert not out.exists() or names_in(out) == {"settings.json", "logs"}


@pytest.mark.slow
def test_an_error_in_a_worker_is_told_in_a_line(tmp_path, model):
    holes = np.full(SHAPE, np.nan, np.float32)
    nib.save(nib.Nifti1Image(holes, AFFINE), tmp_path / "b.nii.gz")
    scans(tmp_path, "a.nii.gz")
    out = tmp_path / "out"
    message = "^.*b.nii.gz cannot be segmented: `image` must be finite, got 720 .*b.nii.gz"
    with pytest.raises(DatasetError, match=message) as caught:
        segment(
            [tmp_path / n for n in ("a.nii.gz", "b.nii.gz")],
            out,
            options={"num_workers": 1},
            **model,
        )
    assert "\n" not in str(caught.value)
    assert names_in(out) == results("a")


@pytest.mark.slow
def test_what_else_is_missing(tmp_path, model, monkeypatch):
    scan = scans(tmp_path, "a.nii.gz")
    with pytest.raises(DatasetError, match=r"`models` must have model.pt and the priors"):
        segment([scan], tmp_path / "out", models=tmp_path)
    with pytest.raises(DatasetError, match="`bundle` must be the folder of the bundle"):
        segment([scan], tmp_path / "out", bundle=tmp_path, **model)
    with pytest.raises(DatasetError, match="Overlays must be names of configs"):
        segment([scan], tmp_path / "out", models=model["models"], overlays=["nothing"])
    with pytest.raises(
        DatasetError, match=r"DICOM SEG needs DICOM series as input, got .*a.nii.gz"
    ):
        segment([scan], tmp_path / "out", dicom_seg=True, **model)
    for folder in (tmp_path, tmp_path / "sub" / ".."):
        with pytest.raises(DatasetError, match="`out` must be another folder than that of the sc"):
            segment([scan], folder, **model)
    monkeypatch.setattr(module, "has_highdicom", False)
    with pytest.raises(ImportError, match=r"pip install 'stipple-monai\[dicom\]'"):
        segment([scan], tmp_path / "out", dicom_seg=True, **model)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_network_is_told_in_a_line(tmp_path, model):
    shutil.copytree(model["models"], tmp_path / "models")
    weights = {"network.weight": torch.zeros(3, 1, 1, 1), "network.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "models" / "model.pt")
    with pytest.raises(
        DatasetError, match=r"Segmenting stopped at .*a.nii.gz: .*size mism"
    ) as caught:
        segment(
            [scans(tmp_path, "a.nii.gz")],
            tmp_path / "out",
            **{**model, "models": tmp_path / "models"},
        )
    assert "\n" not in str(caught.value)


# grids


def grids():
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    tilt = np.eye(4)
    tilt[1, 2] = 0.36
    plain = np.diag([2.0, 2.0, 4.0, 1.0])
    far = plain.copy()
    far[:3, 3] = 120.5, -321.25, 999
    return {
        "plain": plain,
        "anisotropic": np.diag([0.5, 3.3, 7.7, 1.0]),
        "oblique": turn @ far,
        "flipped": far @ np.diag([-1.0, 1.0, -1.0, 1.0]),
        "permuted": far[:, [2, 0, 1, 3]],
        "tilted": tilt @ far,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", grids())
def test_results_lie_on_the_scans_grid(tmp_path, model, name):
    affine = grids()[name]
    # cropped: the organ runs out of the scan, which has odd sizes
    for kind, crop in {
        "whole": (slice(None),) * 3,
        "cropped": (slice(5, None), slice(1, 6), slice(0, 3)),
    }.items():
        mask = organ()[crop]
        path = write_scan(
            tmp_path / f"{kind}.nii.gz", mask, affine, codes=(1, 2), units=("mm", "sec")
        )
        out = tmp_path / f"out_{kind}"
        segment([path], out, probabilities=True, **model)
        assert names_in(out) == results(kind, more=["_prob.nii.gz"])
        seg, prob = out / f"{kind}_seg.nii.gz", out / f"{kind}_prob.nii.gz"
        assert same_grid(seg, path)
        assert same_grid(prob, path)
        np.testing.assert_array_equal(voxels(seg), mask)
        assert nib.load(seg).get_data_dtype() == np.uint8
        assert voxels(prob).shape == (*mask.shape, 2)
        np.testing.assert_array_equal(voxels(prob)[..., 1] > 0.5, mask)
        np.testing.assert_allclose(voxels(prob).sum(-1), 1, atol=1e-5)


# DICOM


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_dicom_seg_and_nifti_agree(tmp_path, model, turned):
    mask = organ()
    affine = write_series(tmp_path / "ct", np.where(mask, 100, -100), turned=turned)
    segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, labels={1: "pancreas"}, **model)
    assert names_in(tmp_path / "out") == results("ct", more=["_seg.dcm"])
    nifti = nib.load(tmp_path / "out" / "ct_seg.nii.gz")
    np.testing.assert_allclose(nifti.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), mask)
    seg = voxels_of_seg(tmp_path / "out" / "ct_seg.dcm", nifti.affine, mask.shape)
    np.testing.assert_array_equal(seg, mask)
    # the same scan as NIfTI has the same volume, position in RAS and confidence
    write_scan(tmp_path / "ct.nii.gz", mask, affine)
    segment([tmp_path / "ct.nii.gz"], tmp_path / "again", probabilities=True, **model)
    ((series,), (file,)) = (
        json.loads((tmp_path / folder / "ct_volumes.json").read_text())["organs"]
        for folder in ("out", "again")
    )
    assert file["volume_ml"] == series["volume_ml"]
    assert file["position_mm"] == pytest.approx(series["position_mm"], abs=1e-2)
    assert file["confidence"] == pytest.approx(series["confidence"], abs=1e-4)


@real("dicom/chaos_ct")
def test_a_real_series_and_back(tmp_path):
    hd = pytest.importorskip("highdicom")
    files = series_files(CHAOS)[30:38]
    (tmp_path / "ct").mkdir()
    for file in files:
        os.symlink(file, tmp_path / "ct" / Path(file).name)
    large = write_model(tmp_path / "model")
    overlay = large["models"] / "threshold.yaml"
    write_model_file(large["models"], [overlay], slice_size=[512, 512])
    segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, **large)
    nifti = nib.load(tmp_path / "out" / "ct_seg.nii.gz")
    values = np.asarray(nifti.dataobj)
    assert nifti.header.get_zooms() == pytest.approx((0.7265625, 0.7265625, 2.0))
    assert 0.05 < values.mean() < 0.6
    path = tmp_path / "out" / "ct_seg.dcm"
    np.testing.assert_array_equal(voxels_of_seg(path, nifti.affine, values.shape), values)
    seg = hd.seg.segread(path)
    source = hd.imread(files[0])
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.PatientID == source.PatientID
    by_highdicom = seg.get_volume(combine_segments=True)
    assert by_highdicom.array.sum() == values.sum()
    (row,) = rows(tmp_path / "out")
    ml = values.sum() * 0.7265625**2 * 2 / 1000
    assert float(row["volume_ml"]) == pytest.approx(ml, rel=1e-4)


# going on


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_third_only_what_is_missing(tmp_path, model):
    made = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    out = tmp_path / "out"
    segment(made[:1], out, **model)
    first = state(out)
    segment([tmp_path / "in"], out, **model)
    second = state(out)
    assert names_in(out) == results("a", "b")
    assert all(second[n] == first[n] for n in ("a_seg.nii.gz", "a_volumes.json", "settings.json"))
    (out / "b_volumes.json").unlink()
    (out / ".part-0-b_seg.nii.gz").touch()
    segment([tmp_path / "in"], out, **model)
    third = state(out)
    assert third.keys() == second.keys()
    assert third["a_seg.nii.gz"] == first["a_seg.nii.gz"]
    assert third["b_seg.nii.gz"] > second["b_seg.nii.gz"]
    # with nothing to do no network is loaded
    run, module.run_bundle = module.run_bundle, None
    try:
        segment([tmp_path / "in"], out, **model)
    finally:
        module.run_bundle = run
    assert [Path(row["scan"]).name for row in rows(out)] == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.slow
def test_a_calibration_that_was_fitted_since_is_another_setting(tmp_path):
    """Scans of one folder of results are fused by one calibration."""
    given = write_model(tmp_path / "model")
    made, out = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz"), tmp_path / "out"
    segment(made[:1], out, **given)
    Calibration.identity(1).save(given["models"] / "calibration.json")
    with pytest.raises(DatasetError, match="must have no results made with other settings"):
        segment(made, out, **given)
    elsewhere = {"options": {"calibration": str(tmp_path / "mine.json")}, **given}
    Calibration.unfitted(1).save(tmp_path / "mine.json")
    segment(made, tmp_path / "second", **elsewhere)
    segment(made, tmp_path / "second", **elsewhere)
    Calibration.unfitted(1, labelled=8).save(tmp_path / "mine.json")
    with pytest.raises(DatasetError, match="must have no results made with other settings"):
        segment(made, tmp_path / "second", **elsewhere)


@pytest.mark.slow
@needs_fork
def test_a_killed_run_goes_on(tmp_path, model):
    names = [f"s{i:02d}" for i in range(30)]
    scans(tmp_path / "in", *[f"{name}.nii.gz" for name in names])
    out = tmp_path / "out"
    command = ["segment", str(tmp_path / "in"), "--models", str(model["models"])]
    command += ["--out", str(out), "--probabilities"]
    kill_when(lambda: len(list(out.glob("*_volumes.json"))) >= 3, fork(lambda: main(command)))
    done = {p.name for p in out.glob("*_volumes.json")}
    assert 3 <= len(done) < 30
    before = state(out)
    for file in out.glob("s*.nii.gz"):
        voxels(file)
    segment([tmp_path / "in"], out, probabilities=True, **model)
    assert names_in(out) == results(*names, more=["_prob.nii.gz"])
    after = state(out)
    # records get their remarks in the end
    maps = [name.replace("_volumes.json", "_seg.nii.gz") for name in done if name[0] != "."]
    assert all(after[name] == before[name] for name in maps)
    assert len(rows(out)) == 30


@pytest.mark.slow
def test_nothing_is_overwritten_unasked(tmp_path, model):
    scan, other = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_seg.nii.gz").write_text("corrected by hand")
    with pytest.raises(DatasetError, match="`out` must have no results made with other settings, "):
        segment([scan], out, **model)
    assert names_in(out) == {"a_seg.nii.gz"}
    segment([other], out, **model)
    (out / "a_seg.nii.gz").unlink()
    segment([scan], out, **model)
    before = state(out)
    with pytest.raises(
        DatasetError, match=r"made with other settings, got .*settings.json: choose"
    ):
        segment([scan], out, probabilities=True, **model)
    with pytest.raises(
        DatasetError, match=r"results of other scans made with other settings, .* b:"
    ):
        segment([scan], out, probabilities=True, overwrite=True, **model)
    assert state(out) == before
    segment([scan, other], out, probabilities=True, overwrite=True, **model)
    assert names_in(out) == results("a", "b", more=["_prob.nii.gz"])
    after = state(out)
    assert all(after[name] > time for name, time in before.items())
    segment([scan], out, probabilities=True, overwrite=True, **model)
    assert state(out)["b_seg.nii.gz"] == after["b_seg.nii.gz"]
    assert state(out)["a_seg.nii.gz"] > after["a_seg.nii.gz"]


@pytest.mark.slow
def test_a_replacement_that_was_stopped_goes_on(tmp_path, model, monkeypatch):
    made = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    out = tmp_path / "out"
    segment(made, out, **model)
    first, older = state(out), read_records(out)
    save, calls = nib.save, []

    def stop(image, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            segment(made, out, overwrite=True, **model)
    second = state(out)
    assert second["a_seg.nii.gz"] > first["a_seg.nii.gz"]
    # the older result is whole, and known as such
    assert second["b_seg.nii.gz"] == first["b_seg.nii.gz"]
    records = read_records(out)
    assert records.keys() == {"a", "b"}
    assert "outdated" not in records["a"]
    assert records["b"].pop("outdated")
    assert records["b"] == older["b"]
    write_tables(out)
    assert [r["remarks"].partition(";")[0] for r in rows(out)][1].startswith("of an earlier run")
    segment(made, out, **model)
    assert state(out)["a_seg.nii.gz"] == second["a_seg.nii.gz"]
    assert state(out)["b_seg.nii.gz"] > first["b_seg.nii.gz"]
    assert read_records(out) == older


@pytest.mark.slow
def test_a_scan_that_cannot_replace_its_result_leaves_it(tmp_path, model):
    made = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    out = tmp_path / "out"
    segment(made, out, **model)
    before = (out / "b_seg.nii.gz").read_bytes()
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), AFFINE), made[1])
    with pytest.raises(DatasetError, match="must be finite"):
        segment(made, out, overwrite=True, **model)
    assert (out / "b_seg.nii.gz").read_bytes() == before
    assert finished(out) == {"a"}
    assert [row["remarks"].count("of an earlier run") for row in rows(out)] == [0, 1]


@pytest.mark.slow
def test_what_older_settings_wrote_goes_when_the_new_result_is_there(tmp_path, model):
    scan = scans(tmp_path / "in", "a.nii.gz")
    out = tmp_path / "out"
    segment([scan], out, probabilities=True, **model)
    (out / "a_seg.dcm").write_text("converted by somebody")
    segment([scan], out, overwrite=True, **model)
    assert names_in(out) == results("a", more=["_seg.dcm"])


@pytest.mark.slow
def test_another_or_a_changed_scan_of_a_name_is_refused(tmp_path, model):
    scan = scans(tmp_path / "in", "a.nii.gz")
    other = scans(tmp_path / "other", "a.nii.gz")
    out = tmp_path / "out"
    segment([scan], out, **model)
    with pytest.raises(DatasetError, match=r"a segmentation called 'a' of .*in/a.nii.gz: choose"):
        segment([other], out, **model)
    # a copy with another time is the same scan, another scan with an old time is another
    later = time.time() + 10
    os.utime(scan, (later, later))
    before = state(out)["a_seg.nii.gz"]
    segment([scan], out, **model)
    assert state(out)["a_seg.nii.gz"] == before
    write_scan(scan, organ(1), AFFINE)
    os.utime(scan, (0, 0))
    with pytest.raises(DatasetError, match=r"called 'a' of .*in/a.nii.gz, which was changed since"):
        segment([scan], out, **model)


def test_a_full_disk_leaves_whole_files_only(tmp_path, model, monkeypatch):
    made = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    save, calls = nib.save, []

    def full(image, path):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", full)
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"Segmenting stopped at .*b.nii.gz: .*No space left"):
        segment(made, out, probabilities=True, **model)
    assert names_in(out) == {
        "settings.json",
        "logs",
        "a_seg.nii.gz",
        "a_prob.nii.gz",
        "a_volumes.json",
    }


# the overlay and the command line


def test_the_overlay_by_itself(tmp_path, model):
    made = scans(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    write_datalist(tmp_path / "in" / "dataset.json", {"test": [{"image": p} for p in made]})
    run_bundle(
        module.configs_of(module.BUNDLE),
        ["inference", "volumes", model["models"] / "threshold.yaml"],
        dataset_dir=str(tmp_path / "in"),
        models_dir=str(model["models"]),
        output_dir=str(tmp_path / "out"),
    )
    assert names_in(tmp_path / "out") == results("a", "b") - {"settings.json", "logs"}


@pytest.mark.slow
def test_without_prior_there_is_no_position(tmp_path, model):
    shutil.copytree(model["models"], tmp_path / "models")
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    bare = {name.removeprefix("network."): value for name, value in weights.items()}
    torch.save(bare, tmp_path / "models" / "model.pt")
    overlay = model["models"] / "threshold.yaml"
    write_model_file(tmp_path / "models", ["baseline", overlay])
    scan = scans(tmp_path, "a.nii.gz")
    segment([scan], tmp_path / "out", models=tmp_path / "models")
    (row,) = rows(tmp_path / "out")
    assert row["confidence"] == row["r_mm"] == ""
    assert float(row["volume_ml"]) == pytest.approx(organ().sum() * 0.03, abs=1e-3)


def test_the_command_hands_on_its_options(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        "stipple_monai.commands.segment.segment",
        lambda *a, **k: calls.append((a, k)) or Path("v.csv"),
    )
    command = ["segment", "a", "b", "--models", "m", "--out", "o"]
    assert main(command) == 0
    assert (
        main(
            [
                *command,
                *("--overlays", "phantom", "--set", "strength=0.5", "--labels", "1=liver"),
                *("--probabilities", "--dicom-seg", "--overwrite", "--section", "training"),
                *("--organs", "1", "--nnunet-names"),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "v.csv\nv.csv\n"
    plain = {"models": Path("m"), "bundle": module.BUNDLE, "section": "test", "overlays": []}
    plain["organs"] = []
    off = {"probabilities": False, "dicom_seg": False, "overwrite": False, "nnunet_names": False}
    given = ([Path("a"), Path("b")], Path("o"))
    assert calls[0] == (given, {**plain, **off, "options": {}, "labels": {}})
    on = dict.fromkeys(off, True)
    more = {"overlays": ["phantom"], "section": "training", "labels": {1: "liver"}}
    more["organs"] = ["1"]
    assert calls[1] == (given, {**plain, **on, **more, "options": {"strength": 0.5}})
