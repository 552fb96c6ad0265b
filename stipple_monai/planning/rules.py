"""What follows from a data set's figures: pure functions, each with its value and why.

The rules are nnU-Net's where it has one (Isensee et al., Nature Methods 2021): spacing by the
median, 3D unless slices are more than three times as thick as voxels are wide, CT by the
intensities of the organs' voxels, any other modality by each scan's own, levels until a map is
eight voxels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stipple_monai.bundle import part_of
from stipple_monai.label_values import IGNORED
from stipple_monai.planning.fingerprint import Fingerprint
from stipple_monai.priors import ONE_LABEL_MM

THICKEST = 3
"""Slices that are so many times as thick as voxels are wide are segmented one by one."""
FEWEST_SLICES = 24
LARGEST_SLICE = {"cuda": 512, "cpu": 160}
LARGEST_PATCH = {"cuda": 160 * 160 * 64, "cpu": 64 * 64 * 32}
STEPS = {"cuda": (1000, 5000, 25000), "cpu": (300, 1200, 6000)}
"""For each labelled scan, at least, at most."""


class Choice(NamedTuple):
    """A value and the figure that it came from."""

    value: Any
    why: str


def choose_organs(found: Fingerprint) -> Choice:
    """Every value that a label has."""
    missing = "".join(f"; no label has {v} ({name})" for v, name in found.without.items())
    together = ""
    if len(found.organs) > 1:
        together = (
            "; one that is wanted alone is still found together with the others, which help to "
            "place it: choose with `segment --organs`"
        )
    return Choice(list(found.organs), f"every value in {found.labelled} labels{missing}{together}")


def choose_background(found: Fingerprint, organs: Sequence[int]) -> Choice:
    """Values that labels have and nobody wants."""
    others = [value for value in found.organs if value not in organs]
    return Choice(
        others, "label values that are no organ here" if others else "there are no others"
    )


def choose_intensity(found: Fingerprint, *, paper: bool = False) -> dict[str, Choice]:
    """CT in the window of its organs; anything else by each scan's own percentiles."""
    seen = found.intensity
    if found.mixed:
        why = f"{found.modality} have no unit in common: each scan's own 0.5 and 99.5 percentiles"
        return {"percentiles": Choice(True, f"{why}, of each channel")}
    if found.modality != "CT":
        why = f"{found.modality} has no unit: each scan's own 0.5 and 99.5 percentiles"
        return {"percentiles": Choice(True, why)}
    if paper:
        return {
            "percentiles": Choice(False, "CT is in HU"),
            "window_hu": Choice([-160, 300], "the paper's"),
            "mean_hu": Choice(-80, "of 15 slices of Pancreas-CT"),
            "std_hu": Choice(120, "of 15 slices of Pancreas-CT"),
        }
    where = f"of organs' voxels in {found.sampled} scans"
    low, high = (round(seen[name]) for name in ("p00_5", "p99_5"))
    return {
        "percentiles": Choice(False, "CT is in HU"),
        "window_hu": Choice([low, max(high, low + 1)], f"the 0.5 and 99.5 percentiles {where}"),
        "mean_hu": Choice(round(seen["mean"], 1), f"the mean {where}"),
        "std_hu": Choice(max(round(seen["sd"], 1), 1.0), f"the deviation {where}"),
    }


def refuse_window(found: Fingerprint, settings: Mapping[str, Any]) -> None:
    """Stop at one window for channels of several modalities, which would clip some to nothing.

    Args:
        found: figures of the data.
        settings: knobs that are given, or all of train.yaml; an ``intensity`` that does not read
            ``window_hu`` is not looked at.

    Raises:
        ValueError: there is such a window.
    """
    percentiles = settings.get("percentiles", "window_hu" not in settings)
    read = "@window_hu" in str(settings.get("intensity", "@window_hu"))
    if found.mixed and percentiles is False and read:
        raise ValueError(
            f"`window_hu` must not be given for channels of several modalities, got "
            f"{settings.get('window_hu', 'percentiles: false')} for {found.modality}: set "
            "`percentiles` to true, or give an `intensity` that treats each channel by itself. "
            "Where all are CT, name all so in the datalist's `modality`."
        )


def choose_dimensions(found: Fingerprint, *, device: str) -> Choice:
    """3D where slices are thin enough, and many enough, and a GPU is there."""
    x, y, z = found.spacing_mm["median"]
    ratio, slices = z / min(x, y), found.shape["median"][2]
    said = f"slices are {z:.3g} mm apart, {ratio:.2g} times a voxel's width of {min(x, y):.3g} mm"
    if max(x, y) > z * THICKEST:
        return Choice(3, f"the axial plane is the coarse one: {x:.3g} x {y:.3g} x {z:.3g} mm")
    if ratio > THICKEST:
        return Choice(2, f"{said}; above {THICKEST} times they are seen one by one")
    if slices < FEWEST_SLICES:
        return Choice(2, f"a scan has {slices:.0f} slices; below {FEWEST_SLICES} one by one")
    if device == "cpu":
        return Choice(2, f"{said}, thin enough for 3D, but there is no GPU")
    return Choice(3, f"{said}; up to {THICKEST} times they are seen together")


def choose_spacing(found: Fingerprint, dimensions: int, *, device: str) -> Choice:
    """The median; coarser in-plane where a slice would be larger than the device is quick with."""
    x, y, z = found.spacing_mm["median"]
    plane, why = math.sqrt(x * y), f"the median of {found.scans} scans"
    extent = max(n * s for n, s in zip(found.shape["median"][:2], (x, y), strict=True))
    largest = LARGEST_SLICE[device]
    if extent / plane > largest:
        plane = math.ceil(extent / largest * 20) / 20
        why = f"a slice of {extent:.0f} mm in {largest} voxels, the most on this device"
    plane = round(plane, 3)
    along = f"along z the median, {z:.3g} mm" if dimensions == 3 else "slices as they are"
    return Choice([plane, plane, round(z, 3) if dimensions == 3 else -1], f"{why}; {along}")


