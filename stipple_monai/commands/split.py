"""``split``: a datalist into sections, into folds, or into the sections of one fold."""

import argparse
from pathlib import Path
from typing import Any, TypeAlias

from stipple_monai.commands.options import Commands, whole_number
from stipple_monai.data import (
    Item,
    assign_folds,
    fold_strata,
    keep_sections,
    read_content,
    read_datalist,
    read_nnunet_splits,
    read_sections,
    sections_of_fold,
    split_datalist,
    write_datalist,
    write_nnunet_splits,
)
from stipple_monai.ownership import claim, refuse_foreign, refuse_inputs
from stipple_monai.segmentation import further_scans

_Sections: TypeAlias = dict[str, list[Item]]


def add_parser(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "split",
        help="divide a datalist into labelled, unlabelled, validation and test, or in folds",
    )
    parser.add_argument("datalist", type=Path, help="JSON in the style of the MSD")
    parser.add_argument("out", type=Path, help="datalist to write")
    parser.add_argument("--section", default="training", help="what is divided")
    parser.add_argument("--seed", type=whole_number, default=0, help="another draws others")
    numbers = parser.add_argument_group("into sections")
    numbers.add_argument("--labelled", type=int, help="patients that train with label")
    numbers.add_argument("--validation", type=int, default=0, help="that choose the best epoch")
    numbers.add_argument("--test", type=int, help="patients with labels to test with")
    numbers.add_argument("--unlabelled", nargs="+", type=Path, default=[], help="further folders")
    _add_folds(parser.add_argument_group("into folds, written as `fold` of each item"))
    one = parser.add_argument_group("into the sections of one fold of a datalist with folds")
    one.add_argument("--fold", type=int, help="that is tested, from 0; the others are trained on")
    one.add_argument("--proportion", type=float, default=1.0, help="of labels")
    parser.set_defaults(run=run)


def _add_folds(folds: Any) -> None:
    folds.add_argument("--folds", type=int, metavar="K", help="divide the patients into K folds")
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


def run(options: argparse.Namespace) -> None:
    """Write the divided datalist, and print how many items each section has.

    Raises:
        ValueError: options do not go together.
    """
    _check(options)
    inputs = [p for p in (options.datalist, options.from_nnunet) if p is not None]
    outputs = [p for p in (options.out, options.nnunet) if p is not None]
    refuse_inputs(outputs, inputs)
    for path in outputs:
        refuse_foreign(path.absolute().parent, [path.absolute()])
    left: _Sections = {}
    if options.fold is not None:
        sections, left = _sections_of_fold(options)
    elif options.labelled is not None:
        sections, left = _drawn(options)
    else:
        items = _with_folds(options)
        sections = {**read_sections(options.datalist), options.section: items}
        if options.nnunet is not None:
            claim(options.nnunet.parent, [options.nnunet], inputs=inputs)
            write_nnunet_splits(options.nnunet, items)
    content = read_content(options.datalist)
    kept: dict[str, Any] = {k: content[k] for k in ("labels", "modality") if k in content}
    claim(options.out.parent, [options.out], inputs=inputs)
    write_datalist(options.out, sections, metadata=kept)
    for name in filter(left.get, left):
        print(f"left out: {name}, {len(left[name])} of {options.datalist}")
    print(", ".join(f"{name}: {len(items)}" for name, items in sections.items()))


def _drawn(options: argparse.Namespace) -> tuple[_Sections, _Sections]:
    """Sections drawn from one, behind what the datalist has in them, and what is left out."""
    numbers = {name: getattr(options, name) for name in ("labelled", "validation", "test", "seed")}
    drawn = split_datalist(read_datalist(options.datalist, options.section), **numbers)
    there = read_sections(options.datalist)
    there.pop(options.section, None)
    sections, left = keep_sections(drawn, there)
    more = further_scans(options.unlabelled, sections) if options.unlabelled else []
    sections["unlabelled"] = [*sections.get("unlabelled", []), *more]
    added = [item["image"] for item in more]
    return sections, {n: [i for i in some if i["image"] not in added] for n, some in left.items()}


def _check(options: argparse.Namespace) -> None:
    ways = {
        "--labelled and --test": options.labelled is not None and options.test is not None,
        "--folds": options.folds is not None,
        "--from-nnunet": options.from_nnunet is not None,
        "--fold": options.fold is not None,
    }
    if (options.labelled is None) != (options.test is None):
        given, missing = ("labelled", "test") if options.test is None else ("test", "labelled")
        number = getattr(options, given)
        told = f"got --{given} {number} and no --{missing}: add --{missing} with its number"
        raise ValueError(f"`--{given}` must be given with --{missing}, {told} of patients.")
    if sum(ways.values()) != 1:
        raise ValueError(
            f"`split` must be given one of {', '.join(ways)}, got {sum(ways.values())}."
        )
    if (options.proportions or options.stratify) and not ways["--folds"]:
        raise ValueError("`--proportions` and `--stratify` must be given with --folds.")
    if options.unlabelled and options.labelled is None:
        raise ValueError("`--unlabelled` must be given with --labelled and --test.")
    if options.nnunet is not None and not (ways["--folds"] or ways["--from-nnunet"]):
        raise ValueError("`--nnunet` must be given with --folds or --from-nnunet.")


def _sections_of_fold(options: argparse.Namespace) -> tuple[_Sections, _Sections]:
    items = read_datalist(options.datalist, options.section)
    there = {**read_sections(options.datalist), options.section: items}
    fold, proportion = options.fold, options.proportion
    return sections_of_fold(there, options.section, fold=fold, proportion=proportion)


def _with_folds(options: argparse.Namespace) -> list[Item]:
    items = read_datalist(options.datalist, options.section)
    if options.from_nnunet is not None:
        return read_nnunet_splits(options.from_nnunet, items)
    return assign_folds(
        items,
        folds=options.folds,
        seed=options.seed,
        proportions=options.proportions,
        strata=fold_strata(items, options.stratify) if options.stratify else None,
    )
