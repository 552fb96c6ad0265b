"""Values of a box along the world axes, on another grid; `SpatialPrior.place` has the oracle."""

import itertools
import math

import pytest
import torch

from stipple_monai.spatial.sampling import sample_on_grid


def along(axis, values, *, spacing=1.0, center=0.0, start=0.0, step=1.0, count=8, nearest=False):
    """Sample a line of voxels along one axis at ``start + step·i``."""
    image_shape, shape = [1, 1, 1], [1, 1, 1]
    image_shape[axis], shape[axis] = len(values), count
    spacing_mm, center_mm = [1.0, 1.0, 1.0], torch.zeros(3, dtype=torch.float64)
    spacing_mm[axis], center_mm[axis] = spacing, center
    affine = torch.eye(4, dtype=torch.float64)
    affine[axis, axis], affine[axis, 3] = step, start
    return sample_on_grid(
        torch.tensor(values).reshape(image_shape),
        spacing_mm=spacing_mm,
        center_mm=center_mm,
        affine=affine,
        shape=shape,
        nearest_along_z=nearest,
    ).flatten()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1.0, -1.0])
def test_linear_between_centres_constant_to_the_edge_and_zero_beyond(axis, step):
    # The box reaches from -2 to 2, its voxel centres are -1 and 1; points at -2.5, -1.5 … 2.5.
    values = along(axis, [0.2, 1.0], spacing=2.0, start=-2.5 * step, step=step, count=6)
    expected = [0.0, 0.2, 0.4, 0.8, 1.0, 0.0]
    torch.testing.assert_close(values, torch.tensor(expected[:: int(step)]))


def test_nearest_is_for_the_third_axis_alone():
    arguments = {"spacing": 2.0, "start": -2.5, "count": 6, "nearest": True}
    torch.testing.assert_close(
        along(2, [0.2, 1.0], **arguments), torch.tensor([0.0, 0.2, 0.2, 1.0, 1.0, 0.0])
    )
    torch.testing.assert_close(
        along(0, [0.2, 1.0], **arguments), torch.tensor([0.0, 0.2, 0.4, 0.8, 1.0, 0.0])
    )


@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_a_point_between_two_bins_belongs_to_the_upper(rounding):
    start = -3.0 + rounding
    values = along(2, [0.2, 0.6, 1.0], spacing=2.0, start=start, count=7, nearest=True)
    torch.testing.assert_close(values, torch.tensor([0.2, 0.2, 0.6, 0.6, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("shift", [-1e-7, 1e-7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rounding_of_a_coordinate_moves_no_edge(axis, shift):
    """Voxels that lie on an edge of the box are inside on whichever side rounding puts them."""
    values = along(axis, [1.0, 1.0], start=-1.0 + shift, count=3)
    torch.testing.assert_close(values, torch.ones(3))


@pytest.mark.parametrize(
    ("start", "inside"), [(-20.0, 0), (20.0, 0), (-6.0, 4), (0.0, 3), (-3.0, 5)]
)
def test_box_partly_or_wholly_outside_the_grid(start, inside):
    values = along(0, [1.0] * 5, start=start)
    assert int(values.sum()) == inside
    assert set(values.tolist()) <= {0.0, 1.0}


def test_spacing_and_centre_are_in_mm():
    image = torch.zeros(3, 3, 3)
    image[2, 1, 0] = 1.0
    affine = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64))
    values = sample_on_grid(
        image,
        spacing_mm=(2.0, 1.0, 4.0),
        center_mm=torch.tensor([3.0, 2.0, 6.0], dtype=torch.float64),
        affine=affine,
        shape=(20, 20, 30),
        nearest_along_z=False,
    )
    # World point of voxel (2, 1, 0): (3 + 2, 2, 6 - 4), twice that as an index of the grid.
    assert torch.nonzero(values == values.max()).tolist() == [
        [w, 4, d] for w in (10, 11, 12) for d in (0, 1, 2, 3, 4)
    ]
    assert float(values[10, 4, 4]) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_image_is_kept(dtype):
    values = sample_on_grid(
        torch.ones(2, 2, 2, dtype=dtype),
        spacing_mm=(1, 1, 1),
        center_mm=torch.full((3,), math.pi, dtype=torch.float64),
        affine=torch.eye(4, dtype=torch.float64),
        shape=(6, 6, 6),
        nearest_along_z=True,
    )
    assert values.dtype == dtype
    assert int(values.sum()) == 8


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_single_precision_samples_as_double_does(order):
    """Which takes its planes in another way along the last axis."""
    image = torch.rand(7, 6, 5, generator=torch.Generator().manual_seed(0))
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[list(order), range(3)] = torch.tensor([0.7, -1.3, 0.9], dtype=torch.float64)
    affine[3, 3] = 1
    options = {
        "spacing_mm": (1.0, 1.5, 2.0),
        "center_mm": affine[:3, :3] @ torch.tensor([5.0, 4.0, 6.0], dtype=torch.float64),
        "affine": affine,
        "shape": (11, 9, 13),
        "nearest_along_z": False,
    }
    found = sample_on_grid(image, **options)
    assert found.is_contiguous()
    assert float(found.amax()) > 0.5
    torch.testing.assert_close(
        found.double(), sample_on_grid(image.double(), **options), rtol=0, atol=1e-6
    )


def test_a_sample_of_the_grid_itself_is_a_copy():
    image = torch.rand(4, 3, 2)
    found = sample_on_grid(
        image,
        spacing_mm=(1, 1, 1),
        center_mm=torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64),
        affine=torch.eye(4, dtype=torch.float64),
        shape=image.shape,
        nearest_along_z=False,
    )
    assert torch.equal(found, image)
    found.zero_()
    assert float(image.amax()) > 0
