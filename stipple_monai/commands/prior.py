"""``prior``: the spatial priors of a data set's organs."""

import argparse
from pathlib import Path

from stipple_monai.bundle import configs_of, progress_only, run_bundle
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs
from stipple_monai.data import label_names


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
    """Estimate the priors, and print what they are.

    Of all organs that the datalist names, unless settings say of which.
    """
    places = {"datalist": options.datalist, "models_dir": options.out.resolve()}
    knobs = read_knobs(options.set)
    named = sorted(value for value in label_names(options.datalist) if value not in (0, 255))
    if named and not options.overlays:
        knobs.setdefault("organs", named)
    with progress_only():
        run_bundle(
            configs_of(options.bundle),
            ["prior", *options.overlays],
            **{**knobs, **places},
        )
