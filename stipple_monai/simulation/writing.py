"""Sets of generated scans in the layout of the Medical Segmentation Decathlon.

A set's *recipe* is a JSON file with what its cases were made from. A set with the same recipe is
gone on with, any other is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json
from stipple_monai.ownership import begin_set, replace_set

_COMMANDS = "phantom or simulate"


def begin_folder(
    folder: Path,
    recipe: Mapping[str, Any],
    names: Sequence[str],
    *,
    name: str,
    overwrite: bool,
    what: str,
    inputs: Sequence[str | Path] = (),
) -> Path:
    """Find the folder to write a set in: its own, or a part beside it that replaces it at the end.

    Args:
        folder: of the set.
        recipe: of JSON's types.
        names: of the cases' files.
        name: of the recipe, ``folder/NAME.json``.
        overwrite: replace what is there of the set, every case anew, once the new one is whole.
        what: the set is called that in the error.
        inputs: files that are read.

    Raises:
        DatasetError: ``folder`` is a file or holds something else; or a file that is read, or that
            is not the set's, would be replaced.
    """
    path = folder / f"{name}.json"
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"`folder` must be a folder, got the file {folder}.")
    filled = folder.exists() and any(folder.iterdir())
    resumes = not overwrite and _holds(path, recipe)
    if filled and not (resumes or overwrite):
        raise DatasetError(
            f"`folder` must be empty or hold this same {what}, got {folder}, which has other "
            "files. Choose another folder, or replace what is there with --overwrite."
        )
    files = [f"{part}/{case}" for part in ("imagesTr", "labelsTr") for case in names]
    targets = [*files, path.name, "dataset.json"]
    work = begin_set(
        folder,
        targets,
        command=_COMMANDS,
        made_with=recipe,
        inputs=inputs,
        overwrite=overwrite and filled,
    )
    for part in ("imagesTr", "labelsTr"):
        (work / part).mkdir(parents=True, exist_ok=True)
    if not resumes:
        write_json(work / path.name, recipe)
    return work


def end_folder(
    work: Path, folder: Path, names: list[str], labels: Mapping[int, str], **about: str
) -> Path:
    """Write ``dataset.json``, the last file of a set, and put a part in its place.

    Args:
        work: from :func:`begin_folder`.
        folder: of the set.
        names: of the cases' files.
        labels: names of the label values.
        **about: further entries, such as ``description`` and ``licence``.

    Returns:
        Its path.
    """
    content = {
        **about,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in labels.items()},
        "numTraining": len(names),
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
    }
    write_json(work / "dataset.json", content)
    if work != folder:
        replace_set(work, folder, command=_COMMANDS, last="dataset.json")
    return folder / "dataset.json"


def _holds(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a file holds this recipe."""
    try:
        return bool(read_json(path) == json.loads(json.dumps(recipe)))
    except (OSError, ValueError):
        return False
