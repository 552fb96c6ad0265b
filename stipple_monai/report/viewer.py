"""Viewers for a page: a scan on three planes, with truth, prediction and priors as layers.

Everything is drawn in radiological convention and with the proportions that it has in mm, from the
scan turned to RAS axes. A slice is a WebP picture of at most :data:`MOST_PIXELS` a side; layers are
transparent PNG that follow the edges of the voxels.

The slices that matter, in each plane: the one that shows most of all organs of the truth (of the
prediction, where there is no truth): the sum, over organs, of its area as a share of the organ's
largest area in that plane is greatest. Where there are both, also the one with most voxels that
only one of them has. Without either, the slice through the first position, or the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image

from stipple_monai.files import whole_file
from stipple_monai.label_values import IGNORED
from stipple_monai.priors import SpatialPrior
from stipple_monai.report.layers import decoded, enlarged, label_layer, prior_layer, uri
from stipple_monai.report.page import Mark, PlaneView, Slice, Viewer
from stipple_monai.visualize import (
    Plane,
    Section,
    Window,
    fullest,
    on_one_grid,
    organ_colours,
    voxel_of,
    window_for,
)

MOST_PIXELS = 256
"""Of a side of a slice's picture."""

MOST_SLICES = 96
"""Of a plane that can be scrolled through; of more, every second, third … is kept."""

_LAYER_PIXELS = 448
_QUALITY = 60
_PLANES: tuple[tuple[Plane, int, str, str], ...] = (
    ("axial", 2, "S", "RLAP"),
    ("coronal", 1, "A", "RLSI"),
    ("sagittal", 0, "R", "APSI"),
)
_LOOKS = {
    "prediction": "filled",
    "prior": "dashed: 0.5, dotted: 0.25",
    "position": "cross",
}


class Placed(NamedTuple):
    """An organ's position in a scan, RAS mm, and its prior, if that is known."""

    position_mm: Sequence[float]
    prior: SpatialPrior | None = None


def make_viewer(
    image: MetaTensor,
    still: Path,
    *,
    title: str,
    organs: Mapping[int, str],
    truth: MetaTensor | None = None,
    prediction: MetaTensor | None = None,
    placed: Mapping[int, Placed] | None = None,
    scroll: bool = True,
    window: Window | None = None,
    caption: str = "",
) -> Viewer:
    """Draw a case.

    Args:
        image: ``(1, W, H, D)``, as the label maps and on one grid.
        still: PNG to write, the three slices that are shown first.
        title: heading.
        organs: names by label value.
        truth: label map.
        prediction: label map.
        placed: of the organs whose position is known.
        scroll: keep all slices, and not those alone that matter.
        window: values that are black and white.
        caption: what is seen, and why this case.

    Raises:
        DatasetError: a volume cannot be used, or two lie on different grids.
        PositionError: a position is not three finite numbers.
    """
    volumes = on_one_grid(image=image, truth=truth, prediction=prediction)
    placed = placed or {}
    shown = {k: placed[k] for k in organs if k in placed}
    scan = volumes["image"]
    case = _Case(
        scan,
        {k: volumes[k][0].numpy() for k in ("truth", "prediction") if k in volumes},
        _placed_chances(scan, list(shown.items())),
        {k: voxel_of(scan, one.position_mm) for k, one in shown.items()},
        window_for([scan[0].numpy()], window),
        organs,
    )
    views = [_view(case, *plane, scroll=scroll) for plane in _PLANES]
    _write_still(still, views)
    names = [
        *case.labels,
        *(["prior"] if case.contours else []),
        *(["position"] if case.points else []),
    ]
    legend = [(case.colours[k], name) for k, name in organs.items()]
    looks = {**_LOOKS, "truth": "white line" if len(case.labels) > 1 else "line"}
    return Viewer(title, caption, views, [(n, looks[n]) for n in names], legend, still)


class _Case(NamedTuple):
    """What is drawn: volumes ``(W, H, D)``, priors in 0 … 254, positions as voxels."""

    scan: MetaTensor
    labels: Mapping[str, NDArray[Any]]
    contours: Mapping[int, NDArray[np.uint8]]
    points: Mapping[int, NDArray[Any]]
    window: Window
    organs: Mapping[int, str]

    @property
    def colours(self) -> dict[int, str]:
        return dict(zip(self.organs, organ_colours(len(self.organs)), strict=True))


