"""``prior``: the spatial priors of a data set's organs."""

import argparse
from pathlib import Path

from stipple_monai.bundle import configs_of, progress_only, run_bundle
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("prior", help="estimate the priors of a data set's organs alone")
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("--out", type=Path, required=True, help="folder of the priors")
    add_bundle(parser)
    parser.add_argument("--overlays", nargs="*", default=[], help="such as a plan")
    add_knobs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Estimate the priors, and print what they are."""
    places = {"datalist": options.datalist, "models_dir": options.out.resolve()}
    with progress_only():
        run_bundle(
            configs_of(options.bundle),
            ["prior", *options.overlays],
            **{**read_knobs(options.set), **places},
        )
