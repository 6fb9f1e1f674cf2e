"""Random affine maps of grey-level images: turned, stretched, sheared and shifted a little, the class stays."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(x: Tensor, strength: float) -> Tensor:
    """Move each image by its own random affine map.

    At strength 1 the pixels of the result are looked up in the image at places turned by up to 20 degrees, stretched by
    up to 20 % along each axis, sheared by up to 0.3 and shifted by up to 11 % of the side; all in proportion to the
    strength, bilinear, and 0 outside. Angles are those of a square: other images are turned in relative coordinates.

    Args:
        x: whole numbers up to 2^24 [N, C, H, W], uint8 say.
        strength: 0 changes nothing.

    Returns:
        [N, C, H, W] of the same type, a new tensor.

    Raises:
        ValueError: x are floats.

    Example:
        >>> x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
        >>> torch.equal(random_affine(x, 0.0), x), random_affine(x, 1.0).dtype
        (True, torch.uint8)
    """
    if x.is_floating_point():
        raise ValueError(f"images are moved in whole grey levels, not in {x.dtype}: dequantise them afterwards")
    # in single precision whatever torch's default is
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