def choose_channels(size: Sequence[int], dimensions: int, *, device: str, base: int) -> Choice:
    """Twice as many at each level, until a map is eight voxels wide."""
    most = {2: 512, 3: 320}[dimensions] if device == "cuda" else 256
    deepest = 6 if device == "cuda" and dimensions == 2 else 5
    levels = int(math.log2(max(min(size) / 8, 4))) + 1
    levels = max(3 if dimensions == 3 else 2, min(levels, deepest))
    value = [min(base * 2**level, most) for level in range(levels)]
    return Choice(
        value, f"{levels} levels, the coarsest of {min(size) // 2 ** (levels - 1)} voxels"
    )


def choose_size(
    found: Fingerprint, spacing_mm: Sequence[float], dimensions: int, *, device: str
) -> Choice:
    """Voxels of a slice or patch: the median scan, as far as the device is quick with it."""
    whole = _resampled(found, spacing_mm)
    told = " x ".join(f"{n:.0f}" for n in whole[:dimensions])
    size = [max(16, math.ceil(round(n, 3) / 16) * 16) for n in whole[:dimensions]]
    if dimensions == 2:
        size = [min(n, LARGEST_SLICE[device]) for n in size]
        return Choice(size, f"the median slice has {told} voxels")
    while math.prod(size) > LARGEST_PATCH[device]:
        widest = max(range(3), key=lambda axis: (size[axis], -axis))
        size[widest] -= 16
    return Choice(size, f"the median scan has {told} voxels, the largest part that is quick")


def choose_steps(found: Fingerprint, batch: int, *, device: str, epochs: int) -> Choice:
    """Slices or patches of each scan in an epoch, for more steps the more scans there are."""
    each, least, most = STEPS[device]
    steps = min(most, max(least, each * found.labelled))
    share = max(1, math.ceil(steps * batch / (epochs * found.labelled)))
    why = f"{steps} steps for {found.labelled} labelled scans, {epochs} epochs of {batch} a step"
    return Choice(share, why)


def choose_cache(found: Fingerprint, spacing_mm: Sequence[float], memory: int) -> Choice:
    """All scans in memory, or as many as half of it holds."""
    needed = math.prod(_resampled(found, spacing_mm)) * 4 * (found.channels + 1) * found.labelled
    rate = min(1.0, math.floor(memory / 2 / needed * 20) / 20)
    told = f"{needed / 2**30:.2g} of {memory / 2**30:.0f} GiB hold {found.labelled} scans"
    return Choice(rate, told)


def _resampled(found: Fingerprint, spacing_mm: Sequence[float]) -> list[float]:
    """Voxels of the median scan along R, A and S at a spacing; −1 keeps an axis as it is."""
    figures = zip(found.shape["median"], found.spacing_mm["median"], spacing_mm, strict=True)
    return [n * own / (wanted if wanted > 0 else own) for n, own, wanted in figures]


def choose_prior(
    found: Fingerprint, spacing_mm: Sequence[float], organs: Sequence[int]
) -> dict[str, Choice]:
    """A density on the network's grid, whose width follows from the labels that are left out."""
    own = [round(s, 3) for s in found.spacing_mm["median"]]
    plane = [wanted if wanted > 0 else s for wanted, s in zip(spacing_mm[:2], own, strict=False)]
    counts = [found.cases[organ] for organ in organs]
    least, most = min(counts), max(counts)
    cases = f"{least} labels" if least == most else f"{least} to {most} labels"
    width = f"each organ's width by the likelihood of its {cases}, each left out in turn"
    if most == 1:
        width = f"an organ has one label, which cannot be left out: {ONE_LABEL_MM:g} mm"
    elif least == 1:
        width += f"; {ONE_LABEL_MM:g} mm for an organ of one label"
    return {
        "prior_spacing_mm": Choice([*plane, own[2]], "the network's grid, and slices as they are"),
        "bins": Choice(None, "a density and no histogram, in whose bins few labels are rough"),
        "smoothing_mm": Choice("auto", width),
        "center": Choice("groupwise", "where the labels overlap best: a prediction has other tips"),
        "prior_dropout": Choice(
            0.0, "the network sees the prior, and learns what the prior does not know"
        ),
    }


def refuse_ignored(found: Fingerprint, organs: Sequence[int]) -> None:
    """Stop at organs that no label has, or that are not counted.

    Raises:
        ValueError: there is one.
    """
    wrong = [value for value in organs if value not in found.organs]
    if wrong or not organs:
        raise ValueError(
            f"`organs` must be values that labels have, {list(found.organs)} ({IGNORED} is "
            f"ignored), got {list(organs)}: leave the others out."
        )


def refuse_nested(given: Iterable[str]) -> None:
    """Stop at knobs within a part of a config: a plan lies over configs that lack that part.

    Raises:
        ValueError: there is one.
    """
    nested = [knob for knob in given if part_of(knob) != knob]
    if nested:
        raise ValueError(
            f"A plan must have whole knobs, got {', '.join(nested)}: give that to the command that "
            "trains."
        )


def told_organs(names: Mapping[int, str], organs: Sequence[int]) -> Choice:
    """Names of the organs in their order."""
    return Choice([names[value] for value in organs], "the datalist's names")
