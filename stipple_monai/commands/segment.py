"""``segment``: scans to label maps on their grids, volumes and DICOM SEG."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import (
    Commands,
    add_bundle,
    add_knobs,
    add_labels,
    add_out,
    read_knobs,
    read_names,
)
from stipple_monai.segmentation import segment


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "segment", help="segment scans: label maps on their grids, volumes, DICOM SEG"
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="NIfTI files, folders, DICOM series or trees of them, datalists",
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of model.pt and priors")
    add_out(parser)
    add_bundle(parser)
    parser.add_argument("--section", default="test", help="of datalists")
    parser.add_argument("--overlays", nargs="*", default=[], help="those of the training")
    add_knobs(parser)
    add_labels(parser)
    parser.add_argument(
        "--organs", nargs="+", default=[], help="values or names of those that are wanted; else all"
    )
    parser.add_argument("--probabilities", action="store_true", help="also write those")
    parser.add_argument("--dicom-seg", action="store_true", help="also write DICOM SEG")
    parser.add_argument(
        "--nnunet-names", action="store_true", help="also write label maps as nnunet/CASE.nii.gz"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results that are there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Segment, and print the table of volumes."""
    with progress_only():
        table = segment(
            options.inputs,
            options.out,
            models=options.models,
            bundle=options.bundle,
            section=options.section,
            overlays=options.overlays,
            options=read_knobs(options.set),
            labels=read_names(options.labels),
            organs=options.organs,
            probabilities=options.probabilities,
            dicom_seg=options.dicom_seg,
            nnunet_names=options.nnunet_names,
            overwrite=options.overwrite,
        )
        print(table)
