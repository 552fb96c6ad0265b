"""From a folder of scans and labels to scores and a report: four commands and no written file."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.series import write_series

from stipple_monai.__main__ import main
from stipple_monai.files import read_csv

SHARED = Path(__file__).parents[3] / "shared" / "data"
TINY = ["channels=[8,16]", "max_epochs=2", "slices_per_scan=12", "batch_size=4", "val_interval=1"]
pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")


def real(name):
    where = SHARED / name
    return [
        pytest.mark.real,
        pytest.mark.slow,
        pytest.mark.skipif(not where.is_dir(), reason=f"no real data at {where}"),
    ]


def coarse(path, target, *, every, values=None):
    """Every so many voxels of a volume, labels with other values."""
    image = nib.load(path).slicer[tuple(slice(None, None, n) for n in every)]
    if values is not None:
        table = np.zeros(256, np.uint8)
        table[list(values)] = list(values.values())
        image = nib.Nifti1Image(table[np.asarray(image.dataobj).astype(int)], image.affine)
    nib.save(image, target)


def nnunet_raw(root):
    """CHAOS MR in nnU-Net's layout, with the label values of the challenge."""
    source, out = SHARED / "chaos_mr_t2", root / "Dataset501_ChaosMR"
    values = {1: 63, 2: 126, 3: 189, 4: 252}
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    for path in sorted((source / "imagesTr").iterdir())[:4]:
        name = path.name.removesuffix(".nii.gz")
        coarse(path, out / "imagesTr" / f"{name}_0000.nii.gz", every=(4, 4, 2))
        target = out / "labelsTr" / path.name
        coarse(source / "labelsTr" / path.name, target, every=(4, 4, 2), values=values)
    names = ("liver", "right kidney", "left kidney", "spleen")
    labels = dict(zip(("background", *names), (0, *values.values()), strict=True))
    content = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz"}
    (out / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}), encoding="utf-8")
    return out, [], list(values.values())


def ct_folder(root):
    """BTCV in two plain folders, without any list."""
    source = SHARED / "btcv_ct"
    (root / "ct" / "labels").mkdir(parents=True)
    (root / "ct" / "images").mkdir()
    for path in sorted((source / "imagesTr").iterdir())[:4]:
        coarse(path, root / "ct" / "images" / path.name, every=(4, 4, 4))
        label = source / "labelsTr" / path.name
        shutil.copy(label, root / "whole.nii.gz")
        coarse(root / "whole.nii.gz", root / "ct" / "labels" / path.name, every=(4, 4, 4))
    more = ["--labels", str(root / "ct" / "labels"), "--names", "6=liver"]
    return root / "ct" / "images", more, [6]


def dicom_tree(root):
    """A series a patient, and the labels as NIfTI beside the tree."""
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros((24, 24, 8), bool)
        mask[8 : 15 + number % 2, 9:16, 2:6] = True
        hu = np.where(mask, 100, -100) + rng.integers(-20, 20, mask.shape)

        def patient(image, k, number=number):
            image.PatientID = f"patient {number}"

        affine = write_series(root / "tree" / f"p{number}" / "ct", hu, edit=patient)
        label = nib.Nifti1Image(mask.astype(np.uint8) * 7, affine)
        nib.save(label, root / "labels" / f"p{number}_ct.nii.gz")
    return root / "tree", ["--labels", str(root / "labels"), "--names", "7=tumour"], [7]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(nnunet_raw, marks=real("chaos_mr_t2")),
        pytest.param(ct_folder, marks=real("btcv_ct")),
        pytest.param(dicom_tree, marks=pytest.mark.slow),
    ],
)
def test_four_commands(make, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, more, organs = make(tmp_path)
    counts = ["--labelled", "2", "--validation", "1", "--test", "1"]
    for command in (
        ["ingest", str(source), "data", *more],
        ["split", "data/dataset.json", "split.json", *counts],
        ["train", "split.json", "--out", "runs/a", "--set", *TINY],
        ["evaluate", "runs/a", "split.json"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "a"
    rows = read_csv(run / "evaluation" / "scores.csv")
    assert set(organs) <= {int(row["organ"]) for row in rows}
    assert (run / "evaluation" / "report.html").is_file()
    (label,) = (run / "evaluation").glob("*_seg.nii.gz")
    known = json.loads((run / "model.json").read_text(encoding="utf-8"))["organs"]
    assert set(np.unique(np.asarray(nib.load(label).dataobj))) <= {0, *map(int, known)}
    (item,) = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))["test"]
    found, scan = nib.load(label), nib.load(tmp_path / item["image"])
    assert found.shape == scan.shape
    np.testing.assert_array_equal(found.affine, scan.affine)
    said = capsys.readouterr()
    assert "next: stipple evaluate runs/a split.json" in said.out
    assert "epoch 2/2 | loss " in said.out
    # lines in a log, and no bar
    assert f"scan 1/1: {Path(item['image']).name}" in said.err
    assert not [sign for sign in ("it/s", "%|", "\r") if sign in said.err]
