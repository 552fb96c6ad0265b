"""Command line: ``python -m stipple_monai --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stipple_monai.bundle import BUNDLE, progress_only, publish_bundle
from stipple_monai.commands import add_data_commands
from stipple_monai.demo import run_demo
from stipple_monai.errors import DatasetError, PositionError, PriorError, StudyError
from stipple_monai.report import MOST_PICTURES, report
from stipple_monai.segmentation import segment
from stipple_monai.self_training import self_train
from stipple_monai.simulation import BTCV_TISSUES, Tissue, write_phantom, write_simulated
from stipple_monai.study import run_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` where ``None``.

    Returns:
        The exit status: 0, 1 after an error, which is one line on standard error, or 130 after an
        interrupt.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"stipple_monai {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        print(f"stipple_monai {options.command}: {_said(error)}", file=sys.stderr)
        return 1
    return 0


def _said(error: BaseException) -> str:
    """One line of what the first error said, around which MONAI puts its own words."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    known = (ValueError, OSError, ImportError, StudyError)
    ours = [e for e in chain if isinstance(e, (PriorError, PositionError, DatasetError))]
    told = [*ours[::-1], *(e for e in chain if isinstance(e, known)), chain[-1]][0]
    text = " ".join(str(told).split())
    if isinstance(told, known):
        return text
    return f"{type(told).__name__}: {text} (--traceback shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stipple_monai",
        description="STIPPLE for MONAI: 3D spatial priors and pseudo-labels for organ "
        "segmentation. Training and inference are MONAI Bundle commands, see "
        "bundles/pancreas_stipple/docs/README.md.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for a bug report"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the whole method on a generated phantom")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything")
    demo.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=lambda o: run_demo(o.out, bundle=o.bundle, seed=o.seed))

    phantom = commands.add_parser("phantom", help="write simulated abdominal CT in MSD layout")
    phantom.add_argument("folder", type=Path)
    phantom.add_argument("--cases", type=int, default=24)
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--size", type=int, default=128, help="voxels along each in-plane axis")
    phantom.add_argument("--organs", choices=["pancreas", "all"], default="pancreas")
    phantom.add_argument("--overwrite", action="store_true")
    phantom.set_defaults(
        run=lambda o: write_phantom(
            o.folder,
            cases=o.cases,
            seed=o.seed,
            size=o.size,
            organs=o.organs,
            overwrite=o.overwrite,
        )
    )

    simulate = commands.add_parser(
        "simulate", help="write a simulated CT scan of every label map, in MSD layout"
    )
    simulate.add_argument("folder", type=Path)
    simulate.add_argument("labels", type=Path, nargs="+", help="NIfTI files")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument(
        "--tissues",
        type=Path,
        help="YAML `value: [name, mean_hu, sd_hu, texture_hu]`; without it, the values of BTCV",
    )
    simulate.add_argument(
        "--organs", nargs="+", metavar="VALUE=LABEL", help="which are labels, and as what: 11=1"
    )
    simulate.add_argument("--spacing-mm", type=float, nargs=3, default=(3.0, 3.0, 5.0))
    simulate.add_argument("--size", type=int, default=128, help="voxels along each in-plane axis")
    simulate.add_argument("--overwrite", action="store_true")
    simulate.set_defaults(run=_simulate)

    add_data_commands(commands)

    train = commands.add_parser(
        "self-train", help="train, pseudo-label the unlabelled scans, train again, round by round"
    )
    train.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    train.add_argument("out", type=Path, help="folder of the rounds; begun ones go on")
    train.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    for name in ("overlays", "train-overlays", "infer-overlays"):
        train.add_argument(f"--{name}", nargs="*", default=[], help="names or paths of configs")
    gamma = train.add_mutually_exclusive_group()
    gamma.add_argument("--shares", nargs="*", type=float, default=[0.5], help="γ of each round")
    gamma.add_argument("--counts", nargs="+", type=int, help="γ of each round as voxels")
    train.add_argument("--minimum", type=float, default=0.0, help="least probability of a voxel")
    train.add_argument("--components", type=int, help="only the largest components of an organ")
    train.add_argument("--fine-tune", action="store_true", help="not from scratch in each round")
    train.add_argument("--position-with", default="newest", help="newest, first or weights")
    train.add_argument("--reestimate-prior", action="store_true", help="from pseudo-labels, too")
    train.add_argument("--unlabelled-sections", nargs="+", default=["unlabelled"])
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help="of the configs")
    train.set_defaults(run=_self_train)

    infer = commands.add_parser(
        "segment", help="segment scans: label maps on their grids, volumes, DICOM SEG"
    )
    infer.add_argument(
        "inputs", type=Path, nargs="+", help="NIfTI files, folders, DICOM series, datalists"
    )
    infer.add_argument("--models", type=Path, required=True, help="folder of model.pt and priors")
    infer.add_argument("--out", type=Path, required=True, help="its folder; a begun one goes on")
    infer.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    infer.add_argument("--section", default="test", help="of datalists")
    infer.add_argument("--overlays", nargs="*", default=[], help="those of the training")
    infer.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help="of the configs")
    infer.add_argument("--labels", nargs="*", default=[], metavar="VALUE=NAME", help="1=pancreas")
    infer.add_argument("--probabilities", action="store_true", help="also write those")
    infer.add_argument("--dicom-seg", action="store_true", help="also write DICOM SEG")
    infer.add_argument("--overwrite", action="store_true")
    infer.set_defaults(run=_segment)

    publish = commands.add_parser(
        "publish", help="write a trained bundle in the layout of the model zoo"
    )
    publish.add_argument("out", type=Path, help="folder to write; its name is the bundle's")
    publish.add_argument("--models", type=Path, required=True, help="folder of model.pt and priors")
    publish.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    publish.add_argument("--overlays", nargs="*", default=[], help="those of the training")
    publish.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help="likewise")
    publish.add_argument("--url", help="where files will lie that are too large for git")
    publish.set_defaults(
        run=lambda o: print(
            publish_bundle(
                o.out,
                models=o.models,
                bundle=o.bundle,
                overlays=o.overlays,
                options=_pairs(o.set),
                url=o.url,
            )
        )
    )

    page = commands.add_parser(
        "report", help="one HTML page about a data set, a prior, a training or predictions"
    )
    page.add_argument("source", metavar="RUN", type=Path, help="datalist, prior, or a folder")
    page.add_argument("--out", type=Path, help="….html; else report.html in the folder")
    page.add_argument("--datalist", type=Path, help="has reference scans and truth")
    page.add_argument("--models", type=Path, help="folder of the priors, to be drawn")
    page.add_argument("--labels", nargs="*", default=[], metavar="VALUE=NAME", help="1=pancreas")
    page.add_argument("--logs", type=Path, help="folder of a training's TensorBoard events")
    page.add_argument("--pictures", type=int, default=MOST_PICTURES, help="cases with pictures")
    page.add_argument("--overwrite", action="store_true")
    page.set_defaults(run=_report)

    study = commands.add_parser(
        "study", help="compare methods × label proportions × folds × seeds, and report"
    )
    study.add_argument("config", type=Path, help="YAML, such as those in the bundle's studies/")
    study.add_argument("--out", type=Path, required=True, help="its folder; a begun one goes on")
    study.add_argument("--datalist", type=Path, help="in place of the study's own")
    study.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    study.add_argument("--workers", type=int, default=0, help="processes at a time")
    study.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", help="of submitit: slurm_partition=gpu …"
    )
    study.set_defaults(
        run=lambda o: print(
            run_study(
                o.config,
                o.out,
                datalist=o.datalist,
                bundle=o.bundle,
                workers=o.workers,
                slurm=_pairs(o.slurm or []),
            )
        )
    )
    return parser


