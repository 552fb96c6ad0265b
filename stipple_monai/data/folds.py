"""Folds and nested label proportions, as keys of a datalist's items and as nnU-Net's splits.

Patients are divided, so that scans of one never stand on both sides. An item's ``fold`` is the one
that it is held out in, as in MONAI's Auto3DSeg. Its ``label_proportion`` is the smallest of the
given proportions at which it keeps its label: at 0.25, the items of up to 0.25 do. So fewer labels
are a subset of more, and each union of folds holds about the same share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stipple_monai.data.datalist import Item, first_file
from stipple_monai.data.naming import stem_of
from stipple_monai.data.sections import patient_of
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json


def assign_folds(
    items: Iterable[Mapping[str, Any]],
    *,
    folds: int,
    seed: int,
    proportions: Sequence[float] = (),
    strata: Mapping[str, float | str] | None = None,
) -> list[Item]:
    """Give every labelled item its ``fold`` and, if asked for, its ``label_proportion``.

    The order of the items does not matter, and the folds do not depend on the proportions.
    Patients with an item that has no label get neither key: they are in no fold's test set.

    Args:
        items: of a datalist.
        folds: how many.
        seed: of the draw.
        proportions: of labels, each in (0, 1].
        strata: by image, a number or a class that is to be alike in all folds, such as an organ's
            volume. A patient's is that of the first of its images.

    Returns:
        The items in their order.

    Raises:
        ValueError: ``folds`` is below 2, or a proportion is not in (0, 1].
        DatasetError: there are fewer labelled patients than folds, or a labelled one without
            stratum.

    Example:
        >>> items = [{"image": f"{i}.nii.gz", "label": f"{i}_seg.nii.gz"} for i in range(8)]
        >>> found = assign_folds(items, folds=4, seed=0, proportions=[0.25, 1])
        >>> sorted(item["fold"] for item in found)
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> sum(item["label_proportion"] <= 0.25 for item in found)
        2
    """
    if folds < 2:
        raise ValueError(f"`folds` must be at least 2, got {folds}.")
    wrong = [p for p in proportions if not 0 < p <= 1]
    if wrong:
        raise ValueError(f"`proportions` must lie in (0, 1], got {wrong[0]}: 0.1 is 10 %.")
    divided = [dict(item) for item in items]
    names = [patient_of(item) for item in divided]
    bare = {name for name, item in zip(names, divided, strict=True) if "label" not in item}
    patients = sorted(set(names) - bare)
    if len(patients) < folds:
        raise DatasetError(
            f"`folds` must be at most the number of patients with labels, {len(patients)}, got "
            f"{folds}."
        )
    rng = np.random.default_rng(seed)
    order = [patients[i] for i in rng.permutation(len(patients))]
    if strata is not None:
        first = dict(zip(names[::-1], divided[::-1], strict=True))
        order = _by_stratum(order, {name: str(first[name]["image"]) for name in order}, strata)
    fold_of = _assign(order, folds, rng)
    ranks = _ranks(patients, fold_of, rng)
    for name, item in zip(names, divided, strict=True):
        if name in fold_of:
            item["fold"] = fold_of[name]
            if proportions:
                item["label_proportion"] = _proportion(ranks[name], len(patients), proportions)
    return divided


def _by_stratum(
    order: list[str], images: Mapping[str, str], strata: Mapping[str, float | str]
) -> list[str]:
    missing = [image for image in images.values() if image not in strata]
    if missing:
        raise DatasetError(f"`strata` must have every labelled image, got none for {missing[0]}.")
    values = {name: strata[image] for name, image in images.items()}
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    # a stable sort: equal ones stay in their random order
    return sorted(order, key=lambda n: values[n] if numbers else str(values[n]))


def _assign(order: Sequence[str], folds: int, rng: np.random.Generator) -> dict[str, int]:
    """Each run of as many patients as folds goes to all folds, in a new random order."""
    fold_of = {}
    for start in range(0, len(order), folds):
        drawn = rng.permutation(folds)
        for name, fold in zip(order[start : start + folds], drawn, strict=False):
            fold_of[name] = int(fold)
    return fold_of


def _ranks(
    patients: Sequence[str], fold_of: Mapping[str, int], rng: np.random.Generator
) -> dict[str, int]:
    """A random order of all patients in which each fold's are spread evenly."""
    counts = np.bincount([fold_of[name] for name in patients])
    seen = np.zeros(len(counts))
    places = {}
    for i in rng.permutation(len(patients)):
        fold = fold_of[patients[i]]
        places[patients[i]] = ((seen[fold] + 0.5) / counts[fold], rng.random())
        seen[fold] += 1
    return {name: rank for rank, name in enumerate(sorted(patients, key=places.__getitem__))}


def _proportion(rank: int, count: int, proportions: Sequence[float]) -> float:
    for proportion in sorted(proportions):
        if rank < max(1, math.floor(proportion * count + 0.5)):
            return proportion
    # labelled only where all are
    return 1.0


