"""Whether axes are what the header says: flipped and exchanged on phantoms and real labels."""

import itertools
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from monai.transforms import Orientation as ToOrientation
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from stipple_monai.errors import DatasetError, PositionError
from stipple_monai.positioning.orientation import Orientation, check_orientation
from stipple_monai.priors.prior import SpatialPrior

REAL = {
    # every how many voxels, organs
    "chaos_mr_t2/labelsTr": ((13, 13, 2), [1, 2, 3, 4]),
    "btcv_labels": ((20, 20, 5), [1, 2, 3, 6, 7, 11]),
}
FLIPS = ["".join(codes) for codes in itertools.product("RL", "AP", "SI")]
ALL = ["".join(c) for flip in FLIPS for c in itertools.permutations(flip)]
OBLIQUE = Rotation.from_euler("xyz", [12, -9, 14], degrees=True).as_matrix()
SPACING = (8.0, 9.0, 10.0)


def body(points):
    """Two organs, alike under no reflection or rotation: a bent one, and one beside and above."""
    big = points / np.array([45, 22, 30])
    small = (points - [25, 20, 22]) / np.array([18, 15, 26])
    second = (points - [-75, 12, 30]) / np.array([14, 22, 18])
    tail = (points - [-70, 30, 46]) / np.array([10, 14, 16])
    first = ((big**2).sum(-1) < 1) | ((small**2).sum(-1) < 1)
    return first + 2 * (((second**2).sum(-1) < 1) | ((tail**2).sum(-1) < 1)) * ~first


def scanned(codes="RAS", rotation=None, at=(31.0, -12, 90)):
    """A label map of the body whose axes truly are ``codes``."""
    linear = (np.eye(3) if rotation is None else rotation) @ np.diag(SPACING)
    shape = np.array([26, 17, 18])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, at - linear @ ((shape - 1) / 2 + [3, 0, 0])
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - at
    image = nib.Nifti1Image(body(points).astype(np.uint8), affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    return MetaTensor(torch.from_numpy(np.array(turned.dataobj).copy())[None], affine=turned.affine)


def claimed(volume, codes):
    """The same voxels under a header that says ``codes``."""
    spacing = np.linalg.norm(volume.affine.numpy()[:3, :3], axis=0)
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.axcodes2ornt(codes), np.array(volume.shape[1:])
    )
    affine = affine @ np.diag([*spacing, 1])
    assert "".join(nib.aff2axcodes(affine)) == codes
    return MetaTensor(volume.as_tensor(), affine=affine, meta={"filename_or_obj": "scan_7.nii"})


@pytest.fixture(scope="module")
def priors():
    return SpatialPrior.estimate_several(scanned(), organs=[1, 2], bins=5)


