"""Pictures and tables: what they show, where, and that the same input gives the same bytes."""

import json
import statistics
from itertools import product

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import Orientation
from PIL import Image

from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.visualize import comparison, figures
from stipple_monai.visualize.comparison import best_case_for, comparison_figure, dice_table
from stipple_monai.visualize.figures import overlay_figure, prior_figure
from stipple_monai.visualize.sections import (
    CT_WINDOW_HU,
    Section,
    box_around,
    draw_image,
    draw_outline,
    draw_prior,
    new_figure,
    window_for,
    write_png,
)
from stipple_monai.visualize.volumes import (
    on_one_grid,
)

SHAPE = (20, 16, 12)
AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])
AFFINE[:3, 3] = -20, -24, 100
KINDS = ("recovered miss", "removed false positive")


def volume(values, affine=AFFINE):
    return MetaTensor(torch.as_tensor(np.asarray(values)[None]), affine=torch.as_tensor(affine))


def turned(tensor, axcodes):
    return Orientation(axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)


@pytest.fixture(scope="module")
def case():
    """Image, truth, two predictions and a placed prior; slices differ in what they count."""
    rng = np.random.default_rng(0)
    truth = np.zeros(SHAPE, np.uint8)
    truth[6:12, 5:10, 3:9] = 1
    flaws = rng.random((2, *SHAPE))
    near = np.zeros(SHAPE, bool)
    near[4:15, 3:12, 2:11] = True
    baseline = ((truth > 0) ^ (near & (flaws[0] < 0.4))).astype(np.uint8)
    stipple = ((truth > 0) ^ (near & (flaws[1] < 0.1))).astype(np.uint8)
    return {
        "image": volume(rng.normal(40, 60, SHAPE).astype(np.float32)),
        "truth": volume(truth),
        "baseline": volume(baseline),
        "stipple": volume(stipple),
        "prior": volume(np.clip(rng.random(SHAPE) * near, 0, 1).astype(np.float32)),
    }


@pytest.fixture(scope="module")
def bins():
    """A prior of three bins, 20 × 24 × 36 mm, whose value is that of its bin."""
    probability = np.ones((5, 4, 3)) * np.array([0.2, 0.6, 1.0])
    return SpatialPrior(probability, spacing_mm=(4, 6, 12), organ=1, case_count=7)


@pytest.fixture
def kept(monkeypatch):
    """Keep figures instead of writing them."""
    found = []
    for module in (figures, comparison):
        monkeypatch.setattr(module, "write_png", lambda figure, *_: found.append(figure))
    return found


def texts(figure):
    figure.draw_without_rendering()
    found = [t.get_text() for ax in figure.axes for t in [*ax.texts, ax.title, ax.yaxis.label]]
    keys = [t.get_text() for box in figure.legends for t in [*box.texts, box.get_title()]]
    return [*found, *keys, figure.get_suptitle()]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


# Sections


@pytest.mark.parametrize(
    ("plane", "index", "across", "up"),
    [("axial", 7, 0, 1), ("coronal", 9, 0, 2), ("sagittal", 4, 1, 2)],
)
def test_a_section_is_one_plane_in_mm(plane, index, across, up):
    array = np.random.default_rng(1).random(SHAPE)
    box = (slice(1, 18), slice(2, 13), slice(3, 11))
    section = Section(plane, index, box, (2.0, 3.0, 5.0))
    through = 3 - across - up
    shown = section.of(array)
    for row, column in np.ndindex(*shown.shape):
        voxel = [0, 0, 0]
        voxel[across], voxel[up] = column + box[across].start, row + box[up].start
        voxel[through] = index
        assert shown[row, column] == array[tuple(voxel)]
        x, y = section.point_mm(voxel)
        assert x == (column + 0.5) * section.spacing_mm[across]
        assert y == (row + 0.5) * section.spacing_mm[up]
    assert section.size_mm[0] == shown.shape[1] * section.spacing_mm[across]
    assert section.size_mm[1] == shown.shape[0] * section.spacing_mm[up]


