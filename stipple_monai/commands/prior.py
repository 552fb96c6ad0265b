"""``prior``: the spatial priors of a data set's organs."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from stipple_monai.bundle import configs_of, only_process, progress_only, run_bundle
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs
from stipple_monai.data import label_names
from stipple_monai.label_values import IGNORED
from stipple_monai.ownership import made_anew, refuse_foreign
from stipple_monai.priors import prior_files
from stipple_monai.segmentation import refuse_training

_COMMAND = "prior"


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
    knobs = read_knobs(options.set)
    named = sorted(value for value in label_names(options.datalist) if value not in (0, IGNORED))
    if named and not options.overlays:
        knobs.setdefault("organs", named)
    out = options.out.resolve()
    refuse_training(out)
    # Priors that were estimated with others know their offsets among those alone.
    with only_process(out), _in_place_of_the_older(out) as work, progress_only():
        places = {"datalist": options.datalist, "models_dir": work}
        run_bundle(configs_of(options.bundle), ["prior", *options.overlays], **{**knobs, **places})


def _in_place_of_the_older(out: Path) -> AbstractContextManager[Path]:
    """Where all priors are made, which replace all older ones in ``out`` at once."""
    refuse_foreign(out, prior_files(out), _COMMAND)
    return made_anew(out, command=_COMMAND, made_with={"priors": str(out)})
