"""Pictures of a scan with what was placed or marked in it.

Figures are PNG with their description inside (``Description``), and the same input gives the same
bytes. Volumes may be of any orientation; those of one figure share one grid. See
`stipple_monai.visualize.sections` for sections and windows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.priors import SpatialPrior, world_point
from stipple_monai.visualize.colours import organ_colours
from stipple_monai.visualize.sections import (
    CONVENTION,
    STROKE,
    Plane,
    Section,
    Window,
    box_around,
    colour_bar,
    contour,
    draw_image,
    draw_mask,
    draw_outline,
    draw_prior,
    fullest,
    legend,
    new_figure,
    outline_key,
    window_for,
    write_png,
)
from stipple_monai.visualize.volumes import (
    on_one_grid,
    voxel_of,
)

MAX_PANELS = 10
"""Bins that a figure shows at most."""

_WHAT = (
    "one axial slice through the middle of each bin, from inferior to superior, with the prior in "
    "colour."
)
_LABEL = "#00FFFF"
_CROSS: dict[str, Any] = {
    "color": "white",
    "marker": "+",
    "markersize": 11,
    "markeredgewidth": 1.5,
    "linestyle": "none",
    "path_effects": STROKE,
}


def prior_figure(
    image: MetaTensor,
    prior: SpatialPrior,
    position_mm: Sequence[float] | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    label: MetaTensor | None = None,
    window: Window | None = None,
    organ_name: str | None = None,
    margin_mm: float = 60.0,
) -> str:
    """Draw a prior, bin by bin, over the scan that it is placed in.

    Each panel is the slice nearest to the middle of a bin, from the most inferior bin to the most
    superior. More than ``MAX_PANELS`` bins are shown at even steps.

    Args:
        image: ``(1, W, H, D)``.
        prior: the prior.
        position_mm: world point (RAS mm) that the prior's centre is moved to, drawn as a cross.
        path: of the PNG.
        label: ``(1, W, H, D)`` on the grid of ``image``; its organ is outlined.
        window: values that are black and white.
        organ_name: for the title.
        margin_mm: what is shown around the prior's box.

    Returns:
        The figure's description.

    Raises:
        PositionError: ``position_mm`` is not three finite numbers, or the prior placed there lies
            outside the image.
        DatasetError: a volume cannot be used, or ``label`` lies on another grid.
        ValueError: ``window`` or the ending of ``path`` is wrong.
    """
    volumes = on_one_grid(image=image, label=label)
    scan, point = volumes["image"], world_point(position_mm)
    shown = np.unique(np.linspace(0, prior.bins - 1, min(prior.bins, MAX_PANELS)).round())
    planes = [_bin_plane(scan, prior, point, int(b)) for b in shown]
    box = box_around(*_corners(prior, point, scan, planes), scan, margin_mm=margin_mm)
    at = np.clip([round(v[2]) for v in planes], 0, scan.shape[3] - 1).tolist()
    sections = [Section("axial", index, box, scan.pixdim.tolist()) for index in at]
    window = window_for([s.of(scan[0].numpy()) for s in sections], window)
    organ = None if label is None else volumes["label"][0].numpy() == prior.organ
    figure, axes = _panels(sections)
    for ax, b, section, voxel in zip(axes.flat, shown, sections, planes, strict=False):
        ax.set_title(_bin_title(int(b), prior.bins, scan, voxel), size=10)
        if section.index != round(voxel[2]):
            _draw_nothing(ax, section)
            continue
        draw_image(ax, section, scan[0].numpy(), window)
        flat = replace(section, index=0, box=(*box[:2], slice(0, 1)))
        colours = draw_prior(ax, flat, prior.place(point, _slice_at(scan, voxel[2])).numpy()[0])
        if organ is not None:
            draw_outline(ax, section, organ, _LABEL)
        ax.plot(*section.point_mm(voxel), **_CROSS)
    colour_bar(figure, colours, axes, shrink=0.8, pad=0.01)
    title = _title(prior, organ_name or f"organ {prior.organ}", len(shown))
    figure.suptitle(title, size=12)
    outlined = [] if organ is None else [outline_key(_LABEL, "the organ in this scan")]
    legend(figure, [Line2D([], [], label="position", **_CROSS), *outlined])
    description = f"{title}, placed at {_mm(point)}: {_WHAT} {CONVENTION}"
    write_png(figure, path, description)
    return description


def _corners(
    prior: SpatialPrior,
    point: torch.Tensor,
    scan: MetaTensor,
    planes: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and highest voxel under a placed prior, in the plane of its position.

    Raises:
        PositionError: the prior lies outside the scan.
    """
    position = voxel_of(scan, point)
    half = torch.tensor(prior.size_mm, dtype=torch.float64) / 2
    reach = (half / scan.pixdim)[:2].numpy()
    low, high = np.copy(position), np.copy(position)
    low[:2] -= reach
    high[:2] += reach
    if (
        (high < -0.5)[:2].any()
        or (low > np.array(scan.shape[1:]) - 0.5)[:2].any()
        or not any(0 <= round(v[2]) < scan.shape[3] for v in planes)
    ):
        raise PositionError(
            f"The prior must overlap the image, but placed at {_mm(point)} it lies outside: give "
            "the organ's centre in this scan, in RAS mm."
        )
    return low, high


