"""Each rule: the value and the figure that it came from."""

import pytest

from stipple_monai.planning import example_fingerprint, rules


def grid(spacing, shape, **more):
    kinds = ("least", "median", "greatest")
    return example_fingerprint(
        spacing_mm=dict.fromkeys(kinds, spacing), shape=dict.fromkeys(kinds, shape), **more
    )


def test_intensities():
    ct = rules.choose_intensity(example_fingerprint())
    values = {name: choice.value for name, choice in ct.items()}
    assert values == {
        "percentiles": False,
        "window_hu": [-100, 250],
        "mean_hu": 80.0,
        "std_hu": 50.0,
    }
    assert "organs' voxels in 4 scans" in ct["mean_hu"].why
    paper = rules.choose_intensity(example_fingerprint(), paper=True)
    assert paper["window_hu"].value == [-160, 300]
    mr = rules.choose_intensity(example_fingerprint(modality="MR"), paper=True)
    assert mr["percentiles"].value is True
    assert mr.keys() == {"percentiles"}


def test_channels_of_several_modalities_have_no_window():
    pet = example_fingerprint(modality="CT + PET", channels=2)
    assert {k: c.value for k, c in rules.choose_intensity(pet).items()} == {"percentiles": True}
    read = {"percentiles": False, "window_hu": [0, 1], "intensity": [{"a_min": "$@window_hu[0]"}]}
    for settings in ({"window_hu": [-100, 250]}, {"percentiles": False}, read):
        with pytest.raises(ValueError, match=r"`window_hu` must not be given for .* CT \+ PET"):
            rules.refuse_window(pet, settings)
    own = {**read, "intensity": [{"a_min": 0}]}
    for settings in ({}, {"percentiles": True, "window_hu": [0, 1]}, own):
        rules.refuse_window(pet, settings)
    two = example_fingerprint(channels=2)
    rules.refuse_window(two, read)
    assert rules.choose_intensity(two)["percentiles"].value is False


@pytest.mark.parametrize(
    ("spacing", "shape", "device", "value", "why"),
    [
        ([1, 1, 1], [200, 200, 200], "cuda", 3, "up to 3 times"),
        ([1, 1, 3], [200, 200, 200], "cuda", 3, "slices are 3 mm apart, 3 times"),
        ([1, 1, 3.1], [200, 200, 200], "cuda", 2, "above 3 times"),
        ([1, 1, 2], [200, 200, 20], "cuda", 2, "a scan has 20 slices"),
        ([1, 1, 2], [200, 200, 24], "cuda", 3, "up to 3 times"),
        ([1, 1, 1], [200, 200, 200], "cpu", 2, "there is no GPU"),
        ([1, 5, 1], [200, 40, 200], "cpu", 3, "the axial plane is the coarse one"),
    ],
)
def test_two_or_three_dimensions(spacing, shape, device, value, why):
    choice = rules.choose_dimensions(grid(spacing, shape), device=device)
    assert choice.value == value
    assert why in choice.why


def test_the_grid_is_the_median_or_what_the_device_is_quick_with():
    found = grid([1.25, 1.25, 7.7], [256, 256, 36])
    assert rules.choose_spacing(found, 2, device="cuda").value == [1.25, 1.25, -1]
    # 320 mm in 160 voxels
    assert rules.choose_spacing(found, 2, device="cpu").value == [2.0, 2.0, -1]
    assert rules.choose_spacing(found, 3, device="cuda").value == [1.25, 1.25, 7.7]
    assert rules.choose_size(found, [2.0, 2.0, -1], 2, device="cpu").value == [160, 160]
    assert rules.choose_size(found, [1.25, 1.25, -1], 2, device="cuda").value == [256, 256]


def test_pixels_that_are_not_square_become_square_ones_of_the_same_area():
    found = grid([0.5, 2.0, 5.0], [160, 40, 30])
    assert rules.choose_spacing(found, 2, device="cuda").value == [1.0, 1.0, -1]
    assert rules.choose_size(found, [1.0, 1.0, -1], 2, device="cuda").value == [80, 80]


