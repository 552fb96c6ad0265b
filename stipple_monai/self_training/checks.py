"""What can be found wrong with a self-training before its first network is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stipple_monai.bundle import load_weights, refuse_given
from stipple_monai.data import files_of_item, read_sections, stem_of
from stipple_monai.errors import DatasetError
from stipple_monai.ownership import (
    begun_with,
    contradictions,
    keep_settings,
    refuse_contradictions,
    refuse_foreign,
)
from stipple_monai.progress import follow
from stipple_monai.pseudo_labels import select_certain, select_top_k
from stipple_monai.self_training.quality import known_truth
from stipple_monai.training import PLAN, refuse_edited_plan
from stipple_monai.transforms import CheckScand, LoadScand

GIVEN = (
    *("bundle_root", "datalist", "models_dir", "output_dir", "locator_checkpoint"),
    *("seed", "resume", "round", "share", "count", "minimum", "components", "selection"),
)
"""Knobs of the configs that follow from the arguments of :func:`self_train`."""

BY_CERTAINTY = {"share": None, "count": None}
"""γ of a round whose pseudo-labels are chosen by certainty, see `select_certain`."""


def round_sections(
    datalist: str | Path, unlabelled: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Sections ``training``, ``unlabelled`` and ``validation``; nothing else takes part."""
    found = read_sections(datalist)
    for name in ("training", *unlabelled):
        if name not in found and name != "unlabelled":
            raise DatasetError(
                f"`datalist` must have the section {name}, {datalist} has {', '.join(found)}."
            )
    training = [item for item in found["training"] if "label" in item]
    if not training:
        raise DatasetError(f"`datalist` must have labelled scans in training, {datalist} has none.")
    rest = [item for item in found["training"] if "label" not in item]
    for name in unlabelled:
        rest += found.get(name, [])
    for item in rest:
        if "label" in item:
            item["truth"] = item.pop("label")
    validation = found.get("validation", [])
    return {"training": training, "unlabelled": rest, "validation": validation}


def check_knobs_of_rounds(
    gammas: Sequence[Mapping[str, Any]],
    selection: Mapping[str, Any],
    organs: int,
    position_with: str,
    options: Mapping[str, Any],
) -> None:
    """Find before the first training what would stop one of the later stages."""
    undecided = torch.full((organs + 1, 1), 1 / (organs + 1))
    for gamma in gammas:
        if gamma == BY_CERTAINTY:
            select_certain(undecided, **selection)
        else:
            select_top_k(undecided, **gamma, **selection)
    if position_with not in ("newest", "first") and not Path(position_with).is_file():
        raise DatasetError(
            f'`position_with` must be "newest", "first" or a file of weights, got {position_with}.'
        )
    refuse_given(options, GIVEN)


def locator_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of the backbone alone, which are inside those of a network with prior."""
    state = load_weights(path)
    state.pop("calibration", None)
    if all(key.startswith("network.") for key in state):
        return {key.removeprefix("network."): value for key, value in state.items()}
    return state


def check_unlabelled(
    items: Sequence[Mapping[str, Any]],
    channels: int,
    datalist: str | Path,
    *,
    organs: Sequence[int],
    background: Sequence[int] = (),
) -> None:
    """Find before the first training what would stop the labelling of a scan after it.

    Raises:
        DatasetError: there is no scan, one or its truth cannot be read, or two have one name.
    """
    if not items:
        raise DatasetError(
            f"`datalist` must have unlabelled scans for the rounds, {datalist} has none in its "
            "unlabelled sections or without label in training."
        )
    load, check = (
        LoadScand("image", ensure_channel_first=True),
        CheckScand("image", channels=channels),
    )
    seen: dict[str, str] = {}
    for item in follow(items, "check the unlabelled scans", unit="scan"):
        first = files_of_item(item, ("image",))[0]
        other = seen.setdefault(stem_of(Path(first)).casefold(), first)
        if other != first:
            raise DatasetError(
                f"`datalist` must give its unlabelled scans different file names, got {other} and "
                f"{first}: rename one."
            )
        scan = check(load({"image": item["image"]}))["image"]
        known_truth(item, scan, organs, background)


def remember_rounds(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings that contradict the rounds that are there; further rounds do not.

    Raises:
        DatasetError: they do, or a plan of the folder has changed, or the folder was not begun and
            has rounds.
    """
    before, asked = begun_with(path), json.loads(json.dumps(settings))
    if before is None:
        rounds = sorted(path.parent.glob("round_*"))
        tables = [path.parent / name for name in ("rounds.csv", "comparison.csv")]
        refuse_foreign(path.parent, [*rounds, *tables])
        return keep_settings(path, asked)
    plan = path.parent / PLAN
    if str(plan) in map(os.path.abspath, asked["overlays"][0]):
        # it is among the configs below, which say no more than that it differs
        for models in ("models.part", "models"):
            refuse_edited_plan(plan, path.parent / "round_0" / models)
    gammas = asked.pop("gammas")
    other = contradictions(before, asked)
    fewer, more = sorted((before["gammas"], gammas), key=len)
    if more[: len(fewer)] != fewer:
        other.append("shares or counts")
    refuse_contradictions(path, other)
    return keep_settings(path, {**before, **asked, "gammas": more})
