"""``self-train``: training and pseudo-labels, round by round."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs, whole_number
from stipple_monai.self_training import self_train


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "self-train", help="train, pseudo-label the unlabelled scans, train again, round by round"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("out", type=Path, help="folder of the rounds; begun ones go on")
    add_bundle(parser)
    for name in ("overlays", "train-overlays", "infer-overlays"):
        parser.add_argument(f"--{name}", nargs="*", default=[], help="names or paths of configs")
    gamma = parser.add_mutually_exclusive_group()
    gamma.add_argument("--shares", nargs="*", type=float, default=[0.5], help="γ of each round")
    gamma.add_argument("--counts", nargs="+", type=int, help="γ of each round as voxels")
    parser.add_argument("--minimum", type=float, default=0.0, help="least probability of a voxel")
    parser.add_argument("--components", type=int, help="only the largest components of an organ")
    parser.add_argument("--fine-tune", action="store_true", help="not from scratch in each round")
    parser.add_argument("--position-with", default="newest", help="newest, first or weights")
    parser.add_argument("--reestimate-prior", action="store_true", help="from pseudo-labels, too")
    parser.add_argument("--unlabelled-sections", nargs="+", default=["unlabelled"])
    parser.add_argument("--seed", type=whole_number, default=0)
    add_knobs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the rounds, and print the folder of the last."""
    with progress_only():
        folder = self_train(
            options.datalist,
            options.out,
            bundle=options.bundle,
            overlays=options.overlays,
            train_overlays=options.train_overlays,
            infer_overlays=options.infer_overlays,
            shares=options.shares,
            counts=options.counts,
            minimum=options.minimum,
            components=options.components,
            fine_tune=options.fine_tune,
            position_with=options.position_with,
            reestimate_prior=options.reestimate_prior,
            unlabelled_sections=options.unlabelled_sections,
            seed=options.seed,
            options=read_knobs(options.set),
        )
        print(folder)
