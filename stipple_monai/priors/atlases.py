"""Priors that the package ships, for those who have few labels of their own, or none.

Atlas
    The priors of several organs that were estimated together, in a folder ``atlases/NAME`` beside
    this module: ``prior_N.nii.gz`` as :meth:`~stipple_monai.priors.SpatialPrior.save` writes
    them, and ``atlas.json``, which names the organs, the sources of the labels and their licences.
    ``benchmarks/make_atlas.py`` makes them anew.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from stipple_monai.errors import PriorError
from stipple_monai.files import read_json
from stipple_monai.priors.folder import load_priors
from stipple_monai.priors.prior import SpatialPrior

_ATLASES = Path(__file__).parent / "atlases"
_SAME = {"esophagus": "oesophagus", "postcava": "inferior vena cava", "ivc": "inferior vena cava"}


def atlas_folder(name: str = "abdomen") -> Path:
    """Where an atlas lies, with its priors and ``atlas.json``.

    Args:
        name: of the atlas.

    Raises:
        PriorError: there is none of this name.

    Example:
        >>> sorted(path.name for path in atlas_folder().glob("*.json"))
        ['atlas.json']
    """
    known = sorted(path.name for path in _ATLASES.iterdir() if (path / "atlas.json").is_file())
    if name not in known:
        raise PriorError(
            f"`name` must be an atlas of the package, {', '.join(known)}, got {name!r}."
        )
    return _ATLASES / name


def atlas(name: str = "abdomen", organs: Mapping[int, str] | None = None) -> list[SpatialPrior]:
    """Priors of an atlas, with their mean offsets to each other.

    ``"abdomen"`` is of thirteen organs in CT labels of 20 patients, its pancreas of 60; what is
    known of sources and licences stands in its ``atlas.json``. Patients lay on their backs; the
    offsets are of adults.

    Args:
        name: of the atlas.
        organs: names of organs by the label values that they have elsewhere, such as ``{1:
            "liver"}``, in the order that is wanted. All of them, with the atlas's own values, where
            ``None``. The order of words does not matter, nor do underscores: ``kidney_right`` is
            ``right kidney``.

    Returns:
        A prior each.

    Raises:
        PriorError: there is no such atlas, or it has none of the organs.

    Example:
        >>> liver, spleen = atlas("abdomen", {1: "liver", 4: "spleen"})
        >>> liver.organ, spleen.organ, spleen.case_count
        (1, 4, 20)
        >>> liver.offset_mm[0] > spleen.offset_mm[0]  # the liver lies on the right
        True
    """
    folder = atlas_folder(name)
    known = {int(value): text for value, text in read_json(folder / "atlas.json")["organs"].items()}
    if organs is None:
        return load_priors(folder, list(known))
    values = {_key(text): value for value, text in known.items()}
    missing = [text for text in organs.values() if _key(text) not in values]
    if missing:
        raise PriorError(
            f"`organs` must be among {', '.join(known.values())}, got {', '.join(missing)}: leave "
            f"out what the atlas {name!r} has not."
        )
    priors = load_priors(folder, [values[_key(text)] for text in organs.values()])
    return [_called(prior, value) for prior, value in zip(priors, organs, strict=True)]


def atlas_has(organ: str, name: str = "abdomen") -> bool:
    """Whether an atlas has a prior of an organ of this name, see :func:`atlas`.

    Example:
        >>> atlas_has("Kidney_Right"), atlas_has("colon")
        (True, False)
    """
    known = read_json(atlas_folder(name) / "atlas.json")["organs"].values()
    return _key(organ) in set(map(_key, known))


def _key(text: str) -> tuple[str, ...]:
    plain = " ".join(text.casefold().replace("_", " ").replace("-", " ").split())
    return tuple(sorted(_SAME.get(plain, plain).split()))


def _called(prior: SpatialPrior, organ: int) -> SpatialPrior:
    """The prior under another label value."""
    called = copy.copy(prior)
    called.organ = organ
    return called
