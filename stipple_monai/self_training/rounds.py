"""Self-training in rounds (algorithm 2 of the paper).

Words used here. *Round* 0 trains a network on the labelled scans. Round t = 1 … T locates and
predicts every unlabelled scan with the network of round t − 1, selects the γ_t most confident
voxels of each organ as pseudo-labels, and trains the network of round t on the labelled scans and
all pseudo-labelled ones. Pseudo-labels are made anew in each round; none is kept from the one
before. The paper takes one round at 50 % of labels and below, and two at 70 %.

Or, without γ, pseudo-labels are chosen by certainty. Where there are labelled scans in
``validation``, the networks of all rounds are compared on them.

The folder tells how far it is::

    settings.json                       what it was started with
    round_0/datalist.json               training, unlabelled and validation scans
    round_0/models/                     prior_*.nii.gz and _cases.npz, curve.csv, model.pt
    round_1/pseudo_labels/              SCAN_pseudo.nii.gz, datalist.json, quality.csv
    round_1/models/                     …
    rounds.csv                          quality of all rounds' pseudo-labels
    comparison.csv                      Dice of all rounds on the validation scans, if any
    logs/                               TensorBoard, and a lock while a process works here

A stage works in a folder that ends in ``.part`` and loses that ending when all of it is there.
Killed at any moment, the same command continues and ends with the same files (but for the logs): a
training from its last whole epoch, whose random numbers depend on the epoch alone, and
pseudo-labelling with the scans that are missing. A whole training has no ``checkpoint_*.pt`` left.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from stipple_monai.bundle import (
    BUNDLE,
    check_knobs,
    config_digests,
    config_path,
    configs_of,
    merged_configs,
    only_process,
    reason,
    remove_checkpoints,
    run_bundle,
    whole_folder,
)
from stipple_monai.data import (
    read_datalist,
    write_datalist,
)
from stipple_monai.errors import DatasetError
from stipple_monai.files import sha256, whole_file
from stipple_monai.handlers import data_fingerprint
from stipple_monai.ownership import CONTENTS
from stipple_monai.progress import Stopwatch
from stipple_monai.self_training.checks import (
    BY_CERTAINTY,
    check_knobs_of_rounds,
    check_unlabelled,
    locator_weights,
    remember_rounds,
    round_sections,
)
from stipple_monai.self_training.comparison import RoundComparison
from stipple_monai.self_training.quality import gather_quality, summarize_quality, write_quality
from stipple_monai.training import describe

CONFIGS = ("prior", "train", "inference", "pseudo_label")
QUALITY = "quality.csv"
"""In ``pseudo_labels`` of a round, see `quality.write_quality`."""


def self_train(
    datalist: str | Path,
    out: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    overlays: Sequence[str | Path] = (),
    train_overlays: Sequence[str | Path] = (),
    infer_overlays: Sequence[str | Path] = (),
    shares: Sequence[float | Sequence[float] | None] = (None,),
    counts: Sequence[int | Sequence[int]] | None = None,
    minimum: float = 0.0,
    components: int | None = None,
    fine_tune: bool | None = None,
    position_with: str | Path = "newest",
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
            each in (0, 1], or in each round a list with one per organ. None in place of γ_t: the
            map of the best expected Dice without uncertain background, see
            :func:`~stipple_monai.select_certain`. ``(0.5,)`` is the paper's. With ``(1.0,)`` and
            the overlay ``baseline`` it is the relabelling of Bai et al. (2017); without any, only
            round 0 is trained.
        counts: instead, γ_t as a number of voxels of each scan and organ.
        minimum: probability in [0, 1] below which a voxel is never selected.
        components: select from the so many largest components of each organ, and ignore the
            voxels of the others; None: select from all.
        fine_tune: start a round from the network of the one before, with a new optimizer and the
            whole schedule, rather than from scratch (or from the option ``initial_weights``).
            None: where pseudo-labels are chosen by certainty, but not with γ_t, as in the paper.
        position_with: ``"newest"``, whose own output locates the priors; ``"first"``, the network
            of round 0; or the path of a network's weights, such as a baseline's ``model.pt``.
        reestimate_prior: estimate the priors of a round from labels and pseudo-labels; otherwise
            those of round 0 are kept. Of pseudo-labels only the selected voxels count, so that
            γ < 1 lowers the prior where organs are uncertain; a scan without any is left out.
        unlabelled_sections: where the datalist has unlabelled scans; ``("test",)`` for the
            datalists of the Medical Segmentation Decathlon.
        seed: of every training.
        options: other knobs of the configs, such as ``{"max_epochs": 5}``; a config that has no
            such knob takes no notice.

    Returns:
        The folder of the last round that was asked for; later ones stay where they are.

    Raises:
        DatasetError: the datalist cannot be used, there is nothing to pseudo-label, or ``out`` is
            in use or was begun with other settings. More or fewer rounds are no other settings.
        ValueError: a knob is out of its range.
    """
    gammas, selection = _gammas(shares, counts), {"minimum": minimum, "components": components}
    out, configs = Path(out).resolve(), configs_of(bundle)
    files, knobs = (overlays, train_overlays, infer_overlays), dict(options or {})
    rounds = _Rounds(out, configs, files, knobs, datalist)
    if position_with not in ("newest", "first"):
        position_with = str(Path(position_with).resolve())
    check_knobs_of_rounds(gammas, selection, len(rounds.organs), str(position_with), knobs)
    sections = round_sections(datalist, unlabelled_sections)
    if gammas:
        values = {"organs": rounds.organs, "background": rounds.background}
        check_unlabelled(sections["unlabelled"], rounds.channels, datalist, **values)
    rounds.check_locator(position_with)
    settings = {
        **_identity(sections, configs, files),
        **{"fine_tune": fine_tune, "reestimate_prior": reestimate_prior, "gammas": gammas},
        **{**selection, "options": knobs, "seed": seed, "position_with": position_with},
    }
    with only_process(out):
        remember_rounds(out / "settings.json", settings)
        _run_rounds(rounds, settings, sections)
    return out / f"round_{len(gammas)}"


