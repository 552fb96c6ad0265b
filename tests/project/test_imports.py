"""What is optional stays optional: the package is imported, and reads NIfTI files, without."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

PACKAGE = Path(__file__).parents[2] / "stipple_monai"

WITHOUT_ITK = """
import sys
sys.modules["itk"] = None
import stipple_monai, stipple_monai.ingest, stipple_monai.results
from monai.utils import OptionalImportError
from stipple_monai.data import read_grid
assert read_grid(sys.argv[1]).array.shape == (2, 3, 4)
try:
    read_grid(sys.argv[1].replace(".nii", ".mha"))
except OptionalImportError as error:
    print(error)
"""


def test_itk_is_needed_where_it_reads_alone(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), path)
    path.with_suffix(".mha").touch()
    command = [sys.executable, "-c", WITHOUT_ITK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import itk")


def test_no_module_imports_itk_by_itself():
    """MONAI imports it where it is there; `import itk` would end where it is not."""
    for path in PACKAGE.rglob("*.py"):
        assert "import itk\n" not in path.read_text(encoding="utf-8"), path
