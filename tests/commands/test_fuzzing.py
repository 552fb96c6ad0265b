"""Random headers, datalists, command lines and labels.

Whatever comes, results are whole or absent, an error is one line, and inputs stay as they were.
A few seconds in all; longer with ``STIPPLE_FUZZ=500``, the examples of each test.
"""

import contextlib
import io
import json
import os
import re
import struct
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stipple_monai import DatasetError, SpatialPrior, organ_position
from stipple_monai.__main__ import main
from stipple_monai.data import read_grid, read_sections, read_volume
from stipple_monai.errors import PositionError, PriorError
from stipple_monai.transforms import LoadScand

EXAMPLES = int(os.environ.get("STIPPLE_FUZZ", "12"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="STIPPLE_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
OURS = (DatasetError, PriorError, PositionError)
SHAPE = (8, 7, 6)

pytestmark = pytest.mark.filterwarnings("ignore")


def label():
    array = np.zeros(SHAPE, np.uint8)
    array[2:6, 2:5, 1:5] = 1
    return array


def pair(root):
    """A scan, its label and their datalist."""
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    noise = np.random.default_rng(0).integers(-8, 8, SHAPE)
    image = (100 * label() + noise).astype(np.int16)
    nib.save(nib.Nifti1Image(image, affine), root / "a.nii")
    nib.save(nib.Nifti1Image(label(), affine), root / "a_seg.nii")
    item = {"image": "a.nii", "label": "a_seg.nii"}
    (root / "list.json").write_text(json.dumps({"training": [item]}), encoding="utf-8")


def state(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


PROGRESS = re.compile(r"[a-z -]+: \w+ \d+/\d+")


def run(arguments):
    """Exit status and the lines on standard error, but for those of progress."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
    lines = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    return status, [line for line in lines if "%|" not in line and not PROGRESS.fullmatch(line)]


def assert_promises(status, lines, before, after):
    """One clear error or none, inputs as they were, nothing half-written."""
    assert status in (0, 1)
    if status:
        assert len(lines) == 1, lines
        assert lines[0].startswith(("stipple_monai ", "python -m stipple_monai"))
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if Path(name).name.startswith(".part-")]


@pytest.mark.slow
@fuzzed
@given(
    st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(["a.nii", "a_seg.nii"]),
)
def test_headers(changes, name):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair(root)
        data = bytearray((root / name).read_bytes())
        for at, value in changes:
            data[at] = value
        (root / name).write_bytes(data)
        before = state(root)
        for arguments in (["check", root / "list.json"],):
            assert_promises(*run(arguments), before, state(root))
        found = []
        for read in (
            lambda p: read_grid(p).affine,
            lambda p: read_volume(p).affine.numpy(),
            lambda p: LoadScand("x")({"x": str(p)})["x"].affine.numpy(),
        ):
            with contextlib.suppress(DatasetError):
                found.append(read(root / name))
        # whoever reads it, reads it alike
        for affine in found[1:]:
            np.testing.assert_allclose(affine, found[0], rtol=1e-4, atol=1e-3)
        with contextlib.suppress(*OURS):
            organ_position(root / "a_seg.nii")


keys = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
paths = st.sampled_from(["a.nii", "a_seg.nii", "none.nii", "../x", "/", "", ".", "a\0b"])
entries = {"image": paths | json_values, "label": paths, "name": paths}
items = st.fixed_dictionaries({}, optional=entries)
sections = st.sampled_from(["training", "test", "labels"])


@pytest.mark.slow
@fuzzed
@given(st.dictionaries(sections, st.lists(items, max_size=3) | json_values))
def test_datalists(content):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair(root)
        (root / "fuzz.json").write_text(json.dumps(content), encoding="utf-8")
        before = state(root)
        commands = (
            ["check", root / "fuzz.json", "--csv", root / "table.csv"],
            ["split", root / "fuzz.json", root / "out.json", "--labelled", "1", "--test", "0"],
        )
        for arguments in commands:
            assert_promises(*run(arguments), before, state(root))
        with contextlib.suppress(DatasetError):
            read_sections(root / "fuzz.json")


@pytest.mark.slow
@fuzzed
@given(st.binary(max_size=300) | st.integers(1, 30000).map(lambda n: b"[" * n))
def test_files_that_are_no_datalists(data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair(root)
        (root / "fuzz.json").write_bytes(data)
        before = state(root)
        assert_promises(*run(["check", root / "fuzz.json"]), before, state(root))


WORDS = """
ingest check split simulate report --labels --map --csv --folds 2 --names 1=a 1=no 63=1 --seed -1
1e9 --overwrite --out --layout --size --flip H --section training --organs 1=1.5 = x= --
"""
words = st.sampled_from([*WORDS.split(), ""]) | st.text(max_size=6).filter(lambda t: "/" not in t)


@pytest.mark.slow
@fuzzed
@given(st.lists(words, max_size=6))
def test_command_lines(arguments):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair(root)
        before, here = state(root), Path.cwd()
        os.chdir(root)
        try:
            status, lines = run([a for a in arguments if a not in ("demo", "phantom")])
        finally:
            os.chdir(here)
        assert_promises(status, lines, before, state(root))


@pytest.mark.slow
@fuzzed
@given(
    st.lists(
        st.floats(width=32) | st.sampled_from([0.0, 1.0, 2.0, 255.0, 0.9999999]),
        min_size=1,
        max_size=5,
    )
)
def test_labels(values):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair(root)
        array = label().astype(np.float32)
        array.flat[: len(values)] = values
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 4.0, 1.0])), root / "a_seg.nii")
        before = state(root)
        status, lines = run(["check", root / "list.json"])
        assert_promises(status, lines, before, state(root))
        whole = all(np.isfinite(v) and abs(v - round(v)) <= 1e-3 for v in values)
        if not whole:
            assert status == 1
            for read in (organ_position, SpatialPrior.estimate):
                with pytest.raises(DatasetError, match="whole numbers"):
                    read(root / "a_seg.nii")


@fuzzed
@given(st.binary(min_size=0, max_size=400), st.booleans())
def test_priors(data, in_header):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prior_1.nii"
        SpatialPrior(np.ones((2, 2, 2)) / 2, spacing_mm=(1, 1, 1)).save(path)
        whole = bytearray(path.read_bytes())
        if in_header:
            whole[348 : 348 + len(data)] = data
        else:
            whole = bytearray(data)
        path.write_bytes(whole)
        with contextlib.suppress(PriorError):
            SpatialPrior.load(path)


def test_a_prior_of_another_size_is_refused_before_it_is_read():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prior_1.nii"
        SpatialPrior(np.ones((2, 2, 2)) / 2, spacing_mm=(1, 1, 1)).save(path)
        data = bytearray(path.read_bytes())
        struct.pack_into("<4h", data, 40, 3, 30000, 30000, 1)
        path.write_bytes(data)
        with pytest.raises(PriorError, match=r"a valid prior: its shape is \(30000, 30000, 1\)"):
            SpatialPrior.load(path)
