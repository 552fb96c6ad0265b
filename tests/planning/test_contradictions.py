"""Settings held against the figures of the data."""

import pytest

from stipple_monai.planning import contradictions, example_fingerprint


@pytest.mark.parametrize(
    ("figures", "settings", "note"),
    [
        ({"modality": "MR"}, {"window_hu": [-160, 300]}, "set `percentiles` to true"),
        ({}, {"percentiles": True}, "HU would be lost"),
        ({}, {"window_hu": [200, 300]}, "half of the organs' voxels lie outside"),
        ({"organs": {1: "a", 3: "b"}}, {"organs": [1]}, "Labels have 3, which are neither"),
        ({}, {"organs": [1, 2]}, "No label has organ 2"),
        ({}, {"spacing_mm": [0.1, 1, 1]}, "0.1 mm along R, 10 times off"),
        ({}, {"spacing_mm": [1, 1, -1], "slice_size": [320, 256]}, "`slice_size` is 320 voxels"),
        ({}, {"spacing_mm": [1, 1, 3], "patch_size": [64, 64, 160]}, "`patch_size` is 160 voxels"),
    ],
)
def test_each_contradiction(figures, settings, note):
    (found,) = contradictions(example_fingerprint(**figures), settings)
    assert note in found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"organs": [1], "window_hu": [-160, 300], "percentiles": False},
        {"spacing_mm": [-1, -1, -1], "slice_size": [256, 256]},
        {"spacing_mm": "$[1] * 3", "slice_size": [999, 999], "organs": "$[1]"},
    ],
)
def test_what_agrees_is_not_mentioned(settings):
    assert contradictions(example_fingerprint(), settings) == []
