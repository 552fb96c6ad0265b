"""Collect the rows of studies into this folder, and write what README and the pages show of them.

Run: ``python docs/results/update.py STUDY_FOLDER… [--machine TEXT]``. Each study becomes
``NAME.csv`` and ``NAME.json``, named like its folder; it may be unfinished. Without a folder only
the pages are written. ``--machine`` says what computed the cells where that is not this machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "extensions")]

from measured import MARKED, RESULTS, rendered  # noqa: E402

from stipple_monai.files import read_csv, write_csv  # noqa: E402
from stipple_monai.study import write_rows  # noqa: E402

CURVES = ("method", "fold", "seed", "round", "epoch", "loss")


def write_curves(folder: Path, out: Path) -> None:
    """Losses of a study's networks without prior, by epoch."""
    rows = [r for r in read_csv(folder / "curves.csv") if r["method"] == "baseline"]
    if rows:
        write_csv(out, CURVES, [[row[k] for k in CURVES] for row in rows])


def main() -> None:
    """Collect, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", type=Path, help="folders of studies")
    parser.add_argument("--machine", help="what computed the cells, if not this one")
    options = parser.parse_args()
    for folder in options.studies:
        path = RESULTS / f"{folder.resolve().name}.csv"
        print(f"{path.name}: {write_rows(folder, path, machine=options.machine)} rows")
        if (folder / "curves.csv").is_file():
            write_curves(folder, RESULTS / f"{path.stem}_curves.csv")
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if MARKED.search(text) and (new := rendered(text, page)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