def check_silently(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return check_orientation(*args, **options)


def check_with_warning(*args, match="fits the priors better", **options):
    with pytest.warns(UserWarning, match=match):
        return check_orientation(*args, **options)


@pytest.mark.slow
@pytest.mark.parametrize("true", FLIPS)
def test_each_flip_is_named_and_the_truth_is_not_doubted(priors, true):
    volume = scanned(true)
    result = check_silently(volume, priors)
    assert result.header == result.best == true
    assert result.agrees
    assert set(result.fit) == set(FLIPS)
    assert result.fit[true] > 0.7
    wrong = claimed(volume, "RAS")
    if true != "RAS":
        result = check_with_warning(wrong, priors, match=f"with the axes {true} ")
        assert (result.header, result.best, result.agrees) == ("RAS", true, False)


@pytest.mark.slow
@pytest.mark.parametrize("true", ["ASR", "IPR"])
def test_exchanged_axes_are_named(priors, true):
    volume = scanned(true)
    result = check_silently(volume, priors, permutations=True)
    assert result.best == true
    assert set(result.fit) == set(ALL)
    assert len(result.fit) == 48
    found = check_with_warning(claimed(volume, "LPI"), priors, permutations=True)
    assert (found.header, found.best) == ("LPI", true)


@pytest.mark.slow
def test_the_fit_is_that_of_relabelled_headers(priors):
    volume = scanned("LAS")
    fit = check_orientation(volume, priors).fit
    for codes in ("RAS", "LPI", "RPS"):
        again = check_orientation(claimed(volume, codes), priors, margin=9).fit
        assert again.keys() == fit.keys()
        for key, value in again.items():
            assert value == pytest.approx(fit[key], abs=1e-4)


def test_the_fit_of_one_organ_is_the_share_of_its_prior_that_is_supported():
    """Of a cube, a third is predicted, half way from 0.5 to 1 − ε: three quarters of the way."""
    prior = SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(6, 6, 6))
    q = torch.zeros(1, 12, 12, 12, dtype=torch.float64)
    q[0, 3, 2:5, 2:5] = 1 / (1 + (0.001 / 0.999) ** 0.5)
    result = check_silently(MetaTensor(q, affine=np.diag([6.0, 6, 6, 1])), [prior])
    for value in result.fit.values():
        assert value == pytest.approx(0.25, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("true", ["RAS", "LPI", "AIR"])
def test_oblique_scans(priors, true):
    volume = scanned(true, OBLIQUE)
    assert check_silently(volume, priors, permutations=true == "AIR").best == true
    # The second world axis reversed: what its rows say of the way to anterior is wrong.
    world = torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))
    wrong = MetaTensor(volume.as_tensor(), affine=world @ volume.affine)
    assert check_with_warning(wrong, priors).best == true


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("true", ["RAS", "LAS", "RPI"])
def test_a_prediction_is_judged_like_its_label_map(priors, true, dtype):
    label = scanned(true)
    organs = torch.cat([label.as_tensor() == k for k in (1, 2)]).to(dtype)
    maps = claimed(MetaTensor(organs * 0.97, affine=label.affine), "RAS")
    before = maps.clone()
    found = check_orientation(maps, priors, margin=9)
    by_label = check_orientation(claimed(label, "RAS"), priors, margin=9)
    for codes, value in found.fit.items():
        assert value <= by_label.fit[codes] + 1e-3
        assert value > 0.7 * by_label.fit[codes]
    if true == "RAS":
        assert check_silently(maps, priors).agrees
    else:
        assert check_with_warning(maps, priors).best == true
    assert torch.equal(maps, before)


@pytest.mark.slow
def test_a_label_map_of_one_organ_among_others(priors):
    """Only the prior's organ counts, and a map of 0 and 1 may be either."""
    volume = claimed(scanned("LPS"), "RAS")
    assert check_with_warning(volume, priors[:1]).best == "LPS"
    assert check_with_warning(volume, priors[1:]).fit != check_with_warning(volume, priors[:1]).fit
    alone = MetaTensor((volume.as_tensor() == 1).to(torch.uint8), affine=volume.affine)
    assert check_with_warning(alone, priors[:1]).fit == check_with_warning(volume, priors[:1]).fit


def test_a_prediction_with_a_missing_organ_is_judged_by_the_others(priors):
    volume = claimed(scanned("LAS"), "RAS")
    first = MetaTensor((volume.as_tensor() == 1).to(torch.uint8), affine=volume.affine)
    assert check_with_warning(first, priors).best == "LAS"


def test_nothing_to_judge_is_told(priors):
    affine = np.diag([5.0, 5, 5, 1])
    for value in (0, 7):
        other = MetaTensor(torch.full((1, 9, 9, 9), value, dtype=torch.uint8), affine=affine)
        with pytest.raises(PositionError, match=r"`volume` must have one .* \(1, 2\), got none in"):
            check_orientation(other, priors)
    with pytest.raises(PositionError, match=r"`predict` must find one .* under any axes"):
        check_orientation(image_of(scanned()), priors, predict=lambda i: Network()(i * 0))


