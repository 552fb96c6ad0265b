"""``calibrate``: networks for folds of the labelled scans, a calibration, the final network."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import (
    Commands,
    add_bundle,
    add_knobs,
    add_overlays,
    read_knobs,
    whole_number,
)
from stipple_monai.cross_fitting import calibrate


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "calibrate", help="fit how much network and prior count, on folds of the labelled scans"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("out", type=Path, help="folder of the folds; begun ones go on")
    parser.add_argument("models", type=Path, help="folder of the final network")
    add_bundle(parser)
    add_overlays(parser)
    parser.add_argument("--folds", type=int, help="3, or as many as there are labelled patients")
    parser.add_argument(
        "--position", default="located", help="of priors in held-out scans, or true"
    )
    parser.add_argument("--shrinkage", type=float, default=1.0, help="of organs with few voxels")
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="of the trainings and of the folds"
    )
    add_knobs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Calibrate, and print the file of the numbers."""
    names = ("overlays", "train_overlays", "infer_overlays", "folds", "position", "shrinkage")
    with progress_only():
        path = calibrate(
            options.datalist,
            options.out,
            options.models,
            bundle=options.bundle,
            seed=options.seed,
            options=read_knobs(options.set),
            **{name: getattr(options, name) for name in names},
        )
        print(path)
