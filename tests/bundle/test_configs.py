"""What users say reaches the configs as it was said."""

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from stipple_monai.bundle import as_written

ODD = ["a#1", "a@#b", "%a#b", "a::b", "$a", "@a", "[a]", "a: b", "007", "no", "{x}", "é#", "'\"#"]


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_what_it_is(name):
    path = Path("/runs") / name / "models"
    parser = ConfigParser({"folder": as_written(path), "file": "$@folder + '/x'"})
    assert parser.get_parsed_content("folder") == str(path)
    assert parser.get_parsed_content("file") == f"{path}/x"
    relative = ConfigParser({"folder": as_written(Path(name)), "a": 1})
    assert relative.get_parsed_content("folder") == name


def test_values_within_lists_and_mappings_are_so_too():
    value = {"a": [Path("b#1"), 2], "c": None}
    parser = ConfigParser({"v": as_written(value)})
    assert parser.get_parsed_content("v") == {"a": ["b#1", 2], "c": None}


def test_what_is_meant_for_monai_stays():
    assert as_written("$1 + 1") == "$1 + 1"
    assert as_written("@bundle_root") == "@bundle_root"
