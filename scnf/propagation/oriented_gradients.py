"""Compute histograms of oriented gradients, a first measure of the similarity of images.

They follow Dalal and Triggs (CVPR 2005) in a small form, without blocks and with one normalisation of the whole image.
The constants were chosen with all labels of MNIST's training images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.checks import check_images
from scnf.propagation.arrays import map_chunks, rescaled

ORIENTATIONS = 12
CELLS = 9
"""Approximate number of cells along each side, which gives cells of three pixels in images of 28 pixels."""


@torch.no_grad()
def oriented_gradients(x: Tensor, chunk: int = 2**20) -> Tensor:
    """Compute a histogram of gradient directions around each cell of an image.

    Each pixel takes the gradient of the channel where it is longest. The gradient votes with its length for the two
    nearest of twelve directions, in proportion to their nearness. Directions cover the full circle, so light to dark
    differs from dark to light. Votes are averaged over one window for each cell, with twice the cell's sides. The
    features are the square roots of the shares of all votes, after RootSIFT (Arandjelovic and Zisserman, CVPR 2012).
    So rows have length one; an image of one colour has features 0.

    Args:
        x: Images [N, C, H, W] of numbers of any range.
        chunk: Number of pixels that are computed at once, each of which takes some 200 bytes.

    Returns:
        Features float32 [N, D], where D is 972 for 28x28 and for 8x8 images.

    Raises:
        InvalidArgument: x does not hold images, or holds no pixel.

    Example:
        >>> features = oriented_gradients(torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8))
        >>> features.shape, bool(torch.allclose(features.norm(dim=1), torch.ones(5)))
        (torch.Size([5, 972]), True)
    """
    check_images(x)
    images = max(1, chunk // math.prod(x.shape[2:]))
    return map_chunks(_histograms, x, images)


def _histograms(x: Tensor) -> Tensor:
    x = rescaled(x).float()
    across, down = F.pad(x, (1, 1, 0, 0), "replicate"), F.pad(x, (0, 0, 1, 1), "replicate")
    gradients = torch.stack([across[..., 2:] - across[..., :-2], down[..., 2:, :] - down[..., :-2, :]])
    longest = gradients.square().sum(dim=0).argmax(dim=1, keepdim=True)
    gx, gy = gradients.gather(2, longest.expand(2, *longest.shape))[:, :, 0]
    angle = torch.atan2(gy, gx) * (ORIENTATIONS / (2 * math.pi)) % ORIENTATIONS
    directions = torch.arange(ORIENTATIONS, device=x.device).view(1, -1, 1, 1)
    distance = (angle.unsqueeze(1) - directions).abs()
    share = (1 - torch.minimum(distance, ORIENTATIONS - distance)).clamp_min(0)
    votes = torch.hypot(gx, gy).unsqueeze(1) * share
    cells = [max(1, round(side / CELLS)) for side in x.shape[2:]]
    windows, padding = [2 * cell for cell in cells], [max(1, cell // 2) for cell in cells]
    pooled = F.avg_pool2d(votes, windows, cells, padding, ceil_mode=True, count_include_pad=True)
    return F.normalize(pooled.flatten(1), p=1, dim=1).sqrt()
