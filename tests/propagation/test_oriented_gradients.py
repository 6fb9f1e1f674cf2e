"""Oriented gradients against what a hand-made image says, and as a measure of likeness."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.labels import draw_split
from scnf.data.sources import load
from scnf.propagation.oriented_gradients import ORIENTATIONS, oriented_gradients
from scnf.propagation.spread import propagate
from scnf.propagation.strategy import Propagation
from scnf.recipes import build
from scnf.training.metrics import representations


def ramp(degrees: float, side: int = 28) -> Tensor:
    """An image [1, 1, side, side] that gets lighter in one direction, at an angle from right towards down."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = math.radians(degrees)
    return (columns * math.cos(angle) + rows * math.sin(angle))[None, None] + 100


def middle(x: Tensor) -> Tensor:
    """The votes of the cell in the middle, by direction."""
    side = math.isqrt(oriented_gradients(x).shape[1] // ORIENTATIONS)
    return oriented_gradients(x).square().view(ORIENTATIONS, side, side)[:, side // 2, side // 2]


@pytest.mark.parametrize("direction", range(ORIENTATIONS))
def test_oriented_gradients_of_a_ramp_vote_for_its_direction_alone(direction: int) -> None:
    votes = middle(ramp(360 / ORIENTATIONS * direction))
    assert votes.argmax() == direction and votes[direction] == pytest.approx(float(votes.sum()), rel=1e-4)


def test_oriented_gradients_between_directions_vote_for_both_by_distance() -> None:
    votes = middle(ramp(360 / ORIENTATIONS * 11.75))
    assert votes[0] == pytest.approx(3 * float(votes[11]), rel=1e-3) and votes[1:11].max() < 1e-6


def test_oriented_gradients_take_the_channel_of_the_longest_gradient() -> None:
    flat = torch.zeros(1, 1, 28, 28)
    colours = torch.cat([flat, ramp(90), 0.5 * ramp(0)], dim=1)
    assert torch.allclose(oriented_gradients(colours), oriented_gradients(ramp(90)))


def test_oriented_gradients_ignore_brightness_and_contrast() -> None:
    x = torch.randint(0, 100, (3, 1, 28, 28)).float()
    for other in (2.5 * x, x + 50):
        assert torch.allclose(oriented_gradients(x), oriented_gradients(other), atol=1e-4)
    assert torch.equal(oriented_gradients(torch.full((2, 1, 28, 28), 100.0)), torch.zeros(2, 972))


@pytest.mark.parametrize("side", [8, 28, 29, 30, 63])
def test_oriented_gradients_see_an_edge_along_the_last_column(side: int) -> None:
    x = torch.zeros(1, 1, side, side)
    x[..., -1] = 200
    assert oriented_gradients(x).norm() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 64, 64), (1, 1, 1), (1, 3, 40), (1, 40, 3)])
def test_oriented_gradients_take_images_of_any_size_in_any_chunks(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, (7, *shape), dtype=torch.uint8)
    features = oriented_gradients(x)
    assert torch.allclose(features, oriented_gradients(x, chunk=1), atol=1e-5)
    assert features.dtype == torch.float32 and len(features) == 7
    assert torch.allclose(features.norm(dim=1), torch.full((7,), float(math.prod(shape) > 1)))


def test_oriented_gradients_beat_pixels_for_label_propagation() -> None:
    data = load("digits", "data")
    split = draw_split(data.train_y, 10, 100, 200, 0, True)
    visible = torch.full_like(data.train_y, UNLABELLED)
    visible[split.labelled] = data.train_y[split.labelled]
    x, y, truth = data.train_x[split.train], visible[split.train], data.train_y[split.train]
    errors = [int((propagate(each, y)[0] != truth).sum()) for each in (x.flatten(1), oriented_gradients(x))]
    assert errors[1] < 0.7 * errors[0]


def test_later_propagations_add_the_cosines_of_representations_and_gradients() -> None:
    torch.manual_seed(0)
    x, y = torch.randint(17, (60, 1, 8, 8), dtype=torch.uint8), torch.full((60,), UNLABELLED)
    y[:12] = torch.arange(12) % 3
    model = build("scnf-digits", (1, 8, 8), 3, levels=17, channels=8, steps=1).eval()
    found = Propagation(x, y, 17, times=2, epochs=4, neighbours="gradients")(model, 2)
    codes = F.normalize(representations(model, x, 17, 500), dim=1)
    cosines = torch.cat([codes, oriented_gradients(x)], dim=1)
    assert found is not None and torch.equal(found, propagate(cosines, y)[0])
    assert not torch.equal(found, propagate(codes, y)[0])
    assert not torch.equal(found, propagate(oriented_gradients(x), y)[0])