@pytest.mark.parametrize(
    ("plane", "marks"), [("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")]
)
def test_right_and_front_are_on_the_images_left_and_lengths_are_true(plane, marks):
    """A block at the patient's right, front and top is drawn left and up, as large as it is."""
    array = np.zeros((40, 30, 20), np.float32)
    array[30:38, 20:28, 14:18] = 1
    section = Section(
        plane, {"axial": 15, "coronal": 24, "sagittal": 34}[plane],
        (slice(0, 40), slice(0, 30), slice(0, 20)), (2.0, 3.0, 5.0),
    )  # fmt: skip
    figure, axes = new_figure([[section]], width_inches=4, extra_inches=0.3)
    ax = axes[0, 0]
    draw_image(ax, section, array, (0, 1))
    assert "".join(t.get_text() for t in ax.texts[:4]) == marks
    for artist in (*ax.texts, *ax.lines):
        artist.set_visible(False)
    rendered = pixels(figure)
    frame = ax.get_window_extent()
    inner = rendered[
        rendered.shape[0] - int(frame.y1) + 3 : rendered.shape[0] - int(frame.y0) - 3,
        int(frame.x0) + 3 : int(frame.x1) - 3,
    ]
    rows, columns = np.nonzero((inner > 127).all(-1))
    assert columns.mean() < inner.shape[1] / 2
    assert rows.mean() < inner.shape[0] / 2
    scale = frame.width / section.size_mm[0]
    width = {"axial": 16, "coronal": 16, "sagittal": 24}[plane]
    height = {"axial": 24, "coronal": 20, "sagittal": 20}[plane]
    assert np.ptp(columns) + 1 == pytest.approx(width * scale, abs=3)
    assert np.ptp(rows) + 1 == pytest.approx(height * scale, abs=3)


def test_the_scale_bar_is_as_long_as_it_says():
    section = Section("axial", 0, (slice(0, 200), slice(0, 100), slice(0, 1)), (1.5, 1.5, 5.0))
    _, axes = new_figure([[section]], width_inches=4, extra_inches=0.3)
    draw_image(axes[0, 0], section, np.zeros((200, 100, 1)), (0, 1))
    assert np.ptp(axes[0, 0].lines[0].get_xdata()) == 50
    assert axes[0, 0].texts[-1].get_text() == "50 mm"


def test_an_outline_runs_along_the_edges_of_voxels():
    mask = np.zeros((10, 10, 1), bool)
    mask[3:6, 4:8] = True
    section = Section("axial", 0, (slice(0, 10), slice(0, 10), slice(0, 1)), (2.0, 3.0, 1.0))
    _, axes = new_figure([[section]], width_inches=3, extra_inches=0.3)
    draw_outline(axes[0, 0], section, mask, "red")
    points = np.concatenate([p.vertices for p in axes[0, 0].collections[0].get_paths()])
    np.testing.assert_allclose(points.min(0), (6, 12), atol=1e-6)
    np.testing.assert_allclose(points.max(0), (12, 24), atol=1e-6)
    draw_outline(axes[0, 0], section, ~mask & mask, "red")
    assert len(axes[0, 0].collections) == 1
    draw_outline(axes[0, 0], section, ~mask | mask, "red")
    (edge,) = axes[0, 0].collections[1].get_paths()
    np.testing.assert_allclose(edge.vertices.max(0), (20, 30), atol=1e-6)


def test_a_prior_hides_nothing_where_it_is_zero_and_has_its_levels():
    prior = np.tile(np.linspace(0, 1, 11)[:, None, None], (1, 5, 1))
    section = Section("axial", 0, (slice(0, 11), slice(0, 5), slice(0, 1)), (1.0, 1.0, 1.0))
    _, axes = new_figure([[section]], width_inches=3, extra_inches=0.3)
    colours = draw_prior(axes[0, 0], section, prior)
    alpha = axes[0, 0].images[0].get_array()[0, :, 3]
    np.testing.assert_allclose(alpha, 0.5 * np.minimum(prior[:, 0, 0] / 0.25, 1))
    assert axes[0, 0].collections[0].levels.tolist() == [0.25, 0.5, 0.75]
    assert colours.get_clim() == (0, 1)


