"""What holds on every grid: flipped, permuted, anisotropic, oblique, and tilted like a gantry.

A scan is stored along axes of any order and direction; that must change nothing but the order of
its voxels. Grids that are not at right angles occur where a CT gantry was tilted, by 30° at most.
"""

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.threshold_model import same_grid, write_model, write_scan
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from stipple_monai import SpatialPrior, locate_organ, organ_position
from stipple_monai.data.strata import organ_volumes
from stipple_monai.positioning.single import measure_position
from stipple_monai.results.volumes import read_records
from stipple_monai.segmentation.run import segment

some = settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
SHAPE = (9, 8, 7)


def build(spacing, order, flips, *, turn=(0, 0, 0), tilt=0.0, origin=(0, 0, 0)):
    """Voxel to world: axes of any order and direction, a tilted gantry, a turned patient."""
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = np.multiply(spacing, flips)
    shear = np.eye(3)
    shear[1, 2] = np.tan(np.deg2rad(tilt))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ shear @ axes
    affine[:3, 3] = origin
    return affine


lengths = st.sampled_from([0.5, 0.78, 1.0, 2.0, 3.0, 5.0, 7.7])
spacings = st.tuples(lengths, lengths, lengths)
orders = st.permutations(range(3))
signs = st.tuples(*[st.sampled_from([-1, 1])] * 3)
origins = st.tuples(*[st.sampled_from([-1234.5, -100.0, 0.0, 33.3])] * 3)
straight = st.builds(build, spacings, orders, signs, origin=origins)
turns = st.tuples(*[st.floats(-45, 45)] * 3)
oblique = st.builds(build, spacings, orders, signs, turn=turns, origin=origins)
tilted = st.builds(
    build, spacings, orders, signs, turn=turns, tilt=st.floats(-30, 30), origin=origins
)
# voxels of similar lengths: a network's grid cannot hold what is much finer
near = st.tuples(*[st.sampled_from([2.0, 2.5, 3.0])] * 3)
rounded = st.builds(build, near, orders, signs, turn=turns, tilt=st.floats(-30, 30))
steep = st.builds(build, spacings, orders, signs, tilt=st.sampled_from([-30, -20, 20, 30]))
anything = st.one_of(straight, oblique, tilted)
# a network's prior has a million voxels on finer grids, and is a second on its way to each place
coarse = st.one_of(steep, anything).filter(lambda affine: abs(np.linalg.det(affine)) > 1)
storages = st.tuples(orders, signs).map(lambda s: np.stack([s[0], s[1]], -1).astype(float))


def stored(array, affine, storage):
    """The same volume ``(W, H, D)`` with its voxels in another order; ``array``, ``affine``."""
    return apply_orientation(array, storage), affine @ inv_ornt_aff(storage, array.shape)


def tensor(array, affine):
    values = torch.from_numpy(np.ascontiguousarray(array))[None].float()
    return MetaTensor(values, affine=torch.from_numpy(affine))


def cells(affine, shape):
    return apply_affine(affine, np.indices(shape).reshape(3, -1).T)


