"""The whole method on the phantom, with the bundle's own commands: what `make demo` runs.

Each stage leaves files, and a stage whose files are there is not run again; training goes on from
its last checkpoint. So an interrupted demo continues where it stopped. ``demo.json`` has what the
folder was begun with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import (
    BUNDLE,
    MODEL,
    config_digests,
    configs_of,
    only_process,
    progress_only,
    run_bundle,
)
from stipple_monai.data import (
    read_datalist,
    read_label_map,
    read_volume,
    split_datalist,
    write_datalist,
)
from stipple_monai.files import read_csv, write_text
from stipple_monai.ownership import CONTENTS, remember
from stipple_monai.positioning import measure_position
from stipple_monai.priors import load_priors, prior_path
from stipple_monai.progress import Stopwatch
from stipple_monai.simulation import write_phantom
from stipple_monai.training import describe
from stipple_monai.visualize import KINDS, dice_table, draw_comparisons, prior_figure

LABELLED, UNLABELLED, TEST = 3, 4, 6
SIZE = 96  # voxels along a slice, for two CPU cores

_METHODS = {
    "network_alone": "network without prior, alone",
    "prior_alone": "prior alone, located in its output",
    "equation_2": "network trained with the prior, equation 2",
    "stipple": "STIPPLE",
    "relabelled": "STIPPLE, one round of pseudo-labels",
    "true_position": "STIPPLE, prior at the true position",
}
_OVERLAYS = _METHODS.keys() - {"stipple", "relabelled"}
_BARE = "prior_afterwards"  # the overlay with which a network is trained without prior
_CONFIGS = ("prior", "train", "inference", "pseudo_label", "evaluate", "phantom", _BARE)
# what is made, and by whose names nothing of somebody else's may be called
_TARGETS = ("phantom", "models", "eval", "results.md", "prior.png", *KINDS)
# as many steps with pseudo-labels as without
_SCHEDULE = {"slices_per_epoch": 160}


def run_demo(
    out: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> Path:
    """Phantom → prior → network → pseudo-labels → retraining → test.

    Args:
        out: folder for everything: ``phantom/``, ``models/``, predictions and tables under
            ``eval/``, pictures, and ``results.md``.
        bundle: folder of the bundle.
        seed: of the phantom, the split and the training.
        options: overrides of the bundle's knobs, such as ``{"max_epochs": 1}``.

    Returns:
        ``results.md``: Dice of each method on the test cases, in %.

    Raises:
        DatasetError: ``bundle`` is not the bundle's folder, or ``out`` is in use, was begun with
            other settings, or has files that a demo would take for its own.
    """
    out, configs = Path(out).resolve(), configs_of(bundle)
    settings = {
        "seed": seed,
        "options": options or {},
        CONTENTS: config_digests(configs, [*_CONFIGS, *sorted(_OVERLAYS)]),
    }
    with only_process(out), progress_only():
        remember(out / "demo.json", settings, targets=_TARGETS)
        return _run_stages(out, configs, seed, options or {})


def _run_stages(out: Path, configs: Path, seed: int, options: dict[str, Any]) -> Path:
    say = Stopwatch().say
    datalist = _prepare_data(out, seed)
    # a line an epoch, and no picture of each network
    seen = {"lines": True, "picture": False}
    knobs = {"bundle_root": out, "datalist": datalist, **seen, **_SCHEDULE, **options}

    def stage(title: str, done: Path, names: Sequence[str], **extra: Any) -> None:
        if done.exists():
            say(f"{title}: done before")
            return
        say(title)
        run_bundle(configs, [*names, "phantom"], **{**knobs, **extra})

    told: dict[str, Any] = {"configs": configs, "overlays": ["phantom"], "datalist": datalist}
    told["knobs"] = {**_SCHEDULE, **options}
    second = _train(stage, out, seed, told)
    bare = _train_bare(stage, out, seed, told)
    _test(stage, out, {"relabelled": second, "network_alone": bare, "prior_alone": bare})
    say("draw the pictures")
    _draw(out, datalist)
    table = _write_results(out)
    print(f"\n{table.read_text(encoding='utf-8')}")
    say(f"all in {out}")
    return table


def _train(stage: Callable[..., None], out: Path, seed: int, told: Mapping[str, Any]) -> Path:
    """Prior, network, pseudo-labels and the next training; returns its folder."""
    models, results = out / "models", out / "eval"
    training = {"seed": seed, "resume": True}
    _describe(models, told)
    stage("estimate the prior", prior_path(models, 1), ["prior"])
    stage("train the network", models / "model.pt", ["train"], **training)
    pseudo = results / "pseudo_labels" / "datalist.json"
    stage("pseudo-label the unlabelled scans", pseudo, ["inference", "pseudo_label"])
    second = models / "round_1"
    if not prior_path(second, 1).exists():
        _copy_priors(models, second)
    _describe(second, told)
    # as `self-train` does: on from the weights before
    again = {"models_dir": second, "datalist": pseudo, "initial_weights": models / "model.pt"}
    stage("train on labels and pseudo-labels", second / "model.pt", ["train"], **training, **again)
    return second


def _train_bare(stage: Callable[..., None], out: Path, seed: int, told: Mapping[str, Any]) -> Path:
    """A network without prior, for comparison; returns its folder."""
    bare = out / "models" / "without_prior"
    if not prior_path(bare, 1).exists():
        _copy_priors(out / "models", bare)
    _describe(bare, {**told, "overlays": [*told["overlays"], _BARE]})
    knobs = {"seed": seed, "resume": True, "models_dir": bare}
    stage("train a network without prior", bare / "model.pt", ["train", _BARE], **knobs)
    return bare


def _describe(models: Path, told: Mapping[str, Any]) -> None:
    """Tell a folder of weights what it is, so that `segment` takes it."""
    if not (models / MODEL).is_file():
        describe(models, **told)


def _test(stage: Callable[..., None], out: Path, models: Mapping[str, Path]) -> None:
    """Test every method, with the folder of weights in ``models`` where it is not the first."""
    for name, title in _METHODS.items():
        folder = out / "eval" / name
        stage(
            f"test: {title}",
            folder / "val_mean_dice_raw.csv",
            ["inference", "evaluate", *([name] if name in _OVERLAYS else [])],
            output_dir=str(folder),
            **({"models_dir": models[name]} if name in models else {}),
        )


def read_dice(folder: Path) -> list[float]:
    """Mean Dice of each case, in the order of the file that ``MetricsSaver`` left in ``folder``."""
    return [float(row["mean"]) for row in read_csv(folder / "val_mean_dice_raw.csv")]


def _prepare_data(out: Path, seed: int) -> Path:
    datalist = out / "phantom" / "split.json"
    cases = LABELLED + UNLABELLED + TEST
    dataset = write_phantom(out / "phantom", cases=cases, seed=seed, size=SIZE)
    if not datalist.exists():
        sections = split_datalist(
            read_datalist(dataset, "training"),
            labelled=LABELLED,
            validation=0,
            test=TEST,
            seed=seed,
        )
        write_datalist(datalist, sections)
    return datalist


def _copy_priors(source: Path, target: Path) -> None:
    for prior in load_priors(source, [1]):
        prior.save(prior_path(target, prior.organ))


def _draw(out: Path, datalist: Path) -> None:
    (prior,) = load_priors(out / "models", [1])
    items = read_datalist(datalist, "test")
    truth = read_label_map(items[0]["label"])
    prior_figure(
        read_volume(items[0]["image"]),
        prior,
        measure_position(truth, prior),
        out / "prior.png",
        label=truth,
    )
    drawn = draw_comparisons(
        items, prior, out, baseline=out / "eval" / "network_alone", stipple=out / "eval" / "stipple"
    )
    for kind in KINDS.keys() - drawn.keys():
        print(f"no picture {KINDS[kind]}: no test case has a {kind}")


def _write_results(out: Path) -> Path:
    dice = {title: {"pancreas": read_dice(out / "eval" / name)} for name, title in _METHODS.items()}
    path = out / "results.md"
    cases = f"{LABELLED} labelled, {UNLABELLED} unlabelled, {TEST} test cases"
    write_text(path, f"Phantom: {cases}.\n\n{dice_table(dice)}\n")
    return path
