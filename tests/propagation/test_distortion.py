"""Image distortion against its definition, pixel by pixel, and as a measure of likeness."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.data.labels import draw_split
from scnf.data.sources import load
from scnf.propagation.distortion import (
    deslanted,
    distortion_distances,
    distortion_labels,
    distortion_neighbours,
    sobel_gradients,
)
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.spread import propagate


def by_hand(g: Tensor, h: Tensor) -> float:
    """The distance of gradients [K, H, W], with a loop for everything."""

    def at(gradients: Tensor, row: int, column: int) -> Tensor:
        inside = 0 <= row < gradients.shape[1] and 0 <= column < gradients.shape[2]
        return gradients[:, row, column] if inside else torch.zeros_like(gradients[:, 0, 0])

    total, near = 0.0, (-1, 0, 1)
    for i in range(g.shape[1]):
        for j in range(g.shape[2]):
            costs = [
                sum(
                    float((at(g, i + v, j + w) - at(h, i + down + v, j + right + w)).square().sum())
                    for v in near
                    for w in near
                )
                for down in range(-2, 3)
                for right in range(-2, 3)
            ]
            total += min(costs)
    return total


def stroke(side: int = 28) -> Tensor:
    """A vertical stroke [1, 1, side, side] in the middle, two pixels wide."""
    x = torch.zeros(1, 1, side, side)
    x[..., side // 4 : -side // 4, side // 2 - 1 : side // 2 + 1] = 1
    return x


def sheared(x: Tensor, slant: float) -> Tensor:
    theta = torch.tensor([[1.0, slant, 0.0], [0.0, 1.0, 0.0]]).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


# --- deslanting


@pytest.mark.parametrize("slant", [-0.6, 0.3, 0.9])
def test_deslanting_undoes_a_shear(slant: float) -> None:
    x = stroke()
    slanted = sheared(x, slant)
    assert (deslanted(slanted) - x).abs().sum() < 0.35 * (slanted - x).abs().sum()


def test_deslanting_undoes_a_slant_above_one_in_part() -> None:
    whole, more = sheared(stroke(), 1.0), sheared(stroke(), 1.8)
    moved = torch.arange(28.0)
    tilt = [(deslanted(x)[0, 0] * moved).sum(1) / deslanted(x)[0, 0].sum(1).clamp_min(1e-6) for x in (whole, more)]
    lean = [float(each[17] - each[10]) for each in tilt]
    assert abs(lean[0]) < 1 and abs(lean[1]) > 3


def test_deslanting_leaves_symmetric_and_uniform_images() -> None:
    quarter = torch.rand(3, 2, 14, 12)
    half = torch.cat([quarter, quarter.flip(2)], dim=2)
    for x in (torch.cat([half, half.flip(3)], dim=3), torch.full((2, 3, 8, 8), 5.0), torch.zeros(1, 1, 28, 28)):
        torch.testing.assert_close(deslanted(x), x, rtol=0, atol=1e-4)


def test_deslanting_centres_the_mass() -> None:
    torch.testing.assert_close(deslanted(stroke().roll((3, -4), dims=(2, 3))), stroke(), rtol=0, atol=1e-4)


def test_deslanting_moves_channels_by_their_mean_in_any_chunks() -> None:
    grey = sheared(stroke(), 0.5) * 200
    colours = torch.cat([0.5 * grey, grey, 1.5 * grey], dim=1)
    torch.testing.assert_close(deslanted(colours)[:, 1:2], deslanted(grey))
    first = torch.cat([stroke(), 3 * sheared(stroke(), 0.5)], dim=1)
    torch.testing.assert_close(deslanted(first), deslanted(first.flip(1)).flip(1))
    assert not torch.allclose(deslanted(first)[:, :1], stroke(), atol=0.1)  # which alone would have stayed
    x = torch.randint(0, 256, (7, 3, 10, 8), dtype=torch.uint8)
    torch.testing.assert_close(deslanted(x, chunk=1), deslanted(x.float()), rtol=1e-4, atol=1e-2)


# --- distances


def test_sobel_gradients_equal_their_definition() -> None:
    x = torch.randn(2, 3, 6, 7)
    gradients, padded = sobel_gradients(x), F.pad(x, (1, 1, 1, 1))
    assert gradients.shape == (2, 6, 6, 7)
    for channel in range(3):
        smooth = padded[:, channel, :-2] + 2 * padded[:, channel, 1:-1] + padded[:, channel, 2:]
        torch.testing.assert_close(gradients[:, 2 * channel], (smooth[..., 2:] - smooth[..., :-2]) / 8)
    turned = sobel_gradients(x.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(gradients[:, 1::2], turned[:, ::2])


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 5, 9), (6, 4, 4), (1, 1, 1)])
def test_distortion_distances_equal_their_definition(shape: tuple[int, ...]) -> None:
    g, h = torch.randn(2, 3, *shape, dtype=torch.float64)
    before = g.clone(), h.clone()
    expected = torch.tensor([by_hand(*pair) for pair in zip(g, h, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(distortion_distances(g, h), expected)
    assert torch.equal(g, before[0]) and torch.equal(h, before[1])


def test_distortion_distance_of_slightly_moved_images_is_zero() -> None:
    x = stroke()
    moved = [sobel_gradients(x.roll(places, dims=3)) for places in range(4)]
    distances = [float(distortion_distances(moved[0], other)) for other in moved]
    assert distances[:3] == [0, 0, 0] and distances[3] > 0
    assert (x - x.roll(1, dims=3)).square().sum() > 0  # for pixels, the place is all


# --- neighbours


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels of which a hundred are visible, and all labels."""
    data = load("digits", "unused")
    split = draw_split(data.train_y, 10, 100, 200, 0, True)
    return data.train_x[split.train], split.visible(data.train_y)[split.train], data.train_y[split.train]


