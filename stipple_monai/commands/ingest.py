"""``ingest``: from folders and DICOM to a checked data set."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import Commands, read_label, read_names, read_pairs
from stipple_monai.ingest import LAYOUTS, Options, ingest, summary_lines


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "ingest", help="turn DICOM, nnU-Net, MSD or NIfTI data into a checked dataset in MSD layout"
    )
    parser.add_argument("source", type=Path, help="folder of the dataset")
    parser.add_argument("out", type=Path, help="folder to write; what was begun there goes on")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the source; detected without")
    parser.add_argument(
        "--labels", type=Path, help="folder of the labels, or of one scan its label"
    )
    parser.add_argument(
        "--map",
        nargs="+",
        default=[],
        metavar="VALUE=LABEL",
        help="63=1, or Liver=1 of a DICOM SEG",
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="LABEL=NAME", help="1=pancreas")
    parser.add_argument("--flip", nargs="+", choices=list("WHD"), default=[], help="all labels")
    parser.add_argument("--repair", action="store_true", help="reverse labels that fit better so")
    parser.add_argument(
        "--ignore-label-header",
        action="store_true",
        help="a label lies voxel by voxel on its scan, whatever its header",
    )
    parser.add_argument("--skip-refused", action="store_true", help="a dataset without those")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the data set that is there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the data set, and print what it has and its datalist."""
    pairs = read_pairs(options.map, "--map", "63=1")
    table = {name: read_label(value, "--map") for name, value in pairs}
    names = read_names(options.names, "--names")
    with progress_only():
        path = ingest(
            options.source,
            options.out,
            labels=options.labels,
            layout=options.layout,
            options=Options(
                choose=table or None,
                flip=tuple(sorted({"WHD".index(axis) for axis in options.flip})),
                repair=options.repair,
                ignore_header=options.ignore_label_header,
                names=names,
            ),
            skip_refused=options.skip_refused,
            overwrite=options.overwrite,
        )
    for line in summary_lines(path.parent):
        print(line)
    print(path)
