"""What is made for nnU-Net and of its answers, without nnU-Net."""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from stipple_monai import SpatialPrior
from stipple_monai.study.rows import ROW_COLUMNS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import nnunet

ORGANS = {2: "left kidney", 6: "liver", 11: "pancreas"}
AFFINE = np.diag([-2.0, 2, 3, 1])
OPTIONS = {
    "slice_size": [128, 96],
    "spacing_mm": [3.0, 3.5, -1],
    "batch_size": 8,
    "channels": [16, 32, 64],
    "organs": list(ORGANS),
}


@pytest.fixture
def scans(tmp_path):
    """Two scans with boxes of organs, and of value 4, which is none of them."""
    items = []
    for name in ("one", "two"):
        label = np.zeros((24, 24, 8), np.uint8)
        for value, start in zip((2, 4, 6, 11), (1, 7, 13, 18), strict=True):
            label[start : start + 5, 2:10, 1:6] = value
        item = {kind: str(tmp_path / kind / f"{name}.nii.gz") for kind in ("image", "label")}
        for (kind, path), array in zip(item.items(), (100 * label - 50.0, label), strict=True):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array.astype(np.int16), AFFINE), path)
        items.append(item)
    return items


def test_a_raw_dataset_has_the_organs_numbered_from_1(scans, tmp_path):
    nnunet.write_dataset(tmp_path / "raw", scans, ORGANS)
    description = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert description["labels"] == {
        "background": 0,
        "left kidney": 1,
        "liver": 2,
        "pancreas": 3,
    }
    assert description["numTraining"] == 2
    for item in scans:
        name = Path(item["image"]).name
        label = nib.load(tmp_path / "raw" / "labelsTr" / name)
        values, truth = np.asarray(label.dataobj), np.asarray(nib.load(item["label"]).dataobj)
        assert np.array_equal(label.affine, AFFINE)
        expected = np.vectorize({0: 0, 2: 1, 4: 0, 6: 2, 11: 3}.get)(truth)
        assert np.array_equal(values, expected)
        copied = tmp_path / "raw" / "imagesTr" / name.replace(".nii", "_0000.nii")
        assert copied.read_bytes() == Path(item["image"]).read_bytes()


def test_a_plan_becomes_as_small_as_the_study_and_keeps_the_rest():
    kept = {"conv_bias": True, "norm_op": "torch.nn.InstanceNorm2d"}
    arguments = {"n_stages": 7, "features_per_stage": [32] * 7, "strides": [[2, 2]] * 7, **kept}
    plan = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 49,
        "spacing": [1.2, 1.2],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": arguments},
    }
    plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": plan, "3d_fullres": {}}}
    before = json.dumps(plans)
    changed = nnunet.small(plans, OPTIONS)
    assert json.dumps(plans) == before
    assert changed["plans_name"] == nnunet.PLANS
    assert list(changed["configurations"]) == ["2d"]
    made = changed["configurations"]["2d"]
    assert made["data_identifier"] == f"{nnunet.PLANS}_2d"
    assert (made["batch_size"], made["patch_size"], made["spacing"]) == (8, [128, 96], [3.0, 3.5])
    assert made["normalization_schemes"] == ["CTNormalization"]
    inside = made["architecture"]["arch_kwargs"]
    assert inside["features_per_stage"] == [16, 32, 64]
    assert inside["strides"] == [[1, 1], [2, 2], [2, 2]]
    assert len(inside["n_conv_per_stage_decoder"]) == inside["n_stages"] - 1 == 2
    assert {name: inside[name] for name in kept} == kept


def test_a_command_is_timed_and_not_run_twice(tmp_path):
    work = nnunet.Work(tmp_path, tmp_path)
    script = "import os, time; open('ran', 'a').write(os.environ['nnUNet_raw'] + '\\n')\n"
    script += "while time.process_time() < 1: pass"
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        work.call("busy", sys.executable, "-c", script)
        nnunet.Work(tmp_path, tmp_path).call("busy", sys.executable, "-c", script)
    finally:
        os.chdir(here)
    assert (tmp_path / "ran").read_text() == f"{tmp_path / 'raw'}\n"
    times = json.loads((tmp_path / "times.json").read_text())
    assert 1 / 60 - 0.01 < times["busy"]["cpu_minutes"] <= times["busy"]["minutes"] + 0.01


