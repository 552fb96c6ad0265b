"""``report``: one HTML page about a data set, a prior, a training, predictions or a study."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only
from stipple_monai.commands.options import Commands, add_labels, read_names
from stipple_monai.report import MOST_PICTURES, report
from stipple_monai.study import is_study, rewrite_report


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "report", help="one HTML page about a data set, a prior, a training, predictions or a study"
    )
    parser.add_argument("source", metavar="RUN", type=Path, help="datalist, prior, or a folder")
    parser.add_argument("--out", type=Path, help="….html; else report.html in the folder")
    parser.add_argument("--datalist", type=Path, help="datalist with the scans and their labels")
    parser.add_argument("--models", type=Path, help="folder of the priors, to be drawn")
    add_labels(parser)
    parser.add_argument("--logs", type=Path, help="folder of a training's TensorBoard events")
    parser.add_argument("--pictures", type=int, default=MOST_PICTURES, help="cases with pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace the report that is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the page, and print its path.

    Raises:
        ValueError: a study's report is to be written elsewhere than in its folder.
    """
    if is_study(options.source):
        if options.out is not None:
            raise ValueError(
                f"`out` must not be given for a study, got {options.out}: its report lies in its "
                "folder."
            )
        print(rewrite_report(options.source))
        return
    with progress_only():
        page = report(
            options.source,
            options.out,
            datalist=options.datalist,
            models=options.models,
            labels=read_names(options.labels),
            logs=options.logs,
            pictures=options.pictures,
            overwrite=options.overwrite,
        )
        print(page)
