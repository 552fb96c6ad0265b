"""RepeatedDataset: each scan several times an epoch, loaded once."""

from collections import Counter

import pytest
from monai.transforms import RandomizableTransform

from stipple_monai.data import RepeatedDataset
from stipple_monai.data.repeated import turns


def test_items_come_in_turns_and_are_loaded_once():
    loaded = []

    def load(item):
        loaded.append(item["scan"])
        return item

    items = [{"scan": "a"}, {"scan": "b"}]
    dataset = RepeatedDataset(items, load, repeats=3, num_workers=0, progress=False)
    assert [dataset[i]["scan"] for i in range(len(dataset))] == ["a", "b"] * 3
    assert items == [{"scan": "a"}, {"scan": "b"}]
    assert len(dataset._cache) == 2


def test_what_is_random_is_drawn_each_time():
    class Draw(RandomizableTransform):
        def __call__(self, item):
            return self.R.random()

    dataset = RepeatedDataset([0], Draw(), repeats=4, num_workers=0, progress=False)
    assert len({dataset[i] for i in range(4)}) == 4


@pytest.mark.parametrize("repeats", [0, -1])
def test_there_must_be_one_of_each(repeats):
    with pytest.raises(ValueError, match=f"`repeats` must be at least 1, got {repeats}"):
        RepeatedDataset([{"x": 0}], repeats=repeats)


LABELLED = [{"scan": name} for name in "ab"]


def pseudo(number):
    return [{"scan": f"p{i}", "pseudo_label": {"round": 1}} for i in range(number)]


@pytest.mark.parametrize("number", [1, 2, 5, 40])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.7])
@pytest.mark.parametrize("repeats", [2, 12])
def test_labelled_scans_have_their_share_of_an_epoch(number, share, repeats):
    """However many others there are; nobody is left out, and within a group all come as often."""
    data = [*pseudo(number), *LABELLED]
    dataset = RepeatedDataset(
        data, repeats=repeats, labelled_share=share, num_workers=0, progress=False
    )
    drawn = Counter(dataset[i]["scan"] for i in range(len(dataset)))
    of_labelled = [drawn[item["scan"]] for item in LABELLED]
    others = [drawn[item["scan"]] for item in pseudo(number)]
    assert len(dataset) == sum(drawn.values()) >= len(data) * repeats
    assert min(drawn.values()) >= 1
    assert len(drawn) == len(data)
    assert abs(sum(of_labelled) - share * len(dataset)) <= 0.5 + 1e-9
    assert max(of_labelled) - min(of_labelled) <= 1
    assert max(others) - min(others) <= 1


def test_half_of_an_epoch_is_exactly_half():
    dataset = RepeatedDataset(
        [*LABELLED, *pseudo(6)], repeats=10, labelled_share=0.5, num_workers=0, progress=False
    )
    drawn = Counter(dataset[i]["scan"] for i in range(len(dataset)))
    assert drawn == {"a": 20, "b": 20, **dict.fromkeys([f"p{i}" for i in range(4)], 7)} | {
        "p4": 6,
        "p5": 6,
    }


def test_an_epoch_is_as_long_as_it_must_be():
    assert len(turns([*LABELLED, *pseudo(9)], repeats=1, labelled_share=0.5)) == 18
    assert len(turns([*LABELLED, *pseudo(1)], repeats=1, labelled_share=0.5)) == 4


@pytest.mark.parametrize("data", [LABELLED, pseudo(3)])
def test_a_share_needs_both_groups(data):
    assert turns(data, repeats=3, labelled_share=0.5) == data * 3


def test_without_a_share_all_come_alike():
    data = [*LABELLED, *pseudo(3)]
    assert turns(data, repeats=2) == data * 2


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_the_share_is_a_part(share):
    with pytest.raises(ValueError, match=rf"`labelled_share` must lie in \(0, 1\), got {share}"):
        RepeatedDataset(LABELLED, repeats=1, labelled_share=share)


def test_a_length_takes_the_place_of_repeats():
    """Training then takes as many steps from two scans as from twenty."""
    assert [item["scan"] for item in turns(LABELLED, repeats=9, length=5)] == list("ababa")
    drawn = Counter(
        item["scan"]
        for item in turns([*LABELLED, *pseudo(3)], repeats=9, length=12, labelled_share=0.5)
    )
    assert drawn == {"a": 3, "b": 3, "p0": 2, "p1": 2, "p2": 2}


def test_a_length_has_room_for_every_scan():
    with pytest.raises(ValueError, match="`length` must be at least the number of scans, 2, got 1"):
        RepeatedDataset(LABELLED, repeats=1, length=1)
