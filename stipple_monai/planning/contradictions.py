"""Where settings contradict the data that they are meant for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import merged_configs
from stipple_monai.planning.fingerprint import Fingerprint

FACTOR = 10
"""A spacing that is so many times off is in other units, or of other data."""


def read_settings(
    configs: Path, overlays: Sequence[str | Path], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Knobs of train.yaml with overlays and options, as they stand in the files.

    Args:
        configs: the bundle's folder of configs.
        overlays: names or paths of configs.
        options: knobs on top.
    """
    return dict(merged_configs(configs, ["train", *overlays], options or {}).get())


def contradictions(found: Fingerprint, settings: Mapping[str, Any]) -> list[str]:
    """What a person should look at before a training, a sentence each.

    Args:
        found: figures of the data.
        settings: see `read_settings`; expressions are not looked at.

    Example:
        >>> from stipple_monai.planning import example_fingerprint
        >>> contradictions(example_fingerprint(), {"organs": [1, 7]})
        ['No label has organ 7 (labels have 1): leave it out of `organs`.']
    """
    notes = []
    organs = settings.get("organs")
    if isinstance(organs, list):
        notes += _organs(found, organs, settings.get("background_values") or [])
    notes += _window(found, settings)
    spacing = settings.get("spacing_mm")
    if isinstance(spacing, list):
        notes += _spacing(found, spacing)
        size = settings.get("patch_size") or settings.get("slice_size")
        if isinstance(size, list):
            notes += _size(found, spacing, size)
    return notes


def _organs(found: Fingerprint, organs: list[int], background: list[int]) -> list[str]:
    have = ", ".join(map(str, found.organs))
    notes = [
        f"No label has organ {organ} (labels have {have}): leave it out of `organs`."
        for organ in organs
        if organ not in found.organs
    ]
    unknown = [v for v in found.organs if v not in (*organs, *background)]
    if unknown:
        notes.append(
            f"Labels have {', '.join(map(str, unknown))}, which are neither in `organs` nor in "
            "`background_values`: training stops at them."
        )
    return notes


def _window(found: Fingerprint, settings: Mapping[str, Any]) -> list[str]:
    if settings.get("percentiles") is True:
        if found.modality == "CT":
            return ["Scans are CT and `percentiles` is true: HU would be lost, set it to false."]
        return []
    window = settings.get("window_hu")
    if not isinstance(window, list):
        return []
    if found.modality not in ("CT", "unknown"):
        return [
            f"Scans are {found.modality} and `window_hu` is {window} HU: set `percentiles` to true."
        ]
    low, high = found.intensity["p00_5"], found.intensity["p99_5"]
    if not window[0] <= found.intensity["p50"] <= window[1]:
        return [
            f"`window_hu` is {window}, and half of the organs' voxels lie outside it, which have "
            f"{low:g} to {high:g}: are the scans in HU?"
        ]
    return []


def _spacing(found: Fingerprint, spacing: list[float]) -> list[str]:
    return [
        f"`spacing_mm` is {wanted:g} mm along {axis}, {FACTOR} times off the scans' {has:g} mm."
        for axis, wanted, has in zip("RAS", spacing, found.spacing_mm["median"], strict=True)
        if wanted > 0 and not has / FACTOR < wanted < has * FACTOR
    ]


def _size(found: Fingerprint, spacing: list[float], size: list[int]) -> list[str]:
    shape, old = found.shape["greatest"], found.spacing_mm["median"]
    notes = []
    for axis, voxels, n, has, wanted in zip("RAS", size, shape, old, spacing, strict=False):
        there = n * has / (wanted if wanted > 0 else has)
        # up to the next multiple of 32, networks ask for it
        if voxels > there + 32:
            name = "patch_size" if len(size) == 3 else "slice_size"
            notes.append(
                f"`{name}` is {voxels} voxels along {axis}, and the largest scan has {there:.0f}: "
                "the rest would be padding."
            )
    return notes
