"""``evaluate``: scores of a trained model."""

import argparse
from pathlib import Path

from stipple_monai.bundle import progress_only, read_model
from stipple_monai.commands.options import Commands, add_bundle
from stipple_monai.ingest import table_text
from stipple_monai.report import report
from stipple_monai.training import SCORE_HEADER, evaluate, mean_scores


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "evaluate", help="score a trained model on labelled scans, and report"
    )
    parser.add_argument("models", type=Path, help="folder of the run")
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("--out", type=Path, help="folder of the scores; else MODELS/evaluation")
    parser.add_argument("--section", default="test", help="of the datalist")
    add_bundle(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the scores' means, and the paths of the whole table and of the report."""
    with progress_only():
        scores = evaluate(
            options.models,
            options.datalist,
            options.out,
            bundle=options.bundle,
            section=options.section,
        )
        organs = dict(read_model(options.models).organs)
        print(table_text(SCORE_HEADER, mean_scores(scores, organs)))
        page = report(
            scores.parent, datalist=options.datalist, models=options.models, overwrite=True
        )
        print(f"{scores}\n{page}")
