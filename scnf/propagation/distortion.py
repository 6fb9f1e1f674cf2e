"""Find nearest neighbours by the image distortion model, which compares images by small contexts that may move.

The model is from Keysers et al., "Deformation models for image recognition" (IEEE TPAMI 29(8), 2007), with the same 3x3
contexts of Sobel gradients. This module adds four things. Images are deslanted first. Matches may lie outside the
image, where gradients are 0. Candidates are the nearest neighbours by oriented gradients. Labels spread over the graph
of neighbours. The additions and the constants were chosen with all labels of MNIST's training images.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.checks import check_count, check_images
from scnf.errors import InvalidArgument
from scnf.propagation.arrays import map_chunks, rescaled
from scnf.propagation.graph import nearest_neighbours
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.spread import check_spread, spread

REACH = 2
"""Maximum displacement of a match along each axis, in pixels."""
SHARPNESS = 4.0
"""Factor of the distance in the exponent of a weight, so that larger values make weights fall faster."""
ALPHA, STEPS = 0.999, 150
"""Settings of label spreading, larger than for cosines because more distortion neighbours share a class."""


@torch.no_grad()
def deslanted(x: Tensor, chunk: int = 2**22) -> Tensor:
    """Shear each image along its rows until it stands upright, and move its centre of mass to the middle.

    The slant is the covariance of column and row coordinates over the variance of row coordinates. Pixels are weighted
    by their brightness, averaged over the channels. The slant is clamped to [-1, 1] in coordinates relative to height
    and width. Interpolation is bilinear. Pixels outside the image are 0, which is visible on any other background.

    Args:
        x: Images [N, C, H, W] of numbers that are not negative, of any range.
        chunk: Number of pixel values that are moved at once.

    Returns:
        Images float32 [N, C, H, W] in the same range; an image of one colour stays unchanged.

    Raises:
        InvalidArgument: x does not hold images, or holds no pixel.

    Example:
        >>> slash = torch.eye(9).flip(0)[None, None]
        >>> deslanted(slash)[0, 0, :, 4].sum() > 0.9 * slash.sum()
        tensor(True)
    """
    check_images(x)
    return map_chunks(_upright, x, max(1, chunk // x[0].numel()))


def _upright(x: Tensor) -> Tensor:
    x = x.float()
    height, width = x.shape[2:]
    brightness = rescaled(x).mean(dim=1)
    brightness = brightness / brightness.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    indices = partial(torch.arange, device=x.device, dtype=x.dtype)
    down = ((2 * indices(height) + 1) / height - 1).view(1, -1, 1)  # in the coordinates of affine_grid
    right = ((2 * indices(width) + 1) / width - 1).view(1, 1, -1)
    centre_down, centre_right = (brightness * down).sum(dim=(1, 2)), (brightness * right).sum(dim=(1, 2))
    down, right = down - centre_down.view(-1, 1, 1), right - centre_right.view(-1, 1, 1)
    variance = (brightness * down.square()).sum(dim=(1, 2)).clamp_min(1e-12)
    slant = ((brightness * down * right).sum(dim=(1, 2)) / variance).clamp(-1, 1)
    zero, one = torch.zeros_like(slant), torch.ones_like(slant)
    rows = [torch.stack([one, slant, centre_right], dim=1), torch.stack([zero, one, centre_down], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@torch.no_grad()
def sobel_gradients(x: Tensor) -> Tensor:
    """Compute the Sobel gradients of images, to the right and downwards, with zero padding.

    Args:
        x: Images of floats [N, C, H, W].

    Returns:
        Gradients [N, 2 C, H, W], per pixel.

    Example:
        >>> sobel_gradients(torch.arange(5.0).expand(1, 1, 5, 5))[0, :, 2, 2]
        tensor([1., 0.])
    """
    across = torch.outer(x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])) / 8
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    return F.conv2d(x.flatten(0, 1).unsqueeze(1), kernels, padding=1).view(len(x), -1, *x.shape[2:])


@torch.no_grad()
def distortion_distances(inputs: Tensor, others: Tensor) -> Tensor:
    """Compute the distortion distance of pairs of images, after Keysers et al.

    With g and h the gradients of a pair, which are 0 outside the images, the distance is the sum over pixels i of

        `min over moves d, of up to 2 pixels along each axis, of sum_c |g(i + c) - h(i + d + c)|^2`

    where c goes over the pixel and its eight neighbours. The distance is not a metric, because pixels of `others` may
    stay unmatched.

    Args:
        inputs: Gradients g [P, K, H, W].
        others: Gradients h [P, K, H, W].

    Returns:
        Distances [P].

    Example:
        >>> g = torch.randn(3, 2, 8, 8)
        >>> distortion_distances(g, g)
        tensor([0., 0., 0.])
    """
    height, width = inputs.shape[2:]
    g, h = inputs.permute(1, 2, 3, 0), others.permute(1, 2, 3, 0)  # pairs last, so that slices are long runs of memory
    g = F.pad(g, (0, 0, 1, 1, 1, 1)).contiguous()
    h = F.pad(h, (0, 0, REACH + 1, REACH + 1, REACH + 1, REACH + 1)).contiguous()
    best = g.new_full((height, width, len(inputs)), torch.inf)
    for down in range(2 * REACH + 1):
        for right in range(2 * REACH + 1):
            difference = h[:, down : down + height + 2, right : right + width + 2] - g
            squares = difference[0].square_()
            for channel in difference[1:]:
                squares.addcmul_(channel, channel)
            rows = (squares[:-2] + squares[1:-1]).add_(squares[2:])
            contexts = (rows[:, :-2] + rows[:, 1:-1]).add_(rows[:, 2:])
            torch.minimum(best, contexts, out=best)
    return best.sum(dim=(0, 1))


@torch.no_grad()
def distortion_neighbours(
    x: Tensor, neighbours: int = 6, candidates: int = 20, chunk: int = 2**17
) -> tuple[Tensor, Tensor]:
    """Find the neighbours of least distortion distance, among the nearest neighbours by oriented gradients.

    Images are deslanted first. The weight of neighbour j of image i is exp(-4 d_ij / (s_i s_j)), where d is the
    distortion distance. The local scale s_i is the square root of the distance from i to its last neighbour. It is from
    Zelnik-Manor and Perona, "Self-tuning spectral clustering" (NIPS 2004). Local scales need no typical distance or
    range of x in advance. An image with k exact copies has scale 0, and its neighbours are copies alone.

    Args:
        x: At least two images [N, C, H, W] of numbers that are not negative, of any range.
        neighbours: Number k of neighbours; at most N - 1 are taken.
        candidates: Number of images to which distortion distances are computed, at least k; at most N - 1 are taken.
        chunk: Number of values that are compared at once, few enough for a processor's cache; other devices compare 64
            times as many.

    Returns:
        Indices [N, k], the nearest first, and weights [N, k] in [0, 1].

    Raises:
        InvalidArgument: there are fewer than two images or no pixels, a number is negative or not finite, or
            `neighbours` or `candidates` is too small.

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
    if len(x) < 2:
        raise InvalidArgument("x", f"must hold two images or more to have neighbours, not {len(x)}")
    if not bool((x.isfinite() & (x >= 0)).all()):
        raise InvalidArgument("x", "must hold finite numbers that are not negative, and some are not")
    upright = deslanted(rescaled(x))
    indices = nearest_neighbours(oriented_gradients(upright), min(candidates, len(x) - 1))[0]
    gradients = map_chunks(sobel_gradients, upright, 1000)  # convolutions take much memory
    del upright
    count = indices.shape[1]
    images = max(1, chunk * (1 if x.device.type == "cpu" else 64) // (gradients[0].numel() * count))
    table = gradients.new_empty(indices.shape)
    with tqdm(total=len(x), unit="image", desc="neighbours", disable=None, leave=False) as bar:
        parts = zip(*(array.split(images) for array in (gradients, indices, table)), strict=True)
        for queries, neighbour_indices, rows in parts:
            candidate_gradients = gradients[neighbour_indices.flatten()]
            pairs = distortion_distances(queries.repeat_interleave(count, dim=0), candidate_gradients)
            rows.copy_(pairs.view(rows.shape))
            bar.update(len(queries))
    distances, order = table.topk(min(neighbours, count), dim=1, largest=False)
    indices, scales = indices.gather(1, order), distances[:, -1].sqrt()
    widths = (scales.unsqueeze(1) * scales[indices]).clamp_min(torch.finfo(distances.dtype).tiny)
    return indices, (-SHARPNESS * distances / widths).exp()


def distortion_labels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Spread labels over the graph of :func:`distortion_neighbours`.

    Args:
        x: Images [N, C, H, W] as :func:`distortion_neighbours` takes them.
        y: Labels [N], UNLABELLED where hidden; at least one row has a label.

    Returns:
        Labels [N] and their certainty [N] in [0, 1], see :func:`scnf.propagation.spread.spread`.

    Raises:
        InvalidArgument: :func:`distortion_neighbours` refuses the images, no row has a label, or y does not hold labels
            of the images.

    Example:
        >>> x = torch.rand(2, 1, 28, 28)
        >>> distortion_labels(torch.cat([x, x.roll(1, dims=3)]), torch.tensor([0, 1, -1, -1]))[0]
        tensor([0, 1, 0, 1])
    """
    check_images(x)
    check_spread(y, len(x), ALPHA, STEPS)
    return spread(*distortion_neighbours(x), y, ALPHA, STEPS)
