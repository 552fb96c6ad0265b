"""The spatial prior: algorithm 1, placing, files."""

import math
import pickle
import time
import tracemalloc
import weakref

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing
from monai.transforms import Orientation, RandAffined, SpatialCrop
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.priors.organ import open_label, organ_position
from stipple_monai.priors.prior import SpatialPrior

CHAOS = DATA / "chaos_mr_t2" / "labelsTr"
BTCV = DATA / "btcv_labels"


def volume(array, spacing=(1, 1, 1), rotation=None, origin=(-7, 3, 50)):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = origin
    return MetaTensor(np.ascontiguousarray(array)[None], affine=affine)


def random_volumes(sizes, *, shape=(16, 15, 14), seed=0, organ=1):
    """Label maps whose organ has exactly the given box, anywhere in the volume."""
    rng = np.random.default_rng(seed)
    volumes = []
    for size in sizes:
        organ_box = rng.random(size) > 0.5
        organ_box[(0,) * 3] = organ_box[tuple(n - 1 for n in size)] = True
        start = [rng.integers(0, n - m + 1) for n, m in zip(shape, size, strict=True)]
        array = np.zeros(shape, np.uint8)
        array[tuple(slice(a, a + m) for a, m in zip(start, size, strict=True))] = organ * organ_box
        volumes.append(volume(array, origin=rng.normal(size=3) * 100))
    return volumes


def in_files(labels, folder):
    paths = [folder / f"{i}.nii.gz" for i in range(len(labels))]
    for label, path in zip(labels, paths, strict=True):
        nib.save(nib.Nifti1Image(np.asarray(label)[0], label.affine.numpy()), path)
    return paths


def algorithm_1(volumes, bins, organ=1):
    """Algorithm 1 as printed, for RAS volumes whose boxes are all even or all odd, axis by axis."""
    masks = [np.asarray(v)[0] == organ for v in volumes]
    boxes = [[(i.min(), i.max() + 1) for i in np.nonzero(m)] for m in masks]
    W, H, D = (max(b[axis][1] - b[axis][0] for b in boxes) for axis in range(3))
    prior, slices = np.zeros((W, H, bins)), np.zeros(bins)
    for mask, box in zip(masks, boxes, strict=True):
        center = [(low + high) / 2 for low, high in box]
        start = [int(c - n / 2) for c, n in zip(center, (W, H, D), strict=True)]
        for s in range(D):
            b = math.floor(bins * (s + 0.5) / D)
            slices[b] += 1
            for w in range(W):
                for h in range(H):
                    voxel = (start[0] + w, start[1] + h, start[2] + s)
                    if all(0 <= v < n for v, n in zip(voxel, mask.shape, strict=True)):
                        prior[w, h, b] += mask[voxel]
    return prior / slices


def reoriented(label, codes):
    image = nib.Nifti1Image(np.asarray(label)[0], label.affine.numpy())
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    return MetaTensor(np.array(turned.dataobj)[None].copy(), affine=turned.affine)


def bent_organ(points, scale=1.0):
    """Two overlapping ellipsoids, alike under no reflection or rotation."""
    big = points / (scale * np.array([14, 9, 8]))
    small = (points - scale * np.array([9, 6, 9])) / (scale * np.array([6, 5, 8]))
    return ((big**2).sum(-1) < 1) | ((small**2).sum(-1) < 1)


def scanned(scale, spacing, rotation=None, shape=None):
    """A scan of the bent organ; the grid covers it wholly whatever its direction."""
    shape = shape or [int(np.ceil(64 / s)) for s in spacing]
    linear = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    origin = -linear @ (np.array(shape) - 1) / 2 + np.array([3.3, 2.1, 5.2])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = bent_organ(index @ linear.T + origin, scale)
    return volume(inside.astype(np.uint8), spacing, rotation, origin)


def rotation(**degrees):
    axes = "".join(degrees)
    turn = Rotation.from_euler(axes, list(degrees.values()), degrees=True)
    # of one angle in a list, older SciPy makes a stack of one matrix
    return turn.as_matrix().reshape(3, 3)


SAME = [(4, 6, 5), (6, 4, 3), (2, 6, 5), (6, 2, 1)]
MIXED = [(4, 6, 5), (5, 3, 4), (1, 6, 2), (6, 5, 7), (3, 3, 3)]


# --- algorithm 1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_estimate_equals_algorithm_1(bins, seed):
    volumes = random_volumes(SAME, seed=seed)
    prior = SpatialPrior.estimate(volumes, bins=bins)
    expected = algorithm_1(volumes, bins)
    assert prior.probability.dtype == torch.float32
    np.testing.assert_allclose(prior.probability, expected, atol=1e-7)
    assert prior.spacing_mm == pytest.approx((1, 1, 5 / bins))
    assert (prior.bins, prior.case_count, prior.organ, prior.center) == (bins, 4, 1, "bbox")


def test_without_bins_every_slice_is_kept():
    volumes = random_volumes(SAME)
    prior = SpatialPrior.estimate(volumes, smoothing_mm=None)
    np.testing.assert_allclose(prior.probability, algorithm_1(volumes, 5), atol=1e-7)
    assert prior.size_mm == (6, 6, 5)