def test_a_box_holds_its_margin_and_stays_inside():
    box = box_around([5, 0, 3], [8, 14, 4], volume(np.zeros(SHAPE)), margin_mm=6)
    assert box == (slice(2, 12), slice(0, 16), slice(1, 7))


def test_windows():
    shown = [np.linspace(0, 1000, 1001), np.full(3, 5.0)]
    every = np.concatenate(shown)
    assert window_for(shown, None) == tuple(np.percentile(every, (1, 98)))
    assert window_for([*shown, np.array([-1000.0])], None) == CT_WINDOW_HU
    assert window_for(shown, (-10, 20)) == (-10, 20)
    assert window_for([np.full(9, 3.0)], None) == (3, 4)
    for wrong in ((20, -10), (5, 5), (0, float("nan")), (float("-inf"), 0)):
        with pytest.raises(ValueError, match="`window` must be two finite numbers"):
            window_for(shown, wrong)


# All figures


def all_figures(case, bins, folder):
    paths = [folder / f"{n}.png" for n in range(3)]
    scan, truth, prediction = (case[k] for k in ("image", "truth", "stipple"))
    prior_figure(scan, bins, (0, 0, 130), paths[0], label=truth)
    found = comparison_figure(**case, path=paths[1], kind=KINDS[0])
    overlay_figure(scan, truth, prediction, case["prior"], paths[2], organs={1: "organ"})
    return [found, *(p.read_bytes() for p in paths)]


@pytest.mark.slow
def test_orientation_does_not_change_a_byte(case, bins, tmp_path):
    written = all_figures(case, bins, tmp_path)
    for axcodes in ("LAI", "SRP"):
        here = {name: turned(v, axcodes) for name, v in case.items()}
        assert all_figures(here, bins, tmp_path / axcodes) == written


@pytest.mark.slow
def test_a_png_says_what_it_shows_and_not_when_it_was_made(case, bins, tmp_path):
    text = prior_figure(case["image"], bins, (0, 0, 130), tmp_path / "new" / "prior.png")
    assert "organ 1 from 7 cases, 3 bins" in text
    assert "patient's right is on the image's left" in text
    with Image.open(tmp_path / "new" / "prior.png") as image:
        assert image.text == {"Description": text}
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.slow
def test_a_failed_write_keeps_the_old_figure(case, bins, tmp_path, monkeypatch):
    path = tmp_path / "prior.png"
    path.write_bytes(b"old")

    def fail(figure, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        prior_figure(case["image"], bins, (0, 0, 130), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_callers_matplotlib_is_left_alone(case, kept):
    before = json.dumps(dict(matplotlib.rcParams), default=str)
    comparison_figure(**case, path="x.png", kind=KINDS[0])
    assert json.dumps(dict(matplotlib.rcParams), default=str) == before
    assert Gcf.get_all_fig_managers() == []


def test_a_figure_is_png(tmp_path):
    with pytest.raises(ValueError, match=r"written as '\.png', got .*figure\.pdf"):
        write_png(Figure(), tmp_path / "figure.pdf", "")


# The grid that volumes share


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(1, *SHAPE), "`truth` must be a MetaTensor"),
        (volume(np.zeros(SHAPE[:2])), r"`truth` must have the shape \(1, W, H, D\), got \(1, 20"),
        (MetaTensor(torch.zeros(2, *SHAPE)), r"`truth` must have the shape \(1, W, H, D\)"),
        (volume(np.zeros((20, 16, 0))), r"`truth` must have the shape \(1, W, H, D\)"),
        (volume(np.zeros((20, 16, 11))), r"shape of `image`, \(20, 16, 12\) .*got \(20, 16, 11\)"),
        (volume(np.zeros(SHAPE), AFFINE + np.eye(4, k=3)), "lie where `image` lies.* 1 mm apart"),
        (volume(np.zeros(SHAPE), AFFINE @ np.diag([1.02, 1, 1, 1])), "0.76 mm apart"),
        (volume(np.zeros(SHAPE), np.diag([1.0, 1, 0, 1])), "`truth` must have an invertible"),
        (volume(np.full(SHAPE, np.nan)), "`truth` must be finite"),
    ],
)
def test_volumes_must_share_one_grid(case, other, message):
    with pytest.raises(DatasetError, match=message):
        on_one_grid(image=case["image"], truth=other)