def _simulate(options: argparse.Namespace) -> None:
    tissues = BTCV_TISSUES
    if options.tissues is not None:
        read = yaml.safe_load(options.tissues.read_text(encoding="utf-8"))
        rows = read.items() if isinstance(read, dict) else []
        if not rows or not all(isinstance(row, list) and len(row) == 4 for _, row in rows):
            raise ValueError(
                f"{options.tissues} must hold `value: [name, mean_hu, sd_hu, texture_hu]`, a line "
                f"for each label value, got {read!r}."
            )
        tissues = {int(value): Tissue(*row) for value, row in rows}
    organs = {int(value): label for value, label in _pairs(options.organs or []).items()}
    write_simulated(
        options.labels,
        options.folder,
        organs=organs or None,
        spacing_mm=tuple(options.spacing_mm),
        size=(options.size, options.size, None),
        tissues=tissues,
        seed=options.seed,
        overwrite=options.overwrite,
    )


def _self_train(options: argparse.Namespace) -> None:
    names = vars(options).keys() - {"command", "run", "datalist", "out", "set", "traceback"}
    knobs = {name: getattr(options, name) for name in names}
    with progress_only():
        print(self_train(options.datalist, options.out, options=_pairs(options.set), **knobs))


def _segment(options: argparse.Namespace) -> None:
    names = vars(options).keys() - {"command", "run", "traceback", "inputs", "out", "set", "labels"}
    knobs = {name: getattr(options, name) for name in names}
    labels = {int(value): str(name) for value, name in _pairs(options.labels).items()}
    with progress_only():
        print(
            segment(
                options.inputs, options.out, options=_pairs(options.set), labels=labels, **knobs
            )
        )


def _report(options: argparse.Namespace) -> None:
    names = ("datalist", "models", "logs", "pictures", "overwrite")
    knobs = {name: getattr(options, name) for name in names}
    labels = {int(value): str(name) for value, name in _pairs(options.labels).items()}
    with progress_only():
        print(report(options.source, options.out, labels=labels, **knobs))


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """``["max_epochs=5"]`` as a dictionary, values read as YAML."""
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(f"Settings must look like KNOB=VALUE, got {', '.join(wrong)}.")
    parted = (text.partition("=") for text in texts)
    return {name: yaml.safe_load(value) for name, _, value in parted}


if __name__ == "__main__":
    # so that what a command has started ends with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
