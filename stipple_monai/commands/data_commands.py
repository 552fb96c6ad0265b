"""The commands of the command line that prepare data: ``ingest``, ``check`` and ``split``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import progress_only
from stipple_monai.data import (
    Item,
    assign_folds,
    fold_sections,
    read_content,
    read_datalist,
    read_label_map,
    read_nnunet_splits,
    read_sections,
    split_datalist,
    write_datalist,
    write_nnunet_splits,
)
from stipple_monai.errors import DatasetError
from stipple_monai.files import write_csv
from stipple_monai.ingest import (
    DATASET_COLUMNS,
    LAYOUTS,
    Options,
    check_dataset,
    ingest,
    table_text,
)
from stipple_monai.results import organ_volumes


def add_data_commands(commands: Any) -> None:
    """Add the parsers of the commands to ``argparse``'s subparsers."""
    read = commands.add_parser(
        "ingest", help="turn DICOM, nnU-Net, MSD or NIfTI data into a checked dataset in MSD layout"
    )
    read.add_argument("source", type=Path, help="folder of the dataset")
    read.add_argument("out", type=Path, help="folder to write; a begun one goes on")
    read.add_argument("--layout", choices=LAYOUTS, help="of the source; detected without")
    read.add_argument("--labels", type=Path, help="folder of the labels, or of one scan its label")
    read.add_argument(
        "--map",
        nargs="+",
        default=[],
        metavar="VALUE=LABEL",
        help="63=1, or Liver=1 of a DICOM SEG",
    )
    read.add_argument("--names", nargs="+", default=[], metavar="LABEL=NAME", help="1=pancreas")
    read.add_argument("--flip", nargs="+", choices=list("WHD"), default=[], help="all labels")
    read.add_argument("--repair", action="store_true", help="reverse labels that fit better so")
    read.add_argument(
        "--ignore-label-header", action="store_true", help="take labels' voxels for the scans'"
    )
    read.add_argument("--skip-refused", action="store_true", help="a dataset without those")
    read.add_argument("--overwrite", action="store_true")
    read.set_defaults(run=_ingest)

    check = commands.add_parser(
        "check", help="tabulate a datalist's cases; fail on scans or patients in two places"
    )
    check.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    check.add_argument("--csv", type=Path, help="write the table there, too")
    check.set_defaults(run=_check)

    split = commands.add_parser(
        "split",
        help="divide a datalist into labelled, unlabelled, validation and test, or in folds",
    )
    split.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    split.add_argument("out", type=Path, help="datalist to write")
    split.add_argument("--section", default="training", help="what is divided")
    split.add_argument("--seed", type=int, default=0)
    numbers = split.add_argument_group("into sections")
    numbers.add_argument("--labelled", type=int, help="patients that train with label")
    numbers.add_argument("--validation", type=int, default=0)
    numbers.add_argument("--test", type=int)
    folds = split.add_argument_group("into folds, written as `fold` of each item")
    folds.add_argument("--folds", type=int, metavar="K")
    folds.add_argument(
        "--proportions", nargs="+", type=float, default=[], help="of labels, nested: 0.1 0.25 1"
    )
    folds.add_argument(
        "--stratify", metavar="BY", help="a key of the items, or volume:LABEL, such as volume:1"
    )
    folds.add_argument(
        "--from-nnunet", type=Path, metavar="FILE", help="folds of a splits_final.json"
    )
    folds.add_argument("--nnunet", type=Path, metavar="FILE", help="write splits_final.json, too")
    one = split.add_argument_group("into the sections of one fold of a datalist with folds")
    one.add_argument("--fold", type=int)
    one.add_argument("--proportion", type=float, default=1.0, help="of labels")
    split.set_defaults(run=_split)


def _ingest(options: argparse.Namespace) -> None:
    table = {name: _whole(value, "--map") for name, value in _pairs(options.map)}
    names = {_whole(value, "--names"): name for value, name in _pairs(options.names)}
    with progress_only():
        path = ingest(
            options.source,
            options.out,
            labels=options.labels,
            layout=options.layout,
            options=Options(
                choose=table or None,
                flip=tuple(sorted({"WHD".index(axis) for axis in options.flip})),
                repair=options.repair,
                ignore_header=options.ignore_label_header,
                names=names,
            ),
            skip_refused=options.skip_refused,
            overwrite=options.overwrite,
        )
    print(path)


def _check(options: argparse.Namespace) -> None:
    with progress_only():
        found = check_dataset(options.datalist)
    print(table_text(DATASET_COLUMNS, found.rows))
    for text in found.notes:
        print(f"note: {text}")
    if options.csv is not None:
        write_csv(options.csv, DATASET_COLUMNS, found.rows)
    if found.problems:
        for text in found.problems:
            print(f"problem: {text}")
        raise DatasetError(
            f"`datalist` must be sound, got {len(found.problems)} problems in {options.datalist}, "
            f"the first: {found.problems[0]}"
        )


def _split(options: argparse.Namespace) -> None:
    ways = {
        "--labelled and --test": options.labelled is not None and options.test is not None,
        "--folds": options.folds is not None,
        "--from-nnunet": options.from_nnunet is not None,
        "--fold": options.fold is not None,
    }
    if sum(ways.values()) != 1:
        raise ValueError(
            f"`split` must be given one of {', '.join(ways)}, got {sum(ways.values())}."
        )
    if (options.proportions or options.stratify) and not ways["--folds"]:
        raise ValueError("`--proportions` and `--stratify` must be given with --folds.")
    if options.nnunet is not None and not (ways["--folds"] or ways["--from-nnunet"]):
        raise ValueError("`--nnunet` must be given with --folds or --from-nnunet.")
    items = read_datalist(options.datalist, options.section)
    if options.fold is not None:
        free = read_datalist(options.datalist, "unlabelled", optional=True)
        items += free if options.section != "unlabelled" else []
        sections = fold_sections(items, fold=options.fold, proportion=options.proportion)
    elif ways["--labelled and --test"]:
        sections = split_datalist(
            items,
            labelled=options.labelled,
            validation=options.validation,
            test=options.test,
            seed=options.seed,
        )
    else:
        if options.from_nnunet is not None:
            items = read_nnunet_splits(options.from_nnunet, items)
        else:
            items = assign_folds(
                items,
                folds=options.folds,
                seed=options.seed,
                proportions=options.proportions,
                strata=_strata(items, options.stratify) if options.stratify else None,
            )
        sections = {**read_sections(options.datalist), options.section: items}
        if options.nnunet is not None:
            write_nnunet_splits(options.nnunet, items)
    content = read_content(options.datalist)
    kept: dict[str, Any] = {k: content[k] for k in ("labels", "modality") if k in content}
    write_datalist(options.out, sections, metadata=kept)
    print(", ".join(f"{name}: {len(items)}" for name, items in sections.items()))


def _strata(items: Sequence[Item], by: str) -> Mapping[str, float | str]:
    labelled = [item for item in items if "label" in item]
    if not by.startswith("volume:"):
        return {str(item["image"]): item[by] for item in labelled if by in item}
    organ = _whole(by.removeprefix("volume:"), "--stratify volume:LABEL")
    return {
        str(item["image"]): organ_volumes(read_label_map(item["label"]), [organ])[0]
        for item in labelled
    }


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        raise ValueError(f"Pairs must look like A=B, got {wrong[0]}.")
    return [(left, right) for left, _, right in (text.partition("=") for text in texts)]


def _whole(text: str, option: str) -> int:
    if not text.isdecimal() or int(text) > 255:
        raise ValueError(f"`{option}` must have labels from 0 to 255, got {text}.")
    return int(text)
