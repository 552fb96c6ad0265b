"""Simulated CT of label maps: what is where, in HU, and sets of it on disk."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from scipy import ndimage

from stipple_monai.__main__ import main
from stipple_monai.errors import DatasetError
from stipple_monai.simulation import BTCV_TISSUES, Tissue, simulate_ct, write_simulated
from stipple_monai.simulation.anatomy import ORGANS
from stipple_monai.simulation.body import BOWEL, FIRST, INVENTED, invent_body, open_grid
from stipple_monai.simulation.phantom import simulate_abdomen

NAMES = {tissue.name: tissue for tissue in BTCV_TISSUES.values()}
TISSUES = {1: NAMES["pancreas"], 2: NAMES["liver"], 3: NAMES["spleen"], 4: NAMES["right kidney"]}
TISSUES |= {5: NAMES["left kidney"], 6: NAMES["stomach"], 7: NAMES["aorta"]}


@pytest.fixture(scope="module")
def label():
    """The anatomy of the phantom without its bowel, veins and body: what users label."""
    made = simulate_abdomen(3, size=80, organs="all", orientation="RAS")
    values = np.where(np.isin(made.label, list(TISSUES)), made.label, 0)
    assert [ORGANS[value] for value in TISSUES] == [t.name for t in TISSUES.values()]
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(made.affine))


@pytest.fixture(scope="module")
def body(label):
    grid, _ = open_grid(label, TISSUES)
    return invent_body(grid, np.random.default_rng(0))


@pytest.fixture(scope="module")
def image(label):
    return simulate_ct(label, seed=0, tissues=TISSUES)


def core(mask):
    """Where neither blur nor partial volume reaches."""
    return ndimage.binary_erosion(mask, iterations=2)


@pytest.mark.slow
def test_a_seed_is_a_scan(label, image):
    assert image.shape == label.shape
    assert image.dtype == torch.float32
    assert torch.equal(image.affine, label.affine)
    assert torch.equal(image, simulate_ct(label, seed=0, tissues=TISSUES))
    assert not torch.equal(image, simulate_ct(label, seed=1, tissues=TISSUES))


def test_the_body_holds_what_is_labelled(label, body):
    np.testing.assert_array_equal(body[label[0] > 0], label[0][label[0] > 0])
    inside = body != 0
    # the scan's outermost voxels in-plane are air, and labels have at least a wall around them
    assert not inside[0].any()
    assert not inside[:, 0].any()
    spacing = nib.affines.voxel_sizes(label.affine.numpy())
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    assert depth[label[0].numpy() > 0].min() > 10
    names = {t.name: int((body == value).sum()) for value, t in INVENTED.items()}
    assert min(names.values()) > 0, names


def test_each_tissue_has_its_attenuation(label, image):
    hu = image[0].numpy()
    for value, tissue in TISSUES.items():
        inner = core(label[0].numpy() == value)
        assert abs(hu[inner].mean() - tissue.mean_hu) < 2 * tissue.sd_hu + 3, tissue.name
    assert abs(hu[:4, :4].mean() + 1000) < 5


def test_bowel_looks_like_the_pancreas_and_is_not_labelled(label, body, image):
    hu, pancreas = image[0].numpy(), label[0].numpy() == 1
    bowel = body == BOWEL
    assert bowel.sum() > 2 * pancreas.sum()
    inner = core(bowel)
    assert abs(hu[inner].mean() - hu[core(pancreas)].mean()) < 4
    spacing = nib.affines.voxel_sizes(label.affine.numpy())
    near = ndimage.distance_transform_edt(~pancreas, sampling=spacing)
    assert (near[bowel] < 20).sum() > 50


def test_the_lungs_are_above_the_liver(label, body):
    lung = body == FIRST + 5
    liver = label[0].numpy() == 2
    assert INVENTED[FIRST + 5].name == "lung"
    above = np.nonzero(lung)[2].mean() - np.nonzero(liver)[2].mean()
    assert above > 0


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["LPS", "PSR", "IAL"])
def test_axes_however_flipped_give_the_same_scan(label, image, codes):
    turn = nib.orientations.axcodes2ornt(codes)
    ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
    file = nib.Nifti1Image(label[0].numpy(), label.affine.numpy()).as_reoriented(ornt)
    assert "".join(nib.aff2axcodes(file.affine)) == codes
    turned = MetaTensor(torch.tensor(np.ascontiguousarray(file.dataobj))[None], affine=file.affine)
    other = simulate_ct(turned, seed=0, tissues=TISSUES)
    back = nib.as_closest_canonical(nib.Nifti1Image(other[0].numpy(), file.affine))
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), image[0].numpy())


@pytest.mark.slow
def test_noise_and_blur_are_what_was_asked_for(label):
    quiet, loud, blurred = (
        simulate_ct(label, seed=0, tissues=TISSUES, psf_mm=psf, noise_hu=(hu, hu))[0].numpy()
        for psf, hu in ((0.0, 0.0), (0.0, 20.0), (6.0, 0.0))
    )
    # far from the ends of the range, where values are clipped
    inner = core(label[0].numpy() == 2)
    assert (loud - quiet)[inner].std() == pytest.approx(20, rel=0.1)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.7 * np.abs(np.diff(quiet, axis=0)).mean()
    # partial volume: between two tissues lie voxels that are neither
    step = (quiet > -850) & (quiet < -150)
    assert step.sum() > 100


def test_errors_name_the_argument(label):
    with pytest.raises(DatasetError, match=r"`label` must have values of `tissues`.*got \[2, 3"):
        simulate_ct(label, seed=0, tissues={1: TISSUES[1]})
    with pytest.raises(DatasetError, match="a labelled organ"):
        simulate_ct(torch.zeros_like(label), seed=0)
    with pytest.raises(ValueError, match="`tissues` must have keys from 1 to 999"):
        simulate_ct(label, seed=0, tissues={0: TISSUES[1]})
    for wrong in ({"psf_mm": -1.0}, {"noise_hu": (5.0, 1.0)}):
        with pytest.raises(ValueError, match="`psf_mm` must be at least 0"):
            simulate_ct(label, seed=0, **wrong)


# sets on disk


@pytest.fixture
def paths(tmp_path, label):
    found = []
    for index in range(2):
        found.append(tmp_path / f"anatomy_{index}.nii.gz")
        values = np.roll(label[0].numpy(), 3 * index, axis=0).astype(np.int16)
        nib.save(nib.Nifti1Image(values, label.affine.numpy()), found[-1])
    return found


OPTIONS = {"tissues": TISSUES, "organs": {1: 1, 4: 2, 5: 2}, "progress": False}
OPTIONS |= {"spacing_mm": (6.0, 6.0, 8.0), "size": (64, 64, None)}


@pytest.mark.slow
def test_a_set_is_in_the_layout_of_the_msd(tmp_path, paths, label):
    listed = write_simulated(paths, tmp_path / "set", **OPTIONS)
    content = json.loads(listed.read_text(encoding="utf-8"))
    assert content["labels"] == {
        "0": "background",
        "1": "pancreas",
        "2": "right kidney + left kidney",
    }
    assert len(content["training"]) == 2
    volume = float((label == 1).sum()) * abs(np.linalg.det(label.affine[:3, :3]))
    for item in content["training"]:
        image, mask = (nib.load(listed.parent / item[key]) for key in ("image", "label"))
        assert image.shape == mask.shape
        assert image.shape[:2] == (64, 64)
        np.testing.assert_array_equal(image.affine, mask.affine)
        np.testing.assert_allclose(image.header.get_zooms(), (6, 6, 8))
        assert image.header.get_xyzt_units()[0] == "mm"
        assert set(np.unique(mask.dataobj)) == {0, 1, 2}
        found = float((np.asarray(mask.dataobj) == 1).sum()) * 6 * 6 * 8
        assert found == pytest.approx(volume, rel=0.15)


@pytest.mark.slow
def test_an_interrupted_set_goes_on_and_another_is_refused(tmp_path, paths):
    folder = tmp_path / "set"
    listed = write_simulated(paths, folder, **OPTIONS)
    files = sorted(folder.rglob("*.*"))
    before = {path: path.read_bytes() for path in files}
    listed.unlink()
    kept, lost = (folder / "imagesTr" / f"simulated_00{i}.nii.gz" for i in range(2))
    lost.unlink()
    time = kept.stat().st_mtime_ns
    write_simulated(paths, folder, **OPTIONS)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))} == before
    assert kept.stat().st_mtime_ns == time
    with pytest.raises(DatasetError, match="`folder` must be empty or hold this same set of scans"):
        write_simulated(paths, folder, **OPTIONS, seed=1)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))} == before
    write_simulated(paths, folder, **OPTIONS, seed=1, overwrite=True)
    assert lost.read_bytes() != before[lost]


def test_options_out_of_range(tmp_path, paths):
    for wrong, message in (
        ({"organs": {99: 1}}, "`organs` map values of `tissues`"),
        ({"organs": {1: 300}}, "`organs` map values of `tissues`"),
        ({"size": (8, 64, None)}, "`size` from 16 to 1024"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "`spacing_mm` must be from 0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_simulated(paths, tmp_path / "set", **(OPTIONS | wrong))
    with pytest.raises(ValueError, match="`labels` must name a file"):
        write_simulated([], tmp_path / "set", **OPTIONS)
    assert not (tmp_path / "set").exists()


def test_the_command_reads_tissues_from_a_file(tmp_path, paths, capsys):
    tissues = tmp_path / "tissues.yaml"
    rows = (f"{value}: [{t.name}, {t.mean_hu}, {t.sd_hu}, 4]" for value, t in TISSUES.items())
    tissues.write_text("\n".join(rows), encoding="utf-8")
    command = ["simulate", str(tmp_path / "set"), str(paths[0]), "--tissues", str(tissues)]
    command += ["--organs", "1=1", "--spacing-mm", "6", "6", "8", "--size", "64"]
    assert main(command) == 0
    recipe = json.loads((tmp_path / "set" / "simulated.json").read_text(encoding="utf-8"))
    assert recipe["tissues"]["2"] == [*TISSUES[2][:3], 4]
    assert recipe["organs"] == {"1": 1}
    tissues.write_text("1: pancreas", encoding="utf-8")
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 1
    assert "must hold `value: [name, mean_hu, sd_hu, texture_hu]`" in capsys.readouterr().err


@real("btcv_labels", "nih_pancreas_slices")
def test_real_anatomy_gets_the_attenuation_of_real_scans(tmp_path):
    """BTCV labels under a simulated scan, beside slices of TCIA Pancreas-CT."""
    folder = DATA / "nih_pancreas_slices"
    real = []
    for path in sorted(folder.glob("img_*.npy")):
        mask = np.load(path.with_name(path.name.replace("img", "mask"))) > 0
        real.append(np.load(path)[ndimage.binary_erosion(mask, iterations=3)])
    real = [values for values in real if values.size > 50]
    found = sorted((DATA / "btcv_labels").glob("*.nii.gz"))[:1]
    listed = write_simulated(found, tmp_path / "set", organs={11: 1}, progress=False)
    (image,) = (listed.parent / "imagesTr").iterdir()
    hu = np.asarray(nib.load(image).dataobj)
    mask = np.asarray(nib.load(listed.parent / "labelsTr" / image.name).dataobj) == 1
    inner = hu[core(mask)]
    means = [float(values.mean()) for values in real]
    assert min(means) - 15 < inner.mean() < max(means) + 15


def test_a_tissue_is_four_values():
    assert Tissue("liver", 110, 9, 6)._fields == ("name", "mean_hu", "sd_hu", "texture_hu")
