"""Wheel and sdist have what they must have, and the installed package finds its bundle."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import lowest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "pancreas_stipple"
NOT_SOURCES = (".git", ".venv*", "*.egg-info", "__pycache__", "runs", "build", "dist", "_build")
NOT_SOURCES += ("_outside", ".*_cache", "models", "eval", "phantom")

pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both, built as `make build` does, from a copy and without network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def bundle_files():
    made = {"models", "eval", "phantom"}
    paths = [path.relative_to(BUNDLE) for path in BUNDLE.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if path.parts[0] not in made}


def test_wheel_has_the_whole_package_and_the_bundle(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "stipple_monai").rglob("*") if path.is_file()]
    package = {p.relative_to(ROOT).as_posix() for p in files if p.parent.name != "__pycache__"}
    bundle = {f"stipple_monai/bundles/pancreas_stipple/{name}" for name in bundle_files()}
    there = {name for name in names if ".dist-info/" not in name}
    assert "stipple_monai/py.typed" in package
    assert there == package | bundle
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(archive.read(path))
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"dicom", "study", "docs", "test", "dev"} <= set(metadata.get_all("Provides-Extra"))
    pythons = [f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)]
    assert set(pythons) <= set(metadata.get_all("Classifier"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert metadata["Version"] == setup["metadata"]["version"]


def test_sdist_has_what_tests_and_documentation_need(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/*.md")]
    wanted += [*ROOT.glob("docs/extensions/*.py"), *ROOT.glob("benchmarks/*")]
    wanted += [ROOT / "Makefile", ROOT / "CITATION.cff", ROOT / "LICENSE", ROOT / "docs/conf.py"]
    wanted = {p.relative_to(ROOT).as_posix() for p in wanted if p.is_file()}
    wanted |= {f"bundles/pancreas_stipple/{name}" for name in bundle_files()}
    assert wanted - names == set()


def test_installed_package_runs_its_bundle(wheel, tmp_path):
    """In an empty folder, without the checkout: a phantom, and its prior by the bundle's config."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--no-compile", "--target", site, wheel)
    script = """
import stipple_monai
from stipple_monai.simulation import write_phantom
from stipple_monai.bundle import BUNDLE, configs_of, run_bundle

print(stipple_monai.__file__, BUNDLE)
write_phantom("phantom", cases=2, size=32, slices=(12, 12), progress=False)
run_bundle(configs_of(BUNDLE), ["prior", "phantom"], bundle_root=".")
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    said = run(sys.executable, "-c", script, cwd=empty, env=environment)
    found = [Path(path) for path in said.splitlines()[0].split()]
    assert found == [
        site / "stipple_monai" / "__init__.py",
        site / "stipple_monai" / "bundles" / "pancreas_stipple",
    ]
    assert (empty / "models" / "prior_1.nii.gz").is_file()


def test_lower_bounds_are_of_what_is_installed():
    constraints = [Requirement(line) for line in lowest.lowest()]
    assert {"monai", "numpy", "scipy", "nibabel", "itk"} <= {r.name for r in constraints}
    for requirement in constraints:
        (bound,) = requirement.specifier
        assert bound.operator == "=="
        assert Version(version(requirement.name)) >= Version(bound.version), requirement