def _gammas(
    shares: Sequence[float | Sequence[float] | None],
    counts: Sequence[int | Sequence[int]] | None,
) -> list[dict[str, Any]]:
    """How many voxels are selected in each round."""
    if counts is not None:
        return [{"share": None, "count": count} for count in counts]
    return [{"share": share, "count": None} for share in shares]


def _identity(
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    configs: Path,
    overlays: Sequence[Sequence[str | Path]],
) -> dict[str, Any]:
    """What the data and the configs of all rounds are, by name and by content."""
    keys = ("image", "label", "truth")
    return {
        "scans": {name: [str(i["image"]) for i in items] for name, items in sections.items()},
        "labels": [str(item["label"]) for item in sections["training"]],
        "data": {
            name: data_fingerprint(items, keys=keys)["sha256"] for name, items in sections.items()
        },
        "overlays": [list(map(str, names)) for names in overlays],
        CONTENTS: config_digests(configs, [*CONFIGS, *chain.from_iterable(overlays)]),
    }


def _run_rounds(
    rounds: _Rounds, settings: Mapping[str, Any], sections: Mapping[str, Sequence[Any]]
) -> None:
    out, first = rounds.out, rounds.out / "round_0"
    # of scans that a killed process was labelling
    for lock in out.glob("round_*/pseudo_labels.part/*.lock"):
        lock.unlink()
    if not (first / "datalist.json").exists():
        write_datalist(first / "datalist.json", sections)
    training = {"seed": settings["seed"], "resume": True}
    rounds.train(0, first / "datalist.json", training)
    for number, gamma in enumerate(settings["gammas"], 1):
        knobs = {**gamma, "minimum": settings["minimum"], "components": settings["components"]}
        locator = _locator(out, settings["position_with"], number)
        rounds.pseudo_label(number, knobs, locator=locator)
        before, now = out / f"round_{number - 1}", out / f"round_{number}"
        by_certainty = gamma == BY_CERTAINTY
        fine_tune = by_certainty if settings["fine_tune"] is None else settings["fine_tune"]
        start = {"initial_weights": before / "models" / "model.pt"} if fine_tune else {}
        rounds.train(
            number,
            now / "pseudo_labels" / "datalist.json",
            {**training, **start},
            priors=None if settings["reestimate_prior"] else first / "models",
        )
    tables = {
        int(path.parent.parent.name.removeprefix("round_")): path
        for path in out.glob(f"round_*/pseudo_labels/{QUALITY}")
    }
    gather_quality(out / "rounds.csv", tables)
    compare = RoundComparison.read(out, len(settings["gammas"]))
    if len(compare.rounds) > 1:
        compare.write(out / "comparison.csv")
        for line in compare.lines():
            rounds.say(line)


