"""What a NIfTI file says of its geometry: one answer for every reader."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.boxes import SHAPE, blob, body
from helpers.threshold_model import write_model
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.utils import SpaceKeys

from stipple_monai import (
    OrganPosition,
    PriorAlign,
    PriorDrivenInferer,
    SpatialPrior,
    locate_organ,
    organ_position,
)
from stipple_monai.__main__ import main
from stipple_monai.data import read_grid, read_volume
from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.nifti import VOXEL_MM, leads_to_lps, with_one_geometry
from stipple_monai.segmentation import segment
from stipple_monai.transforms import LoadScand

SPACING = (0.8, 0.8, 5.0)
TRUE = np.diag([*SPACING, 1.0])
TRUE[:3, 3] = [-10, -20, -30]


def save(path, array, *, sform=None, qform=TRUE, codes=(1, 1), units="mm"):
    """Write what a header says, and nothing that nibabel would put right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_xyzt_units(units)
    image.set_sform(np.eye(4) if sform is None else sform, 1)
    image.header.set_qform(qform, 1)
    image.header["sform_code"], image.header["qform_code"] = codes
    nib.save(image, path)
    return path


@pytest.fixture
def contradictory(tmp_path):
    """Scans and labels whose sform is an identity that another tool left, and their datalist."""
    items = []
    for i in range(3):
        save(tmp_path / f"images/c{i}.nii.gz", body(i))
        save(tmp_path / f"labels/c{i}.nii.gz", blob())
        items.append({"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz"})
    content = {"labels": {"0": "background", "1": "pancreas"}, "training": items}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_all_readers_have_one_geometry(contradictory):
    path = contradictory / "labels/c0.nii.gz"
    loaded = LoadScand("label", ensure_channel_first=True)({"label": str(path)})["label"]
    np.testing.assert_allclose(loaded.affine, TRUE, atol=1e-5)
    np.testing.assert_allclose(read_grid(path).affine, TRUE, atol=1e-5)
    np.testing.assert_allclose(read_volume(path).affine, TRUE, atol=1e-5)
    prior = SpatialPrior.estimate([path], bins=5)
    assert prior.size_mm == pytest.approx((9 * 0.8, 8 * 0.8, 4 * 5.0), rel=1e-4)
    trained = OrganPosition([prior])(loaded)[0]
    torch.testing.assert_close(organ_position(path), trained)
    expected = TRUE @ [10, 7.5, 3.5, 1]
    np.testing.assert_allclose(organ_position(path), expected[:3], atol=1e-4)


@pytest.mark.slow
def test_ingest_check_and_report_say_that_a_header_contradicts_itself(contradictory, capsys):
    out = contradictory.parent / f"{contradictory.name}_out"
    assert main(["ingest", str(contradictory), str(out), "--layout", "nifti"]) == 0
    np.testing.assert_allclose(
        nib.load(out / "imagesTr/c0.nii.gz").header.get_zooms(), SPACING, atol=1e-5
    )
    said = "sform and qform put corners .* with voxels of 1 × 1 × 1 and 0.8 × 0.8 × 5 mm; the qform"
    assert len(re.findall(said, (out / "qa.md").read_text())) == 6
    assert main(["check", str(contradictory / "dataset.json")]) == 0
    assert len(re.findall(said, capsys.readouterr().out)) == 6
    page = contradictory / "page.html"
    assert main(["report", str(contradictory / "dataset.json"), "--out", str(page)]) == 0
    assert len(re.findall(said, page.with_suffix(".md").read_text())) == 6


@pytest.mark.slow
def test_segment_measures_in_the_same_mm(contradictory, tmp_path):
    model = write_model(tmp_path / "model")
    scan, out = contradictory / "images/c0.nii.gz", tmp_path / "out"
    command = ["segment", str(scan), "--models", str(model["models"]), "--out", str(out)]
    assert main(command) == 0
    record = json.loads((out / "c0_volumes.json").read_text())
    expected_ml = int(blob().sum()) * 0.8 * 0.8 * 5 / 1000
    assert record["organs"][0]["volume_ml"] == pytest.approx(expected_ml, rel=1e-3)


def test_a_sform_that_fits_is_taken(tmp_path):
    moved = TRUE.copy()
    moved[0, 3] += 7
    image = nib.load(save(tmp_path / "a.nii", body(), sform=moved))
    settled, notes = with_one_geometry(image, "a.nii")
    np.testing.assert_allclose(settled.affine, moved, atol=1e-5)
    assert notes == [
        "sform and qform put corners 7 mm apart, with voxels of 0.8 × 0.8 × 5 and 0.8 × 0.8 × 5 "
        "mm; the sform was taken."
    ]
    same = nib.load(save(tmp_path / "b.nii", body(), sform=TRUE))
    assert with_one_geometry(same, "b.nii")[1] == []


