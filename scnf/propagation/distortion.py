"""Nearest neighbours by the image distortion model: images are near where small pieces of one are found in the other.

The model is that of Keysers et al., "Deformation models for image recognition" (IEEE TPAMI 29(8), 2007), on 3x3
contexts of Sobel gradients, as there. Additions: that images are deslanted first, that matches may lie outside of
the image, in zeros, that candidates are those of near oriented gradients, and the graph over which labels spread. All
labels of MNIST's training images scored what is added and the constants here, while they were chosen.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.checks import check_count, check_images
from scnf.propagation.arrays import by_parts, rescaled
from scnf.propagation.graph import nearest_neighbours
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.spread import check_spread, spread

REACH = 2
"""Pixels by which the place of the best match may differ, either way along each axis."""
SHARPNESS = 4.0
"""How fast weights fall with distance."""
ALPHA, STEPS = 0.999, 150
"""Labels spread further over distortion neighbours than over cosines, because more of them share a class."""


@torch.no_grad()
def deslanted(x: Tensor, chunk: int = 2**22) -> Tensor:
    """Shear each image along its rows until it stands upright, and move its centre of mass to the middle.

    The slant is the covariance of columns and rows over the variance of rows, of places weighted by how light they are
    in the mean of the channels; at most 1 either way. Bilinear, and 0 outside, which
    shows where the background is not 0. The bound of 1 is for a square: of height and width as they are relative.

    Args:
        x: [N, C, H, W], numbers that are not negative, of any range.
        chunk: numbers of images that are moved at once.

    Returns:
        float32 [N, C, H, W] in the same range; an image of one colour is what it was.

    Raises:
        ValueError: x are no images, or none.

    Example:
        >>> slash = torch.eye(9).flip(0)[None, None]
        >>> deslanted(slash)[0, 0, :, 4].sum() > 0.9 * slash.sum()
        tensor(True)
    """
    check_images(x)
    return by_parts(_upright, x, max(1, chunk // x[0].numel()))


def _upright(x: Tensor) -> Tensor:
    x = x.float()
    height, width = x.shape[2:]
    light = rescaled(x).mean(dim=1)
    light = light / light.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    places = partial(torch.arange, device=x.device, dtype=x.dtype)
    down = ((2 * places(height) + 1) / height - 1).view(1, -1, 1)  # as affine_grid counts
    right = ((2 * places(width) + 1) / width - 1).view(1, 1, -1)
    centre_down, centre_right = (light * down).sum(dim=(1, 2)), (light * right).sum(dim=(1, 2))
    down, right = down - centre_down.view(-1, 1, 1), right - centre_right.view(-1, 1, 1)
    variance = (light * down.square()).sum(dim=(1, 2)).clamp_min(1e-12)
    slant = ((light * down * right).sum(dim=(1, 2)) / variance).clamp(-1, 1)
    zero, one = torch.zeros_like(slant), torch.ones_like(slant)
    rows = [torch.stack([one, slant, centre_right], dim=1), torch.stack([zero, one, centre_down], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@torch.no_grad()
def sobel_gradients(x: Tensor) -> Tensor:
    """By how much images get lighter to the right and downwards, 0 being outside.

    Args:
        x: float [N, C, H, W].

    Returns:
        [N, 2 C, H, W], per pixel.

    Example:
        >>> sobel_gradients(torch.arange(5.0).expand(1, 1, 5, 5))[0, :, 2, 2]
        tensor([1., 0.])
    """
    across = torch.outer(x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])) / 8
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    return F.conv2d(x.flatten(0, 1).unsqueeze(1), kernels, padding=1).view(len(x), -1, *x.shape[2:])


@torch.no_grad()
def distortion_distances(inputs: Tensor, others: Tensor) -> Tensor:
    """How badly the pixels of one image are found in another, for pairs of images, after Keysers et al.

    With g and h the gradients of a pair, 0 outside, the sum over pixels i of

        `min over moves d, of up to 2 pixels along each axis, of sum_c |g(i + c) - h(i + d + c)|^2`

    where c goes over the pixel and its eight neighbours. It is no metric: pixels of `others` may stay unmatched.

    Args:
        inputs: g, [P, K, H, W].
        others: h, [P, K, H, W].

    Returns:
        [P].

    Example:
        >>> g = torch.randn(3, 2, 8, 8)
        >>> distortion_distances(g, g)
        tensor([0., 0., 0.])
    """
    height, width = inputs.shape[2:]
    g, h = inputs.permute(1, 2, 3, 0), others.permute(1, 2, 3, 0)  # pairs last: every slice is of long runs of memory
    g = F.pad(g, (0, 0, 1, 1, 1, 1)).contiguous()
    h = F.pad(h, (0, 0, REACH + 1, REACH + 1, REACH + 1, REACH + 1)).contiguous()
    best = g.new_full((height, width, len(inputs)), torch.inf)
    for down in range(2 * REACH + 1):
        for right in range(2 * REACH + 1):
            apart = h[:, down : down + height + 2, right : right + width + 2] - g
            squares = apart[0].square_()
            for channel in apart[1:]:
                squares.addcmul_(channel, channel)
            rows = (squares[:-2] + squares[1:-1]).add_(squares[2:])
            contexts = (rows[:, :-2] + rows[:, 1:-1]).add_(rows[:, 2:])
            torch.minimum(best, contexts, out=best)
    return best.sum(dim=(0, 1))


@torch.no_grad()
def distortion_neighbours(
    x: Tensor, neighbours: int = 6, candidates: int = 20, chunk: int = 2**17
) -> tuple[Tensor, Tensor]:
    """The images that each image is most easily found in, among those of nearest oriented gradients.

    Images are deslanted first. The weight of neighbour j of i is exp(-4 d_ij / (s_i s_j)), d being the distance of the
    model and s the root of that to the last neighbour, the local scale of Zelnik-Manor and Perona ("Self-tuning
    spectral clustering", NIPS 2004): no distance has to be known beforehand, nor the range of x.
    Of an image with k exact copies it is 0: they are neighbours of each other alone.

    Args:
        x: [N, C, H, W], two images at least, numbers that are not negative, of any range.
        neighbours: k; at most N - 1 are taken.
        candidates: images that distances of the model are computed to, at least k; at most N - 1 are taken.
        chunk: numbers that are compared at once, so few that they stay in a processor's cache; 64 times as many on
            other devices.

    Returns:
        indices [N, k], the nearest first, and weights [N, k] in [0, 1].

    Raises:
        ValueError: fewer than two images, or images without a pixel; a number that is negative or not finite; fewer
            than one neighbour, or fewer candidates than neighbours.

    Example:
        >>> x = torch.rand(2, 1, 28, 28)
        >>> moved = x.roll(1, dims=3)
        >>> distortion_neighbours(torch.cat([x, moved]), neighbours=1)[0].flatten()
        tensor([2, 3, 0, 1])
    """
    from tqdm import tqdm

    check_images(x)
    check_count("neighbours", neighbours)
    check_count("candidates", candidates, neighbours)
    if len(x) < 2 or not bool((x.isfinite() & (x >= 0)).all()):
        raise ValueError("neighbours by distortion are of two images or more, of finite numbers that are not negative")
    upright = deslanted(rescaled(x))
    indices = nearest_neighbours(oriented_gradients(upright), min(candidates, len(x) - 1))[0]
    gradients = by_parts(sobel_gradients, upright, 1000)  # convolutions take much memory
    del upright
    count = indices.shape[1]
    images = max(1, chunk * (1 if x.device.type == "cpu" else 64) // (gradients[0].numel() * count))
    found = gradients.new_empty(indices.shape)
    with tqdm(total=len(x), unit="image", desc="neighbours", disable=None, leave=False) as bar:
        for own, other, into in zip(*(each.split(images) for each in (gradients, indices, found)), strict=True):
            pairs = distortion_distances(own.repeat_interleave(count, dim=0), gradients[other.flatten()])
            into.copy_(pairs.view(into.shape))
            bar.update(len(own))
    distances, order = found.topk(min(neighbours, count), dim=1, largest=False)
    indices, scales = indices.gather(1, order), distances[:, -1].sqrt()
    reach = (scales.unsqueeze(1) * scales[indices]).clamp_min(torch.finfo(distances.dtype).tiny)
    return indices, (-SHARPNESS * distances / reach).exp()


def distortion_labels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels spread over :func:`distortion_neighbours`.

    Args:
        x: [N, C, H, W], as there.
        y: [N], UNLABELLED where hidden; some row has a label.

    Returns:
        labels [N], and how certain each is, in [0, 1], as of :func:`scnf.propagation.spread.spread`.

    Raises:
        ValueError: as of :func:`distortion_neighbours`, no row has a label, or y are no labels of the images.

    Example:
        >>> x = torch.rand(2, 1, 28, 28)
        >>> distortion_labels(torch.cat([x, x.roll(1, dims=3)]), torch.tensor([0, 1, -1, -1]))[0]
        tensor([0, 1, 0, 1])
    """
    check_images(x)
    check_spread(y, len(x), ALPHA, STEPS)
    return spread(*distortion_neighbours(x), y, ALPHA, STEPS)
