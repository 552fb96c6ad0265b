"""``train``: from a datalist to a folder that segments."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import (
    Commands,
    add_bundle,
    add_knobs,
    add_out,
    read_knobs,
    whole_number,
)
from stipple_monai.cross_fitting import calibrate_run
from stipple_monai.training import hardly_trained, next_command, train


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "train", help="plan, estimate priors and train; the folder then segments"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    add_out(parser)
    add_bundle(parser)
    parser.add_argument("--plan", type=Path, help="file of `plan`; else one is made")
    parser.add_argument("--overlays", nargs="*", default=[], help="configs in place of a plan")
    parser.add_argument("--train-overlays", nargs="*", default=[], help="on training alone")
    parser.add_argument("--baseline", action="store_true", help="without prior")
    parser.add_argument("--paper", action="store_true", help="with the paper's recipe")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="also fit how much network and prior count, by a further training for each of 3 folds",
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the training")
    add_knobs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, calibrate if asked, and say what to do next.

    Raises:
        ValueError: a network without prior, or with the paper's fusion, is to be calibrated.
    """
    if options.calibrate and (options.baseline or options.paper):
        raise ValueError(
            "`calibrate` must be given without baseline and paper: the one has no prior, the "
            "other counts network and prior as they are."
        )
    with progress_only():
        weights = train(
            options.datalist,
            options.out,
            bundle=options.bundle,
            plan=options.plan,
            overlays=options.overlays,
            train_overlays=options.train_overlays,
            options=read_knobs(options.set),
            baseline=options.baseline,
            paper=options.paper,
            seed=options.seed,
        )
        if options.calibrate:
            calibration = calibrate_run(
                options.out,
                options.datalist,
                bundle=options.bundle,
                train_overlays=options.train_overlays,
                seed=options.seed,
            )
            print(calibration)
        elif not options.baseline and not options.paper and (note := hardly_trained(options.out)):
            print(f"warning: {note}")
        print(f"{weights}\nnext: {next_command(options.datalist, options.out)}")
