"""The README's example runs as it is printed."""

import re
from pathlib import Path

import pytest
import torch

from stipple_monai.simulation import write_phantom

ROOT = Path(__file__).parents[2]


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    write_phantom(tmp_path / "phantom", cases=1, size=72, slices=(20, 20), progress=False)
    scan_file, label_file = (
        tmp_path / "phantom" / folder / "phantom_000.nii.gz" for folder in ("imagesTr", "labelsTr")
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {"label_files": [label_file], "scan_file": scan_file}
    with torch.no_grad():
        exec(code, names)

        assert (tmp_path / "prior_1.nii.gz").is_file()
        crops = names["training"]({"image": scan_file, "label": label_file})
        assert len(crops) == 2
        for crop in crops:
            assert set(crop) >= {"image", "label"}
            assert crop["image"].shape == (2, 64, 64, 16)
        adjusted = names["network"](crops[0]["image"].as_tensor()[None])
    assert adjusted.shape == (1, 2, 64, 64, 16)
    assert names["logits"].shape == (1, 2, 72, 72, 20)
    assert "organ_position_mm" in names["logits"].meta


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