def test_grids_that_meet_in_one_corner_alone_are_two(case):
    """Voxels 5 % larger, moved so that the grid ends where the other does."""
    larger = AFFINE @ np.diag([1.05, 1.05, 1.05, 1])
    end = [*SHAPE, 1]
    larger[:3, 3] += ((AFFINE - larger) @ end)[:3]
    np.testing.assert_allclose(larger @ end, AFFINE @ end)
    with pytest.raises(DatasetError, match="`truth` must lie where `image` lies"):
        on_one_grid(image=case["image"], truth=volume(np.zeros(SHAPE), larger))


def test_rounding_of_an_affine_is_no_other_grid(case):
    off = volume(np.zeros(SHAPE), AFFINE * (1 + 1e-5))
    assert list(on_one_grid(image=case["image"], prior=None, truth=off)) == ["image", "truth"]


# The prior


@pytest.mark.slow
@pytest.mark.parametrize("axcodes", ["RAS", "PIR"])
def test_each_panel_shows_its_bin_at_the_position(case, bins, kept, monkeypatch, axcodes):
    drawn = []
    original = figures.draw_prior
    monkeypatch.setattr(figures, "draw_prior", lambda *a: drawn.append(a[2]) or original(*a))
    prior_figure(turned(case["image"], axcodes), bins, (-1, 2, 130), "x.png", organ_name="spleen")
    assert [float(d.max()) for d in drawn] == pytest.approx([0.2, 0.6, 1.0])
    (figure,) = kept
    said = texts(figure)
    for title in (
        "bin 1 (inferior)\nz = 118 mm",
        "bin 2\nz = 130 mm",
        "bin 3 (superior)\nz = 142 mm",
    ):
        assert title in said
    assert "Prior of spleen from 7 cases, 3 bins" in said
    assert "Radiological convention: the patient's right is on the image's left." in said
    for ax in figure.axes[:3]:
        (cross,) = [line for line in ax.lines if line.get_marker() == "+"]
        np.testing.assert_allclose(
            [cross.get_xdata()[0], cross.get_ydata()[0]], [-1 - (-20) + 1, 2 - (-24) + 1.5]
        )
        for d in drawn:
            columns, rows = (np.nonzero(d.any(a))[0] for a in ((1, 2), (0, 2)))
            assert columns.min() == 5
            assert columns.max() == 14
            assert rows.min() == 5
            assert rows.max() == 12


@pytest.mark.slow
def test_bins_beyond_the_scan_are_said_to_be(case, bins, kept):
    prior_figure(case["image"], bins, (0, 0, 155), "x.png")
    panels = [any("outside the scan" in t.get_text() for t in ax.texts) for ax in kept[0].axes[:3]]
    assert panels == [False, False, True]


@pytest.mark.slow
def test_many_bins_are_shown_at_even_steps(case, kept):
    prior = SpatialPrior(np.ones((4, 4, 29)), spacing_mm=(4, 6, 1))
    prior_figure(case["image"], prior, (0, 0, 130), "x.png")
    said = texts(kept[0])
    shown = [int(t.split()[1]) for t in said if t.startswith("bin ")]
    assert shown == [1, 4, 7, 10, 13, 17, 20, 23, 26, 29]
    assert "Prior of organ 1 from 1 case, 10 of 29 bins" in said


