"""``simulate``: a simulated CT scan of every label map."""

import argparse
from pathlib import Path

from stipple_monai.commands.options import Commands, read_label, read_pairs, whole_number
from stipple_monai.simulation import BTCV_TISSUES, read_tissues, write_simulated


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "simulate", help="write a simulated CT scan of every label map, in MSD layout"
    )
    parser.add_argument("folder", type=Path, help="to write the scans into")
    parser.add_argument("labels", type=Path, nargs="+", help="NIfTI files")
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="another draws other intensities"
    )
    parser.add_argument(
        "--tissues",
        type=Path,
        help="YAML `value: [name, mean_hu, sd_hu, texture_hu]`; without it, the values of BTCV",
    )
    parser.add_argument(
        "--organs",
        nargs="+",
        default=[],
        metavar="VALUE=LABEL",
        help="which are labels, and as what: 11=1",
    )
    parser.add_argument(
        "--spacing-mm", type=float, nargs=3, default=(3.0, 3.0, 5.0), help="of voxels"
    )
    parser.add_argument("--size", type=int, default=128, help="voxels along each in-plane axis")
    parser.add_argument("--overwrite", action="store_true", help="replace the scans that are there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the scans and their labels."""
    organs = {
        read_label(value, "--organs"): read_label(label, "--organs")
        for value, label in read_pairs(options.organs, "--organs", "6=1")
    }
    write_simulated(
        options.labels,
        options.folder,
        organs=organs or None,
        spacing_mm=tuple(options.spacing_mm),
        size=(options.size, options.size, None),
        tissues=BTCV_TISSUES if options.tissues is None else read_tissues(options.tissues),
        seed=options.seed,
        overwrite=options.overwrite,
    )
