"""What a folder of weights is told of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import Model, read_model, write_model
from stipple_monai.data import label_names
from stipple_monai.errors import DatasetError
from stipple_monai.handlers import versions
from stipple_monai.planning import Fingerprint, read_settings, take_fingerprint


def describe(
    models: str | Path,
    datalist: str | Path,
    *,
    configs: Path,
    overlays: Sequence[str | Path] = (),
    train_overlays: Sequence[str | Path] = (),
    knobs: Mapping[str, Any] | None = None,
    found: Fingerprint | None = None,
    like: str | Path | None = None,
) -> Model:
    """Tell a folder of weights its organs, settings and what its training scans were.

    Args:
        models: the folder.
        datalist: of the training; its ``labels`` name the organs.
        configs: the bundle's folder of configs.
        overlays: configs that inference needs.
        train_overlays: further ones of the training.
        knobs: of the configs.
        found: figures of the data; taken if None, and left out where scans are of a kind that
            only MONAI's readers know.
        like: a folder that was told of the same scans.
    """
    settings = read_settings(configs, [*overlays, *train_overlays], knobs)
    # a default of the training that the fusion must know, whatever the default is then
    knobs = {**(knobs or {}), "prior_dropout": settings["prior_dropout"]}
    organs, names = settings["organs"], label_names(datalist)
    if like is not None:
        facts = read_model(like).training
    else:
        facts = found.facts() if found is not None else _facts(datalist)
    return write_model(
        models,
        configs,
        organs={value: names.get(value, f"organ {value}") for value in organs},
        overlays=overlays,
        knobs=knobs,
        versions=versions(),
        training=facts,
    )


def _facts(datalist: str | Path) -> dict[str, Any]:
    try:
        return take_fingerprint(datalist, progress=False).facts()
    except DatasetError:
        return {}