def test_more_bins_than_slices_repeat_the_slices():
    volumes = random_volumes(SAME)
    slices = algorithm_1(volumes, 5)
    prior = SpatialPrior.estimate(volumes, bins=10)
    np.testing.assert_allclose(prior.probability, slices.repeat(2, -1), atol=1e-7)
    assert prior.size_mm == pytest.approx((6, 6, 5))


def test_two_volumes_by_hand():
    first, second = np.zeros((2, 9, 8, 7), np.uint8)
    first[2:4, 5, 0:4] = 1
    second[6:8, 3:6, 3:5] = 1
    prior = SpatialPrior.estimate([volume(first), volume(second)], bins=2)
    assert prior.probability.shape == (2, 3, 2)
    # In each bin of two slices the first organ fills both, the second, two slices deep, one.
    np.testing.assert_allclose(prior.probability[:, 1], 0.75)
    np.testing.assert_allclose(prior.probability[:, [0, 2]], 0.25)


def test_mixed_parity_is_interpolated_by_half_a_voxel():
    array = np.zeros((8, 8, 8), np.uint8)
    array[2:5, 3, 3] = 1
    shorter = np.zeros((8, 8, 8), np.uint8)
    shorter[4:6, 6, 1] = 1
    prior = SpatialPrior.estimate([volume(array), volume(shorter)], bins=1)
    np.testing.assert_allclose(prior.probability.flatten(), [0.75, 1, 0.75])


def test_mixed_parity_equals_interpolation_about_each_centre():
    volumes = random_volumes(MIXED)
    prior = SpatialPrior.estimate(volumes, smoothing_mm=None)
    expected = np.zeros((6, 6, 7))
    for label in volumes:
        mask = np.pad(np.asarray(label)[0].astype(float), 8)
        center = [(i.min() + i.max()) / 2 for i in np.nonzero(mask)]
        offset = np.indices(expected.shape) - (np.array(expected.shape) - 1).reshape(3, 1, 1, 1) / 2
        points = offset + np.reshape(center, (3, 1, 1, 1))
        expected += ndimage.map_coordinates(mask, points, order=1) / len(volumes)
    np.testing.assert_allclose(prior.probability, expected, atol=1e-6)


@pytest.mark.parametrize("bins", [None, 4])
def test_order_does_not_matter(bins):
    volumes = random_volumes(MIXED)
    first = SpatialPrior.estimate(volumes, bins=bins)
    second = SpatialPrior.estimate(volumes[::-1], bins=bins)
    torch.testing.assert_close(first.probability, second.probability, rtol=0, atol=1e-6)


def test_one_volume_gives_its_own_organ():
    (label,) = random_volumes([(4, 5, 6)])
    prior = SpatialPrior.estimate([label], smoothing_mm=None)
    assert prior.case_count == 1
    placed = prior.place(organ_position(label), label)
    torch.testing.assert_close(placed.as_tensor(), (label == 1).float().as_tensor())


def test_box_is_the_largest_width_height_and_depth():
    prior = SpatialPrior.estimate(
        random_volumes([(9, 1, 2), (1, 8, 3), (3, 2, 11)]), smoothing_mm=None
    )
    assert tuple(prior.probability.shape) == (9, 8, 11)


def test_organ_at_the_edge_of_the_scan():
    array = np.zeros((4, 4, 4), np.uint8)
    array[0, 0, 0] = array[3, 3, 3] = 1
    big = np.zeros((9, 9, 9), np.uint8)
    big[1:7, 1:7, 1:7] = 1
    prior = SpatialPrior.estimate([volume(array), volume(big)], smoothing_mm=None)
    assert float(prior.probability[1, 1, 1]) == 1.0
    assert float(prior.probability[0, 0, 0]) == 0.5


def test_several_organs_and_ignored_voxels():
    rng = np.random.default_rng(0)
    labels = [volume(rng.choice([0, 1, 2, 255], (8, 8, 8)).astype(np.uint8)) for _ in range(2)]
    for organ in (1, 2):
        prior = SpatialPrior.estimate(labels, organ=organ, bins=3)
        alone = [(v == organ).to(torch.uint8) for v in labels]
        expected = SpatialPrior.estimate(alone, bins=3)
        assert prior.organ == organ
        assert torch.equal(prior.probability, expected.probability)


def test_equal_priors_have_one_pickle_for_caches_that_hash_it():
    labels = random_volumes([(5, 4, 3), (4, 5, 4)])
    first, second = (SpatialPrior.estimate(labels) for _ in range(2))
    assert pickle_hashing(first) == pickle_hashing(second)
    copied = pickle.loads(pickle.dumps(first))
    assert torch.equal(copied.probability, first.probability)
    assert copied.leave_out([0]).case_count == 1
    assert repr(copied) == repr(first)