@pytest.mark.slow
def test_the_organ_of_the_prior_is_outlined(case, bins, kept):
    for label in (case["truth"], volume(np.full(SHAPE, 2))):
        prior_figure(case["image"], bins, (0, 0, 130), "x.png", label=label)
    with_organ, without = ([len(ax.collections) for ax in f.axes[:3]] for f in kept)
    assert np.subtract(with_organ, without).tolist() == [1, 1, 1]
    assert "the organ in this scan" in texts(kept[0])


@pytest.mark.slow
@pytest.mark.parametrize("position", [(200, 0, 130), (0, -90, 130), (0, 0, 300), (-45, 0, 130)])
def test_a_prior_outside_the_scan_is_an_error(case, bins, kept, position):
    with pytest.raises(
        PositionError, match=r"must overlap the image, but placed at .* lies outside"
    ):
        prior_figure(case["image"], bins, position, "x.png")


# The comparison


def counts_by_hand(kind, truth, baseline, stipple):
    maps = [v[0].numpy() == 1 for v in (truth, baseline, stipple)]
    counts = [0] * truth.shape[3]
    for w, h, d in product(*map(range, truth.shape[1:])):
        t, b, s = (bool(v[w, h, d]) for v in maps)
        if kind == KINDS[0]:
            counts[d] += t and not b and s
        else:
            counts[d] += not t and b and not s
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_slice_is_the_one_that_changed_most(case, kept, kind):
    counts = counts_by_hand(kind, case["truth"], case["baseline"], case["stipple"])
    index, count = comparison_figure(**case, path="x.png", kind=kind)
    assert count == max(counts) > 0
    assert index == counts.index(max(counts))
    title = kept[0].get_suptitle()
    assert title.startswith(f"{kind.capitalize()}: {count} ")
    assert f"slice {index + 1} of 12 from inferior, z = {100 + 5 * index} mm" in title


@pytest.mark.slow
def test_what_the_truth_does_not_know_is_neither_right_nor_wrong(case, kept):
    kind = KINDS[1]
    index, count = comparison_figure(**case, path="x.png", kind=kind)
    truth = case["truth"].clone()
    truth[0, ..., index][truth[0, ..., index] == 0] = 255
    unknown = {**case, "truth": truth}
    counts = counts_by_hand(kind, case["truth"], case["baseline"], case["stipple"])
    rest = [n for i, n in enumerate(counts) if i != index]
    assert comparison_figure(**unknown, path="y.png", kind=kind)[1] == max(rest) < count
    assert best_case_for(kind, [unknown, case]) == 1


@pytest.mark.slow
def test_errors_are_painted_where_they_are(case, kept):
    index, _ = comparison_figure(**case, path="x.png", kind=KINDS[1])
    truth, baseline, stipple = (
        case[k][0, ..., index].numpy().T == 1 for k in ("truth", "baseline", "stipple")
    )
    for ax, predicted in zip(kept[0].axes[1:3], (baseline, stipple), strict=True):
        right, extra, missed = (im.get_array()[..., 3] > 0 for im in ax.images[1:])
        np.testing.assert_array_equal(right, truth & predicted)
        np.testing.assert_array_equal(extra, predicted & ~truth)
        np.testing.assert_array_equal(missed, truth & ~predicted)
        dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
        assert f"(Dice {100 * dice:.0f} % on this slice)" in ax.get_title()
    said = texts(kept[0])
    assert {"truth", "true positive", "false positive", "false negative"} <= set(said)


@pytest.mark.slow
def test_only_the_neighbourhood_is_shown(kept):
    shape = (100, 90, 4)
    truth = np.zeros(shape)
    truth[50:60, 40:44, 2] = 1
    c = {k: volume(v) for k, v in (("truth", truth), ("baseline", 0 * truth), ("stipple", truth))}
    blank = volume(np.zeros(shape))
    found = comparison_figure(blank, **c, prior=blank, path="x.png", kind=KINDS[0], margin_mm=12)
    assert found == (2, 40)
    assert kept[0].axes[0].get_xlim() == ((10 + 2 * 6) * 2, 0)
    assert kept[0].axes[0].get_ylim() == (0, (4 + 2 * 4) * 3)


