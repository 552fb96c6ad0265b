"""Self-training in rounds (algorithm 2 of the paper).

Words used here. *Round* 0 trains a network on the labelled scans. Round t = 1 … T locates and
predicts every unlabelled scan with the network of round t − 1, selects the γ_t most confident
voxels of each organ as pseudo-labels, and trains the network of round t on the labelled scans and
all pseudo-labelled ones. Pseudo-labels are made anew in each round; none is kept from the one
before. The paper takes one round at 50 % of labels and below, and two at 70 %.

The folder tells how far it is::

    settings.json                       what it was started with
    round_0/datalist.json               training, unlabelled and validation scans
    round_0/models/                     prior_*.nii.gz, curve.csv, model.pt
    round_1/pseudo_labels/              SCAN_pseudo.nii.gz, datalist.json, quality.csv
    round_1/models/                     …
    rounds.csv                          quality of all rounds' pseudo-labels
    logs/                               TensorBoard

A stage works in a folder that ends in ``.part`` and loses that ending when all of it is there.
Killed at any moment, the same command continues and ends with the same files: a training from its
last whole epoch, whose random numbers depend on the epoch alone, and pseudo-labelling with the
scans that are missing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from stipple_monai.data import read_datalist, read_sections, write_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, remove_unfinished, whole_file, write_csv
from stipple_monai.pseudo_quality import COLUMNS, write_quality
from stipple_monai.stages import BUNDLE, config_path, configs_of, run_bundle, whole_folder

QUALITY = "quality.csv"
"""In ``pseudo_labels`` of a round, see :func:`stipple_monai.pseudo_quality.write_quality`."""


def self_train(
    datalist: str | Path,
    out: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    overlays: Sequence[str] = (),
    train_overlays: Sequence[str] = (),
    infer_overlays: Sequence[str] = (),
    shares: Sequence[float] = (0.5,),
    counts: Sequence[int] | None = None,
    minimum: float = 0.0,
    components: int | None = None,
    fine_tune: bool = False,
    position_with: str = "newest",
    reestimate_prior: bool = False,
    unlabelled_sections: Sequence[str] = ("unlabelled",),
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Train, pseudo-label and train again, as far as it was not done before.

    Args:
        datalist: JSON with the section ``training``, whose items without ``label`` count as
            unlabelled, perhaps ``validation``, and ``unlabelled_sections``. A ``label`` or
            ``truth`` of an unlabelled scan is only used to measure the quality of pseudo-labels.
        out: folder of the rounds.
        bundle: folder of the bundle.
        overlays: configs on every command, names in the bundle or paths: ``("phantom",)``,
            ``("baseline", "chaos_mr")``.
        train_overlays: further ones on training.
        infer_overlays: further ones on pseudo-labelling.
        shares: γ_t of each round, the part of the voxels predicted as an organ that is selected,
            each in (0, 1]. With ``(1.0,)`` all are (Bai et al. 2017); without any, only round 0
            is trained.
        counts: instead, γ_t as a number of voxels of each scan and organ.
        minimum: probability in [0, 1] below which a voxel is never selected.
        components: select from the so many largest components of each organ; None: from all.
        fine_tune: start a round from the network of the one before, rather than from scratch.
        position_with: ``"newest"``, whose own output locates the priors; ``"first"``, the network
            of round 0; or the path of a network's weights, such as a baseline's ``model.pt``.
        reestimate_prior: estimate the priors of a round from labels and pseudo-labels, of which
            the selected voxels count; otherwise those of round 0 are kept.
        unlabelled_sections: where the datalist has unlabelled scans; ``("test",)`` for the
            datalists of the Medical Segmentation Decathlon.
        seed: of every training.
        options: other knobs of the configs, such as ``{"max_epochs": 5}``.

    Returns:
        The folder of the last round.

    Raises:
        DatasetError: the datalist cannot be used, there is nothing to pseudo-label, or ``out`` was
            begun with other settings. More rounds than before are no other settings.
        ValueError: a knob is out of its range.
    """
    gammas = [{"share": share, "count": None} for share in shares]
    if counts is not None:
        gammas = [{"share": None, "count": count} for count in counts]
    _check_gammas(gammas)
    out, configs = Path(out).resolve(), configs_of(bundle)
    knobs = dict(options or {})
    rounds = _Rounds(out, configs, list(overlays), knobs)
    sections = _sections(datalist, unlabelled_sections)
    if gammas and not sections["unlabelled"]:
        raise DatasetError(
            f"`datalist` must have unlabelled scans for {len(gammas)} rounds, {datalist} has none "
            f"in {', '.join(unlabelled_sections)} or without label in training."
        )
    settings = {
        "scans": {name: [str(i["image"]) for i in items] for name, items in sections.items()},
        "overlays": [list(overlays), list(train_overlays), list(infer_overlays)],
        "minimum": minimum,
        "components": components,
        "fine_tune": fine_tune,
        "position_with": position_with,
        "reestimate_prior": reestimate_prior,
        "seed": seed,
        "options": knobs,
        "gammas": gammas,
    }
    remove_unfinished(out)
    _remember(out / "settings.json", settings)
    first = out / "round_0"
    if not (first / "datalist.json").exists():
        write_datalist(first / "datalist.json", sections)
    training = {"seed": seed, "resume": True}
    rounds.train(0, first / "datalist.json", train_overlays, training)
    for number, gamma in enumerate(gammas, 1):
        locator = _locator(out, position_with, number)
        rounds.pseudo_label(
            number,
            [*infer_overlays, *(["locator"] if locator else [])],
            {
                **gamma,
                "minimum": minimum,
                "components": components,
                **({"locator_checkpoint": str(locator)} if locator else {}),
            },
        )
        start = out / f"round_{number - 1}" / "models" / "model.pt"
        rounds.train(
            number,
            out / f"round_{number}" / "pseudo_labels" / "datalist.json",
            train_overlays,
            {**training, "initial_weights": str(start) if fine_tune else None},
            priors=None if reestimate_prior else first / "models",
        )
    _write_rounds(out, len(gammas))
    return out / f"round_{len(gammas)}"


