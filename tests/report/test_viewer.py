"""Viewers: what lies where, in which proportions, and which slices are kept."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from stipple_monai import DatasetError, SpatialPrior
from stipple_monai.report import viewer as module
from stipple_monai.report.layers import decoded
from stipple_monai.report.viewer import Placed, make_viewer

SHAPE, SPACING = (20, 26, 12), (2.0, 1.0, 7.5)
CORNER = (slice(15, 19), slice(20, 24), slice(9, 11))  # right, anterior, superior


def volume(values, affine):
    return MetaTensor(
        torch.as_tensor(np.array(values))[None].float(), affine=torch.as_tensor(affine)
    )


def in_ras():
    """An asymmetric label map on RAS axes and its affine."""
    label = np.zeros(SHAPE, np.float32)
    label[CORNER] = 1
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -30, 12, 100
    return label, affine


def stored_as(label, affine, axes):
    """The same, with the voxels in another order."""
    source = nib.orientations.io_orientation(affine)
    turn = nib.orientations.ornt_transform(source, nib.orientations.axcodes2ornt(axes))
    image = nib.Nifti1Image(label, affine).as_reoriented(turn)
    return np.asarray(image.dataobj), image.affine


def middle(picture, chosen):
    """Mean column and row of some pixels, as shares of the picture."""
    rows, columns = np.nonzero(chosen)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / picture.size


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "SPR", "PIL", "ASR"])
def test_the_patients_right_is_left_and_superior_is_above(tmp_path, axes):
    label, affine = stored_as(*in_ras(), axes)
    position = [-30 + 16.5 * 2, 12 + 21.5, 100 + 9.5 * 7.5]
    made = make_viewer(
        volume(100 * label, affine),
        tmp_path / "s.png",
        title="t",
        organs={1: "organ"},
        truth=volume(label, affine),
        prediction=volume(label, affine),
        placed={1: Placed(position)},
    )
    assert [v.sides for v in made.planes] == ["RLAP", "RLSI", "APSI"]
    right, front, top = 1 - 17 / 20, 1 - 22 / 26, 1 - 10 / 12
    for view, expected in zip(
        made.planes, [(right, front), (right, top), (front, top)], strict=True
    ):
        first = view.slices[view.start]
        scan = decoded(first.image)
        assert middle(scan, np.asarray(scan.convert("L")) > 128) == pytest.approx(
            expected, abs=0.05
        )
        for layer in ("truth", "prediction"):
            paint = decoded(first.layers[layer]).convert("RGBA")
            assert middle(paint, np.asarray(paint)[..., 3] > 0) == pytest.approx(expected, abs=0.02)
        (mark,) = view.marks
        assert (mark.left / 100, mark.top / 100) == pytest.approx(expected, abs=1e-6)
        assert "position" in view.keys


def test_voxels_keep_their_proportions(tmp_path):
    label, affine = in_ras()
    made = make_viewer(volume(label, affine), tmp_path / "s.png", title="t", organs={1: "organ"})
    sizes = [(40, 26), (40, 90), (26, 90)]
    assert [(v.width_mm, v.height_mm) for v in made.planes] == sizes
    for view, (width, height) in zip(made.planes, sizes, strict=True):
        columns, rows = decoded(view.slices[0].image).size
        assert columns / rows == pytest.approx(width / height, rel=0.03)
    still = Image.open(tmp_path / "s.png")
    assert still.size == (2 * (40 + 40 + 26) + 16, 180)


def test_places_of_slices_are_in_mm(tmp_path):
    label, affine = in_ras()
    made = make_viewer(volume(label, affine), tmp_path / "s.png", title="t", organs={1: "organ"})
    assert [v.slices[0].where for v in made.planes] == [
        "slice 1 of 12, S 100.0 mm",
        "slice 1 of 26, A 12.0 mm",
        "slice 1 of 20, R −30.0 mm",
    ]
    assert [v.keys for v in made.planes] == [{"middle": 6}, {"middle": 13}, {"middle": 10}]


def still_axial(truth, prediction, affine, folder):
    """The axial plane of a viewer that cannot be scrolled."""
    made = make_viewer(
        volume(truth, affine),
        folder / "s.png",
        title="t",
        organs={1: "organ"},
        truth=volume(truth, affine),
        prediction=volume(prediction, affine),
        scroll=False,
    )
    return made.planes[0]


def test_the_slices_that_matter(tmp_path):
    truth, affine = in_ras()
    prediction = np.zeros_like(truth)
    prediction[2:9, 2:9, 3] = 1  # 49 wrong voxels on slice 3, 16 missed ones on 9 and on 10
    truth[14, 20, 10] = 1
    axial = still_axial(truth, prediction, affine, tmp_path)
    assert axial.keys == {"largest area": 1, "largest error": 0}
    assert [s.where.split(",")[0] for s in axial.slices] == ["slice 4 of 12", "slice 11 of 12"]
    assert not axial.scrolls
    assert axial.slices[0].layers["truth"] == ""
    assert axial.slices[0].layers["prediction"]


def test_voxels_of_which_nothing_is_known_are_no_error(tmp_path):
    truth, affine = in_ras()
    prediction = np.zeros_like(truth)
    prediction[2:9, 2:9, 3] = 1  # 49 voxels more than the truth knows
    truth[2:9, 2:9, 3] = 255
    axial = still_axial(truth, prediction, affine, tmp_path)
    wrong = axial.slices[axial.keys["largest error"]].where
    assert wrong.split(",")[0] in ("slice 10 of 12", "slice 11 of 12")


def test_labels_without_the_organs_have_no_largest_area(tmp_path):
    empty, affine = in_ras()
    empty[:] = 0
    label = volume(empty, affine)
    scan = volume(empty.astype(np.float32), affine)
    options = {"title": "t", "organs": {1: "organ"}, "scroll": False}
    made = make_viewer(scan, tmp_path / "s.png", truth=label, prediction=label, **options)
    assert not any("largest" in key for plane in made.planes for key in plane.keys)


def test_long_planes_are_thinned_and_keep_what_matters(tmp_path):
    label = np.zeros((1, 8, 400), np.float32)
    label[0, 2:5, 301] = 1
    made = make_viewer(
        volume(label, np.eye(4)),
        tmp_path / "s.png",
        title="t",
        organs={1: "o"},
        truth=volume(label, np.eye(4)),
    )
    axial = made.planes[0]
    assert len(axial.slices) <= module.MOST_SLICES + 1
    assert axial.slices[axial.start].where == "slice 302 of 400, S 301.0 mm"


@pytest.mark.slow
def test_the_prior_is_drawn_around_its_position(tmp_path):
    label, affine = in_ras()
    prior = SpatialPrior(np.ones((4, 4, 2)), spacing_mm=(2, 1, 7.5), organ=1)
    position = [-30 + 16.5 * 2, 12 + 21.5, 100 + 9.5 * 7.5]
    made = make_viewer(
        volume(label, affine),
        tmp_path / "s.png",
        title="t",
        organs={1: "organ", 2: "absent"},
        truth=volume(label, affine),
        placed={1: Placed(position, prior)},
    )
    assert [name for name, _ in made.layers] == ["truth", "prior", "position"]
    axial = made.planes[0]
    paint = decoded(axial.slices[axial.start].layers["prior"]).convert("RGBA")
    where = middle(paint, np.asarray(paint)[..., 3] > 0)
    assert where == pytest.approx((1 - 17 / 20, 1 - 22 / 26), abs=0.03)
    colours = {tuple(c) for c in np.asarray(paint)[np.asarray(paint)[..., 3] == 255]}
    assert colours == {(230, 159, 0, 255)}
    far = [s for s in axial.slices if s.where.startswith("slice 1 of")]
    assert far[0].layers["prior"] == ""


def test_a_position_outside_the_scan_has_no_mark(tmp_path):
    label, affine = in_ras()
    made = make_viewer(
        volume(label, affine),
        tmp_path / "s.png",
        title="t",
        organs={1: "o"},
        placed={1: Placed([0, 0, -900])},
    )
    assert [len(v.marks) for v in made.planes] == [0, 0, 0]


def test_grids_must_be_one(tmp_path):
    label, affine = in_ras()
    with pytest.raises(DatasetError, match="`truth` must lie where `image` lies"):
        make_viewer(
            volume(label, affine),
            tmp_path / "s.png",
            title="t",
            organs={1: "o"},
            truth=volume(label, affine + np.diag([0, 0, 1, 0])),
        )
    assert not (tmp_path / "s.png").exists()


@pytest.mark.slow
def test_eight_flips_agree(tmp_path):
    """A slice's picture does not depend on the order in which voxels are stored."""
    _, affine = in_ras()
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    seen = set()
    for axes in itertools.product("RL", "AP", "SI"):
        made = make_viewer(
            volume(*stored_as(image, affine, axes)),
            tmp_path / "s.png",
            title="t",
            organs={},
            window=(-2, 2),
        )
        seen.add(tuple(s.image for v in made.planes for s in v.slices))
    assert len(seen) == 1
