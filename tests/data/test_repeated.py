"""RepeatedDataset: each scan several times an epoch, loaded once."""

import pytest
from monai.transforms import RandomizableTransform

from stipple_monai.data import RepeatedDataset


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