@pytest.mark.slow
def test_a_slice_without_organ_has_no_dice(case, kept):
    nothing = volume(np.zeros(SHAPE))
    comparison_figure(
        **{**case, "truth": nothing, "stipple": nothing, "prior": nothing},
        path="x.png",
        kind=KINDS[1],
    )
    assert "STIPPLE (nothing on this slice)" in texts(kept[0])
    assert "prior (zero on this slice)" in texts(kept[0])


@pytest.mark.slow
def test_comparison_errors(case, kept):
    with pytest.raises(ValueError, match=r"`kind` must be one of .*recovered miss.* got 'miracle'"):
        comparison_figure(**case, path="x.png", kind="miracle")
    with pytest.raises(ValueError, match="There is no recovered miss of organ 3"):
        comparison_figure(**case, path="x.png", kind=KINDS[0], organ=3)
    two = MetaTensor(torch.cat([case["prior"]] * 2).as_tensor(), affine=case["prior"].affine)
    with pytest.raises(PriorError, match=r"`prior` must have 1 channel.* got 2"):
        comparison_figure(**{**case, "prior": two}, path="x.png", kind=KINDS[0])
    wrong = volume(np.linspace(0, 1.5, case["prior"].numel()).reshape(SHAPE))
    with pytest.raises(PriorError, match=r"`prior` must lie in \[0, 1\], got \[0, 1\.5\]"):
        comparison_figure(**{**case, "prior": wrong}, path="x.png", kind=KINDS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_case_has_the_best_slice(case, kind):
    maps = {k: case[k] for k in ("truth", "baseline", "stipple")}
    same = {**maps, "stipple": case["baseline"]}
    half = {k: volume(np.where(np.arange(16)[:, None] < 7, v[0], 0)) for k, v in maps.items()}
    cases = [same, half, turned_case(maps), maps]
    best = [
        max(counts_by_hand(kind, *(turned(c[k], "RAS") for k in ("truth", "baseline", "stipple"))))
        for c in cases
    ]
    assert 0 == best[0] < best[1] < best[2] == best[3]
    assert best_case_for(kind, iter([{**c, "image": None} for c in cases])) == 2
    assert best_case_for(kind, [same]) is None
    assert best_case_for(kind, []) is None


def turned_case(maps):
    return {k: turned(v, "SRA") for k, v in maps.items()}


def test_best_case_errors(case):
    with pytest.raises(ValueError, match="`kind` must be one of"):
        best_case_for("miracle", [case])
    with pytest.raises(DatasetError, match="`stipple` must have the shape of `truth`"):
        best_case_for(KINDS[0], [{**case, "stipple": volume(np.zeros((4, 4, 4)))}])


# Overlays


@pytest.mark.slow
def test_overlays_go_through_most_of_all_organs(kept):
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:6, 2:9] = 1
    label[2:4, 10:14, 7:11] = 2
    label[15:18, 2:9, 4:6] = 7
    truth = volume(label)
    prior = MetaTensor(torch.rand(2, *SHAPE), affine=truth.affine)
    image = volume(np.zeros(SHAPE, np.float32))
    said = overlay_figure(
        image, truth, truth, prior, "x.png", organs={1: "liver", 2: "spleen"}, margin_mm=1000
    )
    assert "liver, spleen" in said
    (figure,) = kept
    # Both organs fully: W 2–3, D 7–8; no H shows both, and each is equally large there.
    wanted = {0: label[:, :, 7].T, 1: label[:, 2, :].T, 2: label[2, :, :].T}
    for column, plane in wanted.items():
        for row in (0, 1):
            fills = figure.axes[3 * row + column].images[1:]
            for organ, fill in zip((1, 2), fills, strict=True):
                np.testing.assert_array_equal(fill.get_array()[..., 3] > 0, plane == organ)
    np.testing.assert_allclose(
        figure.axes[6].images[1].get_array()[..., 3], 0.5 * prior[0, ..., 7].numpy().T, rtol=1e-5
    )
    words = texts(figure)
    for word in ("axial", "coronal", "sagittal", "truth", "prediction", "prior (line: 0.5)"):
        assert word in words


