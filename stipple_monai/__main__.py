"""Command line: ``python -m stipple_monai --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.data import read_datalist, split_datalist, write_datalist, write_phantom
from stipple_monai.demo import run_demo
from stipple_monai.stages import BUNDLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` where ``None``.

    Returns:
        The exit status: 0, or 1 after an error, which is one line on standard error.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"stipple_monai {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stipple_monai",
        description="STIPPLE for MONAI: 3D spatial priors and pseudo-labels for organ "
        "segmentation. Training and inference are MONAI Bundle commands, see "
        "bundles/pancreas_stipple/docs/README.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the whole method on a generated phantom")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything")
    demo.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=lambda o: run_demo(o.out, bundle=o.bundle, seed=o.seed))

    phantom = commands.add_parser("phantom", help="write simulated abdominal CT in MSD layout")
    phantom.add_argument("folder", type=Path)
    phantom.add_argument("--cases", type=int, default=24)
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--size", type=int, default=128, help="voxels along each in-plane axis")
    phantom.add_argument("--organs", choices=["pancreas", "all"], default="pancreas")
    phantom.add_argument("--overwrite", action="store_true")
    phantom.set_defaults(
        run=lambda o: write_phantom(
            o.folder,
            cases=o.cases,
            seed=o.seed,
            size=o.size,
            organs=o.organs,
            overwrite=o.overwrite,
        )
    )

    split = commands.add_parser(
        "split", help="divide a datalist into labelled, unlabelled, validation and test scans"
    )
    split.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    split.add_argument("out", type=Path, help="datalist to write")
    split.add_argument("--section", default="training", help="what is divided")
    split.add_argument("--labelled", type=int, required=True)
    split.add_argument("--validation", type=int, default=0)
    split.add_argument("--test", type=int, required=True)
    split.add_argument("--seed", type=int, default=0)
    split.set_defaults(run=_split)
    return parser


def _split(options: argparse.Namespace) -> None:
    sections = split_datalist(
        read_datalist(options.datalist, options.section),
        labelled=options.labelled,
        validation=options.validation,
        test=options.test,
        seed=options.seed,
    )
    write_datalist(options.out, sections)
    print(", ".join(f"{name}: {len(items)}" for name, items in sections.items()))


if __name__ == "__main__":
    sys.exit(main())
