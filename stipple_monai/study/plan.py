"""What a study consists of: methods, cells and who trains on what.

Words used here. A *cell* is one method at one label proportion, in one fold, with one seed. A
*network* is a training recipe that methods share: STIPPLE is round 0 of STIPPLE with pseudo-labels,
and the same network is evaluated with the prior located, at the true position, and so on.
A *job* is all cells of one network at one proportion, fold and seed; jobs are independent.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from monai.data import partition_dataset

from stipple_monai.data import patient_of, plain_name, split_datalist
from stipple_monai.errors import DatasetError

Items = list[dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """A line of ``studies/methods.yaml``, see there."""

    name: str
    overlays: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate_options: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[float | None] | Mapping[float, Sequence[float | None]] = ()
    self_train: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: bool = False
    branch: str = ""

    def shares_at(self, proportion: float) -> tuple[float | None, ...]:
        """γ of each round, None by certainty, at a proportion; none where all are labelled."""
        if proportion >= 1:
            return ()
        if not isinstance(self.shares, Mapping):
            return tuple(self.shares)
        below = [key for key in self.shares if key <= proportion]
        return tuple(self.shares[max(below)]) if below else ()

    @property
    def network(self) -> str:
        """Name of the network that is trained; methods with the same name share it."""
        recipe = [self.overlays, self.train, self.options, self.self_train, self.branch]
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        # an overlay may be a path, which must not become folders
        return "-".join([*(Path(name).stem for name in (*self.overlays, *self.train)), digest[:8]])


@dataclass(frozen=True)
class Study:
    """A study's YAML file: what is compared, on which data and how often.

    Args:
        title: of the report.
        methods: names in ``studies/methods.yaml`` or ``definitions``.
        proportions: of training patients that keep their labels, each in (0, 1].
        dataset: one line about the data, for the report.
        datalist: JSON whose section ``training`` is divided; relative to the study's file.
        phantom: instead of a datalist, arguments of ``write_phantom``.
        overlays: configs on every command, such as ``phantom`` or ``chaos_mr``.
        options: knobs on every command.
        folds: of the cross-validation.
        run_folds: which of them are run, from 0; all if None.
        seeds: of networks and of the choice of labelled patients.
        validation: training patients on which the best epoch is chosen; 0: the last epoch counts.
        definitions: methods that are not in ``studies/methods.yaml``, or other than there.
        organ: the one that is shown in pictures; the first of ``options``' ``organs`` if not said.
        notes: paragraphs for the report.
    """

    title: str
    methods: Sequence[str]
    proportions: Sequence[float]
    dataset: str = ""
    datalist: str | None = None
    phantom: Mapping[str, Any] | None = None
    overlays: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 5
    run_folds: Sequence[int] | None = None
    seeds: Sequence[int] = (0,)
    validation: int = 0
    definitions: Mapping[str, Any] = field(default_factory=dict)
    organ: int = 1
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """The cells of one network at one proportion, fold and seed."""

    network: str
    methods: tuple[Method, ...]
    proportion: float
    fold: int
    seed: int

    @property
    def place(self) -> str:
        """Name of the folder of the proportion, fold and seed."""
        return f"p{round(100 * self.proportion):03d}_fold{self.fold}_seed{self.seed}"


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file.

    Raises:
        DatasetError: it is not there, not YAML, or an entry is unknown, missing or out of range.
    """
    path = Path(path)
    known = {f.name for f in fields(Study)}
    content = _read_yaml(path)
    unknown = sorted(set(content) - known)
    missing = [name for name in ("title", "methods", "proportions") if not content.get(name)]
    if unknown or missing:
        raise DatasetError(
            f"Studies must have a title, methods and proportions and no other entries than "
            f"{', '.join(sorted(known))}; in {path} missing: {missing}, unknown: {unknown}."
        )
    study = Study(**content)
    _check_types(study, path)
    if (study.datalist is None) == (study.phantom is None):
        raise DatasetError(f"Studies must have either `datalist` or `phantom`, {path} has not.")
    for proportion in study.proportions:
        if not 0 < proportion <= 1:
            raise DatasetError(
                f"`proportions` must lie in (0, 1], got {proportion} in {path}: 0.1 is 10 %."
            )
    wrong = [fold for fold in study.run_folds or () if not 0 <= fold < study.folds]
    if study.folds < 2 or wrong:
        raise DatasetError(
            f"`folds` must be at least 2 and `run_folds` below it, got {study.folds} and "
            f"{study.run_folds} in {path}."
        )
    if study.datalist is not None:
        content["datalist"] = str((path.parent / study.datalist).resolve())
    organs = study.options.get("organs")
    if isinstance(organs, list) and organs:
        content.setdefault("organ", organs[0])
        if content["organ"] not in organs:
            raise DatasetError(
                f"`organ` must be one of the `organs` in `options`, {organs}, got "
                f"{content['organ']} in {path}."
            )
    return Study(**content)