@pytest.mark.slow
def test_a_small_organ_weighs_as_much_as_a_large_one(kept):
    label = np.zeros(SHAPE, np.uint8)
    label[2:14, 2:14, 2] = 1
    label[2:13, 2:13, 5] = 1
    label[15:17, 2:4, 5] = 2
    truth = volume(label)
    blank = volume(np.zeros(SHAPE, np.float32))
    organs = {1: "liver", 2: "duct"}
    overlay_figure(blank, truth, truth, None, "x.png", organs=organs, margin_mm=1000)
    shown = [image.get_array()[..., 3] > 0 for image in kept[0].axes[0].images[1:]]
    assert [int(mask.sum()) for mask in shown] == [121, 4]


@pytest.mark.slow
def test_overlays_without_prior_and_of_many_organs(case, kept):
    organs = {k: f"organ {k}" for k in range(1, 14)}
    overlay_figure(case["image"], case["truth"], case["stipple"], None, "x.png", organs=organs)
    (figure,) = kept
    assert len(figure.axes) == 6
    (key,) = figure.legends
    assert [t.get_text() for t in key.texts] == [*organs.values(), "truth"]
    fills = {tuple(p.get_facecolor()) for p in key.get_patches()}
    assert len(fills) == 13


@pytest.mark.slow
def test_overlay_errors(case, kept):
    given = [case[k] for k in ("image", "truth", "stipple")]
    for organs in ({}, {4: "spleen"}):
        with pytest.raises(ValueError, match=r"`truth` must show at least one of `organs`, got \{"):
            overlay_figure(*given, None, "x.png", organs=organs)
    with pytest.raises(PriorError, match="`prior` must have 2 channels, one per organ, got 1"):
        overlay_figure(*given, case["prior"], "x.png", organs={1: "a", 2: "b"})


# The table


def rows_of(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_table_has_mean_and_standard_deviation():
    results = {
        "baseline": {"liver": [0.8, 0.9, 0.4], "spleen": [0.5, 0.7, 0.75]},
        "STIPPLE": {"liver": [0.91], "spleen": [0.6]},
    }
    header, rule, baseline, stipple = rows_of(dice_table(results))
    assert header == ["method", "n", "liver", "spleen", "mean"]
    assert rule == ["---", "---:", "---:", "---:", "---:"]
    cases = [statistics.fmean(pair) for pair in zip(*results["baseline"].values(), strict=True)]
    expected = [
        f"{100 * statistics.fmean(v):.1f} ± {100 * statistics.stdev(v):.1f}"
        for v in (*results["baseline"].values(), cases)
    ]
    assert baseline == ["baseline", "3", *expected]
    assert stipple == ["STIPPLE", "1", "91.0", "60.0", "75.5"]


def test_absent_organs_are_counted_apart():
    nan = float("nan")
    table = dice_table(
        {"a|b": {"liver": [0.8, nan, nan], "spleen": [nan] * 3}, "c": {"pelvis": []}}
    )
    _, _, first, second = rows_of(table)
    assert first == [
        "a\\|b", "3", "80.0 (n = 1, absent in 2)", "– (n = 0, absent in 3)", "–",
        "80.0 (n = 1, absent in 2)",
    ]  # fmt: skip
    assert second == ["c", "0", "–", "–", "–", "–"]


def test_table_errors():
    for empty in ({}, {"baseline": {}}):
        with pytest.raises(ValueError, match="`results` must hold at least one method and organ"):
            dice_table(empty)
    with pytest.raises(ValueError, match=r"'a' must have the same cases.*'x': 1, 'y': 2"):
        dice_table({"a": {"x": [0.1], "y": [0.1, 0.2]}})
    for wrong in (81.5, -0.1, float("inf")):
        with pytest.raises(ValueError, match=rf"Dice must lie in \[0, 1\], got {wrong:g} for 'x'"):
            dice_table({"a": {"x": [0.5, wrong]}})