def test_center_of_mass_is_in_the_middle():
    array = np.zeros((20, 20, 20), np.uint8)
    array[5:11, 8:12, 9:12] = 1
    array[14, 9, 10] = 1
    label = volume(array)
    prior = SpatialPrior.estimate([label], smoothing_mm=None, center="mass")
    points = (
        np.argwhere(prior.probability.numpy() > 0) - (np.array(prior.probability.shape) - 1) / 2
    )
    weight = prior.probability.numpy()[prior.probability.numpy() > 0]
    np.testing.assert_allclose((points * weight[:, None]).sum(0) / weight.sum(), 0, atol=1e-5)
    assert prior.center == "mass"
    box = SpatialPrior.estimate([label], smoothing_mm=None)
    assert prior.probability.shape[0] > box.probability.shape[0] == 10
    back = prior.place(organ_position(label, center="mass"), label)
    assert float((back - label).abs().mean()) < 0.02
    assert float(back.sum()) == pytest.approx(float(label.sum()), rel=0.02)


def test_given_spacing_is_kept_and_the_size_in_mm_stays():
    labels = [scanned(s, (1, 1, 2)) for s in (1, 0.9)]
    own = SpatialPrior.estimate(labels, bins=5)
    other = SpatialPrior.estimate(labels, bins=5, spacing_mm=(2, 1.5, 1))
    assert own.spacing_mm[:2] == (1, 1)
    assert other.spacing_mm[:2] == (2, 1.5)
    np.testing.assert_allclose(own.size_mm, other.size_mm, atol=2)


# --- what labels may be --------------------------------------------------------------------------


def test_volumes_without_the_organ_are_skipped_with_a_warning(tmp_path):
    labels = random_volumes(SAME)
    path = tmp_path / "empty_07.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([3.0, 3, 3, 1])), path)
    with pytest.warns(UserWarning, match=r"empty_07\.nii\.gz does not contain organ 1: skipped"):
        prior = SpatialPrior.estimate([path, *labels], bins=5)
    expected = SpatialPrior.estimate(labels, bins=5)
    assert torch.equal(prior.probability, expected.probability)
    assert (prior.case_count, prior.spacing_mm) == (4, expected.spacing_mm)
    named = MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": "scan_3.nii.gz"})
    with pytest.warns(UserWarning, match=r"scan_3\.nii\.gz does not contain"):
        SpatialPrior.estimate([*labels, named])


@pytest.mark.parametrize("spacing_mm", [None, (1, 1, 1)])
def test_no_volume_with_the_organ(spacing_mm):
    labels = random_volumes(SAME)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(PriorError, match="No label map contains organ 9: give at least one"),
    ):
        SpatialPrior.estimate(labels, organ=9, spacing_mm=spacing_mm)
    with pytest.raises(PriorError, match="No label map contains organ 1"):
        SpatialPrior.estimate([], spacing_mm=spacing_mm)


def watched(volumes, alive):
    """Hand out volumes and note how many of the earlier ones are still in memory."""
    references = []
    while volumes:
        alive.append(sum(r() is not None for r in references))
        label = volumes.pop(0)
        references.append(weakref.ref(label))
        yield label
        del label


def test_a_generator_is_read_once_and_no_label_outlives_its_turn():
    volumes, alive = random_volumes(MIXED), []

    prior = SpatialPrior.estimate(watched(volumes, alive), bins=5)
    assert prior.case_count == len(alive) == len(MIXED)
    assert max(alive) == 0
    assert torch.equal(
        prior.probability, SpatialPrior.estimate(random_volumes(MIXED), bins=5).probability
    )


