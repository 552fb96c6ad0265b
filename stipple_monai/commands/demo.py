"""``demo``: the whole method on a generated phantom."""

import argparse
from pathlib import Path

from stipple_monai.commands.options import Commands, add_bundle, whole_number
from stipple_monai.demo import run_demo


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("demo", help="run the whole method on a generated phantom")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything")
    add_bundle(parser)
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="of phantom, split and training"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the demo, which tells what it does."""
    run_demo(options.out, bundle=options.bundle, seed=options.seed)
