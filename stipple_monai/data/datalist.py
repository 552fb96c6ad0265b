"""Datalists: which scans there are, and which of them train, validate and test.

A *datalist* is a JSON file in the style of the Medical Segmentation Decathlon: an object whose
lists of items are its *sections*, and whose other entries are metadata. An *item* is an object
with a path, or a list of paths, under ``image``, mostly one under ``label``, and whatever else
belongs to the scan. A *patient* is what items share under ``patient``; an item without that key
is a patient of its own. Items without a label may keep one under ``truth``: nothing trains on it,
but pseudo-labels can be scored by it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json

Item = dict[str, Any]

PATH_KEYS = ("image", "label", "truth")
"""The keys of an item whose values are paths."""


def files_of_item(item: Mapping[str, Any], path_keys: Sequence[str] = PATH_KEYS) -> list[str]:
    """All files that an item names."""
    return [file for key in path_keys for file in _listed(item.get(key, []))]


def first_file(image: str | Sequence[str]) -> str:
    """The file by which MONAI knows an image of one or of several files."""
    return image if isinstance(image, str) else image[0]


def read_datalist(
    path: str | Path | Sequence[str | Mapping[str, Any]],
    section: str,
    *,
    base_dir: str | Path | None = None,
    path_keys: Sequence[str] = PATH_KEYS,
    optional: bool = False,
) -> list[Item]:
    """Read the items of one section, with absolute paths to files that exist.

    For ``image`` and ``label`` the result is that of MONAI's ``load_decathlon_datalist``. Unlike
    there, any section may list bare image paths, every file is looked for, and a value under any
    other key stays as it is; there, a string turns into a path if a file happens to have that
    name, and a missing file is not noticed.

    Args:
        path: the datalist; or, as bundles of the model zoo and 3D Slicer have it, the scans
            themselves: a list of image paths or items, which is then every section.
        section: which one to read.
        base_dir: what paths are relative to; the datalist's folder if None, the current one for a
            list of scans.
        path_keys: keys of an item that hold a path or a list of paths.
        optional: return no items, rather than raise, for a section that is missing or empty.

    Returns:
        The items, in the order of the file.

    Raises:
        DatasetError: if the datalist is missing, not JSON or not an object; if the section is
            missing, empty or not a list of items with an ``image``; if a file of it does not
            exist; or if an image is in two sections.
    """
    if isinstance(path, str | Path):
        path = Path(path)
        base = str(path.parent if base_dir is None else base_dir)
        content = read_content(path)
    else:
        content, base = {section: list(path)}, str(base_dir or Path.cwd())
        path = Path("the list of scans")
    _refuse_nnunet(content, path)
    named = {name: value for name, value in content.items() if isinstance(value, list)}
    if optional and not named.get(section):
        return []
    if section not in named:
        present = ", ".join(named) or "none"
        raise DatasetError(f"`section` must be in {path}, got {section!r}. There: {present}.")
    if not named[section]:
        raise DatasetError(f"`section` must have items, got {section!r} of {path}, an empty list.")
    items = _items(named[section], base, section, path, path_keys)
    _refuse_shared_images(named, base, path)
    return items


def _items(
    entries: Sequence[Any],
    base: str,
    section: str,
    path: Path,
    path_keys: Sequence[str] = PATH_KEYS,
) -> list[Item]:
    """The items of a section, see :func:`_with_paths`."""
    return [
        _with_paths(entry, base, path_keys, place=f"{index} of {section!r} in {path}")
        for index, entry in enumerate(entries)
    ]


def _with_paths(entry: Any, base: str, path_keys: Sequence[str], *, place: str) -> Item:
    """An item with absolute paths to files that exist."""
    item = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(item, dict) or not item.get("image"):
        raise DatasetError(f'Items must have an "image", got {entry} as item {place}.')
    for key in path_keys:
        if not all(isinstance(file, str) for file in _listed(item.get(key, ""))):
            raise DatasetError(
                f"`{key}` must be a path or a list of paths, got {item[key]!r} in item {place}."
            )
        if "" in _listed(item.get(key, [])):
            raise DatasetError(
                f"`{key}` must be a path, got an empty one in item {place}: leave the key out."
            )
    item = {**item, **{k: _absolute(item[k], base) for k in path_keys if k in item}}
    for key in path_keys:
        for file in _listed(item.get(key, [])):
            if not os.path.exists(file):
                raise DatasetError(
                    f"`{key}` must be a file that exists, got {file} in item {place}. Paths are "
                    f"relative to {base}."
                )
    return item


def read_sections(path: str | Path, *, base_dir: str | Path | None = None) -> dict[str, list[Item]]:
    """Read all sections of a datalist, see :func:`read_datalist`; an empty one stays empty."""
    path = Path(path)
    content = read_content(path)
    _refuse_nnunet(content, path)
    base = str(path.parent if base_dir is None else base_dir)
    named = {name: value for name, value in content.items() if isinstance(value, list)}
    sections = {name: _items(entries, base, name, path) for name, entries in named.items()}
    _refuse_shared_images(named, base, path)
    return sections


def write_datalist(
    path: str | Path,
    sections: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    metadata: Mapping[str, Any] | None = None,
    path_keys: Sequence[str] = PATH_KEYS,
) -> None:
    """Write a datalist that is there either whole or not at all.

    Paths to files below the datalist's folder are written relative to it, others as absolute.

    Args:
        path: where to write; the folder is made if need be.
        sections: items by section. Relative paths are taken from the current directory. Arrays
            and tensors become lists.
        metadata: further entries of the file, such as ``labels``.
        path_keys: keys of an item that hold a path or a list of paths.

    Raises:
        ValueError: if ``metadata`` has the name of a section.
        TypeError: if something is not JSON, array, tensor or path.
    """
    path = Path(path)
    shared = sorted(set(metadata or {}) & set(sections))
    if shared:
        raise ValueError(f"`metadata` must not have the name of a section, got {shared}.")
    folder = os.path.abspath(path.parent)
    content = dict(metadata or {})
    for name, items in sections.items():
        content[name] = [
            {key: _relative_paths(v, folder) if key in path_keys else v for key, v in item.items()}
            for item in items
        ]
    write_json(path, content, default=_plain)


def label_names(datalist: str | Path) -> dict[int, str]:
    """Names of the label values in a datalist's ``labels``, which may be the wrong way round.

    MSD has ``{"1": "pancreas"}``, nnU-Net ``{"pancreas": 1}`` and, for regions, ``{"whole": [1,
    2]}``; without ``labels`` it is empty. A value that is called ``ignore`` has no name.
    """
    content = read_content(Path(datalist))
    labels, ignored = content.get("labels", {}), ignored_value(content)
    pairs = labels.items() if isinstance(labels, dict) else []
    straight = {int(k): str(v) for k, v in pairs if str(k).isdecimal()}
    named = straight or _names_of_regions({str(k): v for k, v in pairs})
    return {value: name for value, name in named.items() if value != ignored}


def ignored_value(content: Mapping[str, Any]) -> int | None:
    """The label value that a datalist calls ``ignore``, as nnU-Net has it: not annotated.

    Example:
        >>> ignored_value({"labels": {"background": 0, "pancreas": 1, "ignore": 2}})
        2
    """
    labels = content.get("labels", {})
    for key, value in labels.items() if isinstance(labels, dict) else []:
        if str(key).casefold() == "ignore" and type(value) is int:
            return value
        if str(value).casefold() == "ignore" and str(key).isdecimal():
            return int(key)
    return None


def _names_of_regions(labels: Mapping[str, Any]) -> dict[int, str]:
    """Names of values from nnU-Net's labels, of which one may be a region of several values.

    A value is called as the smallest region that has it, *without* those within.
    """
    regions = {
        name: {v for v in (values if isinstance(values, list) else [values]) if type(v) is int}
        for name, values in labels.items()
    }
    found = {}
    for value in sorted(set().union(*regions.values())):
        having = sorted((len(vs), name) for name, vs in regions.items() if value in vs)
        name = having[0][1]
        within = [n for n, vs in regions.items() if vs < regions[name]]
        found[value] = f"{name} without {', '.join(within)}" if within else name
    return found


def read_content(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DatasetError: the file is missing, not JSON or no object.
    """
    if not path.is_file():
        raise DatasetError(f"`path` must be a datalist, got {path}, which is {_not_a_file(path)}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise DatasetError(f"`path` must be JSON, got {path}: {error}.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"`path` must hold a JSON object, got {path}: a {type(content)}.")
    return content


