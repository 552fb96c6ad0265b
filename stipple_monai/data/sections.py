"""Which patients train with label, train without, validate and test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.data import partition_dataset

from stipple_monai.data.datalist import Item, files_of_item
from stipple_monai.errors import DatasetError

SCORED = ("validation", "test")
"""Sections whose items need a label."""


def split_datalist(
    items: Iterable[Mapping[str, Any]], *, labelled: int, validation: int, test: int, seed: int
) -> dict[str, list[Item]]:
    """Divide patients into those that train with label, train without, validate and test.

    Patients are drawn uniformly without replacement. For one seed, the test and validation sets
    are the same for any ``labelled``, and fewer labelled patients are a subset of more. The order
    of ``items`` does not matter. Patients with an item that has no label train without.

    Args:
        items: all items.
        labelled: patients in section ``training``.
        validation: patients in section ``validation``.
        test: patients in section ``test``.
        seed: of the draw.

    Returns:
        The sections ``training``, ``unlabelled``, ``validation`` and ``test``. Items of
        ``unlabelled`` have what was their ``label`` under ``truth``.

    Raises:
        ValueError: if ``labelled`` is not positive, or another count is negative.
        DatasetError: if an item has no image, an image comes twice, or there are too few patients.

    Example:
        >>> items = [{"image": f"{i}.nii.gz", "label": f"{i}_seg.nii.gz"} for i in range(9)]
        >>> sections = split_datalist(items, labelled=2, validation=1, test=2, seed=0)
        >>> {name: len(section) for name, section in sections.items()}
        {'training': 2, 'unlabelled': 4, 'validation': 1, 'test': 2}
        >>> sorted(sections["unlabelled"][0])
        ['image', 'truth']
    """
    if labelled < 1 or validation < 0 or test < 0:
        raise ValueError(
            "`labelled` must be at least 1, `validation` and `test` at least 0, "
            f"got {labelled}, {validation} and {test}."
        )
    patients = _by_patient(items)
    annotated = [
        name for name in sorted(patients) if all("label" in item for item in patients[name])
    ]
    rest = len(annotated) - labelled - validation - test
    if rest < 0:
        raise DatasetError(
            f"`items` must hold at least {labelled} + {validation} + {test} patients with labels, "
            f"got {len(annotated)}. Ask for fewer."
        )
    # whole numbers that add up to the number of patients are kept by the rounding of ratios;
    # `labelled` comes after the held-out sets, so that it changes neither of them
    held_out, tuned, taught, untaught = partition_dataset(
        annotated, ratios=[test, validation, labelled, rest], shuffle=True, seed=seed
    )
    untaught += [name for name in sorted(patients) if name not in set(annotated)]
    drawn = {"training": taught, "unlabelled": untaught, "validation": tuned, "test": held_out}
    sections = {
        section: [item for name in names for item in patients[name]]
        for section, names in drawn.items()
    }
    for item in sections["unlabelled"]:
        if "label" in item:
            item["truth"] = item.pop("label")
    return sections


def keep_sections(
    drawn: Mapping[str, Sequence[Item]], there: Mapping[str, Sequence[Item]]
) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """Put the items that a datalist has already in its sections before those drawn for them.

    Args:
        drawn: see :func:`split_datalist`.
        there: other sections of the datalist.

    Returns:
        Sections and what is left out, which are those of ``there`` that are none of ``drawn``, and
        items to validate and test on that have no label.

    Raises:
        DatasetError: a patient would be in two sections.

    Example:
        >>> there = {"unlabelled": [{"image": "u.nii.gz"}], "test": [{"image": "t.nii.gz"}]}
        >>> sections, left = keep_sections({"training": [], "unlabelled": [], "test": []}, there)
        >>> sections["unlabelled"], left
        ([{'image': 'u.nii.gz'}], {'test without label': [{'image': 't.nii.gz'}]})
    """
    left = {name: list(items) for name, items in there.items() if name not in drawn}
    sections = {}
    for name, items in drawn.items():
        bare = [item for item in there.get(name, []) if name in SCORED and "label" not in item]
        left[f"{name} without label"] = bare
        sections[name] = [*(item for item in there.get(name, []) if item not in bare), *items]
    owner: dict[str, str] = {}
    for name, items in sections.items():
        for item in items:
            first = owner.setdefault(patient_of(item), name)
            if first != name:
                raise DatasetError(
                    f"A patient must be in one section, got {patient_of(item)} in {first!r} and in "
                    f"{name!r}: draw from a datalist without these sections, or take the patient "
                    "out."
                )
    return sections, {name: items for name, items in left.items() if items}


def _by_patient(items: Iterable[Mapping[str, Any]]) -> dict[str, list[Item]]:
    patients: dict[str, list[Item]] = {}
    images = set()
    for item in items:
        if "image" not in item:
            raise DatasetError(f'`items` must all have an "image", got {dict(item)}.')
        # links and spellings of a path are one scan
        named = files_of_item(item, ("image",))
        image = tuple(os.path.realpath(file) for file in map(str, named))
        if image in images:
            raise DatasetError(f"`items` must not have an image twice, got {item['image']} again.")
        images.add(image)
        patients.setdefault(patient_of(item), []).append(dict(item))
    return patients


def patient_of(item: Mapping[str, Any]) -> str:
    """Whose scan an item is: its ``patient``, or else its image."""
    return patient_name(item) or str(item["image"])


def patient_name(item: Mapping[str, Any]) -> str:
    """An item's ``patient`` as text, empty where it is absent, null or blank.

    Example:
        >>> [patient_name({"patient": told}) for told in (7, 7.0, "7 ", " ", None)]
        ['7', '7', '7', '', '']
    """
    told = item.get("patient")
    if isinstance(told, float) and told.is_integer():
        told = int(told)
    return "" if told is None else str(told).strip()
