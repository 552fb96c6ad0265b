"""A folder of weights that knows what it is, so that nobody can use it with other settings.

``FOLDER/``::

    model.pt            weights
    prior_ORGAN.nii.gz  a prior for each organ; none of a network without
    model.json          organs and their names, knobs, versions, and what the training scans were
    overlays/           the configs on top of the bundle's own, in order

Self-training, a study's network and the demo have such folders below their own: `weights_folder`.

Words: an *organ* is a label value of the files; a *knob* and an *overlay* are those of
`stipple_monai.bundle`.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stipple_monai.bundle.configs import config_path
from stipple_monai.bundle.knobs import check_knobs
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, read_json, whole_file, write_json

MODEL = "model.json"
WEIGHTS = "model.pt"
LAST = "last.pt"
CURVE = "curve.csv"
CHECKPOINTS = "checkpoint_*.pt"
RECORD = "provenance.json"
CALIBRATION = "calibration.json"
"""How much network and prior count, where it was fitted."""
_FORMAT = 1


@dataclass(frozen=True)
class Model:
    """What a folder of weights knows.

    Args:
        folder: where the weights lie.
        overlays: files on top of the bundle's configs, in order.
        knobs: values on top of those.
        organs: names by label value, in the order of the network's channels.
        versions: of the packages that trained it.
        training: what the training scans were: their number, spacings, intensities and volumes.
    """

    folder: Path
    overlays: Sequence[Path] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    organs: Mapping[int, str] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def agree(
        self,
        configs: Path,
        *,
        overlays: Sequence[str | Path] = (),
        options: Mapping[str, Any] | None = None,
        free: Sequence[str] = (),
    ) -> None:
        """Stop at overlays or knobs that contradict the folder.

        Args:
            configs: the bundle's folder of configs, where overlays without a path are.
            overlays: those that somebody gives; the folder's own may be repeated.
            options: knobs that somebody gives.
            free: knobs that may differ, since they change how much is computed at once, not what.

        Raises:
            DatasetError: one contradicts; the message has both values.
        """
        ours = {path.read_bytes() for path in self.overlays}
        for name in overlays:
            if config_path(configs, name).read_bytes() not in ours:
                raise DatasetError(
                    f"`overlays` must be those of {self.folder / MODEL}, got {name}, where the "
                    f"folder has {', '.join(p.name for p in self.overlays) or 'none'}: leave "
                    "--overlays out."
                )
        known = self.values()
        for name, value in (options or {}).items():
            if name not in free and name in known and known[name] != value:
                raise DatasetError(
                    f"`{name}` must be {known[name]!r}, with which {self.folder} was trained, got "
                    f"{value!r}: leave it out, or train with it."
                )

    def values(self) -> dict[str, Any]:
        """Knobs of the overlays and on top of them, by name."""
        values: dict[str, Any] = {}
        for path in self.overlays:
            values |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {**values, **self.knobs}


def write_model(
    folder: str | Path,
    configs: Path,
    *,
    organs: Mapping[int, str],
    overlays: Sequence[str | Path] = (),
    knobs: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Model:
    """Write beside weights what they were trained with, see `Model`.

    Args:
        folder: of the weights; they may come later.
        configs: the bundle's folder of configs.
        organs: names by label value, in the order of the network's channels.
        overlays: names or paths of configs that inference needs, copied into the folder.
        knobs: of the configs.
        versions: of packages.
        training: of JSON's types, see `stipple_monai.planning.Fingerprint`.

    Raises:
        DatasetError: an overlay is missing, or no YAML file with a mapping.
        ValueError: no config has one of the knobs.
    """
    folder, knobs = Path(folder), dict(knobs or {})
    check_knobs(configs, ["prior", "train", "inference", "pseudo_label", *overlays], knobs)
    copies = []
    for number, name in enumerate(overlays):
        source = config_path(configs, name)
        plain = re.sub(r"^\d+_", "", source.name)
        copies.append(folder / "overlays" / f"{number}_{plain}")
        if source != copies[-1].resolve():
            with whole_file(copies[-1]) as part:
                shutil.copyfile(source, part)
    content = {
        "format": _FORMAT,
        "organs": {str(value): name for value, name in organs.items()},
        "overlays": [path.relative_to(folder).as_posix() for path in copies],
        "knobs": knobs,
        "versions": dict(versions or {}),
        "training": dict(training or {}),
    }
    write_json(folder / MODEL, content)
    return read_model(folder)


def weights_folder(folder: str | Path) -> Path:
    """The folder of weights that is meant by one above it.

    Args:
        folder: of weights; or one with such a folder ``models``, as a round and the demo have; or
            of rounds of self-training, of which the best on the validation scans is taken, or the
            last where there are none.

    Returns:
        The folder of the weights; ``folder`` where there is none below it.
    """
    folder = Path(folder).resolve()
    if (folder / WEIGHTS).is_file() or (folder / MODEL).is_file():
        return folder
    if (folder / "models" / WEIGHTS).is_file():
        return folder / "models"
    found = {
        int(path.parents[1].name.removeprefix("round_")): path.parent
        for path in folder.glob(f"round_[0-9]*/models/{WEIGHTS}")
    }
    table = folder / "comparison.csv"
    rows = read_csv(table) if table.is_file() else []
    best = [int(row["round"]) for row in rows if row.get("best") == "yes"]
    return found.get(best[0] if best else max(found, default=0), folder)


def check_weights(folder: Path) -> None:
    """Warn where the training of a folder's weights is not over.

    Args:
        folder: of the weights.

    Raises:
        DatasetError: there are none, or none yet.
    """
    begun = any(folder.glob(CHECKPOINTS))
    if not (folder / WEIGHTS).is_file():
        remedy = (
            "its training was interrupted or still runs: give the same `train` command again"
            if begun
            else "give the folder of a training"
        )
        raise DatasetError(f"`models` must have {WEIGHTS} and the priors, got {folder}: {remedy}.")
    curve = folder / CURVE
    rows = read_csv(curve) if curve.is_file() else []
    # without validation the weights are written last of all
    validated = any(row.get("validation_dice") for row in rows)
    if begun and validated and not (folder / LAST).is_file():
        warnings.warn(
            f"The training in {folder} is not over after {len(rows)} epochs: these are its best "
            "weights so far. The same `train` command goes on.",
            stacklevel=2,
        )


def read_model(folder: str | Path) -> Model:
    """What a folder of weights knows.

    Args:
        folder: of the weights, or above, see `weights_folder`.

    Raises:
        DatasetError: there is no such file, it is another's, or one of its overlays is missing.
    """
    folder = weights_folder(folder)
    path = folder / MODEL
    if not path.is_file():
        raise DatasetError(
            f"`models` must be a folder that knows its settings, got {folder}, which has no "
            f"{MODEL}: train with `stipple train`, or write down what these weights were trained "
            f"with: stipple adopt {folder} --overlays … --set …"
        )
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            raise DatasetError(
                f"{path} must be of format {_FORMAT}, got {content['format']}: install the "
                "release of stipple-monai that wrote it."
            )
        model = Model(
            folder,
            overlays=tuple(folder / name for name in content["overlays"]),
            knobs=content["knobs"],
            organs={int(value): str(name) for value, name in content["organs"].items()},
            versions=content["versions"],
            training=content["training"],
        )
    except DatasetError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path} must be what training writes, got something else.") from error
    missing = [str(overlay) for overlay in model.overlays if not overlay.is_file()]
    if missing:
        raise DatasetError(f"{path} must have its overlays beside it, got no {missing[0]}.")
    return model


def trained_knobs(models: str | Path) -> dict[str, Any]:
    """Knobs that a folder of weights knows of; none where it knows of none.

    What inference.yaml takes its values from. Values that are expressions of a config are left
    out, as are entries below the first level and folders. A folder of train.yaml alone, without
    the command ``train``, knows them by its record of the training.

    Args:
        models: the folder.
    """
    if not (Path(models) / MODEL).is_file():
        return _recorded_knobs(Path(models) / RECORD)
    # a folder that does not say so is of a time when networks were trained without prior
    values = {"prior_dropout": 1.0, **read_model(models).values()}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _recorded_knobs(path: Path) -> dict[str, Any]:
    """What train.yaml was run with, as it is recorded; nothing where it is not."""
    try:
        config = read_json(path)["config"]
        known = {name: value for name, value in config.items() if "#" not in name}
    except (OSError, TypeError, KeyError, AttributeError, ValueError):
        return {}
    # a calibration that was fitted lies beside the weights, wherever these are now
    fitted = path.with_name(CALIBRATION).is_file()
    if fitted or str(known.get("calibration", "")).endswith(CALIBRATION):
        known.pop("calibration", None)
    return known


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(element) for element in value)
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return value is None or isinstance(value, bool | int | float)
