"""Examples of README and recipes run as they are printed."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from stipple_monai.simulation import write_phantom

ROOT = Path(__file__).parents[2]


@pytest.fixture
def phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Names that the examples take as given: a scan and its label of three organs."""
    write_phantom(tmp_path / "data", cases=1, size=72, slices=(20, 20), progress=False)
    scan, label = (
        tmp_path / "data" / folder / "phantom_000.nii.gz" for folder in ("imagesTr", "labelsTr")
    )
    monkeypatch.chdir(tmp_path)
    return {"label_files": [label], "scan_file": scan}


def code_of(page: Path, word: str) -> str:
    found = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [text for text in found if word in text]
    return code


def test_example_runs(phantom: dict, tmp_path: Path) -> None:
    image = nib.load(phantom["label_files"][0])
    organs = np.asarray(image.dataobj).copy()
    for value, place in ((2, np.s_[8:16, 8:16, 4:9]), (3, np.s_[50:60, 50:60, 9:14])):
        organs[place] = value
    nib.save(nib.Nifti1Image(organs, image.affine), phantom["label_files"][0])
    with torch.no_grad():
        exec(code_of(ROOT / "README.md", "PriorDrivenInferer"), phantom)
    assert {p.name for p in tmp_path.glob("*.nii.gz")} == {f"prior_{k}.nii.gz" for k in (1, 2, 3)}
    assert phantom["logits"].shape == (1, 4, 72, 72, 20)
    assert phantom["label"].shape == (1, 72, 72, 20)
    assert phantom["label"].max() <= 3
    assert "organ_position_mm" in phantom["logits"].meta


def test_recipe_of_training_with_the_prior_runs(phantom: dict, tmp_path: Path) -> None:
    scan, (label,) = phantom["scan_file"], phantom["label_files"]
    with torch.no_grad():
        exec(code_of(ROOT / "docs" / "recipes.md", "prior_in_training=True"), phantom)
        assert (tmp_path / "prior_1.nii.gz").is_file()
        crops = phantom["training"]({"image": scan, "label": label})
        assert len(crops) == 2
        for crop in crops:
            assert set(crop) >= {"image", "label"}
            assert crop["image"].shape == (2, 64, 64, 16)
        adjusted = phantom["network"](crops[0]["image"].as_tensor()[None])
    assert adjusted.shape == (1, 2, 64, 64, 16)
    assert phantom["logits"].shape == (1, 2, 72, 72, 20)
    assert phantom["label"].shape == (1, 72, 72, 20)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