def blob(affine, shape=SHAPE, seed=0):
    """A lopsided organ off the middle of a grid; it depends on voxels, not on the world."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).reshape(3, -1).T
    middle = (np.array(shape) - 1) / 2 + rng.uniform(-0.7, 0.7, 3)
    inside = ((((grid - middle) / (np.array(shape) * 0.34)) ** 2).sum(1) <= 1).reshape(shape)
    inside[: shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = False
    return inside, affine


PRIOR = SpatialPrior(
    torch.from_numpy(np.random.default_rng(3).random((6, 5, 4))),
    spacing_mm=(2.0, 3.0, 4.0),
)


# placing


def reference(prior, position, affine, shape, mode):
    """The prior at every voxel by its definition, and where rounding decides."""
    size, spacing = np.array(prior.probability.shape), np.array(prior.spacing_mm)
    index = (cells(affine, shape) - position) / spacing + (size - 1) / 2
    near = np.abs(np.abs(index - (size - 1) / 2) - size / 2).min(1) < 1e-3
    inside = ((index >= -0.5) & (index <= size - 0.5)).all(1)
    if mode == "nearest":
        near |= np.abs(index[:, 2] + 0.5 - np.round(index[:, 2] + 0.5)) < 1e-3
        index[:, 2] = np.floor(index[:, 2] + 0.5)
    index = np.clip(index, 0, size - 1)
    low = np.floor(index).astype(int)
    value = np.zeros(len(index))
    for corner in itertools.product((0, 1), repeat=3):
        at = np.minimum(low + corner, size - 1)
        weight = np.where(corner, index - low, 1 - (index - low)).prod(1)
        value += weight * prior.probability.numpy()[tuple(at.T)]
    return (value * inside).reshape(shape), near.reshape(shape)


@pytest.mark.slow
@some
@given(anything, st.sampled_from(["nearest", "linear"]), st.tuples(*[st.floats(-9, 9)] * 3))
def test_a_placed_prior_is_what_its_definition_says(affine, mode, off):
    position = apply_affine(affine, (np.array(SHAPE) - 1) / 2) + off
    placed = PRIOR.place(position, tensor(np.zeros(SHAPE), affine), mode=mode)[0].numpy()
    expected, rounded = reference(PRIOR, position, affine, SHAPE, mode)
    np.testing.assert_allclose(placed[~rounded], expected[~rounded], atol=1e-4)


@pytest.mark.slow
@some
@given(anything, storages, st.sampled_from(["nearest", "linear"]))
def test_placing_commutes_with_the_order_of_voxels(affine, storage, mode):
    position = apply_affine(affine, (np.array(SHAPE) - 1) / 2) + np.array([1.1, -2.3, 0.7])
    placed = PRIOR.place(position, tensor(np.zeros(SHAPE), affine), mode=mode)[0].numpy()
    then, turned = stored(placed, affine, storage)
    now = PRIOR.place(position, tensor(np.zeros(then.shape), turned), mode=mode)
    np.testing.assert_allclose(now[0].numpy(), then, atol=1e-4)
    np.testing.assert_allclose(now.affine.numpy(), turned)


@pytest.mark.slow
@some
@given(anything, st.sampled_from(["RAS", "LPS", "SLA", "PIR"]))
def test_placing_commutes_with_orientation_of_monai(affine, codes):
    position = apply_affine(affine, (np.array(SHAPE) - 1) / 2)
    grid = tensor(np.zeros(SHAPE), affine)
    turn = Orientation(axcodes=codes, labels=None)
    then = turn(PRIOR.place(position, grid))
    np.testing.assert_allclose(PRIOR.place(position, turn(grid)).numpy(), then.numpy(), atol=1e-4)


@pytest.mark.slow
@some
@given(anything, st.tuples(*[st.floats(-2000, 2000)] * 3))
def test_placing_follows_the_patient(affine, shift):
    middle = apply_affine(affine, (np.array(SHAPE) - 1) / 2) + np.array([1.1, -2.3, 0.7])
    moved = affine.copy()
    moved[:3, 3] += shift
    here = PRIOR.place(middle, tensor(np.zeros(SHAPE), affine), mode="linear")
    there = PRIOR.place(middle + shift, tensor(np.zeros(SHAPE), moved), mode="linear")
    _, rounded = reference(PRIOR, middle, affine, SHAPE, "linear")
    np.testing.assert_allclose(here[0].numpy()[~rounded], there[0].numpy()[~rounded], atol=1e-3)


# estimating


@pytest.mark.slow
@some
@given(anything, storages, st.sampled_from(["bbox", "mass"]))
def test_a_position_does_not_depend_on_the_order_of_voxels(affine, storage, center):
    mask, _ = blob(affine)
    here = organ_position(tensor(mask, affine), center=center)
    there = organ_position(tensor(*stored(mask, affine, storage)), center=center)
    np.testing.assert_allclose(here, there, atol=1e-6)
    points = cells(affine, SHAPE)[mask.ravel()]
    expected = points.mean(0) if center == "mass" else (points.min(0) + points.max(0)) / 2
    np.testing.assert_allclose(here, expected, atol=1e-6)


@pytest.mark.slow
@some
@given(straight, storages, st.sampled_from(["bbox", "mass", "groupwise"]), st.booleans())
def test_an_estimate_does_not_depend_on_the_order_of_voxels(affine, storage, center, own):
    masks = [blob(affine, seed=seed)[0] for seed in (0, 1)]
    spacing = None if own else (1.5, 2.0, 2.5)
    options = {"center": center, "bins": 3, "spacing_mm": spacing}
    here = SpatialPrior.estimate([tensor(m, affine) for m in masks], **options)
    there = SpatialPrior.estimate(
        [tensor(masks[0], affine), tensor(*stored(masks[1], affine, storage))], **options
    )
    np.testing.assert_allclose(here.spacing_mm, there.spacing_mm)
    np.testing.assert_allclose(here.probability, there.probability, atol=1e-4)


@pytest.mark.slow
@some
@given(tilted, storages, st.sampled_from(["bbox", "mass"]))
def test_an_estimate_on_a_grid_of_its_own_is_the_same_for_any_storage(affine, storage, center):
    mask, _ = blob(affine)
    options = {"center": center, "bins": 3, "spacing_mm": (1.5, 2.0, 2.5)}
    here = SpatialPrior.estimate(tensor(mask, affine), **options)
    there = SpatialPrior.estimate(tensor(*stored(mask, affine, storage)), **options)
    assert here.probability.shape == there.probability.shape
    # a point midway between voxels may round to either
    assert (np.abs(here.probability - there.probability).numpy() > 1e-3).mean() < 0.02


@pytest.mark.slow
@some
@given(straight)
def test_a_label_comes_back_from_its_own_prior(affine):
    """One map without bins: the prior, placed at the organ's position, is the organ."""
    mask, _ = blob(affine)
    label = tensor(mask, affine)
    prior = SpatialPrior.estimate(label, smoothing_mm=None)
    placed = prior.place(organ_position(label), label)
    np.testing.assert_allclose(placed.numpy(), label.numpy(), atol=1e-3)
    assert float(prior.probability.sum()) == pytest.approx(mask.sum(), rel=1e-4)