class _Rounds:
    """The two stages of a round, each run unless it is there."""

    def __init__(self, out: Path, configs: Path, overlays: list[str], knobs: dict) -> None:
        self.out, self.configs, self.overlays, self.knobs = out, configs, overlays, knobs
        self.started = time.monotonic()
        parser = ConfigParser()
        parser.read_config([config_path(configs, name) for name in ("train", *overlays)])
        parser.update(knobs)
        self.organs: list[int] = parser.get_parsed_content("organs")

    def train(
        self,
        number: int,
        datalist: Path,
        overlays: Sequence[str],
        knobs: dict[str, Any],
        *,
        priors: Path | None = None,
    ) -> None:
        models = self.out / f"round_{number}" / "models"
        if not models.exists():
            self._say(f"round {number}: train on {len(read_datalist(datalist, 'training'))} scans")
            with whole_folder(models) as part:
                places = {"datalist": str(datalist), "models_dir": str(part)}
                if priors is None:
                    self._run(["prior"], places)
                else:
                    for file in priors.glob("prior_*.nii.gz"):
                        with whole_file(part / file.name) as copy:
                            shutil.copyfile(file, copy)
                logs = {"output_dir": str(self.out / "logs" / f"round_{number}")}
                self._run(["train"], {**places, **logs, **knobs}, overlays)
        # They are what an interrupted training goes on from; the next round needs only the model.
        for checkpoint in models.glob("checkpoint_*.pt"):
            checkpoint.unlink()

    def pseudo_label(self, number: int, overlays: Sequence[str], knobs: dict[str, Any]) -> None:
        labels = self.out / f"round_{number}" / "pseudo_labels"
        if labels.exists():
            return
        datalist = self.out / "round_0" / "datalist.json"
        self._say(f"round {number}: pseudo-label")
        with whole_folder(labels) as part:
            places = {
                "datalist": str(datalist),
                "models_dir": str(self.out / f"round_{number - 1}" / "models"),
                "output_dir": str(part),
                "round": number,
            }
            self._run(["inference", "pseudo_label"], {**places, **knobs}, overlays)
            items = read_datalist(part / "datalist.json", "training")
            made = [item for item in items if "pseudo_label" in item]
            rows = write_quality(part / QUALITY, made, self.organs)
        for organ in self.organs:
            self._say(_summary(rows, organ))

    def _run(
        self, names: Sequence[str], knobs: dict[str, Any], overlays: Sequence[str] = ()
    ) -> None:
        everything = {**self.knobs, "bundle_root": str(self.out), **knobs}
        run_bundle(self.configs, [*names, *self.overlays, *overlays], **everything)

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def _sections(datalist: str | Path, unlabelled: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
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


def _check_gammas(gammas: Sequence[Mapping[str, Any]]) -> None:
    for gamma in gammas:
        share, count = gamma["share"], gamma["count"]
        if count is None and not 0 < share <= 1:
            raise ValueError(f"`shares` must lie in (0, 1], got {share}.")
        if count is not None and (count != int(count) or count < 1):
            raise ValueError(f"`counts` must be whole numbers of at least 1, got {count}.")


def _remember(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings that contradict the rounds that are there; further rounds do not."""
    asked = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [n for n in asked if n != "gammas" and before[n] != asked[n]]
        fewer, more = sorted((before["gammas"], asked["gammas"]), key=len)
        if more[: len(fewer)] != fewer:
            other.append("shares or counts")
        if other:
            raise DatasetError(
                f"`out` must be a new folder, or started with what it was begun with; "
                f"{path.parent} was begun with other {', '.join(other)}, see {path.name} there."
            )
        asked["gammas"] = more
    with whole_file(path) as part:
        part.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


def _locator(out: Path, position_with: str, number: int) -> Path | None:
    """Weights of the bare network that locates the priors of a round; None: it locates itself."""
    if position_with == "newest" or (position_with == "first" and number == 1):
        return None
    source = out / "round_0" / "models" / "model.pt" if position_with == "first" else position_with
    if not Path(source).is_file():
        raise DatasetError(
            f'`position_with` must be "newest", "first" or a file of weights, got {source}.'
        )
    # The locator is the backbone alone, whose weights are inside those of the network with priors.
    path = out / "locator.pt"
    if not path.exists():
        state = torch.load(source, map_location="cpu", weights_only=True)
        with whole_file(path) as part:
            torch.save({key.removeprefix("network."): value for key, value in state.items()}, part)
    return path


def _write_rounds(out: Path, number: int) -> None:
    rows = []
    for t in range(1, number + 1):
        quality = read_csv(out / f"round_{t}" / "pseudo_labels" / QUALITY)
        rows += [[t, *row.values()] for row in quality]
    write_csv(out / "rounds.csv", ["round", *COLUMNS], rows)


def _summary(rows: Sequence[Sequence[Any]], organ: int) -> str:
    """One line about the pseudo-labels of an organ, means over the scans with truth."""
    mine = [row for row in rows if row[1] == organ]
    selected = sum(row[2] for row in mine) / len(mine)
    text = f"organ {organ}: {selected:.0f} voxels selected a scan"
    for name, column in (("precision", 3), ("recall", 4), ("Dice", 5)):
        known = [float(row[column]) for row in mine if row[column] != ""]
        if known:
            text += f", {name} {sum(known) / len(known):.3f} ({len(known)})"
    return text