def _check_types(study: Study, path: Path) -> None:
    """Raise where an entry is of another type than a study's, or a value comes twice.

    Raises:
        DatasetError: so it is.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "methods": (str,),
        "proportions": (int, float),
        "seeds": (int,),
        "run_folds": (int,),
    }
    for name, kind in kinds.items():
        values = getattr(study, name)
        values = () if values is None else values
        wrong = not isinstance(values, list | tuple) or [v for v in values if type(v) not in kind]
        if wrong or (name == "seeds" and min(values, default=0) < 0):
            raise DatasetError(
                f"`{name}` must be a list of {' or '.join(k.__name__ for k in kind)}, got "
                f"{values!r} in {path}."
            )
        places = [round(100 * v) for v in values] if name == "proportions" else values
        twice = [v for v, count in Counter(places).items() if count > 1]
        if twice:
            raise DatasetError(
                f"`{name}` must not have a value twice, got {values!r} in {path}"
                + (": they are told apart by whole percents." if name == "proportions" else ".")
            )
    for name in ("folds", "validation", "organ"):
        if type(getattr(study, name)) is not int:
            raise DatasetError(
                f"`{name}` must be a whole number, got {getattr(study, name)!r} in {path}."
            )


def read_methods(path: Path, study: Study) -> list[Method]:
    """The methods that a study names, in its order.

    Args:
        path: ``studies/methods.yaml`` of the bundle.
        study: its ``definitions`` come before those of the file.

    Raises:
        DatasetError: a method is not defined, or its definition has an unknown entry.
    """
    defined = {**_read_yaml(path), **study.definitions}
    methods = []
    for name in study.methods:
        if name not in defined:
            raise DatasetError(
                f"`methods` must be among {', '.join(defined)}, got {name}: correct the name or "
                "add it to the study's `definitions`."
            )
        plain_name(name, "methods")
        entries = dict(defined[name] or {})
        unknown = set(entries) - {f.name for f in fields(Method)}
        if unknown:
            raise DatasetError(f"Method {name} must not have the entries {sorted(unknown)}.")
        for key in ("overlays", "train", "evaluate"):
            entries[key] = tuple(entries.get(key, ()))
        methods.append(Method(name, **entries))
    return methods


def plan_jobs(study: Study, methods: Iterable[Method]) -> list[Job]:
    """All jobs, fewest labels last, fold by fold, so that an interrupted study has whole folds."""
    methods = list(methods)
    jobs = []
    for seed in study.seeds:
        for fold in range(study.folds) if study.run_folds is None else study.run_folds:
            for proportion in sorted(study.proportions, reverse=True):
                networks: dict[str, list[Method]] = {}
                for method in methods:
                    if proportion < 1 or not method.unlabelled:
                        networks.setdefault(method.network, []).append(method)
                for network, sharing in networks.items():
                    rounds = sorted(sharing, key=lambda m: len(m.shares_at(proportion)))
                    _refuse_forks(rounds, proportion)
                    jobs.append(Job(network, tuple(rounds), proportion, fold, seed))
    return jobs


def _refuse_forks(methods: Sequence[Method], proportion: float) -> None:
    for fewer, more in pairwise(methods):
        shares = fewer.shares_at(proportion)
        if more.shares_at(proportion)[: len(shares)] != shares:
            raise DatasetError(
                f"Methods {fewer.name} and {more.name} must not go different ways from one "
                f"network, got the shares {shares} and {more.shares_at(proportion)}: give one of "
                "them a `branch` with a name, so that it trains its own."
            )


def divide(items: Items, study: Study, job: Job) -> tuple[dict[str, Items], Items]:
    """Who trains and who tests in a job.

    The test fold does not depend on seed or proportion. Patients without labels are in every
    training fold. Labelled patients are drawn uniformly
    without replacement from the training folds; for one seed and fold, fewer are a subset of more.

    Returns:
        The training folds' sections ``training``, ``unlabelled`` and ``validation``, and the test
        items.

    Raises:
        DatasetError: there are fewer patients than folds, or too few for one with label.
    """
    names = [patient_of(item) for item in items]
    without = {p for p, item in zip(names, items, strict=True) if "label" not in item}
    patients = sorted(set(names) - without)
    if len(patients) < study.folds:
        raise DatasetError(
            f"`folds` must be at most the number of patients with labels, {len(patients)}, got "
            f"{study.folds}."
        )
    parts = partition_dataset(patients, num_partitions=study.folds, shuffle=True, seed=0)
    tested = set(parts[job.fold])
    pairs = list(zip(names, items, strict=True))
    rest = [item for patient, item in pairs if patient not in tested]
    learning = len(patients) - len(tested) - study.validation
    sections = split_datalist(
        rest,
        labelled=max(1, round(job.proportion * learning)),
        validation=study.validation,
        test=0,
        seed=1000 * job.seed + job.fold,
    )
    del sections["test"]
    return sections, [dict(item) for patient, item in pairs if patient in tested]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DatasetError(
            f"Studies must be YAML files that can be read, got {path}: {error}."
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(f"Studies must be YAML mappings, got {type(content)} in {path}.")
    return content
