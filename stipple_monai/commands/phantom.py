"""``phantom``: generated anatomy, as scans and labels in MSD layout."""

import argparse
from pathlib import Path

from stipple_monai.commands.options import Commands, whole_number
from stipple_monai.simulation import write_phantom


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("phantom", help="write simulated abdominal CT in MSD layout")
    parser.add_argument("folder", type=Path, help="to write the data set into")
    parser.add_argument("--cases", type=int, default=24, help="how many patients")
    parser.add_argument("--seed", type=whole_number, default=0, help="another draws other patients")
    parser.add_argument("--size", type=int, default=128, help="voxels along each in-plane axis")
    parser.add_argument(
        "--organs", choices=["pancreas", "all"], default="pancreas", help="that have labels"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the phantom that is there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the phantom."""
    write_phantom(
        options.folder,
        cases=options.cases,
        seed=options.seed,
        size=options.size,
        organs=options.organs,
        overwrite=options.overwrite,
    )
