"""The plan of a folder, which is the one that its first training was begun with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stipple_monai.bundle import MODEL, read_config, read_model
from stipple_monai.errors import DatasetError
from stipple_monai.ownership import contradictions

PLAN = "plan.yaml"


def refuse_edited_plan(plan: str | Path, models: str | Path) -> None:
    """Stop where a plan has changed since a network was begun with it; comments do not count.

    Args:
        plan: the file, in the folder of a run or of rounds; where it is gone, nothing differs.
        models: folder of the network, which has a copy of the plan once its training is begun.

    Raises:
        DatasetError: knobs of the plan differ; the message has them.
    """
    plan, models = Path(plan), Path(models)
    if not plan.is_file() or not (models / MODEL).is_file():
        return
    copies = [
        path for path in read_model(models).overlays if re.fullmatch(rf"\d+_{PLAN}", path.name)
    ]
    if not copies:
        return
    other = contradictions({"knobs": _values(copies[-1])}, {"knobs": _values(plan)})
    if other:
        differ = ", ".join(text.removeprefix("knobs: ") for text in other)
        raise DatasetError(
            f"{plan} must be the plan that its folder was begun with, got other {differ}: put the "
            "values back, or train in another folder with --plan."
        )


def _values(path: Path) -> dict[str, Any]:
    """Knobs of a plan, those that YAML reads as dates as text."""
    found: dict[str, Any] = json.loads(json.dumps(read_config(path), default=str))
    return found