@pytest.mark.parametrize("factor", [0.9999999, 1.0000001, 1.0004])
@pytest.mark.parametrize("count", [1, 2])
def test_labels_that_are_whole_but_for_rounding_are_judged_like_whole_ones(priors, count, factor):
    label = claimed(scanned("LAS"), "RAS")
    if count == 1:
        label = MetaTensor((label == 1).as_tensor(), affine=label.affine)
    nearly = MetaTensor(label.as_tensor().float() * factor, affine=label.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (check_orientation(v, priors[:count]) for v in (nearly, label))
    assert found.best == expected.best == "LAS"
    assert found.fit == pytest.approx(expected.fit)


def test_an_interpolated_label_map_is_refused(priors):
    label = scanned()
    half = MetaTensor(label.as_tensor() / 2, affine=label.affine)
    with pytest.raises(DatasetError, match=r"must have whole numbers, got 0\.5 .* in the volume"):
        check_orientation(half, priors)


@pytest.mark.slow
def test_the_fit_of_organs_together_is_that_of_their_best_common_place(priors):
    """Scattered over the volume, each fits by itself, but not with the other."""
    volume = scanned()
    far = torch.zeros(2, *volume.shape[1:])
    far[0], far[1] = (volume.as_tensor() == 1)[0], (volume.as_tensor() == 2)[0]
    far[1] = far[1].roll(14, 0)
    scattered = MetaTensor(far, affine=volume.affine)
    alone = [SpatialPrior(p.probability, spacing_mm=p.spacing_mm, organ=p.organ) for p in priors]
    whole = check_orientation(volume, priors, margin=9).fit["RAS"]
    assert check_orientation(scattered, alone, margin=9).fit["RAS"] == pytest.approx(whole)
    assert check_orientation(scattered, priors, margin=9).fit["RAS"] < 0.7 * whole


# --- with a network ------------------------------------------------------------------------------


def image_of(label):
    return MetaTensor(label.as_tensor().float() * 10, affine=label.affine)


class Network:
    """Knows organs by their intensity, once the scan is in its orientation; keeps what it saw."""

    def __init__(self, axcodes="RAS"):
        self.turn, self.seen = ToOrientation(axcodes, labels=None), []

    def __call__(self, image):
        self.seen.append("".join(nib.aff2axcodes(image.affine.numpy())))
        turned = self.turn(image)
        organs = [(turned.as_tensor()[0] - 10 * k).abs() < 1 for k in (1, 2)]
        return MetaTensor(torch.stack(organs).float(), affine=turned.affine)


@pytest.mark.slow
def test_predict_is_called_under_each_set_of_axes(priors):
    label = claimed(scanned("LPS"), "RAI")
    network = Network()
    result = check_with_warning(image_of(label), priors, predict=network)
    assert sorted(network.seen) == sorted(FLIPS)
    assert network.seen[0] == "RAI"
    assert (result.header, result.best) == ("RAI", "LPS")
    for codes, value in check_with_warning(label, priors).fit.items():
        assert value == pytest.approx(result.fit[codes], abs=1e-3)


@pytest.mark.slow
def test_predict_with_exchanged_axes(priors):
    network = Network("LPS")
    label = claimed(scanned("SRA"), "RAS")
    result = check_with_warning(image_of(label), priors, predict=network, permutations=True)
    assert sorted(network.seen) == sorted(ALL)
    assert result.best == "SRA"


def test_a_network_that_needs_the_right_axes_tells_them(priors):
    """It sees the organs only where the header is right, as a network that learnt places does."""
    label = scanned("LAS")

    def predict(image):
        right = np.allclose(image.affine, label.affine)
        return Network()(image * right)

    result = check_silently(image_of(label), priors, predict=predict)
    assert [codes for codes, value in result.fit.items() if value > 0] == ["LAS"]


# --- warning, margin, errors ---------------------------------------------------------------------


def test_the_warning_names_scan_fits_and_axes(priors):
    volume = claimed(scanned("LAI"), "RAS")
    message = (
        r"^scan_7\.nii fits the priors better with the axes LAI \((0\.\d\d|1\.00)\) than with its "
        r"header's RAS \(0\.\d\d\): its first axis looks like L, not R, its third axis looks like "
        r"I, not S\. Look at it, and correct the header or flip the voxels\.$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        check_orientation(volume, priors)
    assert caught[0].filename == __file__
    del volume.meta["filename_or_obj"]
    check_with_warning(volume, priors, match="^The volume fits the priors better")


@pytest.mark.slow
def test_the_margin_is_relative_to_the_headers_fit(priors):
    volume = claimed(scanned("LAS"), "RAS")
    fit = check_with_warning(volume, priors).fit
    lead = fit["LAS"] / fit["RAS"] - 1
    assert lead > 0.1
    silent = check_silently(volume, priors, margin=lead + 0.01)
    assert (silent.header, silent.best, silent.agrees) == ("RAS", "RAS", True)
    assert silent.fit == fit
    assert check_with_warning(volume, priors, margin=lead - 0.01).best == "LAS"


def test_without_a_margin_equals_agree():
    """A cube is alike under every flip."""
    cube = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    cube[0, 6:11, 8:13, 7:12] = 1
    volume = MetaTensor(cube, affine=np.diag([5.0, 5, 5, 1]))
    prior = SpatialPrior.estimate(volume, bins=5)
    # Rounding apart.
    assert check_silently(volume, [prior], permutations=True, margin=1e-5).agrees


def test_what_was_found_is_a_plain_tuple():
    result = Orientation("RAS", "LAS", {"RAS": 0.1, "LAS": 0.2})
    assert not result.agrees
    assert tuple(result) == ("RAS", "LAS", {"RAS": 0.1, "LAS": 0.2})


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (scanned(), {"margin": -0.1}, r"`margin` must be at least 0, got -0\.1"),
        (scanned(), {"margin": float("nan")}, "`margin` must be at least 0, got nan"),
        (torch.zeros(1, 4, 4, 4), {}, r"`volume` must be a MetaTensor C W H D, .* got Tensor \(1,"),
        (scanned()[0], {}, r"got MetaTensor \(26, 17, 18\)"),
        (None, {}, r"got NoneType \(\)"),
        (MetaTensor(torch.zeros(3, 4, 4, 4)), {}, r"a map of axes 2 W H D, got .* \(3, 4, 4, 4\)"),
        (MetaTensor(torch.full((2, 4, 4, 4), 3.0)), {}, r"must lie in \[0, 1\], got \[3, 3\]"),
        (MetaTensor(torch.zeros(2, 4, 4, 4), affine=np.diag([1.0, 0, 1, 1])), {}, "invertible"),
    ],
)
def test_errors(priors, volume, options, message):
    with pytest.raises(PositionError, match=message):
        check_orientation(volume, priors, **options)


