"""``plan``: settings for a data set, each with its reason."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs
from stipple_monai.planning import make_plan


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "plan", help="choose every setting that depends on the data, and say why"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("--out", type=Path, help="overlay to write; else plan.yaml beside the list")
    add_bundle(parser)
    parser.add_argument("--paper", action="store_true", help="the paper's network and schedule")
    parser.add_argument("--dimensions", type=int, choices=[2, 3], help="of the network")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="that trains; else what is here")
    parser.add_argument(
        "--memory-gib", type=float, help="of a GPU that is not here, such as from a login node"
    )
    add_knobs(parser, "given values, from which others follow")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the plan, and print its path."""
    with progress_only():
        plan = make_plan(
            options.datalist,
            bundle=options.bundle,
            options=read_knobs(options.set),
            dimensions=options.dimensions,
            paper=options.paper,
            device=options.device,
            memory_gib=options.memory_gib,
        )
        out = options.out or options.datalist.with_name("plan.yaml")
        print(plan.write(out, options.bundle))
