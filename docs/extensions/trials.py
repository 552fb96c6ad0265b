"""Tables of measurements that are no studies, from their files in ``docs/results``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stipple_monai.files import read_csv
from stipple_monai.report import Table

# what decides in each run of the trial, by column of the table
DECISIONS = {
    "network alone": ("argmax", "argmax"),
    "prior alone": ("threshold", "expected Dice"),
    "equation 2": ("argmax", "argmax"),
    "constants": ("", "expected Dice"),
    "fitted": ("expected Dice", "expected Dice"),
}
ORGANS = ("liver", "right kidney", "left kidney", "spleen", "stomach", "aorta", "pancreas")
OF_FUSION = (
    ("1", "btcv_ct, seven organs", "3"),
    ("2", "btcv_ct, seven organs", "3"),
    ("2", "btcv_ct, seven organs", "8"),
    ("2", "chaos_mr_t2, four organs", "2"),
    ("2", "chaos_mr_t2, four organs", "4"),
    ("2", "btcv_ct, pancreas", "3"),
)
WIDTHS = ("2 mm", "3 mm", "4 mm", "6 mm", "8 mm", "10 mm", "12 mm", "20 mm")


def fusion(path: Path) -> list[Table]:
    """Mean Dice over organs and test scans of networks that were trained without prior."""
    rows = [
        row
        for row in read_csv(path)
        if row["prior_in_training"] == "none"
        and not row["training"]
        and row["weights"] == "last"
        and row["position"] == "located"
    ]
    body = []
    for run, data, labelled in OF_FUSION:
        mine = [r for r in rows if (r["run"], r["data"], r["labelled"]) == (run, data, labelled)]
        wanted = {name: decisions[int(run) - 1] for name, decisions in DECISIONS.items()}
        of = {
            name: [r for r in mine if (r["method"], r["decision"]) == (name, decision)]
            for name, decision in wanted.items()
        }
        tests = str(len(of["network alone"]))
        organs = [organ for organ in ORGANS if any(row[organ] for row in mine)]
        title = f"{data}, run {run}" if labelled == "3" and len(organs) > 1 else data
        body.append([title, labelled, tests, *_means(of.values(), organs)])
        if len(organs) > 1 and "pancreas" in organs and run == "2":
            body.append(["… its pancreas", labelled, tests, *_means(of.values(), ["pancreas"])])
    return [Table("", ["data", "labelled", "tests", *DECISIONS], body)]


def _means(groups: Sequence[Sequence[dict[str, str]]], organs: Sequence[str]) -> list[str]:
    means = []
    for rows in groups:
        scans = [np.mean([float(row[k]) for k in organs if row[k]]) for row in rows]
        means.append(float(np.mean(scans)) if scans else None)
    best = max(mean for mean in means if mean is not None)
    return [
        "–" if mean is None else f"**{mean:.1f}**" if mean == best else f"{mean:.1f}"
        for mean in means
    ]


def likelihood(path: Path) -> list[Table]:
    """Thousand nats a case of further labels, by how a prior was made of few."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    cells: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in read_csv(path):
        where = (row["organ"], row["data"], row["center"], row["labels"])
        found[(*where, row["candidate"])].append(float(row["kilonats"]))
    for (*where, candidate), values in found.items():
        cells[tuple(where)][candidate] = float(np.mean(values))
    shown = ("bins", *WIDTHS, "auto")
    body = []
    for (organ, _, center, labels), means in cells.items():
        best = max(means[name] for name in shown)
        texts = (f"**{means[k]:.1f}**" if means[k] == best else f"{means[k]:.1f}" for k in shown)
        body.append([organ, center, labels, *texts])
    return [Table("", ["organ", "centre", "labels", *shown], body)]


def gpu(path: Path) -> list[Table]:
    """All tables of the GPU runs, one below the other; of several runs of one the latest."""
    tables: dict[str, tuple[str, dict[str, dict[str, str]]]] = {}
    for row in read_csv(path):
        if tables.get(row["table"], ("",))[0] != row["run"]:
            tables[row["table"]] = (row["run"], {})
        place = tables[row["table"]][1]
        place.setdefault(row["row"], {})[row["column"]] = row["value"]
    made = []
    for title, (run, rows) in tables.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        body = [[name, *(cells.get(k, "–") for k in columns)] for name, cells in rows.items()]
        made.append(Table("", [f"{title}, run {run}", *columns], body))
    return made


def transfer(path: Path) -> list[Table]:
    """Priors of an atlas, of own labels and of both, asked about labels of other scans."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in read_csv(path):
        key = (row["labels"], row["organ"], row["candidate"])
        found[key].append((float(row["nats"]), float(row["dice"])))
    organs = list(dict.fromkeys(organ for _, organ, _ in found))
    kinds = list(dict.fromkeys(kind for _, _, kind in found))
    tables = []
    for column, unit, scale in ((0, "nats", 1.0), (1, "Dice in %", 100.0)):
        body = []
        for labels in dict.fromkeys(key[0] for key in found):
            means = {
                kind: [
                    scale * np.mean([pair[column] for pair in found[labels, organ, kind]])
                    for organ in organs
                ]
                for kind in kinds
            }
            whole = {kind: float(np.mean(values)) for kind, values in means.items()}
            for kind, values in means.items():
                mean = f"{whole[kind]:.1f}"
                best = whole[kind] == max(whole.values())
                cells = [*(f"{x:.1f}" for x in values), f"**{mean}**" if best else mean]
                body.append([labels, kind, *cells])
        tables.append(Table("", [f"own labels, {unit}", "prior", *organs, "mean"], body))
    return tables


def mirrors(path: Path) -> list[Table]:
    """Labels that are said to be mirrored, by how they were mirrored."""
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in read_csv(path):
        counts[row["data"], row["mirrored"] or "as it is"].append(row["said_to_be"] == "1")
    kinds = list(dict.fromkeys(kind for _, kind in counts))
    body = [
        [data, *(f"{sum(counts[data, kind])} of {len(counts[data, kind])}" for kind in kinds)]
        for data in dict.fromkeys(data for data, _ in counts)
    ]
    return [Table("", ["said to be wrong", *kinds], body)]
