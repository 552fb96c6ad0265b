"""The README's example runs as it is printed."""

import re
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from stipple_monai.simulation import write_phantom

ROOT = Path(__file__).parents[2]


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    write_phantom(tmp_path / "phantom", cases=1, size=32, slices=(16, 16), progress=False)
    label_file = tmp_path / "phantom" / "labelsTr" / "phantom_000.nii.gz"
    monkeypatch.chdir(tmp_path)
    names: dict = {"label_files": [label_file]}
    exec(code, names)

    assert (tmp_path / "prior_1.nii.gz").is_file()
    label = torch.zeros(1, 32, 32, 16)
    label[0, 10:20, 12:18, 4:9] = 1
    item = {"image": MetaTensor(torch.rand(1, 32, 32, 16)), "label": MetaTensor(label)}
    item = Compose([*names["on_whole_scans"], *names["on_crops"]])(item)
    assert item["image"].shape == (2, 32, 32, 16)
    names["net"].eval()
    with torch.no_grad():
        logits = names["net"](item["image"].as_tensor()[None])
        located = names["inferer"](item["image"][None, :1], names["net"])
    assert logits.shape == located.shape == (1, 2, 32, 32, 16)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