def _refuse_nnunet(content: Mapping[str, Any], path: Path) -> None:
    if "numTraining" in content and not any(isinstance(v, list) for v in content.values()):
        raise DatasetError(
            f"`path` must be a datalist, got {path}, which is nnU-Net's and lists no scans: run "
            "`ingest` on its folder first."
        )


def _not_a_file(path: Path) -> str:
    """What a path is that is no file, and what to do about it."""
    if not path.is_dir():
        return "no file."
    inside = path / "dataset.json"
    if inside.is_file() and any(isinstance(v, list) for v in read_content(inside).values()):
        return "a folder: give its dataset.json."
    return "a folder: run `ingest` on it first, if it has scans and labels."


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _absolute(value: Any, base: str) -> Any:
    if isinstance(value, list):
        return [_absolute(element, base) for element in value]
    return os.path.abspath(os.path.join(base, value))


def _relative_paths(value: Any, folder: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_relative_paths(element, folder) for element in value]
    absolute = os.path.abspath(value)
    if Path(absolute).is_relative_to(folder):
        return Path(absolute).relative_to(folder).as_posix()
    return absolute


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"`sections` must hold JSON, arrays, tensors and paths, got {type(value)}.")


def _refuse_shared_images(named: Mapping[str, list[Any]], base: str, path: Path) -> None:
    owner: dict[str, tuple[str, int]] = {}
    for section, entries in named.items():
        for number, entry in enumerate(entries):
            image = entry.get("image", []) if isinstance(entry, dict) else entry
            for file in _listed(image):
                if not isinstance(file, str):
                    continue
                # links and spellings of a path are one scan
                here = section, number
                first = owner.setdefault(os.path.realpath(_absolute(file, base)), here)
                if first[0] != section:
                    raise DatasetError(
                        f"Sections must not share images, got {file} in {first[0]!r} and in "
                        f"{section!r} of {path}. Split patients anew."
                    )
                if first != here:
                    raise DatasetError(
                        f"Sections must have an image once, got {file} twice in {section!r} of "
                        f"{path}: remove one."
                    )
