"""The QA report of an ingest, as JSON and Markdown: what was read, found and done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.files import write_json, write_text
from stipple_monai.ingest.alignment_check import LEAST_SCORE

QA_JSON, QA_MARKDOWN = "qa.json", "qa.md"


def write_qa_report(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    skipped: Sequence[tuple[str, str]],
    about: Mapping[str, Any],
) -> None:
    """Write ``qa.json`` and ``qa.md``.

    Args:
        folder: where to.
        records: of all cases, see `pairs`; that of a refused case has its ``reason``.
        skipped: what the source has and was left out, and why.
        about: of the ingest: source, layout and settings.
    """
    counts = Counter(record["status"] for record in records)
    undecided = [r for r in records if (r.get("alignment") or {}).get("verdict") == "undecided"]
    summary = {
        **{status: counts[status] for status in ("ingested", "repaired", "refused")},
        "skipped": len(skipped),
        "undecided": len(undecided),
        "without_label": sum(r["status"] != "refused" and not r["label"] for r in records),
    }
    content = {
        **about,
        "summary": summary,
        "cases": list(records),
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
    }
    write_json(folder / QA_JSON, content)
    write_text(folder / QA_MARKDOWN, _markdown(content))


def mean_and_sd(organ: Mapping[str, Any], where: str) -> str:
    """Intensities ``inside`` or ``around`` an organ of a record, as ``141 ± 34``."""
    mean, sd = organ[f"mean_{where}"], organ[f"sd_{where}"]
    return "" if mean is None else f"{mean:.0f} ± {sd:.0f}"


def _markdown(content: Mapping[str, Any]) -> str:
    summary = content["summary"]
    lines = [
        "# Ingest",
        "",
        f"From `{content['source']}`, layout {content['layout']}. "
        + ", ".join(f"{name.replace('_', ' ')}: {n}" for name, n in summary.items())
        + ".",
        "",
        "Score: Jensen–Shannon divergence between the intensities in the label and up to 8 mm "
        "around it, in bits from 0 to 1; *ratio*: that of the best flip over that of the next "
        "best. HU where the scan is a CT. Axes are the array's: W, H, D.",
    ]
    cases = [record for record in content["cases"] if record["status"] != "refused"]
    header = ["case", "shape", "spacing_mm", "orientation", "organ", "volume_ml", "inside"]
    header += ["around", "score", "verdict", "ratio"]
    rows = [row for record in cases for row in _rows(record)]
    lines += ["", *_table(header, rows)] if rows else []
    for title, entries in (
        ("Refused", [(r["name"], [r["reason"]]) for r in content["cases"] if "reason" in r]),
        ("Skipped", [(s["name"], [s["reason"]]) for s in content["skipped"]]),
        ("Notes", [(r["name"], _notes(r)) for r in cases if _notes(r)]),
    ):
        if entries:
            lines += ["", f"## {title}", ""]
            lines += [
                f"- {_safe(name)}: {_safe(text)}" for name, texts in entries for text in texts
            ]
    return "\n".join(lines) + "\n"


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    image, found = record["image"], record["alignment"] or {"verdict": "no label", "ratio": ""}
    common = [
        record["name"],
        " × ".join(map(str, image["shape"])),
        " × ".join(f"{size:g}" for size in image["spacing_mm"]),
        image["orientation"],
    ]
    whole = record["status"] if record["status"] == "repaired" else found["verdict"]
    return [
        [
            *common,
            str(organ["name"] or organ["value"]),
            f"{organ['volume_ml']:.1f}",
            mean_and_sd(organ, "inside"),
            mean_and_sd(organ, "around"),
            f"{organ['score']:.2f}",
            # the verdict is the label's, of which other organs may stand out
            "undecided" if whole == "confirmed" and organ["score"] < LEAST_SCORE else whole,
            str(found["ratio"]),
        ]
        for organ in (record["label"] or {"organs": []})["organs"]
    ] or [[*common, *[""] * 5, whole, str(found["ratio"])]]


def _notes(record: Mapping[str, Any]) -> list[str]:
    return [*record["image"]["notes"], *(record["label"] or {"notes": []})["notes"]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_safe(cell) for cell in line) + " |" for line in lines]


def _safe(text: str) -> str:
    """What no name of a file can turn into markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
