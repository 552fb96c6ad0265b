"""A trained bundle in the layout of the MONAI model zoo, ready to be handed on.

``NAME/``::

    LICENSE                 of the bundle
    configs/                metadata.json, logging.conf, train.yaml, inference.yaml, its overlays,
                            and inference.json, which 3D Slicer asks for
    docs/                   README.md, data_license.txt
    models/                 model.pt, prior_ORGAN.nii.gz, and calibration.json if it was fitted
    large_files.yml         where the files are that are too large for git, and their checksums
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from stipple_monai.bundle.configs import BUNDLE, as_written, config_path, configs_of, part_of
from stipple_monai.bundle.knobs import check_knobs
from stipple_monai.bundle.model_folder import (
    CALIBRATION,
    MODEL,
    WEIGHTS,
    check_weights,
    read_model,
    trained_knobs,
    weights_folder,
)
from stipple_monai.bundle.weights import load_weights, reason
from stipple_monai.errors import DatasetError
from stipple_monai.files import new_folder, sha256

LARGEST_FILE_BYTES = 25 * 1024**2
"""The model zoo takes no larger file into git."""

SETTLED = ("prior", "train", "inference")
"""The configs into which overlays and knobs are written."""

_FOLDERS = ("models_dir", "output_dir")


def publish_bundle(
    out: str | Path,
    *,
    models: str | Path,
    bundle: str | Path = BUNDLE,
    overlays: Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
    url: str | None = None,
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> Path:
    """Write a bundle with its weights that runs as it stands, without overlays or knobs.

    Args:
        out: the folder to write, whole or not at all; its name is the bundle's. It must not exist.
        models: folder with ``model.pt`` and the priors. Of the rest only ``calibration.json`` is
            handed on: ``provenance.json`` has paths of the place where it was trained.
        bundle: the bundle that is handed on.
        overlays: those that the network was trained with, names in its configs or paths, where
            ``models`` does not know them itself. They and
            ``options`` are merged into train.yaml, inference.yaml and prior.yaml.
        options: knobs that it was trained with, such as ``{"channels": [16, 32, 64]}``.
        url: where the files above ``largest_file_bytes`` will be found, each under its path in the
            bundle; they are then left out, and listed in ``large_files.yml``. None keeps them in
            the folder, as Hugging Face wants it.
        largest_file_bytes: that the receiver takes.

    Returns:
        ``out``.

    Raises:
        DatasetError: weights or priors are missing, cannot be loaded safely or do not fit, or
            ``bundle`` is not the bundle's folder.
        FileExistsError: ``out`` exists.
        ValueError: an option is no knob of the configs.
    """
    out, models, configs = Path(out), weights_folder(models), configs_of(bundle)
    weights = models / WEIGHTS
    check_weights(models)
    if next(models.glob("prior_*.nii.gz"), None) is None:
        raise DatasetError(
            f"`models` must have a prior for each organ, got {models}: give the folder of a "
            "trained network."
        )
    options = dict(options or {})
    overlays, options = _known(models, configs, overlays, options)
    trained = (models / MODEL).is_file()
    check_knobs(configs, [*SETTLED, *overlays], options, trained=trained)
    if out.exists():
        raise FileExistsError(f"`out` must not exist yet, got {out}: choose another.")
    priors = _checked(configs, overlays, options, models)
    with new_folder(out) as part:
        for folder in ("configs", "docs"):
            shutil.copytree(configs.parent / folder, part / folder, dirs_exist_ok=True)
        shutil.copy(configs.parent / "LICENSE", part)
        _write_configs(part / "configs", configs, overlays, options)
        (part / "models").mkdir(exist_ok=True)
        calibration = [models / CALIBRATION] if (models / CALIBRATION).is_file() else []
        for file in (weights, *priors, *calibration):
            shutil.copy(file, part / "models")
        if url is not None:
            _leave_out_large_files(part, url, largest_file_bytes)
    return out


def _checked(
    configs: Path, overlays: Sequence[str | Path], options: Mapping[str, Any], models: Path
) -> list[Path]:
    """The priors that belong to a network, after its weights were loaded into it.

    Raises:
        DatasetError: the weights cannot be loaded safely, do not fit or are not finite.
    """
    parser = ConfigParser(_merged(configs, "inference", overlays, options))
    parser.update({"models_dir": as_written(models)})
    weights = models / WEIGHTS
    state = load_weights(weights)
    try:
        parser.get_parsed_content("network_def").load_state_dict(state)
    except RuntimeError as error:
        raise DatasetError(
            f"{weights} must hold weights of this network, as this bundle saves them: give the "
            f"overlays and knobs it was trained with. {reason(error)}"
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise DatasetError(f"{weights} must hold finite weights: its training has diverged.")
    # each loads as the prior of its organ, by its record
    parser.get_parsed_content("priors")
    files = [models / f"prior_{organ}.nii.gz" for organ in parser.get_parsed_content("organs")]
    return [path for path in files if path.is_file()]


def _known(
    models: Path, configs: Path, overlays: Sequence[str | Path], options: Mapping[str, Any]
) -> tuple[Sequence[str | Path], dict[str, Any]]:
    """Overlays and knobs as the folder of the weights knows them, or else as they are given."""
    if not (models / MODEL).is_file():
        return overlays, {**_recorded(models, configs, overlays), **options}
    model = read_model(models)
    model.agree(configs, overlays=overlays, options=options)
    return model.overlays, {**model.knobs, **options}


def _recorded(models: Path, configs: Path, overlays: Sequence[str | Path]) -> dict[str, Any]:
    """Knobs that inference takes from the record of the training, which is not handed on."""
    merged = _merged(configs, "inference", overlays, {})
    asked = [k for k, v in merged.items() if str(v).startswith(f"$@trained.get('{k}'")]
    alone, known = (
        ConfigParser({**merged, "trained": trained, "models_dir": as_written(models)})
        for trained in ({}, trained_knobs(models))
    )
    values = {knob: known.get_parsed_content(knob) for knob in asked}
    return {k: v for k, v in values.items() if v != alone.get_parsed_content(k)}


def _merged(
    configs: Path, name: str, overlays: Sequence[str | Path], options: Mapping[str, Any]
) -> dict[str, Any]:
    """A config with its overlays and knobs merged; knobs that it does not have are left out."""
    parser = ConfigParser()
    base = config_path(configs, name)
    parser.read_config([str(base), *(str(config_path(configs, overlay)) for overlay in overlays)])
    # an overlay's folders of its own keep networks apart; here is only one
    parser.update({k: v for k, v in parser.load_config_file(base).items() if k in _FOLDERS})
    parser.update({k: as_written(value) for k, value in options.items() if part_of(k) in parser})
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def _write_configs(
    folder: Path, configs: Path, overlays: Sequence[str | Path], options: Mapping[str, Any]
) -> None:
    """Settle the configs in a folder that has copies of them, and add that for 3D Slicer."""
    for name in SETTLED if overlays or options else ():
        merged = _merged(configs, name, overlays, options)
        path = str(folder / f"{name}.yaml")
        ConfigParser.export_config_file(merged, path, fmt="yaml", sort_keys=False)
    inference = ConfigParser.load_config_file(folder / "inference.yaml")
    ConfigParser.export_config_file(inference, str(folder / "inference.json"), indent=4)


def _leave_out_large_files(root: Path, url: str, largest: int) -> None:
    large = [p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size > largest]
    if not large:
        return
    # what MONAI's `download_large_files` reads
    entries = [
        {
            "path": (name := path.relative_to(root).as_posix()),
            "url": f"{url.rstrip('/')}/{name}",
            "hash_val": sha256(path),
            "hash_type": "sha256",
        }
        for path in large
    ]
    text = yaml.safe_dump({"large_files": entries}, sort_keys=False)
    (root / "large_files.yml").write_text(text, encoding="utf-8")
    for path in large:
        path.unlink()
