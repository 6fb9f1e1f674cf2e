import pytest
import torch

from scnf.data.augment import random_affine


def images() -> torch.Tensor:
    return torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_random_affine_of_strength_zero_changes_nothing() -> None:
    x = images()
    assert torch.equal(random_affine(x, 0.0), x)


def test_random_affine_moves_images_differently_and_leaves_its_argument() -> None:
    x = images()[:1].expand(8, -1, -1, -1).contiguous()
    before = x.clone()
    moved = random_affine(x, 1.0)
    assert moved.dtype == torch.uint8 and moved.shape == x.shape
    assert torch.equal(x, before)
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 8


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_random_affine_keeps_grey_levels_above_255(dtype: torch.dtype) -> None:
    x = images()
    torch.manual_seed(0)
    narrow = random_affine(x, 1.0)
    torch.manual_seed(0)
    wide = random_affine(100 * x.to(dtype), 1.0)
    assert wide.dtype == dtype and wide.max() > 255
    assert (wide - 100 * narrow.to(dtype)).abs().max() <= 50  # which was rounded to a hundred of these levels


def test_random_affine_moves_the_centre_of_mass_within_the_shift() -> None:
    x = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 13:15, 13:15] = 200  # a dot in the middle: turning and stretching leave it there
    moved = random_affine(x, 1.0).double()
    places = torch.arange(28).double()
    mass = moved.sum((1, 2, 3))
    rows, columns = ((moved.sum((1, axis)) @ places) / mass for axis in (3, 2))
    for centre in (rows, columns):
        # at most 0.22 * 14 pixels, times 1.8 where turned by 20, sheared by 0.3 and shrunk by a fifth; and grey levels
        assert (centre - 13.5).abs().max() < 5.6
        assert (centre - 13.5).abs().mean() > 0.5
