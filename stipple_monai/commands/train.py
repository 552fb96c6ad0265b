"""``train``: from a datalist to a folder that segments."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs
from stipple_monai.training import next_command, train


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "train", help="plan, estimate priors and train; the folder then segments"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("--out", type=Path, required=True, help="its folder; a begun one goes on")
    add_bundle(parser)
    parser.add_argument("--plan", type=Path, help="of `plan`; made without")
    parser.add_argument("--overlays", nargs="*", default=[], help="configs in place of a plan")
    parser.add_argument("--train-overlays", nargs="*", default=[], help="on training alone")
    parser.add_argument("--baseline", action="store_true", help="without prior")
    parser.add_argument("--paper", action="store_true", help="with the paper's recipe")
    parser.add_argument("--seed", type=int, default=0)
    add_knobs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, and say what to do next."""
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
        print(f"{weights}\nnext: {next_command(options.datalist, options.out)}")