def _view(
    case: _Case, plane: Plane, axis: int, letter: str, sides: str, *, scroll: bool
) -> PlaneView:
    """A plane's slices, those that matter and where positions lie in them."""
    scan, organs, colours = case.scan, list(case.organs), case.colours
    keys = _keys(case.labels, organs, axis)
    inside = {k: p for k, p in case.points.items() if _is_inside(p, scan)}
    if inside:
        keys["position"] = round(float(next(iter(inside.values()))[axis]))
    keys = keys or {"middle": scan.shape[axis + 1] // 2}
    kept = _kept(scan.shape[axis + 1], keys.values(), scroll=scroll)
    w, h, d = (slice(0, n) for n in scan.shape[1:])
    sections = [Section(plane, i, (w, h, d), scan.pixdim.tolist()) for i in kept]
    voxels = scan[0].numpy()
    slices = [
        Slice(
            _slice_caption(letter, s.index, scan, axis),
            _scan_uri(s, voxels, case.window),
            _layers(s, case.labels, case.contours, organs, colours),
        )
        for s in sections
    ]
    marks = [
        _mark(sections, axis, p, colours[k], f"position of {case.organs[k]}")
        for k, p in inside.items()
    ]
    width, height = sections[0].size_mm
    places = {name: kept.index(i) for name, i in keys.items()}
    return PlaneView(plane, width, height, sides, slices, places, marks)


def _is_inside(voxel: NDArray[Any], scan: MetaTensor) -> bool:
    return all(-0.5 <= float(v) < n - 0.5 for v, n in zip(voxel, scan.shape[1:], strict=True))


def _placed_chances(
    scan: MetaTensor, placed: Sequence[tuple[int, Placed]]
) -> dict[int, NDArray[np.uint8]]:
    """By organ, the prior's probability in the scan, 0 to 254, which spares memory."""
    return {
        organ: (254 * prior.place(position, scan)[0].as_tensor()).round().byte().numpy()
        for organ, (position, prior) in placed
        if prior is not None
    }


def _keys(labels: Mapping[str, NDArray[Any]], organs: Sequence[int], axis: int) -> dict[str, int]:
    others = tuple(a for a in range(3) if a != axis)
    keys: dict[str, int] = {}
    if labels:
        first = next(iter(labels.values()))
        areas = np.array([(first == k).sum(others) for k in organs] or [[0]])
        if areas.any():
            keys["largest area"] = fullest(areas)
    if len(labels) == 2:
        one, other = labels.values()
        wrong = np.zeros(one.shape[axis], np.int64)
        known = (one != IGNORED) & (other != IGNORED)
        for k in organs:
            wrong += (((one == k) ^ (other == k)) & known).sum(others)
        if wrong.any():
            keys["largest error"] = int(wrong.argmax())
    return keys


def _kept(length: int, keys: Any, *, scroll: bool) -> list[int]:
    step = -(-length // MOST_SLICES)
    return sorted({*keys, *(range(0, length, step) if scroll else ())})


def _slice_caption(letter: str, index: int, scan: MetaTensor, axis: int) -> str:
    """Number and place of a slice, at the middle of the scan, where it is oblique."""
    voxel = [(n - 1) / 2 for n in scan.shape[1:]]
    voxel[axis] = index
    world = scan.affine.cpu().double() @ torch.tensor([*voxel, 1.0], dtype=torch.float64)
    at = f"{letter} {float(world[axis]):.1f} mm".replace("-", "−")
    return f"slice {index + 1} of {scan.shape[axis + 1]}, {at}"


def _mark(
    sections: Sequence[Section], axis: int, voxel: NDArray[Any], colour: str, text: str
) -> Mark:
    nearest = min(range(len(sections)), key=lambda i: abs(sections[i].index - voxel[axis]))
    (x, y), (width, height) = sections[0].point_mm(voxel), sections[0].size_mm
    return Mark(nearest, 100 * (1 - x / width), 100 * (1 - y / height), colour, text)


def _pixels(section: Section) -> tuple[int, int]:
    """Columns and rows of a slice's picture: square pixels, as fine as the finer voxel side."""
    width, height = section.size_mm
    columns = (section.box[0] if section.plane != "sagittal" else section.box[1]).stop
    rows = (section.box[1] if section.plane == "axial" else section.box[2]).stop
    size = max(min(width / columns, height / rows), max(width, height) / MOST_PIXELS)
    return max(round(width / size), 1), max(round(height / size), 1)


def _cut(section: Section, volume: NDArray[Any]) -> NDArray[Any]:
    """A section with the patient's right (front) on the left and the top above."""
    return section.of(volume)[::-1, ::-1]


def _scan_uri(section: Section, voxels: NDArray[Any], window: Window) -> str:
    low, high = window
    grey = np.clip((_cut(section, voxels) - low) / (high - low), 0, 1)
    picture = Image.fromarray(np.ascontiguousarray((255 * grey).round().astype(np.uint8)))
    picture = picture.resize(_pixels(section), Image.Resampling.BILINEAR)
    return uri(picture, "webp", quality=_QUALITY, method=2)


def _layers(
    section: Section,
    labels: Mapping[str, NDArray[Any]],
    contours: Mapping[int, NDArray[np.uint8]],
    organs: Sequence[int],
    colours: Mapping[int, str],
) -> dict[str, str]:
    columns, rows = _pixels(section)
    finer = max(1, round(_LAYER_PIXELS / max(columns, rows)))
    size = columns * finer, rows * finer
    layers = {}
    for name, label in labels.items():
        here = enlarged(_cut(section, label), size, organs)
        # beside a prediction, which has the organs' colours, the truth is white
        paints = (
            dict.fromkeys(colours, "#FFFFFF") if name == "truth" and len(labels) > 1 else colours
        )
        layers[name] = label_layer(here, organs, paints, filled=name == "prediction")
    if contours:
        cuts = {colours[k]: _cut(section, c) for k, c in contours.items()}
        layers["prior"] = prior_layer(cuts, size)
    return layers


def _write_still(path: Path, views: Sequence[PlaneView]) -> None:
    """The slices that are shown first, side by side on one scale, with all layers."""
    made = []
    for view in views:
        first = view.slices[view.start]
        size = round(2 * view.width_mm), round(2 * view.height_mm)
        picture = decoded(first.image).convert("RGBA").resize(size, Image.Resampling.BILINEAR)
        for source in first.layers.values():
            if source:
                layer = decoded(source).convert("RGBA").resize(size, Image.Resampling.BILINEAR)
                picture.alpha_composite(layer)
        made.append(picture)
    sheet = Image.new("RGB", (sum(p.width + 8 for p in made) - 8, max(p.height for p in made)))
    left = 0
    for picture in made:
        sheet.paste(picture.convert("RGB"), (left, sheet.height - picture.height))
        left += picture.width + 8
    sheet.thumbnail((1200, 1200))
    with whole_file(path) as part:
        sheet.save(part, "png", optimize=True)