def test_a_contradiction_that_nothing_settles_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", body(), codes=(1, 0))
    readers = (read_volume, read_grid, organ_position, lambda p: LoadScand("a")({"a": str(p)}))
    for read in readers:
        with pytest.raises(DatasetError, match=r"say once .* 1 × 1 × 1 mm by the sform and 0.8 ×"):
            read(path)


@pytest.mark.parametrize("units", ["meter", "micron"])
def test_units_are_refused_in_every_reader(tmp_path, units):
    path = save(tmp_path / "a.nii", blob(), sform=TRUE, units=units)
    readers = (
        read_volume,
        read_grid,
        organ_position,
        lambda p: SpatialPrior.estimate(p),
        lambda p: LoadScand("a")({"a": str(p)}),
    )
    for read in readers:
        with pytest.raises(DatasetError, match=f"must be in mm, got {units} in .*a.nii"):
            read(path)


def test_units_that_no_standard_has_are_refused(tmp_path):
    path = save(tmp_path / "a.nii", blob(), sform=TRUE)
    data = bytearray(path.read_bytes())
    data[123] = 5
    path.write_bytes(data)
    for read in (read_volume, read_grid, organ_position):
        with pytest.raises(DatasetError, match=r"got the unknown unit 5 in .*a.nii"):
            read(path)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_voxels_of_no_scan_in_mm_are_refused(tmp_path, factor):
    scaled = np.diag([factor, factor, factor, 1.0]) @ TRUE
    path = save(tmp_path / "a.nii", blob(), sform=scaled, qform=scaled, units="unknown")
    for read in (read_volume, read_grid, organ_position):
        with pytest.raises(DatasetError, match=r"in mm, got voxels of .* are they in m or µm"):
            read(path)
    assert VOXEL_MM == (0.01, 200.0)


def test_a_quaternion_that_is_no_rotation_is_refused_by_all(tmp_path):
    path = save(tmp_path / "a.nii", body(), sform=TRUE)
    data = bytearray(path.read_bytes())
    # quatern_b, at byte 256 of the header
    data[256:260] = np.float32(2).tobytes()
    path.write_bytes(data)
    for read in (read_volume, read_grid, organ_position, lambda p: LoadScand("a")({"a": str(p)})):
        with pytest.raises(DatasetError, match=r"a qform that is a rotation, got .*a\.nii: w2"):
            read(path)


def test_complex_voxels_are_refused_by_all(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), TRUE), path)
    for read in (read_volume, read_grid, lambda p: LoadScand("a")({"a": str(p)})):
        with pytest.raises(DatasetError, match=r"a\.nii"):
            read(path)
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    with pytest.raises(DatasetError, match=r"one real number a voxel, got .* in .*a\.nii"):
        segment([path], out, **model)
    assert not list(out.glob("*_seg.nii.gz"))


def test_a_label_of_another_format_lies_where_its_affine_says(tmp_path):
    """FreeSurfer's have mm alone, and one affine."""
    nifti = save(tmp_path / "a.nii", blob(), sform=TRUE)
    nib.save(nib.MGHImage(blob().astype(np.uint8), TRUE), tmp_path / "a.mgz")
    expected = organ_position(nifti)
    torch.testing.assert_close(organ_position(tmp_path / "a.mgz"), expected)
    nib.save(nib.MGHImage(blob().astype(np.uint8), TRUE * 1e-4), tmp_path / "b.mgz")
    with pytest.raises(DatasetError, match=r"in mm, got voxels of .*b\.mgz"):
        organ_position(tmp_path / "b.mgz")


@pytest.mark.parametrize("space", ["LPS", SpaceKeys.LPS])
def test_a_world_that_is_lps_is_refused_by_all(space):
    """As MONAI's readers leave it with ``affine_lps_to_ras=False``."""

    def volume(space):
        label = torch.from_numpy(blob().astype(np.float32))[None]
        return MetaTensor(label, affine=torch.from_numpy(TRUE), meta={"space": space})

    prior = SpatialPrior.estimate([volume("RAS")], bins=5)
    point = OrganPosition([prior])(volume("RAS"))
    lps, match = volume(space), r"must have an affine to RAS mm, got .*LPS: .*lps_to_ras=True"
    for read in (organ_position, OrganPosition([prior])):
        with pytest.raises(DatasetError, match=match):
            read(lps)
    with pytest.raises(PriorError, match=match):
        PriorAlign([prior])(lps, point)
    with pytest.raises(PositionError, match=match):
        locate_organ(lps, prior)
    infer, batch = PriorDrivenInferer(SimpleInferer(), [prior]), lps[None]
    for spaces in (space, [space]):
        batch.meta["space"] = spaces
        with pytest.raises(PositionError, match=match):
            infer(batch, torch.nn.Conv3d(1, 2, 1))


def test_what_monai_deploy_calls_lps_and_is_ras_is_taken():
    meta = {"space": "LPS", "nifti_affine_transform": np.eye(4)}
    assert not leads_to_lps(MetaTensor(np.zeros((1, 2, 2, 2)), affine=np.eye(4), meta=meta))
