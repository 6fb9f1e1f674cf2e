"""Augment grey-level images by random maps, which leave the class as it is."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.errors import InvalidArgument

Kind = Literal["affine", "photo"]


@dataclass(frozen=True)
class Augmentation:
    """Random maps of images that leave the class as it is.

    Attributes:
        strength: Strength of the maps; 0 for none.
        kind: Kind of the maps. "affine" suits digits and drawings, see :func:`random_affine`. "photo" suits photos, see
            :func:`random_photo`.

    Example:
        >>> x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> Augmentation(1.0, "photo")(x).shape, bool(Augmentation()), bool(Augmentation(0.5))
        (torch.Size([2, 3, 8, 8]), False, True)
    """

    strength: float = 0.0
    kind: Kind = "affine"

    @classmethod
    def of(cls, value: "float | Augmentation") -> "Augmentation":
        """Return an augmentation, for which its strength may stand."""
        return value if isinstance(value, Augmentation) else cls(value)

    def __bool__(self) -> bool:
        """Return whether images are moved at all."""
        return self.strength > 0

    def __call__(self, x: Tensor, levels: int = 256) -> Tensor:
        """Move each image of x [N, C, H, W], whole numbers below `levels` (at most 2^24), by a map of its own.

        Raises:
            InvalidArgument: x holds floats.
        """
        return random_affine(x, self.strength) if self.kind == "affine" else random_photo(x, self.strength, levels)


def random_affine(x: Tensor, strength: float) -> Tensor:
    """Move each image by its own random affine map.

    At strength 1 a map rotates by up to 20 degrees and stretches each axis by up to 20 %. It shears by up to 0.3 and
    shifts by up to 11 % of the side. All four ranges are proportional to the strength. Each pixel of the result is read
    from the mapped position in the image by bilinear interpolation; pixels outside the image are 0. The map acts on
    relative coordinates, so its angles are exact for square images only.

    Args:
        x: Images of whole numbers up to 2^24 [N, C, H, W], for example uint8.
        strength: Factor of the ranges; 0 leaves the images unchanged.

    Returns:
        A new tensor [N, C, H, W] of the same type.

    Raises:
        InvalidArgument: x holds floats.

    Example:
        >>> x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
        >>> torch.equal(random_affine(x, 0.0), x), random_affine(x, 1.0).dtype
        (True, torch.uint8)
    """
    _require_levels(x)
    return _moved(x, strength).round().to(x.dtype)


def random_photo(x: Tensor, strength: float, levels: int = 256) -> Tensor:
    """Change each image as another photo of the same object might differ.

    The image is flipped left to right with probability 1/2, and moved as by :func:`random_affine`. Pixels outside the
    image are its mirror image. Then its contrast, brightness, saturation and tint change, and a square becomes grey
    (Cutout, DeVries and Taylor, https://arxiv.org/abs/1708.04552). At strength 1, contrast is stretched by up to 50 %
    around the mean of the image, and saturation by up to 60 % around its grey version. Brightness changes by up to an
    eighth of the range, each channel on its own by a twentieth. The side of the square is up to 45 % of the shorter
    side. All ranges but the flip are proportional to the strength.

    Args:
        x: Images of whole numbers below `levels` [N, C, H, W], for example uint8.
        strength: Factor of the ranges.
        levels: Number of grey levels, at most 2^24.

    Returns:
        A new tensor [N, C, H, W] of the same type.

    Raises:
        InvalidArgument: x holds floats.

    Example:
        >>> x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> random_photo(x, 1.0).dtype
        torch.uint8
    """
    _require_levels(x)

    def draw(*shape: int) -> Tensor:
        return strength * (2 * torch.rand(len(x), *shape, device=x.device, dtype=torch.float32) - 1)

    flips = torch.where(torch.rand(len(x), device=x.device) < 0.5, -1.0, 1.0)
    moved = _moved(x, strength, "reflection", flips)
    mean = moved.mean((1, 2, 3), keepdim=True)
    moved = mean + (moved - mean) * (1 + 0.5 * draw(1, 1, 1)) + levels * draw(1, 1, 1) / 8
    grey = moved.mean(1, keepdim=True)
    moved = grey + (moved - grey) * (1 + 0.6 * draw(1, 1, 1)) + levels * draw(x.shape[1], 1, 1) / 20
    moved = torch.where(_random_squares(x, 0.45 * strength), 0.5 * levels, moved)
    return moved.round().clamp(0, levels - 1).to(x.dtype)


def _random_squares(x: Tensor, share: float) -> Tensor:
    """Return a mask [N, 1, H, W] of one square in each image, whose side is up to a share of the shorter side."""
    height, width = x.shape[2:]

    def draw() -> Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device)

    half = 0.5 * share * min(height, width) * draw()
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1) + 0.5 - height * draw()
    columns = torch.arange(width, device=x.device).view(1, 1, 1, -1) + 0.5 - width * draw()
    return (rows.abs() < half) & (columns.abs() < half)


def _require_levels(x: Tensor) -> None:
    if x.is_floating_point():
        raise InvalidArgument("x", f"must hold whole grey levels, not {x.dtype}: dequantise the images afterwards")


def _moved(
    x: Tensor, strength: float, padding: Literal["zeros", "reflection"] = "zeros", flips: Tensor | None = None
) -> Tensor:
    """Return images x [N, C, H, W] as float32, each moved by a random map, and flipped where `flips` [N] is -1."""
    # single precision, independent of torch's default type
    draws = 2 * torch.rand(6, len(x), device=x.device, dtype=torch.float32) - 1
    angle, stretch_x, stretch_y, shear, shift_x, shift_y = strength * draws
    angle, shear = 0.35 * angle, 0.3 * shear
    stretch_x, stretch_y = 1 + 0.2 * stretch_x, 1 + 0.2 * stretch_y
    rows = [
        torch.stack([angle.cos() * stretch_x, (shear - angle.sin()) * stretch_y, 0.22 * shift_x], dim=1),
        torch.stack([angle.sin() * stretch_x, angle.cos() * stretch_y, 0.22 * shift_y], dim=1),
    ]
    if flips is not None:
        rows = [row * flips.unsqueeze(1) if index == 0 else row for index, row in enumerate(rows)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, align_corners=False, padding_mode=padding)