@pytest.mark.slow
@some
@given(anything, storages)
def test_measuring_and_locating_follow_the_order_of_voxels(affine, storage):
    mask, _ = blob(affine)
    assume(mask.sum() > 20)
    prior = SpatialPrior.estimate(tensor(mask, affine), smoothing_mm=None, center="mass")
    there = tensor(*stored(mask, affine, storage))
    for find in (measure_position, locate_organ):
        one, other = (find(label, prior) for label in (tensor(mask, affine), there))
        if isinstance(one, tuple):
            one, other = one[0], other[0]
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.slow
@some
@given(anything, storages)
def test_a_volume_is_that_of_the_parallelepipeds(affine, storage):
    mask, _ = blob(affine)
    edges = affine[:3, :3].T
    expected = mask.sum() * abs(np.dot(edges[0], np.cross(edges[1], edges[2]))) / 1000
    for label in (tensor(mask, affine), tensor(*stored(mask, affine, storage))):
        assert organ_volumes(label, [1, 2]) == pytest.approx([expected, 0.0], rel=1e-6)


# segmenting


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


codes = st.sampled_from([(1, 1), (0, 2), (2, 4), (3, 1)])  # of qform and sform
units = st.sampled_from([("mm", "unknown"), ("mm", "sec"), ("unknown", "unknown")])
types = st.sampled_from([np.int16, np.float32, np.float64])
shapes = st.tuples(st.integers(3, 14), st.integers(3, 14), st.integers(1, 9))


def segmented(model, scans, options=None):
    """Scans through the command and back: of each its segmentation, and its record.

    Args:
        scans: mask, affine, and what `write_scan` takes besides, of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        paths = [
            write_scan(Path(folder) / f"scan_{number}.nii.gz", mask, affine, **header)
            for number, (mask, affine, header) in enumerate(scans)
        ]
        segment(paths, out, **model, options=options, probabilities=True)
        records, found = read_records(out), []
        for path, (mask, *_) in zip(paths, scans, strict=True):
            name = path.name.removesuffix(".nii.gz")
            for kind in ("seg", "prob"):
                assert same_grid(out / f"{name}_{kind}.nii.gz", path)
            result = nib.load(out / f"{name}_seg.nii.gz")
            assert result.get_data_dtype() == np.uint8
            assert nib.load(out / f"{name}_prob.nii.gz").shape == (*mask.shape, 2)
            (organ,) = records[name]["organs"]
            found.append((np.asarray(result.dataobj), organ))
        return found


def examples(*strategies):
    """What a test would draw one by one, for one call of the command, whose start takes longest."""
    drawn = []

    @some
    @given(st.tuples(*strategies))
    def draw(values):
        drawn.append(values)

    draw()
    assert len(drawn) == some.max_examples
    return drawn


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Organ 1 is predicted nowhere")
def test_a_segmentation_lies_on_the_scans_grid(model):
    drawn = examples(coarse, shapes, codes, units, types)
    scans = [
        (blob(affine, shape)[0], affine, {"dtype": dtype, "codes": code, "units": unit})
        for affine, shape, code, unit, dtype in drawn
    ]
    for (mask, affine, _), (found, organ) in zip(scans, segmented(model, scans), strict=True):
        np.testing.assert_array_equal(found, mask)
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        assert organ["volume_ml"] == pytest.approx(mask.sum() * voxel_ml, abs=1e-3, rel=1e-4)


@pytest.mark.slow
def test_a_segmentation_comes_back_from_the_networks_grid(model):
    """The network sees other voxels, at right angles: only those at the surface may differ."""
    sizes = st.sampled_from([(14, 12, 9), (9, 14, 12), (12, 9, 14)])
    scans = [(*blob(affine, shape), {}) for affine, shape in examples(rounded, sizes)]
    results = segmented(model, scans, options={"spacing_mm": [1.5, 1.5, 2.0]})
    for (mask, *_), (found, _) in zip(scans, results, strict=True):
        padded = np.pad(mask, 1)
        around = [
            np.roll(padded, shift, (0, 1, 2))[1:-1, 1:-1, 1:-1]
            for shift in itertools.product((-1, 0, 1), repeat=3)
        ]
        assert found[np.all(around, axis=0)].all()
        assert not found[~np.any(around, axis=0)].any()


@pytest.mark.slow
def test_segmenting_commutes_with_the_order_of_voxels(model):
    drawn = examples(coarse, storages)
    scans = [(*blob(affine), {}) for affine, _ in drawn]
    turned = [
        (*stored(mask, affine, storage), {})
        for (mask, affine, _), (_, storage) in zip(scans, drawn, strict=True)
    ]
    results = segmented(model, [*scans, *turned])
    for (_, here), (_, there) in zip(results[: len(scans)], results[len(scans) :], strict=True):
        assert there["volume_ml"] == pytest.approx(here["volume_ml"], rel=1e-4)
        np.testing.assert_allclose(there["position_mm"], here["position_mm"], atol=1e-2)