def fold_sections(
    items: Iterable[Mapping[str, Any]], *, fold: int, proportion: float = 1.0
) -> dict[str, list[Item]]:
    """Who trains with label, who without and who tests, in one fold at one label proportion.

    Args:
        items: with the keys of :func:`assign_folds`.
        fold: the one that is held out.
        proportion: of labels.

    Returns:
        The sections ``training``, ``unlabelled`` (with their labels under ``truth``) and ``test``.
        Scans without label of patients that are tested are in none, since self-training would
        train on them.

    Raises:
        DatasetError: no item has that fold, or none of the others keeps its label.
    """
    sections: dict[str, list[Item]] = {"training": [], "unlabelled": [], "test": []}
    for item in map(dict, items):
        if item.get("fold") == fold:
            sections["test"].append(item)
        elif "fold" in item and item.get("label_proportion", proportion) <= proportion:
            sections["training"].append(item)
        else:
            if "label" in item:
                item["truth"] = item.pop("label")
            sections["unlabelled"].append(item)
    tested = {patient_of(item) for item in sections["test"]}
    sections["unlabelled"] = [i for i in sections["unlabelled"] if patient_of(i) not in tested]
    if not sections["test"] or not sections["training"]:
        raise DatasetError(
            f"`fold` must have items, and others must keep labels at {proportion:g}, got fold "
            f"{fold} with {len(sections['test'])} and {len(sections['training'])}: divide the "
            "datalist with split --folds first."
        )
    return sections


def sections_of_fold(
    there: Mapping[str, Sequence[Item]], section: str, *, fold: int, proportion: float = 1.0
) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """One fold of a datalist, see :func:`fold_sections`, and what of the datalist it leaves out.

    Args:
        there: sections of the datalist.
        section: that is divided; ``unlabelled`` is taken with it.
        fold: the one that is held out.
        proportion: of labels.

    Returns:
        The sections, and the items that are in none. Those are what else the datalist had to
        validate and test on, and scans without label of patients that are tested.

    Raises:
        DatasetError: see :func:`fold_sections`.
    """
    taken = dict.fromkeys((section, "unlabelled"))
    items = [item for name in taken for item in there.get(name, [])]
    sections = fold_sections(items, fold=fold, proportion=proportion)
    kept = {str(item["image"]) for found in sections.values() for item in found}
    left = {name: list(found) for name, found in there.items() if name not in taken}
    gone = [item for item in items if str(item["image"]) not in kept]
    return sections, {"unlabelled scans of patients to test": gone, **left}


def write_nnunet_splits(path: str | Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write the folds as nnU-Net's ``splits_final.json``, whole or not at all.

    It is a list of ``{"train": [...], "val": [...]}`` with the names of the cases, for
    ``nnUNet_preprocessed/Dataset501_NAME``.

    Args:
        path: of the file.
        items: with the key ``fold``; others are left out.

    Raises:
        DatasetError: no item has a fold, or two have one name.
    """
    fold_of: dict[str, int] = {}
    for item in items:
        if "fold" in item:
            name = case_name(item)
            if name in fold_of:
                raise DatasetError(
                    f"nnU-Net's cases must have names of their own, got {name} twice."
                )
            fold_of[name] = int(item["fold"])
    if not fold_of:
        raise DatasetError("`items` must have a fold, got none: divide them first.")
    splits = [
        {
            "train": sorted(name for name, other in fold_of.items() if other != fold),
            "val": sorted(name for name, other in fold_of.items() if other == fold),
        }
        for fold in range(max(fold_of.values()) + 1)
    ]
    write_json(path, splits)


def read_nnunet_splits(path: str | Path, items: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Give the items the folds of an nnU-Net ``splits_final.json``.

    Args:
        path: of the file.
        items: whose images are called as nnU-Net's cases; those that it does not name get no fold.

    Raises:
        DatasetError: it is not such a file, a case is held out twice, or none is an item's.
    """
    path = Path(path)
    try:
        splits = read_json(path)
        held_out = [(name, fold) for fold, split in enumerate(splits) for name in split["val"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"`path` must be nnU-Net's splits_final.json, a list of train and val, got {path}."
        ) from error
    fold_of: dict[str, int] = {}
    for name, fold in held_out:
        if fold_of.setdefault(name, fold) != fold:
            raise DatasetError(
                f"A case must be held out in one fold, got {name} in {fold_of[name]} and {fold} of "
                f"{path}."
            )
    # folds that it had before are not those of the file
    divided = [{key: v for key, v in item.items() if key != "fold"} for item in items]
    for item in divided:
        if case_name(item) in fold_of:
            item["fold"] = fold_of[case_name(item)]
    if not any("fold" in item for item in divided):
        raise DatasetError(
            f"`path` must name cases of the datalist, got others in {path}, such as "
            f"{next(iter(fold_of), 'none at all')}."
        )
    return divided


def case_name(item: Mapping[str, Any]) -> str:
    """What nnU-Net would call an item: its image's file name without ending and channel.

    Example:
        >>> case_name({"image": ["a/liver_7_0000.nii.gz", "a/liver_7_0001.nii.gz"]})
        'liver_7'
    """
    several = not isinstance(item["image"], str)
    name = stem_of(Path(first_file(item["image"])))
    return name.removesuffix("_0000") if several else name