class _Rounds:
    """The two stages of a round, each run unless it is there."""

    def __init__(
        self,
        out: Path,
        configs: Path,
        overlays: Sequence[Sequence[str | Path]],
        knobs: dict,
        source: str | Path,
    ) -> None:
        self.out, self.configs, self.knobs, self.source = out, configs, knobs, source
        files = [[config_path(configs, name) for name in names] for names in overlays]
        self.always, self.training, self.labelling = files
        self.told: dict[str, Any] = {
            **{"configs": configs, "overlays": self.always, "knobs": knobs},
            "train_overlays": self.training,
        }
        check_knobs(configs, [*CONFIGS, *chain.from_iterable(files)], knobs)
        self.say = Stopwatch().say
        parser = merged_configs(configs, ["train", *self.always], knobs)
        self.organs: list[int] = parser.get_parsed_content("organs")
        self.background: list[int] = parser.get_parsed_content("background_values")
        self.channels: int = parser.get_parsed_content("image_channels")

    def check_locator(self, position_with: str | Path) -> None:
        """Raise unless the weights of a locator fit its network, where a file is given.

        Raises:
            DatasetError: they do not, or cannot be loaded safely.
        """
        if position_with in ("newest", "first"):
            return
        path = Path(position_with)
        names: list[str | Path] = ["inference", *self.always, *self.labelling]
        parser = merged_configs(self.configs, names, self.knobs)
        try:
            parser.get_parsed_content("backbone").load_state_dict(locator_weights(path))
        except RuntimeError as error:
            raise DatasetError(
                f"`position_with` must be weights of this network, got {path}: give those that "
                f"were trained with the same knobs. {reason(error)}"
            ) from error

    def train(
        self, number: int, datalist: Path, knobs: dict[str, Any], *, priors: Path | None = None
    ) -> None:
        models = self.out / f"round_{number}" / "models"
        if models.exists():
            self.say(f"round {number}: trained before")
        else:
            count = len(read_datalist(datalist, "training"))
            self.say(f"round {number}: train on {count} scan{'s' * (count != 1)}")
            made_with = self._made_with(f"training of round {number}", datalist, knobs)
            with whole_folder(models, made_with=made_with) as part:
                places = {"datalist": datalist, "models_dir": part}
                # so that the folder can be used without overlays
                like = self.out / "round_0" / "models" if number else None
                describe(part, self.source, like=like, **self.told)
                if priors is None:
                    self._run(["prior", *self.always], places)
                else:
                    cases = priors.glob("prior_*_cases.npz")
                    for file in chain(priors.glob("prior_*.nii.gz"), cases):
                        with whole_file(part / file.name) as copy:
                            shutil.copyfile(file, copy)
                logs = {"output_dir": self.out / "logs" / f"round_{number}"}
                overlays = [*self.always, *self.training]
                self._run(["train", *overlays], {**places, **logs, **knobs})
        # They are what an interrupted training goes on from; the next round needs only the model.
        remove_checkpoints(models)

    def pseudo_label(self, number: int, knobs: dict[str, Any], *, locator: Path | None) -> None:
        labels = self.out / f"round_{number}" / "pseudo_labels"
        if labels.exists():
            self.say(f"round {number}: pseudo-labelled before")
            return
        datalist = self.out / "round_0" / "datalist.json"
        self.say(f"round {number}: pseudo-label {len(read_datalist(datalist, 'unlabelled'))} scans")
        made_with = self._made_with(f"pseudo-labels of round {number}", datalist, knobs)
        with whole_folder(labels, made_with=made_with) as part:
            places: dict[str, Any] = {
                "datalist": datalist,
                "models_dir": self.out / f"round_{number - 1}" / "models",
                "output_dir": part,
                "round": number,
            }
            overlays = [*self.always, *self.labelling]
            if locator is not None:
                overlays.append(config_path(self.configs, "locator"))
                places["locator_checkpoint"] = locator
            self._run(["inference", "pseudo_label", *overlays], {**places, **knobs})
            items = read_datalist(part / "datalist.json", "training")
            made = [item for item in items if "pseudo_label" in item]
            rows = write_quality(part / QUALITY, made, self.organs, self.background)
        for organ in self.organs:
            self.say(summarize_quality(rows, organ=organ))

    def _made_with(self, stage: str, datalist: Path, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """What tells a stage's folder from others: its datalist and its knobs."""
        return {"stage": stage, "datalist": sha256(datalist), "knobs": {**self.knobs, **knobs}}

    def _run(self, names: Sequence[str | Path], knobs: dict[str, Any]) -> None:
        places = {"bundle_root": self.out, **knobs}
        run_bundle(self.configs, names, **{"lines": True, "picture": False, **self.knobs, **places})


def _locator(out: Path, position_with: str, number: int) -> Path | None:
    """Weights of the bare network that locates the priors of a round; None: it locates itself."""
    if position_with == "newest" or (position_with == "first" and number == 1):
        return None
    path = out / "locator.pt"
    if not path.exists():
        first = out / "round_0" / "models" / "model.pt"
        source = first if position_with == "first" else position_with
        state = locator_weights(Path(source))
        with whole_file(path) as part:
            torch.save(state, part)
    return path
