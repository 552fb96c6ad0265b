"""``adopt``: what older weights were made with, written beside them."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import (
    Commands,
    add_bundle,
    add_knobs,
    add_labels,
    read_knobs,
    read_names,
)
from stipple_monai.training import adopt


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "adopt", help="tell a folder of weights from elsewhere what it was trained with"
    )
    parser.add_argument("models", type=Path, help="folder of model.pt and priors")
    parser.add_argument("--datalist", type=Path, help="of the training")
    add_bundle(parser)
    parser.add_argument("--overlays", nargs="*", default=[], help="those of the training")
    add_knobs(parser, "those of the training")
    add_labels(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write model.json, and print its path."""
    with progress_only():
        path = adopt(
            options.models,
            datalist=options.datalist,
            bundle=options.bundle,
            overlays=options.overlays,
            options=read_knobs(options.set),
            labels=read_names(options.labels),
        )
        print(path)