def test_a_prediction_that_is_none_is_no_fit(priors):
    with pytest.raises(PositionError, match=r"`probability` must be a map of axes 2 W H D"):
        check_orientation(image_of(scanned()), priors, predict=lambda image: image)
    with pytest.raises(PositionError, match="`probability` must be a MetaTensor"):
        check_orientation(image_of(scanned()), priors, predict=lambda i: i.as_tensor())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_fit_of_the_cpu(priors):
    volume = claimed(scanned("LAS"), "RAS")
    expected, found = (check_with_warning(v, priors) for v in (volume, volume.cuda()))
    assert found.best == expected.best
    for codes, value in found.fit.items():
        assert value == pytest.approx(expected.fit[codes], abs=1e-4)


# --- real labels ---------------------------------------------------------------------------------


def coarse_label(path, step):
    image = nib.load(path)
    array = np.asarray(image.dataobj)[tuple(slice(None, None, s) for s in step)]
    voxels = torch.from_numpy(array.astype(np.uint8).copy())[None]
    return MetaTensor(voxels, affine=image.affine @ np.diag([*step, 1.0]))


@pytest.mark.parametrize(
    ("name", "center", "step"),
    [
        pytest.param(*values, marks=real(values[0]), id="-".join(map(str, values)))
        for values in (
            ("chaos_mr_t2/labelsTr", "groupwise", 3),
            ("chaos_mr_t2/labelsTr", "bbox", 6),
            ("btcv_labels", "groupwise", 9),
        )
    ],
)
def test_real_labels_are_not_doubted_and_every_mirrored_one_is_found(name, center, step):
    every, organs = REAL[name]
    first, second, *others = sorted((DATA / name).glob("*.nii.gz"))
    labelled = [coarse_label(path, every) for path in (first, second)]
    priors = SpatialPrior.estimate_several(labelled, organs=organs, bins=5, center=center)
    for path in others[::step]:
        label = coarse_label(path, every)
        assert check_silently(label, priors).agrees
        mirrored = MetaTensor(label.as_tensor().flip(1), affine=label.affine)
        result = check_with_warning(mirrored, priors)
        assert result.header[1:] == result.best[1:]
        assert {result.header[0], result.best[0]} == {"L", "R"}
        assert result.fit[result.best] > 1.3 * result.fit[result.header]