def test_what_nnunet_and_the_fusion_wrote_is_scored_in_a_studys_columns(scans, tmp_path):
    write_cell(tmp_path, scans)
    truth = np.asarray(nib.load(scans[0]["label"]).dataobj)
    numbers = np.vectorize({0: 0, 2: 1, 4: 0, 6: 2, 11: 3}.get)(truth)
    shifted = np.roll(numbers, 1, axis=2)
    for name in ("run", "run_prior"):
        (tmp_path / "work" / name).mkdir(parents=True)
    nib.save(nib.Nifti1Image(shifted.astype(np.uint8), AFFINE), tmp_path / "work/run/one.nii.gz")
    one_hot = np.eye(4, dtype=np.float32)[numbers].transpose(3, 2, 1, 0)
    np.savez(tmp_path / "work/run/one.npz", probabilities=one_hot)
    fused = nib.Nifti1Image(np.where(truth == 4, 0, truth).astype(np.uint8), AFFINE)
    nib.save(fused, tmp_path / "work/run_prior/one_seg.nii.gz")
    (tmp_path / "work/run_prior/volumes.csv").write_text(
        "scan,organ,name,volume_ml,r_mm,a_mm,s_mm,confidence,remarks\n"
        "in/one_0000.nii.gz,6,liver,1,-30,11,9,0.75,\nin/one_0000.nii.gz,11,pancreas,1,,,,,\n"
        "in/two_0000.nii.gz,6,liver,1,0,0,0,0.5,\n"
    )
    cell = nnunet.Cell(tmp_path / "study/cells/p050_fold1_seed2")
    work = nnunet.Work(tmp_path / "work", tmp_path)
    table = nnunet.rows_of(work, cell, "run", 40, "0123456789abcdef")
    rows = [dict(zip(ROW_COLUMNS, row, strict=True)) for row in table]
    assert len(rows) == 6
    assert {r["method"]: r["dice"] for r in rows} == {"run": "0.8000", "run_prior": "1.0000"}
    same = {(r["labelled"], r["proportion"], r["fold"], r["seed"], r["steps"]) for r in rows}
    assert same == {(1, 0.5, 1, 2, 40)}
    assert {r["commit"] for r in rows} == {"0123456789ab"}
    assert {r["calibration_error"] for r in rows} == {"0.0000", ""}
    liver = next(r for r in rows if r["method"] == "run_prior" and r["organ"] == 6)
    assert (liver["name"], liver["true_voxels"], liver["confidence"]) == ("liver", 200, "0.75")
    # the box is 13 to 17 of 2 mm along -R, 2 to 9 of 2 mm, 1 to 5 of 3 mm; its middle -30, 11, 9
    assert liver["position_error_mm"] == "0.0000"


def write_cell(folder, scans):
    """A study of one cell, its priors made of its training scan."""
    names = {"0": "background", **{str(value): name for value, name in ORGANS.items()}}
    listed = {"labels": names, "training": scans}
    (folder / "dataset.json").write_text(json.dumps(listed))
    cell = folder / "study/cells/p050_fold1_seed2"
    models = cell / "networks/abc/round_0/models"
    models.mkdir(parents=True)
    study = {"datalist": str(folder / "dataset.json"), "folds": 4, "options": OPTIONS}
    (folder / "study/study.json").write_text(json.dumps({"study": study}))
    (cell / "training.json").write_text(json.dumps({"training": scans[1:]}))
    (cell / "test.json").write_text(json.dumps({"test": scans[:1]}))
    for organ in ORGANS:
        prior = SpatialPrior.estimate([scans[1]["label"]], organ=organ)
        prior.save(models / f"prior_{organ}.nii.gz")