def test_distortion_neighbours_are_the_nearest_of_all_candidates() -> None:
    x = digits()[0][:40]
    indices, weights = distortion_neighbours(x, neighbours=5, candidates=100, chunk=1)
    gradients = sobel_gradients(deslanted(x))
    table = torch.stack([distortion_distances(row.expand_as(gradients), gradients) for row in gradients])
    nearest = table.fill_diagonal_(torch.inf).topk(5, dim=1, largest=False)
    torch.testing.assert_close(table.gather(1, indices), nearest.values)
    scales = nearest.values[:, -1].sqrt()
    expected = (-4 * nearest.values / (scales[:, None] * scales[indices])).exp()
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)


def test_distortion_neighbours_exclude_self_and_are_fewer_in_small_sets() -> None:
    x = digits()[0]
    for count in (2, 4, 50):
        indices, weights = distortion_neighbours(x[:count])
        assert indices.shape == weights.shape == (count, min(6, count - 1))
        assert not (indices == torch.arange(count).unsqueeze(1)).any()
        assert bool(((weights >= 0) & (weights <= 1)).all())


def test_distortion_neighbours_depend_on_the_number_of_candidates() -> None:
    x = digits()[0][:200]
    few, many = (distortion_neighbours(x, neighbours=3, candidates=each)[0] for each in (3, 199))
    assert not torch.equal(few, many)


def test_distortion_neighbours_do_not_depend_on_scale_or_chunk() -> None:
    x = digits()[0][:60]
    indices, weights = distortion_neighbours(x)
    for other in (distortion_neighbours(x / 16), distortion_neighbours(x, chunk=2000)):
        assert (other[0] == indices).double().mean() > 0.99
        torch.testing.assert_close(other[1], weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e-15, 1e15, 1e30, 1e300])
def test_distortion_neighbours_do_not_depend_on_extreme_ranges(factor: float) -> None:
    x = digits()[0][:60].double()
    indices, weights = distortion_neighbours(x)
    other = distortion_neighbours(x * factor)
    assert (other[0] == indices).double().mean() > 0.99  # a factor that is no power of two rounds
    torch.testing.assert_close(other[1], weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_distortion_neighbours_are_bit_identical_under_powers_of_two(power: int) -> None:
    x = digits()[0][:40].float()
    times = x * 2.0**power
    assert torch.equal(deslanted(times), deslanted(x) * 2.0**power)
    assert torch.equal(oriented_gradients(times), oriented_gradients(x))
    assert all(torch.equal(*pair) for pair in zip(distortion_neighbours(times), distortion_neighbours(x), strict=True))


def test_distortion_neighbours_give_copies_weight_one() -> None:
    x = digits()[0][:10].repeat(3, 1, 1, 1)
    weights = distortion_neighbours(x, neighbours=2)[1]
    torch.testing.assert_close(weights, torch.ones(30, 2))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 1, 8, 8), "two images or more"),
        (torch.rand(3, 1, 8, 8) - 0.5, "not negative"),
        (torch.full((3, 1, 8, 8), torch.nan), "finite"),
        (torch.full((3, 1, 8, 8), torch.inf), "finite"),
    ],
    ids=["one", "negative", "nan", "infinite"],
)
def test_distortion_neighbours_refuse_invalid_images(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distortion_neighbours(x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 32, 32), (1, 12, 9)])
def test_distortion_neighbours_take_images_of_any_size_and_colour(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 200, (6, *shape), dtype=torch.uint8)
    near = (x + torch.randint(0, 3, x.shape, dtype=torch.uint8)).flip(0)
    indices, _ = distortion_neighbours(torch.cat([x, near]), neighbours=1)
    assert indices.flatten().tolist() == list(range(11, -1, -1))


def test_distortion_labels_beat_labels_propagated_over_pixels() -> None:
    x, y, truth = digits()
    found, certainty = distortion_labels(x, y)
    assert torch.equal(found[y >= 0], y[y >= 0]) and (certainty[y >= 0] == 1).all()
    errors = [int((labels != truth).sum()) for labels in (propagate(x.flatten(1), y)[0], found)]
    assert errors[1] < 0.7 * errors[0]
