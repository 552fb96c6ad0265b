"""``place``: a prior on a scan's grid, to be laid over it in a viewer."""

import argparse
import re
from pathlib import Path

from stipple_monai.commands.options import Commands
from stipple_monai.results import place_prior


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "place", help="write a prior on a scan's grid, to lie over it in a viewer"
    )
    parser.add_argument("prior", type=Path, help="….nii.gz that `prior` wrote")
    parser.add_argument(
        "--like", type=Path, required=True, help="the scan: NIfTI, or folder of a DICOM series"
    )
    # a coordinate with a unit is a wrong number, and no unknown option
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--label", type=Path, help="label map of the scan, which has the organ")
    where.add_argument(
        "--position", type=float, nargs=3, metavar=("R", "A", "S"), help="of its centre, mm"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "nearest", "linear"),
        default="auto",
        help="of sampling along z; auto: nearest for bins, linear for a density",
    )
    parser.add_argument("--out", type=Path, required=True, help="….nii.gz")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Place the prior, and print where it is."""
    point = place_prior(
        options.prior,
        options.out,
        like=options.like,
        label=options.label,
        position_mm=options.position,
        mode=options.mode,
    )
    where = " ".join(f"{x:.2f}" for x in point.tolist())
    print(f"{options.out}: centre at {where} mm (R A S)")
