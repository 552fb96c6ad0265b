"""``self-train``: training and pseudo-labels, round by round."""

import argparse
import shlex
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
from stipple_monai.planning import plan_once
from stipple_monai.self_training import self_train
from stipple_monai.training import hardly_trained


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "self-train", help="train, pseudo-label the unlabelled scans, train again, round by round"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("out", type=Path, help="folder of the rounds; begun ones go on")
    add_bundle(parser)
    parser.add_argument(
        "--plan", type=Path, help="file of `plan`; else one is made, unless overlays are given"
    )
    add_overlays(parser)
    _add_selection(parser)
    parser.add_argument(
        "--fine-tune",
        action=argparse.BooleanOptionalAction,
        help="rounds begin with the weights of the round before; by default unless γ is given",
    )
    parser.add_argument(
        "--position-with",
        default="newest",
        help="network that locates the organs: that of the round before (newest), of round 0 "
        "(first), or of a file of weights",
    )
    parser.add_argument("--reestimate-prior", action="store_true", help="from pseudo-labels, too")
    parser.add_argument(
        "--unlabelled-sections",
        nargs="+",
        default=["unlabelled"],
        help="of the datalist, whose scans get pseudo-labels",
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the trainings")
    add_knobs(parser)
    parser.set_defaults(run=run)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """Add what says how many rounds there are, and which voxels become labels."""
    gamma = parser.add_mutually_exclusive_group()
    gamma.add_argument(
        "--shares",
        nargs="*",
        type=float,
        help="γ of each round, as in the paper: share of an organ's predicted voxels, above 0 to 1",
    )
    gamma.add_argument(
        "--rounds",
        type=whole_number,
        help="how many, with pseudo-labels chosen by certainty; default 1",
    )
    gamma.add_argument(
        "--counts", nargs="+", type=int, help="the same as a number of voxels of each organ"
    )
    parser.add_argument("--minimum", type=float, default=0.0, help="least probability of a voxel")
    parser.add_argument("--components", type=int, help="only the largest components of an organ")


def run(options: argparse.Namespace) -> None:
    """Run the rounds, and print the folder of the last and what to do next."""
    knobs, overlays = read_knobs(options.set), list(options.overlays)
    rounds = 1 if options.rounds is None else options.rounds
    with progress_only():
        if options.plan is not None:
            overlays.append(options.plan)
        plan, begun = options.out / "plan.yaml", (options.out / "settings.json").is_file()
        # rounds that were begun without a plan go on without
        if not overlays and (plan.is_file() or not begun):
            overlays.append(plan)
            plan_once(options.datalist, plan, bundle=options.bundle, options=knobs)
        folder = self_train(
            options.datalist,
            options.out,
            bundle=options.bundle,
            overlays=overlays,
            train_overlays=options.train_overlays,
            infer_overlays=options.infer_overlays,
            shares=[None] * rounds if options.shares is None else options.shares,
            counts=options.counts,
            minimum=options.minimum,
            components=options.components,
            fine_tune=options.fine_tune,
            position_with=options.position_with,
            reestimate_prior=options.reestimate_prior,
            unlabelled_sections=options.unlabelled_sections,
            seed=options.seed,
            options=knobs,
        )
        fused = not {"baseline", "paper"} & {*map(str, options.overlays)}
        if fused and (note := hardly_trained(options.out / "round_0" / "models")):
            print(f"warning: round 0: {note}")
        models = shlex.quote(str(options.out))
        print(f"{folder}\nnext: stipple segment SCANS --models {models} --out results")
