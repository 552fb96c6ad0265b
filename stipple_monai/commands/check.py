"""``check``: a datalist's cases in a table, and what is wrong with them."""

import argparse
from pathlib import Path

from stipple_monai.bundle import check_knobs, configs_of, progress_only
from stipple_monai.commands.options import Commands, add_bundle, add_knobs, read_knobs
from stipple_monai.data import files_of_item, label_names, read_sections
from stipple_monai.errors import DatasetError
from stipple_monai.files import write_csv
from stipple_monai.ingest import DATASET_COLUMNS, check_dataset, check_labels, table_text
from stipple_monai.ownership import claim
from stipple_monai.planning import contradictions, read_settings, take_fingerprint
from stipple_monai.priors import SpatialPrior, atlas, atlas_has, load_priors, prior_organs


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "check", help="tabulate a datalist's cases; fail on scans or patients in two places"
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    add_bundle(parser)
    parser.add_argument("--overlays", nargs="*", default=[], help="settings to hold against it")
    add_knobs(parser, "likewise")
    parser.add_argument(
        "--priors",
        type=Path,
        metavar="DIR",
        help="folder of priors, or `atlas`: the package's own, by the datalist's names of organs; "
        "find labels that are mirrored, and organs in another's place",
    )
    parser.add_argument("--csv", type=Path, help="write the table there, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print table, notes and problems.

    Raises:
        DatasetError: there are problems.
        ValueError: no config has one of the knobs, or it is of another kind.
    """
    knobs, configs = read_knobs(options.set), configs_of(options.bundle)
    check_knobs(configs, ["prior", "train", "inference", *options.overlays], knobs)
    if options.csv is not None:
        listed = read_sections(options.datalist).values()
        files = [path for items in listed for item in items for path in files_of_item(item)]
        claim(options.csv.parent, [options.csv], inputs=[options.datalist, *files])
    with progress_only():
        found = check_dataset(options.datalist)
        notes, problems = list(found.notes), list(found.problems)
        if options.overlays or options.set:
            settings = read_settings(configs, options.overlays, knobs)
            notes += contradictions(take_fingerprint(options.datalist), settings)
        if options.priors is not None:
            labels = check_labels(options.datalist, _priors(options.priors, options.datalist))
            notes, problems = notes + labels.notes, problems + labels.problems
    print(table_text(DATASET_COLUMNS, found.rows))
    for text in notes:
        print(f"note: {text}")
    if options.csv is not None:
        write_csv(options.csv, DATASET_COLUMNS, found.rows)
    if problems:
        for text in problems:
            print(f"problem: {text}")
        raise DatasetError(
            f"`datalist` must be sound, got {len(problems)} problems in {options.datalist}, "
            f"the first: {problems[0]}"
        )


def _priors(folder: Path, datalist: Path) -> list[SpatialPrior]:
    """Those of a folder, or of the package's atlas as far as the datalist names its organs.

    Raises:
        DatasetError: it names none of them.
    """
    if folder != Path("atlas") or folder.is_dir():
        return load_priors(folder, prior_organs(folder))
    names = label_names(datalist)
    known = {value: name for value, name in names.items() if atlas_has(name)}
    if not known:
        raise DatasetError(
            f"`labels` of {datalist} must name organs of the atlas, such as 'liver', got "
            f"{', '.join(names.values()) or 'none'}: name them, or give a folder of priors."
        )
    return atlas(organs=known)
