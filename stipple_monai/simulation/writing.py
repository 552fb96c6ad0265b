"""Sets of generated scans in the layout of the Medical Segmentation Decathlon.

A set's *recipe* is a JSON file with what its cases were made from. A set with the same recipe is
gone on with, any other is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file


def begin_set(
    folder: Path, recipe: Mapping[str, Any], *, name: str, overwrite: bool, what: str
) -> None:
    """Make the folders of a set, or find those of the same set.

    Args:
        folder: of the set.
        recipe: of JSON's types.
        name: of the recipe, ``folder/NAME.json``, and of the cases, ``NAME_*.nii.gz``.
        overwrite: write into a folder whatever it holds, and every case anew.
        what: the set is called that in the error.

    Raises:
        DatasetError: ``folder`` is a file or holds something else.
    """
    path = folder / f"{name}.json"
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"`folder` must be a folder, got the file {folder}.")
    resumes = not overwrite and path.is_file() and path.read_text(encoding="utf-8") == _text(recipe)
    if not (resumes or overwrite) and folder.exists() and any(folder.iterdir()):
        raise DatasetError(
            f"`folder` must be empty or hold this same {what}, got {folder}, which has other "
            "files. Choose another folder, or write over them with overwrite=True."
        )
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if not resumes:
        # without its datalist and recipe, a set half replaced is not taken for a whole one
        (folder / "dataset.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        for old in folder.glob(f"*sTr/{name}_*.nii.gz"):
            old.unlink()
        write_json(path, recipe)


def end_set(folder: Path, names: list[str], labels: Mapping[int, str], **about: str) -> Path:
    """Write ``dataset.json``, the last file of a set.

    Args:
        folder: of the set.
        names: of the cases' files.
        labels: names of the label values.
        **about: further entries, such as ``description`` and ``licence``.

    Returns:
        Its path.
    """
    path = folder / "dataset.json"
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
    write_json(path, content)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(_text(content), encoding="utf-8")


def write_nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a volume in mm, whole or not at all; the same volume gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with whole_file(path) as part:
        # nibabel puts neither name nor time into the gzip header
        nib.save(image, part)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