def test_a_patch_is_as_much_of_the_scan_as_is_quick():
    found = grid([1, 1, 2], [512, 512, 120])
    size = rules.choose_size(found, [1, 1, 2], 3, device="cuda").value
    assert size == [112, 112, 128]
    assert all(n % 16 == 0 for n in size)
    small = grid([1, 1, 2], [60, 50, 30])
    assert rules.choose_size(small, [1, 1, 2], 3, device="cuda").value == [64, 64, 32]


@pytest.mark.parametrize(
    ("size", "dimensions", "device", "base", "value"),
    [
        ([160, 160], 2, "cpu", 16, [16, 32, 64, 128, 256]),
        ([512, 512], 2, "cuda", 32, [32, 64, 128, 256, 512, 512]),
        ([128, 128, 32], 3, "cuda", 32, [32, 64, 128]),
        ([16, 16], 2, "cpu", 8, [8, 16, 32]),
    ],
)
def test_levels_until_a_map_is_eight_voxels_wide(size, dimensions, device, base, value):
    choice = rules.choose_channels(size, dimensions, device=device, base=base)
    assert choice.value == value


@pytest.mark.parametrize(("labelled", "steps"), [(1, 1200), (10, 3000), (100, 6000)])
def test_more_steps_for_more_scans(labelled, steps):
    found = example_fingerprint(labelled=labelled)
    choice = rules.choose_steps(found, 8, device="cpu", epochs=50)
    assert f"{steps} steps for {labelled} labelled scans" in choice.why
    assert choice.value * labelled * 50 / 8 == pytest.approx(steps, rel=0.05)


def test_as_many_scans_in_memory_as_half_of_it_holds():
    found = grid([1, 1, 1], [256, 256, 256])
    # 4 scans of 16.8 million voxels, image and label in 4 bytes: half a GiB
    assert rules.choose_cache(found, [1, 1, -1], 2**40).value == 1.0
    assert rules.choose_cache(found, [1, 1, -1], 2**29).value == 0.5
    assert rules.choose_cache(found, [2, 2, -1], 2**29).value == 1.0


def test_organs_and_background():
    found = example_fingerprint(organs={63: "liver", 126: "spleen"}, without={9: "heart"})
    organs = rules.choose_organs(found)
    assert organs.value == [63, 126]
    assert organs.why.startswith("every value in 4 labels; no label has 9 (heart); one that is")
    assert "choose with `segment --organs`" in organs.why
    assert rules.choose_organs(example_fingerprint()).why == "every value in 4 labels"
    assert rules.choose_background(found, [126]).value == [63]
    assert rules.told_organs(found.organs, [126]).value == ["spleen"]
    for wrong in ([7], [], [255]):
        with pytest.raises(
            ValueError, match=r"`organs` must be values that labels have, \[63, 126\]"
        ):
            rules.refuse_ignored(found, wrong)


@pytest.mark.parametrize(
    ("cases", "why"),
    [
        ({1: 4, 2: 4}, "by the likelihood of its 4 labels, each left out in turn"),
        ({1: 2, 2: 4}, "by the likelihood of its 2 to 4 labels, each left out in turn"),
        ({1: 1, 2: 4}, "of its 1 to 4 labels, each left out in turn; 10 mm for an organ of one"),
        ({1: 1, 2: 1}, "an organ has one label, which cannot be left out: 10 mm"),
    ],
)
def test_the_prior_is_a_density_as_wide_as_the_labels_say(cases, why):
    found = grid([1.5, 1.5, 3], [256, 256, 100], organs={1: "a", 2: "b"}, cases=cases)
    chosen = rules.choose_prior(found, [2.0, 2.0, -1], [1, 2])
    assert chosen["prior_spacing_mm"].value == [2.0, 2.0, 3]
    assert (chosen["bins"].value, chosen["smoothing_mm"].value) == (None, "auto")
    assert why in chosen["smoothing_mm"].why
    # scans as they are: the grid of the median
    assert rules.choose_prior(found, [-1, -1, -1], [1])["prior_spacing_mm"].value == [1.5, 1.5, 3]
