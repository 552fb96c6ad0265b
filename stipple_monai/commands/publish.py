"""``publish``: a trained bundle in the layout of the model zoo."""

import argparse
from pathlib import Path

from stipple_monai.bundle import publish_bundle
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "publish", help="write a trained bundle in the layout of the model zoo"
    )
    parser.add_argument("out", type=Path, help="folder to write; its name is the bundle's")
    parser.add_argument("--models", type=Path, required=True, help="folder of model.pt and priors")
    add_bundle(parser)
    parser.add_argument("--overlays", nargs="*", default=[], help="those of the training")
    add_knobs(parser, "likewise")
    parser.add_argument("--url", help="where files will lie that are too large for git")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the bundle, and print its folder."""
    print(
        publish_bundle(
            options.out,
            models=options.models,
            bundle=options.bundle,
            overlays=options.overlays,
            options=read_knobs(options.set),
            url=options.url,
        )
    )
