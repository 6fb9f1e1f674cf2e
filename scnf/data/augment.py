"""Augment grey-level images by random maps, which leave the class as it is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.errors import InvalidArgument


@dataclass(frozen=True)
class Augmentation:
    """Random maps of images that leave the class as it is.

    Attributes:
        strength: Strength of the random affine maps, see :func:`random_affine`; 0 for none.
        flip: Whether each image is flipped left to right with probability 1/2.

    Example:
        >>> x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> Augmentation(flip=True)(x).shape, bool(Augmentation()), bool(Augmentation(0.5))
        (torch.Size([2, 3, 8, 8]), False, True)
    """

    strength: float = 0.0
    flip: bool = False

    @classmethod
    def of(cls, value: "float | Augmentation") -> "Augmentation":
        """Return an augmentation, for which its strength may stand."""
        return value if isinstance(value, Augmentation) else cls(value)

    def __bool__(self) -> bool:
        """Return whether images are moved at all."""
        return self.strength > 0 or self.flip

    def __call__(self, x: Tensor) -> Tensor:
        """Move each image of x [N, C, H, W], whole numbers up to 2^24, by a map of its own.

        Raises:
            InvalidArgument: x holds floats.
        """
        moved = random_affine(x, self.strength)
        if not self.flip:
            return moved
        flips = torch.rand(len(x), device=x.device) < 0.5
        return torch.where(flips.view(-1, 1, 1, 1), moved.flip(3), moved)


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
    if x.is_floating_point():
        raise InvalidArgument("x", f"must hold whole grey levels, not {x.dtype}: dequantise the images afterwards")
    # single precision, independent of torch's default type
    draws = 2 * torch.rand(6, len(x), device=x.device, dtype=torch.float32) - 1
    angle, stretch_x, stretch_y, shear, shift_x, shift_y = strength * draws
    angle, shear = 0.35 * angle, 0.3 * shear
    stretch_x, stretch_y = 1 + 0.2 * stretch_x, 1 + 0.2 * stretch_y
    rows = [
        torch.stack([angle.cos() * stretch_x, (shear - angle.sin()) * stretch_y, 0.22 * shift_x], dim=1),
        torch.stack([angle.sin() * stretch_x, angle.cos() * stretch_y, 0.22 * shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, align_corners=False).round().to(x.dtype)