def _panels(sections: Sequence[Section]) -> tuple[Figure, NDArray[Any]]:
    """A figure with a panel for each section, five in a row at most."""
    rows = -(-len(sections) // 5)
    columns = -(-len(sections) // rows)
    padded = [*sections, *[sections[-1]] * (rows * columns - len(sections))]
    figure, axes = new_figure(
        [padded[r * columns : (r + 1) * columns] for r in range(rows)],
        width_inches=max(2.4 * columns, 6.0) + 0.6,
        extra_inches=1.35,
    )
    for ax in axes.flat[len(sections) :]:
        ax.set_axis_off()
    return figure, axes


def _title(prior: SpatialPrior, name: str, shown: int) -> str:
    bins = f"{prior.bins} bin{'s' * (prior.bins != 1)}"
    of = f"{shown} of {bins}" if shown < prior.bins else bins
    cases = f"{prior.case_count} case{'s' * (prior.case_count != 1)}"
    return f"Prior of {name} from {cases}, {of}"


def _bin_title(b: int, bins: int, scan: MetaTensor, voxel: NDArray[np.float64]) -> str:
    ends = {0: " (inferior)", bins - 1: " (superior)"} if bins > 1 else {}
    height = float(scan.affine.cpu().double()[2] @ torch.tensor([*voxel, 1.0]))
    return f"bin {b + 1}{ends.get(b, '')}\nz = {round(height)} mm"


def _draw_nothing(ax: Axes, section: Section) -> None:
    width, tall = section.size_mm
    ax.set(facecolor="black", xticks=[], yticks=[], box_aspect=tall / width, anchor="N")
    style: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, "outside the scan", color="white", **style)


def overlay_figure(
    image: MetaTensor,
    truth: MetaTensor,
    prediction: MetaTensor,
    prior: MetaTensor | None,
    path: str | os.PathLike[str],
    *,
    organs: Mapping[int, str],
    window: Window | None = None,
    margin_mm: float = 20.0,
) -> str:
    """Draw truth and prediction of several organs on an axial, a coronal and a sagittal slice.

    Each is the slice that shows most of all organs of the truth: the sum, over organs, of the
    organ's area on the slice as a share of its largest area in that plane is greatest.

    Args:
        image: ``(1, W, H, D)``, as all others and on one grid.
        truth: label map.
        prediction: label map.
        prior: ``(K, W, H, D)``, the placed prior of each organ in the order of ``organs``, in
            [0, 1]; drawn in a third row with its 0.5 contour.
        path: of the PNG.
        organs: names by label values.
        window: values that are black and white.
        margin_mm: what is shown around truth and prediction.

    Returns:
        The figure's description.

    Raises:
        DatasetError: a volume cannot be used, or two lie on different grids.
        PriorError: ``prior`` is not one channel in [0, 1] for each organ.
        ValueError: ``organs`` is empty, or the truth shows none of them; ``window`` or the ending
            of ``path`` is wrong.
    """
    volumes = on_one_grid(image=image, truth=truth, prediction=prediction, prior=prior)
    scan = volumes["image"]
    masks = _masks(volumes, organs)
    rows: dict[str, NDArray[Any]] = dict(masks)
    if prior is not None:
        rows["prior"] = probability_of(volumes["prior"], len(organs))
    sections = _fullest(scan, masks["truth"], masks["prediction"], margin_mm)
    voxels = scan[0].numpy()
    window = window_for([s.of(voxels) for s in sections], window)
    colours = organ_colours(len(organs))
    figure, axes = new_figure([sections] * len(rows), width_inches=11.0, extra_inches=1.0)
    for r, (row, drawn) in enumerate(rows.items()):
        axes[r, 0].set_ylabel("prior (line: 0.5)" if row == "prior" else row, size=12)
        for ax, section in zip(axes[r], sections, strict=True):
            draw_image(ax, section, voxels, window)
            for weight, whole, colour in zip(drawn, masks["truth"], colours, strict=False):
                _draw_organ(ax, section, row, weight, whole, colour)
    for ax, section in zip(axes[0], sections, strict=True):
        ax.set_title(section.plane, size=11)
    keys = [Patch(color=colours[k], label=n) for k, n in enumerate(organs.values())]
    legend(figure, [*keys, outline_key("white", "truth")])
    description = (
        f"Rows: {', '.join(rows)}; columns: axial, coronal and sagittal slice. Organs: "
        f"{', '.join(organs.values())}. White: the truth. {CONVENTION}"
    )
    write_png(figure, path, description)
    return description


def _masks(volumes: Mapping[str, MetaTensor], organs: Mapping[int, str]) -> dict[str, Any]:
    """Truth and prediction, ``(K, W, H, D)``.

    Raises:
        ValueError: the truth shows no organ.
    """
    masks = {
        name: np.stack([volumes[name][0].numpy() == k for k in organs] or [np.empty(0)])
        for name in ("truth", "prediction")
    }
    if not masks["truth"].any():
        raise ValueError(f"`truth` must show at least one of `organs`, got {dict(organs)}.")
    return masks


def _draw_organ(
    ax: Axes, section: Section, row: str, weight: NDArray[Any], truth: NDArray[Any], colour: str
) -> None:
    """One organ in a panel of a row: ``weight`` in colour, and a line."""
    draw_mask(ax, section, weight, colour, alpha=0.5)
    if row == "prior":
        style: dict[str, Any] = {"colors": [colour], "linewidths": 1.2}
        contour(ax, section, section.of(weight), (0.5,), **style)
    else:
        draw_outline(ax, section, truth, colour if row == "truth" else "white")


def _fullest(
    scan: MetaTensor, truth: NDArray[Any], prediction: NDArray[Any], margin_mm: float
) -> list[Section]:
    """The section of each plane that shows most of all organs of the truth, ``(K, W, H, D)``."""
    union = np.argwhere((truth | prediction).any(0))
    box = box_around(union.min(0), union.max(0), scan, margin_mm=margin_mm)
    sections = []
    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    for axis, plane in zip((2, 1, 0), planes, strict=True):
        area = truth.sum(tuple(a + 1 for a in range(3) if a != axis))
        sections.append(Section(plane, fullest(area), box, scan.pixdim.tolist()))
    return sections


def probability_of(prior: MetaTensor, channels: int) -> NDArray[Any]:
    """Values of a placed prior.

    Raises:
        PriorError: it has not ``channels`` channels in [0, 1].
    """
    if len(prior) != channels:
        raise PriorError(f"`prior` must have {channels} channels, one per organ, got {len(prior)}.")
    low, high = (float(v) for v in prior.aminmax())
    if low < 0 or high > 1:
        raise PriorError(f"`prior` must lie in [0, 1], got [{low:g}, {high:g}].")
    return prior.float().numpy()


def _bin_plane(
    scan: MetaTensor, prior: SpatialPrior, point: torch.Tensor, b: int
) -> NDArray[np.float64]:
    """The voxel coordinates of a bin's middle."""
    height = (b - (prior.bins - 1) / 2) * prior.spacing_mm[2]
    return voxel_of(scan, point + torch.tensor([0, 0, height], dtype=torch.float64))


def _slice_at(scan: MetaTensor, index: float) -> MetaTensor:
    """An empty slice of the scan's grid at a height between its slices."""
    affine = scan.affine.double().clone()
    affine[:3, 3] += affine[:3, 2] * index
    return MetaTensor(torch.zeros(1, *scan.shape[1:3], 1), affine=affine)


def _mm(point: torch.Tensor) -> str:
    return f"({', '.join(f'{v:.0f}' for v in point.tolist())}) mm"
