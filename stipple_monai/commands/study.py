"""``study``: methods × label proportions × folds × seeds."""

import argparse
from pathlib import Path

from stipple_monai.commands.options import Commands, add_bundle, add_out, read_knobs
from stipple_monai.study import run_study


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "study", help="compare methods × label proportions × folds × seeds, and report"
    )
    parser.add_argument("config", type=Path, help="YAML, such as those in the bundle's studies/")
    add_out(parser)
    parser.add_argument("--datalist", type=Path, help="in place of the study's own")
    add_bundle(parser)
    parser.add_argument("--workers", type=int, default=0, help="processes at a time")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit: slurm_partition=gpu …",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run what of the study is missing, and print its report."""
    print(
        run_study(
            options.config,
            options.out,
            datalist=options.datalist,
            bundle=options.bundle,
            workers=options.workers,
            slurm=read_knobs(options.slurm),
        )
    )