@pytest.mark.slow
def test_memory_is_that_of_one_volume(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(12):
        array = np.zeros((96, 96, 40), np.int16)
        array[40:52, 40:52, 10:20] = rng.random((12, 12, 10)) > 0.5
        paths.append(tmp_path / f"{i}.nii.gz")
        nib.save(nib.Nifti1Image(array, np.eye(4)), paths[-1])

    def peak(work):
        work()
        tracemalloc.start()
        work()
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    loading = peak(lambda: np.asanyarray(nib.load(paths[0]).dataobj))
    three = peak(lambda: SpatialPrior.estimate(paths[:3]))
    twelve = peak(lambda: SpatialPrior.estimate(paths))
    assert twelve < 1.05 * three
    assert twelve < loading


@pytest.mark.slow
def test_memory_does_not_grow_with_sizes_that_are_even_and_odd():
    sizes = [tuple(np.array((30, 30, 30)) - parity) for parity in np.ndindex(2, 2, 2)]

    def peak(number):
        labels = random_volumes(sizes[:number] * 4, shape=(40, 40, 40))
        tracemalloc.start()
        SpatialPrior.estimate(labels, smoothing_mm=None)
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    peak(1)
    alike, mixed = peak(1), peak(8)
    # What is kept of a random organ is a bit a voxel, and a byte a voxel of its frequencies; of a
    # real one, a tenth of that. The margin is for what the interpreter allocates besides.
    assert mixed < alike + 28 * 1.1 * 30**3 * 9 / 8 + 1e5


def test_files_and_metatensors_give_the_same(tmp_path):
    labels = random_volumes(MIXED)
    paths = in_files(labels, tmp_path)
    expected = SpatialPrior.estimate(labels, bins=3)
    for files in (paths, map(str, paths)):
        prior = SpatialPrior.estimate(files, bins=3)
        torch.testing.assert_close(prior.probability, expected.probability, rtol=0, atol=1e-4)
        assert prior.spacing_mm == expected.spacing_mm


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LAI", "SAR", "PIL", "ALI"])
def test_orientation_does_not_matter(codes):
    labels = [volume(np.asarray(v)[0], (1.5, 0.75, 4)) for v in random_volumes(MIXED)]
    expected = SpatialPrior.estimate(labels, bins=5)
    prior = SpatialPrior.estimate([reoriented(v, codes) for v in labels], bins=5)
    assert prior.spacing_mm == expected.spacing_mm
    torch.testing.assert_close(prior.probability, expected.probability, rtol=0, atol=1e-6)


SCALES = (1, 0.9, 0.8, 0.95)


@pytest.fixture(scope="module")
def plain():
    return SpatialPrior.estimate([scanned(s, (1, 1, 1)) for s in SCALES], bins=5)


def difference(first, second):
    """Mean absolute difference, and that of a shift by 2 mm, over the box of both."""
    grid = volume(np.zeros((40, 40, 40), np.uint8), origin=(-19.5, -19.5, -19.5))
    a, b = (p.place((0, 0, 0), grid, mode="linear") for p in (first, second))
    shifted = first.place((2, 0, 0), grid, mode="linear")
    inside = (a > 0) | (b > 0)
    return float((a - b).abs()[inside].mean()), float((a - shifted).abs()[inside].mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spacing", "turn", "limit"),
    [
        ((1, 1, 1), rotation(z=15), 0.04),
        ((1, 1, 1), rotation(x=15), 0.04),
        ((1, 1, 1), rotation(z=20, x=10), 0.04),
        ((-0.8, 0.8, 0.8), rotation(z=10, x=-20), 0.04),
        ((0.7, 0.7, 2), None, 0.04),
        ((0.8, 0.8, 3), rotation(x=12), 0.06),
    ],
)
def test_oblique_scans_and_other_spacings_give_the_same_up_to_interpolation(
    plain, spacing, turn, limit
):
    turn = np.eye(3) if turn is None else turn
    labels = [scanned(s, np.abs(spacing), turn @ np.diag(np.sign(spacing))) for s in SCALES]
    prior = SpatialPrior.estimate(labels, bins=5, spacing_mm=(1, 1, 1))
    np.testing.assert_allclose(prior.size_mm, plain.size_mm, atol=2.5)
    error, of_a_shift = difference(plain, prior)
    assert error < limit < of_a_shift


@pytest.mark.parametrize("turn", [np.eye(3), rotation(z=20, x=12)])
def test_resampling_keeps_the_volume_of_the_organ(turn):
    labels = [scanned(s, (0.8, 0.8, 3), turn) for s in SCALES]
    prior = SpatialPrior.estimate(labels, smoothing_mm=None, spacing_mm=(1, 1, 1))
    volume_mm3 = sum(float(v.sum()) for v in labels) / len(labels) * 0.8 * 0.8 * 3
    assert float(prior.probability.sum()) == pytest.approx(volume_mm3, rel=0.02)


def test_the_spacing_of_an_oblique_first_scan_is_its_own(plain):
    labels = [scanned(s, (0.8, 0.8, 3), rotation(x=20)) for s in SCALES]
    prior = SpatialPrior.estimate(labels, smoothing_mm=None)
    np.testing.assert_allclose(prior.spacing_mm, (0.8, 0.8, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "`bins` must be a whole number of at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"smoothing_mm": -1.0}, "`smoothing_mm` must be a length from 0 to 100 mm, got -1"),
        ({"smoothing_mm": float("nan")}, "`smoothing_mm` must be a length .* mm, got nan"),
        ({"smoothing_mm": float("inf")}, "`smoothing_mm` must be a length .* mm, got inf"),
        ({"smoothing_mm": "best"}, "`smoothing_mm` must be a length, 'auto' or None, got 'best'"),
        ({"smoothing_mm": 6.0, "bins": 5}, "in bins is not smoothed, got `bins` 5 .* 6.0: give"),
        ({"center": "top"}, "`center` must be 'bbox', 'mass' or 'groupwise', got 'top'"),
        ({"spacing_mm": (1, 1)}, "`spacing_mm` must be three positive lengths"),
        ({"spacing_mm": (1, 1, 0)}, "`spacing_mm` must be three positive lengths"),
        ({"spacing_mm": (1, 1, float("nan"))}, "`spacing_mm` must be three positive lengths"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(PriorError, match=message):
        SpatialPrior.estimate(random_volumes(SAME), **arguments)


def test_unreadable_label(tmp_path):
    (tmp_path / "bad.nii.gz").write_text("not an image")
    with pytest.raises(DatasetError, match=r"bad\.nii\.gz cannot be read as NIfTI"):
        SpatialPrior.estimate([*random_volumes(SAME), tmp_path / "bad.nii.gz"])


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (torch.zeros(3, 3), r"three axes \(W_p, H_p, B\), got \(3, 3\)"),
        (torch.zeros(3, 0, 3), "three axes"),
        (torch.full((2, 2, 2), float("nan")), "must be finite, got NaN or infinity"),
        (torch.full((2, 2, 2), float("inf")), "must be finite, got NaN or infinity"),
        (torch.full((2, 2, 2), 1.5), r"must lie in \[0, 1\], got \[1.5, 1.5\]"),
        (np.full((2, 2, 2), -0.5), r"must lie in \[0, 1\], got \[-0.5, -0.5\]"),
    ],
)
def test_values_that_are_no_prior(probability, message):
    with pytest.raises(PriorError, match=message):
        SpatialPrior(probability, spacing_mm=(1, 1, 1))


def test_repr_says_what_it_is():
    prior = SpatialPrior(np.ones((2, 3, 4)), spacing_mm=(1, 1, 12.3456), organ=4, case_count=2)
    assert repr(prior) == (
        "SpatialPrior(organ 4: 2 × 3 × 4 voxels of 1 × 1 × 12.35 mm, 2 cases, center 'bbox')"
    )


def test_probability_is_a_plain_cpu_tensor(tmp_path):
    given = MetaTensor(torch.rand(3, 3, 3)).requires_grad_()
    prior = SpatialPrior(given, spacing_mm=(1, 1, 1))
    assert type(prior.probability) is torch.Tensor
    assert not prior.probability.requires_grad
    prior.save(tmp_path / "p.nii")


# --- several at once -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "MetaTensors", "a generator"])
@pytest.mark.parametrize("spacing_mm", [None, (0.9, 1.1, 1.7)])
def test_the_number_of_workers_does_not_change_a_bit(tmp_path, monkeypatch, kind, spacing_mm):
    turned = [volume(np.asarray(v)[0], (1, 1, 1), rotation(x=9)) for v in random_volumes(MIXED)]
    labels = [*random_volumes(MIXED), *turned, *random_volumes(SAME, organ=3)]
    given = in_files(labels, tmp_path) if kind == "files" else labels
    options = {"organs": [1, 3], "smoothing_mm": None, "spacing_mm": spacing_mm}
    with pytest.warns(UserWarning, match="does not contain"):
        expected = SpatialPrior.estimate_several(given, **options)

    late = iter(np.random.default_rng(0).permutation(300))
    monkeypatch.setattr(
        "stipple_monai.priors.histogram.open_label",
        lambda x: time.sleep(next(late) / 1e4) or open_label(x),
    )
    for num_workers in (0, 2, 3, 40):
        labels = iter(given) if kind == "a generator" else given
        with pytest.warns(UserWarning, match="does not contain"):
            priors = SpatialPrior.estimate_several(labels, num_workers=num_workers, **options)
        for prior, other in zip(priors, expected, strict=True):
            assert torch.equal(prior.probability, other.probability)
            assert prior.spacing_mm == other.spacing_mm
            assert prior.case_count == other.case_count


def test_the_first_map_in_order_with_an_organ_gives_its_spacing(monkeypatch):
    other, *labels = random_volumes(SAME), *random_volumes(SAME, organ=2)
    labels = [volume(np.asarray(v)[0], (1 + i, 1, 1)) for i, v in enumerate(labels)]
    seconds = iter([0, 0.2, 0.1, 0, 0])
    monkeypatch.setattr(
        "stipple_monai.priors.histogram.open_label",
        lambda x: time.sleep(next(seconds)) or open_label(x),
    )
    with pytest.warns(UserWarning, match="does not contain"):
        _, prior = SpatialPrior.estimate_several(
            [other[0], *labels], organs=[1, 2], bins=5, num_workers=4
        )
    assert prior.spacing_mm[:2] == (1, 1)


def test_no_more_maps_are_held_than_there_are_workers():
    volumes, alive = random_volumes(MIXED * 2), []

    prior = SpatialPrior.estimate(watched(volumes, alive), num_workers=2)
    assert prior.case_count == 2 * len(MIXED)
    assert max(alive) <= 1


@pytest.mark.parametrize("num_workers", [1, 3])
def test_warnings_and_errors_are_those_of_one_worker(tmp_path, num_workers):
    paths = in_files([*random_volumes(SAME), *random_volumes(SAME, organ=2)], tmp_path)
    with pytest.warns(UserWarning, match="skipped") as caught:
        SpatialPrior.estimate(paths, num_workers=num_workers)
    first, *others = paths[4:]
    told = ", ".join(f"{path} (has 2)" for path in others[:4]) + ", …" * (len(others) > 4)
    assert [str(w.message) for w in caught] == [
        f"{first} does not contain organ 1: skipped; it has 2. So are {len(others)} more: {told}."
    ]
    assert {w.filename for w in caught} == {__file__}
    paths[2].write_text("not an image")
    paths[3].unlink()
    with pytest.raises(DatasetError, match=r"2\.nii\.gz cannot be read as NIfTI"):
        SpatialPrior.estimate(paths, num_workers=num_workers)
    with pytest.raises(DatasetError, match=r"There is no label map at .*3\.nii\.gz"):
        SpatialPrior.estimate(paths[3:] + paths[2:], num_workers=num_workers)


# --- placing -------------------------------------------------------------------------------------


def placed_by_hand(prior, position, affine, shape, mode):
    """World point by world point: linear in the plane, nearest or linear along z."""
    values = prior.probability.double().numpy()
    size = np.array(values.shape)
    out = np.zeros(shape)
    for voxel in np.ndindex(*shape):
        point = affine[:3, :3] @ np.array(voxel) + affine[:3, 3]
        index = (point - position) / prior.spacing_mm + (size - 1) / 2
        if np.any(index < -0.5) or np.any(index > size - 0.5):
            continue
        index = np.clip(index, 0, size - 1)
        if mode == "nearest":
            index[2] = math.floor(index[2] + 0.5)
        low = np.minimum(np.floor(index), np.maximum(size - 2, 0)).astype(int)
        high = np.minimum(low + 1, size - 1)
        part = index - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([t if c else 1 - t for c, t in zip(corner, part, strict=True)])
            at = tuple(h if c else lo for c, lo, h in zip(corner, low, high, strict=True))
            out[voxel] += weight * values[at]
    return out


@pytest.fixture
def random_prior():
    values = np.random.default_rng(5).random((7, 6, 5))
    return SpatialPrior(values, spacing_mm=(1.1, 0.9, 2.3), organ=2, case_count=3)


def grid_affine(kind, seed):
    rng = np.random.default_rng(seed)
    linear = np.diag(rng.uniform(0.6, 1.4, 3))
    if kind in ("oblique", "sheared"):
        linear = Rotation.random(random_state=seed).as_matrix() @ linear
    if kind == "flipped":
        linear = linear @ np.diag([-1, 1, -1])
    if kind == "permuted":
        linear = linear[rng.permutation(3)]
    if kind == "sheared":
        linear = linear @ (np.eye(3) + np.triu(rng.normal(size=(3, 3)) * 0.3, 1))
    return linear


SHAPES = {"whole": (11, 10, 12), "slice": (16, 15, 1), "row": (1, 1, 30)}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("kind", ["straight", "oblique", "flipped", "permuted", "sheared"])
@pytest.mark.parametrize("what", [*SHAPES, "partly", "outside"])
def test_place_equals_the_loop_over_voxels(random_prior, mode, kind, what):
    shape = SHAPES.get(what, SHAPES["whole"])
    # A letter's number keeps the seed the same from run to run.
    linear = grid_affine(kind, sum(map(ord, kind + what)))
    position = np.array([12.3, -45.6, 78.9])
    shift = {"partly": 5.3, "outside": 60.0}.get(what, 0.37)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = position - linear @ (np.array(shape) - 1) / 2 + shift
    like = MetaTensor(torch.zeros(3, *shape), affine=affine)
    placed = random_prior.place(position, like, mode=mode)
    expected = placed_by_hand(random_prior, position, affine, shape, mode)
    assert placed.shape == (1, *shape)
    assert placed.dtype == torch.float32
    np.testing.assert_allclose(placed.affine, affine)
    np.testing.assert_allclose(placed[0], expected, atol=1e-5)
    assert (np.count_nonzero(expected) == 0) == (what == "outside")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_place_on_its_own_grid_gives_the_array(mode):
    prior = SpatialPrior.estimate(random_volumes(MIXED), smoothing_mm=None)
    W, H, B = prior.probability.shape
    like = MetaTensor(torch.zeros(1, W + 4, H + 2, B + 6), affine=np.eye(4))
    position = [2 + (W - 1) / 2, 1 + (H - 1) / 2, 3 + (B - 1) / 2]
    placed = prior.place(position, like, mode=mode)[0]
    inner = placed[2:-2, 1:-1, 3:-3]
    torch.testing.assert_close(inner.as_tensor(), prior.probability, rtol=0, atol=2e-6)
    assert float(placed.sum()) == pytest.approx(float(prior.probability.sum()), rel=1e-5)
    half = prior.place([position[0] + 0.5, *position[1:]], like, mode=mode)[0]
    mean = (prior.probability[1:] + prior.probability[:-1]) / 2
    torch.testing.assert_close(half[3:-2, 1:-1, 3:-3].as_tensor(), mean, rtol=0, atol=2e-6)


def test_place_on_an_odd_spacing_of_many_voxels_stays_exact():
    values = np.random.default_rng(0).random((200, 150, 5))
    prior = SpatialPrior(values, spacing_mm=(0.7, 0.7, 13.3))
    affine = np.diag([-0.7, 0.7, 13.3, 1.0])
    affine[:3, 3] = [170.1, -250.4, -812.7]
    like = MetaTensor(torch.zeros(1, 300, 300, 9), affine=affine)
    position = apply_affine(affine, [150 - 0.5, 100 - 0.5, 4])
    placed = prior.place(position, like)[0, 50:250, 25:175, 2:7].as_tensor()
    torch.testing.assert_close(placed.flip(0), prior.probability, rtol=0, atol=5e-5)
    assert float(placed.max()) <= 1


def test_values_stay_probabilities():
    ones = SpatialPrior(torch.ones(30, 20, 5), spacing_mm=(0.7, 0.7, 7))
    for seed in range(5):
        like = volume(
            np.zeros((30, 30, 30)), rotation=Rotation.random(random_state=seed).as_matrix()
        )
        position = apply_affine(like.affine.numpy(), [15, 15, 15])
        placed = ones.place(position, like, mode="linear")
        assert float(placed.max()) <= 1
        assert set(placed.round(decimals=5).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("axcodes", ["LPI", "SAR", "PIL"])
@pytest.mark.parametrize("turn", [None, rotation(z=20, x=10)])
def test_place_commutes_with_reorientation_and_cropping(random_prior, axcodes, turn):
    like = volume(np.zeros((14, 13, 12), np.float32), (1, 1.2, 1.4), turn)
    position = apply_affine(like.affine.numpy(), [6.2, 6.1, 5.3])
    orient = Orientation(axcodes=axcodes, labels=None)
    placed = random_prior.place(position, like)
    on_turned = random_prior.place(position, orient(like))
    torch.testing.assert_close(on_turned.affine, orient(placed).affine)
    torch.testing.assert_close(on_turned.as_tensor(), orient(placed).as_tensor(), rtol=0, atol=2e-6)
    crop = SpatialCrop(roi_start=(3, 4, 2), roi_end=(11, 9, 3))
    on_crop = random_prior.place(position, crop(like))
    assert on_crop.shape == (1, 8, 5, 1)
    assert float(on_crop.max()) > 0
    torch.testing.assert_close(on_crop.as_tensor(), crop(placed).as_tensor(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_place_after_a_random_affine_equals_augmenting_the_dense_prior(seed):
    w, h, d = np.indices((37, 33, 27)) - np.reshape([18, 16, 13], (3, 1, 1, 1))
    bell = np.exp(-((w / 5) ** 2 + (h / 4.5) ** 2 + (d / 3.5) ** 2) / 2)
    prior = SpatialPrior(bell, spacing_mm=(1, 1, 1.5))
    image = volume(np.zeros((50, 48, 44), np.float32), (1, 1, 1.25))
    position = apply_affine(image.affine.numpy(), [23.3, 22.4, 21.2])
    dense = prior.place(position, image, mode="linear")
    augment = RandAffined(
        ["image", "dense"],
        prob=1.0,
        rotate_range=(0.1, 0.1, 0.3),
        translate_range=(5, 5, 2),
        scale_range=(0.1, 0.1, 0.1),
        padding_mode="zeros",
    ).set_random_state(seed)
    result = augment({"image": image, "dense": dense})
    placed = prior.place(position, result["image"], mode="linear")
    error = (placed - result["dense"]).abs()
    unmoved = (dense.as_tensor() - result["dense"].as_tensor()).abs()
    assert float(error.max()) < 0.04
    assert float(error.mean()) < 0.1 * float(unmoved.mean())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_place_on_the_gpu(random_prior, mode):
    like = volume(np.zeros((14, 13, 12), np.float32), rotation=rotation(z=20, x=10))
    position = apply_affine(like.affine.numpy(), [6.2, 6.1, 5.3])
    expected = random_prior.place(position, like, mode=mode)
    placed = random_prior.place(torch.tensor(position, device="cuda"), like.cuda(), mode=mode)
    assert placed.device.type == "cuda"
    assert random_prior.probability.device.type == "cpu"
    torch.testing.assert_close(placed.cpu().as_tensor(), expected.as_tensor(), rtol=0, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_labels_on_the_gpu():
    labels = random_volumes(MIXED)
    prior = SpatialPrior.estimate([v.cuda() for v in labels], bins=5)
    assert torch.equal(prior.probability, SpatialPrior.estimate(labels, bins=5).probability)
    assert torch.equal(
        SpatialPrior(prior.probability.cuda(), spacing_mm=(1, 1, 1)).probability, prior.probability
    )


def test_place_takes_no_grid_and_no_point_for_granted(random_prior):
    like = MetaTensor(torch.zeros(1, 4, 4, 4), affine=np.eye(4))
    for position in (None, (1, 2), (0, 0, float("inf"))):
        with pytest.raises(PositionError, match="`position_mm` must be three finite numbers"):
            random_prior.place(position, like)
    with pytest.raises(PriorError, match="`mode` must be 'auto', 'nearest' or 'linear', got"):
        random_prior.place((0, 0, 0), like, mode="cubic")
    with pytest.raises(PriorError, match="`like` must be a MetaTensor"):
        random_prior.place((0, 0, 0), torch.zeros(1, 4, 4, 4))
    with pytest.raises(PriorError, match=r"axes C W H D.*\(1, 4, 4\); keep a slice as W × H × 1"):
        random_prior.place((0, 0, 0), MetaTensor(torch.zeros(1, 4, 4)))
    for last in (0.0, float("nan")):
        flat = MetaTensor(torch.zeros(1, 4, 4, 4), affine=np.diag([1, 1, last, 1.0]))
        with pytest.raises(PriorError, match="`like` must have an invertible 4 × 4 affine"):
            random_prior.place((0, 0, 0), flat)


# --- real anatomy --------------------------------------------------------------------------------


def straightforward(scans, organ, shape, bins, spacing=(1.25, 1.25, 7.7), step=5):
    """Scans sampled about the middle of the organ's world box, slice by slice, into bins."""
    # Every fifth voxel along W and H, because this is slow.
    in_plane = [np.arange(0, n, step) - (n - 1) / 2 for n in shape[:2]]
    w, h = np.meshgrid(*in_plane, indexing="ij")
    total, slices, extent = np.zeros((*w.shape, bins)), np.zeros(bins), np.zeros(3)
    for array, affine in scans:
        mask = (array == organ).astype(np.float32)
        points = apply_affine(affine, np.argwhere(mask))
        center = (points.min(0) + points.max(0)) / 2
        extent = np.maximum(extent, np.ptp(points, axis=0))
        for s in range(shape[2]):
            z = np.full_like(w, s - (shape[2] - 1) / 2)
            voxel = apply_affine(np.linalg.inv(affine), center + np.stack([w, h, z], -1) * spacing)
            b = int(bins * (s + 0.5) / shape[2])
            slices[b] += 1
            total[..., b] += ndimage.map_coordinates(mask, np.moveaxis(voxel, -1, 0), order=1)
    return total / slices, extent / spacing + 1


@real("chaos_mr_t2/labelsTr")
def test_real_organs_agree_with_a_straightforward_implementation():
    paths = sorted(CHAOS.glob("*.nii.gz"))
    scans = [(np.asarray(i.dataobj), i.affine) for i in map(nib.load, paths)]
    assert len(scans) == 14
    labels = [MetaTensor(array[None], affine=affine) for array, affine in scans]
    for organ in (1, 2, 3, 4):
        prior = SpatialPrior.estimate(labels, organ=organ, bins=5)
        assert prior.case_count == 14
        assert prior.spacing_mm[:2] == pytest.approx((1.25, 1.25))
        W, H, _ = prior.probability.shape
        D = round(prior.size_mm[2] / 7.7)
        expected, extent = straightforward(scans, organ, (W, H, D), 5)
        np.testing.assert_allclose((W, H, D), extent, atol=1.01)
        error = np.abs(prior.probability[::5, ::5].numpy() - expected)
        # Scans tilted by a degree or two are resampled before the half-voxel shift.
        assert error.mean() < 2e-3
        assert error.max() < 0.04


@real("chaos_mr_t2/labelsTr")
def test_real_scans_along_the_axes_agree_exactly():
    images = [nib.load(p) for p in sorted(CHAOS.glob("*.nii.gz"))]
    straight = [i for i in images if np.count_nonzero(i.affine[:3, :3]) == 3]
    assert len(straight) > 5
    arrays = [np.asarray(nib.as_closest_canonical(i).dataobj)[None] for i in straight]
    canonical = [MetaTensor(a.copy()) for a in arrays]
    paths = [i.get_filename() for i in straight]
    for organ in (2, 3):
        masks = [v[0].numpy() == organ for v in canonical]
        boxes = [np.array([(i.min(), i.max()) for i in np.nonzero(m)]) for m in masks]
        shape = np.max([b[:, 1] - b[:, 0] + 1 for b in boxes], axis=0)
        mean = np.zeros(shape)
        for mask, box in zip(masks, boxes, strict=True):
            offset = box.mean(1) - (shape - 1) / 2
            low = np.floor(offset).astype(int)
            window = np.zeros(shape + 1)
            crop = mask[tuple(slice(a, b + 1) for a, b in box)]
            window[
                tuple(slice(a, a + n) for a, n in zip(box[:, 0] - low, crop.shape, strict=True))
            ] = crop
            for axis, half in enumerate(offset - low):
                here, next_ = (window.take(range(k, shape[axis] + k), axis) for k in (0, 1))
                window = (1 - half) * here + half * next_
            mean += window / len(masks)
        prior = SpatialPrior.estimate(paths, organ=organ, smoothing_mm=None)
        np.testing.assert_allclose(prior.probability, mean, atol=1e-4)


@real("chaos_mr_t2/labelsTr")
def test_real_liver_and_right_kidney_lie_on_the_right():
    paths = sorted(CHAOS.glob("*.nii.gz"))[:4]
    liver = SpatialPrior.estimate(paths, organ=1, bins=5).probability
    half = liver.shape[0] // 2
    assert float(liver[half:].sum()) > 2 * float(liver[:half].sum())
    for path in paths:
        right, left = (organ_position(path, organ=k) for k in (2, 3))
        assert float(right[0]) > float(left[0]) + 50


@real("btcv_labels")
def test_real_pancreas_of_three_scans_on_different_grids():
    paths = sorted(BTCV.glob("*.nii.gz"))[:3]
    prior = SpatialPrior.estimate(paths, organ=11, bins=5)
    first = nib.load(paths[0]).header.get_zooms()
    assert (prior.bins, prior.case_count, prior.organ) == (5, 3, 11)
    assert prior.spacing_mm[:2] == pytest.approx(first[:2])
    assert 100 < prior.size_mm[0] < 260
    assert 0.3 < float(prior.probability.max()) <= 1
    # The head lies low on the patient's right, the tail high on the left.
    column = torch.arange(prior.probability.shape[0], dtype=torch.float32)
    middle = [float((p.sum(1) * column).sum() / p.sum()) for p in prior.probability.unbind(-1)]
    assert middle[0] > middle[-1]
