"""``fuse``: priors for the probability maps of any network."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import (
    Commands,
    add_labels,
    add_out,
    read_label,
    read_names,
    read_pairs,
)
from stipple_monai.segmentation import fuse, mean_gain

_CROPS = "place organs by the maps alone, whatever their height in the scan: for crops"


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "fuse", help="fuse priors into the probability maps of a network that is there already"
    )
    parser.add_argument(
        "inputs", type=Path, nargs="+", help="probability maps, .npz or NIfTI, or folders of such"
    )
    parser.add_argument("--priors", type=Path, required=True, help="folder of the priors")
    add_out(parser)
    parser.add_argument(
        "--like", type=Path, nargs="*", default=[], help="scans of the maps, or their folder"
    )
    parser.add_argument(
        "--calibrate", type=Path, nargs="*", default=[], help="labels of some of the scans"
    )
    parser.add_argument(
        "--channels",
        nargs="*",
        default=[],
        metavar="VALUE=CHANNEL",
        help="of the network; each label value's own otherwise",
    )
    parser.add_argument(
        "--labelled",
        type=int,
        metavar="SCANS",
        help="how many labelled scans the network was trained with; else as many as the priors",
    )
    parser.add_argument(
        "--decision",
        choices=("dice", "argmax"),
        default="dice",
        help="the label map of the highest expected Dice, or the most probable class",
    )
    parser.add_argument("--no-scan-vote", dest="scan_vote", action="store_false", help=_CROPS)
    add_labels(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results that are there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Fuse, and print what was gained and the table of volumes."""
    with progress_only():
        table = fuse(
            options.inputs,
            options.out,
            priors=options.priors,
            like=options.like,
            calibrate=options.calibrate,
            channels=_channels(options.channels),
            labels=read_names(options.labels),
            labelled=options.labelled,
            decision=options.decision,
            scan_vote=options.scan_vote,
            overwrite=options.overwrite,
        )
        gained = mean_gain(options.out)
        for name, scans, alone, fused in gained:
            print(
                f"{name}: Dice {alone:.3f} alone, {fused:.3f} fused, cross-validated on {scans} "
                + ("scan" if scans == 1 else "scans")
            )
        worse = [name for name, _, alone, fused in gained if fused < alone]
        if worse:
            print(f"warning: the prior made {', '.join(worse)} worse: leave it out there.")
        print(table)


def _channels(texts: Sequence[str]) -> dict[int, int] | None:
    pairs = {
        read_label(value, "--channels"): read_label(channel, "--channels")
        for value, channel in read_pairs(texts, "--channels", "1=2")
    }
    return pairs or None
