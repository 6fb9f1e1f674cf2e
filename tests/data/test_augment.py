import pytest
import torch

from scnf.data.augment import Augmentation, random_affine, random_photo


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


def test_random_photo_flips_half_of_the_images() -> None:
    x = torch.zeros(400, 1, 9, 9, dtype=torch.uint8)
    x[:, :, :, :4] = 200  # a bright left side
    moved = random_photo(x, 1e-6).double().mean((1, 2))
    left_is_bright = moved[:, 0] > moved[:, 8]
    assert 140 < left_is_bright.sum() < 260


def test_random_photo_keeps_type_range_and_argument_at_every_number_of_levels() -> None:
    for levels, dtype in ((17, torch.uint8), (256, torch.uint8), (4096, torch.int32)):
        x = torch.randint(0, levels, (200, 3, 8, 8)).to(dtype)
        before = x.clone()
        moved = random_photo(x, 1.0, levels)
        assert moved.dtype == dtype and moved.shape == x.shape and torch.equal(x, before)
        assert moved.min() >= 0 and moved.max() == levels - 1  # some image is over-exposed, and none wraps around


def test_random_photo_mirrors_what_lies_outside_of_the_image() -> None:
    x = torch.full((200, 3, 16, 16), 128, dtype=torch.uint8)
    moved = random_photo(x, 1.0).double()
    assert (moved.std((2, 3)).amin(0) == 0).all()  # an image of one colour stays one, where its square is grey like it
    assert moved.amin() > 128 - 256 / 8 - 256 / 20 - 1


def test_random_photo_covers_a_square_and_nothing_else() -> None:
    x = torch.zeros(300, 1, 20, 20, dtype=torch.uint8)
    grey = random_photo(x, 1.0) == 128
    sides = torch.stack([grey.any(2).sum(2), grey.any(3).sum(2)], dim=2)[:, 0]
    assert torch.equal(grey.sum((1, 2, 3)), sides.prod(1))  # the grey pixels fill their rectangle
    assert sides.max() <= 10 and sides.max() >= 7


def test_augmentation_of_a_strength_draws_as_random_affine_does() -> None:
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(3)
    moved = Augmentation.of(0.7)(x)
    torch.manual_seed(3)
    assert torch.equal(moved, random_affine(x, 0.7)) and Augmentation.of(Augmentation(0.7)) == Augmentation(0.7)
    assert not Augmentation() and Augmentation(0.1) and not Augmentation(kind="photo")
