"""The simulated abdomen: reproducible, anatomically plausible, and ambiguous where it must be."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as connected

from stipple_monai.errors import DatasetError
from stipple_monai.simulation import phantom
from stipple_monai.simulation.anatomy import ORGANS, Canvas
from stipple_monai.simulation.phantom import simulate_abdomen, write_phantom

SMALL = {"size": 24, "slices": (32, 32), "progress": False}


@pytest.fixture(scope="module")
def abdomens() -> list[phantom.Abdomen]:
    return [simulate_abdomen(seed, size=96, organs="all") for seed in range(6)]


def center_mm(abdomen: phantom.Abdomen, organ: str) -> np.ndarray:
    voxels = np.argwhere(abdomen.label == ORGANS.index(organ))
    return nib.affines.apply_affine(abdomen.affine, voxels.mean(0))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name + path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.nii.gz"))
    }


@pytest.mark.slow
def test_types_shapes_and_values(abdomens):
    for image_hu, label, affine in abdomens:
        assert image_hu.dtype == np.int16
        assert label.dtype == np.uint8
        assert image_hu.shape == label.shape
        assert 32 <= label.shape[2] <= 48
        assert nib.aff2axcodes(affine) == ("L", "A", "S")
        assert set(np.unique(label)) == set(range(len(ORGANS)))
        assert -1024 <= image_hu.min() < -950


def test_organs_lie_where_a_radiologist_looks_for_them(abdomens):
    for abdomen in abdomens:
        at = {organ: center_mm(abdomen, organ) for organ in ORGANS[1:]}
        right, front, up = np.eye(3)
        assert at["liver"] @ right > at["pancreas"] @ right + 30
        assert at["spleen"] @ right < at["pancreas"] @ right - 40
        assert at["right kidney"] @ right > at["aorta"] @ right > at["left kidney"] @ right
        assert at["vena cava"] @ right > at["aorta"] @ right
        assert at["pancreas"] @ front > at["right kidney"] @ front + 20
        assert at["stomach"] @ front > at["spleen"] @ front
        assert at["liver"] @ up > at["right kidney"] @ up


def test_pancreas_is_whole_with_head_low_on_the_right_and_tail_high_on_the_left(abdomens):
    for _, label, affine in abdomens:
        mask = label == 1
        pieces, _ = connected(mask, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.97 * mask.sum()
        assert not mask[:, :, [0, -1]].any()
        volume_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
        assert 40 < volume_ml < 140
        points = nib.affines.apply_affine(affine, np.argwhere(mask))
        tail = points[points[:, 0] < np.quantile(points[:, 0], 0.1)].mean(0)
        head = points[points[:, 0] > np.quantile(points[:, 0], 0.9)].mean(0)
        assert head[0] - tail[0] > 70
        assert tail[2] - head[2] > 20
        assert head[1] - tail[1] > 15


def test_bowel_cannot_be_told_by_intensity(abdomens):
    differences = []
    for image_hu, label, _ in abdomens:
        inner = {
            organ: image_hu[binary_erosion(label == ORGANS.index(organ), np.ones((3, 3, 1)))]
            for organ in ("pancreas", "small bowel", "liver")
        }
        pancreas, bowel = inner["pancreas"], inner["small bowel"]
        differences.append(pancreas.mean() - bowel.mean())
        assert abs(differences[-1]) < 6
        assert abs(pancreas.std() - bowel.std()) < 4
        assert 75 < pancreas.mean() < 115
        assert len(bowel) > len(pancreas)
        assert inner["liver"].std() < pancreas.std()
    assert abs(np.mean(differences)) < 3


def test_most_bowel_lies_outside_the_box_of_the_pancreas_and_some_inside(abdomens):
    for abdomen in abdomens:
        voxels = np.argwhere(abdomen.label == 1)
        box = tuple(slice(a, b + 1) for a, b in zip(voxels.min(0), voxels.max(0), strict=True))
        bowel = abdomen.label == ORGANS.index("small bowel")
        assert 0.01 < bowel[box].sum() / bowel.sum() < 0.5


def test_field_of_view_and_size_vary(abdomens):
    spacings = np.array([np.abs(np.diag(a.affine)[:3]) for a in abdomens])
    assert (np.ptp(spacings[:, 0]) / spacings[:, 0].mean()) > 0.05
    assert np.ptp(spacings[:, 2]) > 0.5
    heights = [np.argwhere(a.label == 1)[:, 2].mean() / a.label.shape[2] for a in abdomens]
    assert np.ptp(heights) > 0.08


@pytest.mark.slow
def test_seed_reproduces_and_decides():
    first, again = (simulate_abdomen(3, size=24) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.affine, simulate_abdomen(4, size=24).affine)


@pytest.mark.slow
def test_finer_grid_shows_the_same_patient():
    coarse, fine = (simulate_abdomen(1, size=size).label == 1 for size in (64, 128))
    pooled = fine.reshape(64, 2, 64, 2, -1).mean((1, 3)) >= 0.5
    assert 2 * (coarse & pooled).sum() / (coarse.sum() + pooled.sum()) > 0.85


@pytest.mark.slow
def test_orientations_are_the_same_scan():
    las = simulate_abdomen(2, size=24, orientation="LAS")
    ras = simulate_abdomen(2, size=24, orientation="RAS")
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    flipped = nib.as_closest_canonical(nib.Nifti1Image(las.image_hu, las.affine))
    assert np.array_equal(flipped.get_fdata(), ras.image_hu)
    assert np.allclose(flipped.affine, ras.affine)


@pytest.mark.slow
def test_pancreas_label_alone_is_the_same_pancreas():
    alone = simulate_abdomen(5, size=24)
    everything = simulate_abdomen(5, size=24, organs="all")
    assert np.array_equal(alone.image_hu, everything.image_hu)
    assert np.array_equal(alone.label, everything.label == 1)


@pytest.mark.slow
def test_few_slices_center_on_the_pancreas():
    assert simulate_abdomen(0, size=24, slices=(4, 4)).label.any()


def test_tube_is_the_distance_to_its_centerline():
    axes = [np.arange(-30.0, 31, 3), np.arange(-30.0, 31, 3), np.arange(-32.0, 33, 4)]
    canvas = Canvas(axes, np.random.default_rng(0))
    distance, box = canvas.tube(np.array([(-20, 0, 0, 8), (0, 0, 0, 8), (20, 0, 0, 8)], float))
    x, y, z = (a[box] for a in canvas.xyz)
    beyond = np.maximum(np.abs(x) - 20, 0)
    expected = np.sqrt(beyond**2 + y**2 + z**2) - 8
    near = np.abs(expected) < 3
    assert near.sum() > 50
    assert np.abs(distance - expected)[near].max() < 0.6


def test_ellipsoid_is_the_distance_to_a_sphere_and_turns():
    axes = [np.arange(-60.0, 61, 4)] * 3
    canvas = Canvas(axes, np.random.default_rng(0))
    x, y, z = canvas.xyz
    distance, box = canvas.ellipsoid((5, 0, 0), (20, 20, 20))
    expected = np.sqrt((x - 5) ** 2 + y**2 + z**2)[box] - 20
    assert np.allclose(distance, expected, atol=1e-3)
    turned, box = canvas.ellipsoid((0, 0, 0), (30, 10, 10), (0, 0, 90))
    inside = turned < 0
    assert np.abs(y[box][inside]).max() > 24
    assert np.abs(x[box][inside]).max() < 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "`size` must be from 16 to .*, got 15"),
        ({"slices": (9, 8)}, r"`slices` must be \(fewest, most\), both positive, got \(9, 8\)"),
        ({"slices": (0, 8)}, "`slices` must be"),
        ({"slice_spacing_mm": (5.0, 3.0)}, "`slice_spacing_mm` must be .least, greatest."),
        ({"slice_spacing_mm": (0.0, 3.0)}, "both at least 0.5"),
        ({"slices": (99, 99)}, "must be at most 300 mm, got 99 × 5.0"),
        ({"organs": "liver"}, "`organs` must be 'pancreas' or 'all', got 'liver'"),
        ({"orientation": "LPS"}, "`orientation` must be 'LAS' or 'RAS', got 'LPS'"),
    ],
)
def test_refuses_arguments_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        simulate_abdomen(0, **options)
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "new", cases=1, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_writes_msd_layout(tmp_path):
    path = write_phantom(tmp_path / "set", cases=2, organs="all", **SMALL)
    content = json.loads(path.read_text())
    assert path == tmp_path / "set" / "dataset.json"
    assert content["labels"]["0"] == "background"
    assert content["labels"]["1"] == "pancreas"
    assert len(content["labels"]) == len(ORGANS)
    assert content["numTraining"] == len(content["training"]) == 2
    case_seed = np.random.SeedSequence(0, spawn_key=(1,))
    expected = simulate_abdomen(case_seed, size=24, slices=(32, 32), organs="all")
    item = content["training"][1]
    for key, array in (("image", expected.image_hu), ("label", expected.label)):
        image = nib.load(path.parent / item[key])
        assert image.get_data_dtype() == array.dtype
        assert np.array_equal(np.asarray(image.dataobj), array)
        assert np.allclose(image.affine, expected.affine, atol=1e-3)
        assert image.header.get_xyzt_units()[0] == "mm"
    assert not list(path.parent.rglob(".part*"))


@pytest.mark.slow
def test_pancreas_alone_is_one_label(tmp_path):
    content = json.loads(write_phantom(tmp_path, cases=1, **SMALL).read_text())
    assert content["labels"] == {"0": "background", "1": "pancreas"}


@pytest.mark.slow
def test_same_bytes_whenever_and_however_many(tmp_path, monkeypatch):
    write_phantom(tmp_path / "one", cases=1, seed=7, **SMALL)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_phantom(tmp_path / "two", cases=2, seed=7, **SMALL)
    write_phantom(tmp_path / "other", cases=1, seed=8, **SMALL)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) == 2
    assert len(two) == 4
    assert one.items() <= two.items()
    assert not one.items() & other.items()


@pytest.mark.slow
def test_resumes_and_keeps_what_is_there(tmp_path, monkeypatch):
    made = []

    def simulate(seed, **options):
        made.append(seed.spawn_key)
        if len(made) == 2:
            raise KeyboardInterrupt
        return simulate_abdomen(seed, **options)

    monkeypatch.setattr(phantom, "simulate_abdomen", simulate)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, cases=3, **SMALL)
    assert not (tmp_path / "dataset.json").exists()
    (tmp_path / "labelsTr" / "phantom_000.nii.gz").unlink()
    write_phantom(tmp_path, cases=2, **SMALL)
    assert made == [(0,), (1,), (0,), (1,)]
    write_phantom(tmp_path, cases=2, **SMALL)
    assert len(made) == 4


@pytest.mark.slow
def test_refuses_a_folder_with_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(DatasetError, match=r"must be empty .* --overwrite"):
        write_phantom(tmp_path, cases=1, **SMALL)
    write_phantom(tmp_path, cases=2, overwrite=True, **SMALL)
    with pytest.raises(DatasetError, match="must be empty or hold this same phantom"):
        write_phantom(tmp_path, cases=1, seed=1, **SMALL)
    before = digests(tmp_path)
    write_phantom(tmp_path, cases=1, seed=1, overwrite=True, **SMALL)
    assert not digests(tmp_path).items() & before.items()
    assert len(digests(tmp_path)) == 2
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


@pytest.mark.slow
def test_overwrite_replaces_damaged_cases(tmp_path):
    write_phantom(tmp_path, cases=1, **SMALL)
    before = digests(tmp_path)
    (tmp_path / "imagesTr" / "phantom_000.nii.gz").write_bytes(b"damaged")
    write_phantom(tmp_path, cases=1, overwrite=True, **SMALL)
    assert digests(tmp_path) == before


def test_refuses_a_file_as_folder_and_no_cases(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="`folder` must be a folder, got the file"):
        write_phantom(tmp_path / "file", cases=1)
    with pytest.raises(ValueError, match="`cases` must be at least 1, got 0"):
        write_phantom(tmp_path / "none", cases=0)


@pytest.mark.slow
def test_shows_progress(tmp_path, capsys):
    write_phantom(tmp_path, cases=1, **{**SMALL, "progress": True})
    assert "1/1" in capsys.readouterr().err
