"""Build the graph of nearest neighbours, after Iscen et al. (https://arxiv.org/abs/1904.04717)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.checks import check_count, check_tensor
from scnf.errors import InvalidArgument
from scnf.propagation.arrays import rescaled

COMPONENTS = 64
"""Number of principal components in which cosines are measured, to save time and drop noise."""


@torch.no_grad()
def nearest_neighbours(features: Tensor, neighbours: int, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """Find the rows of largest cosine to each row, by the leading principal components of the centred features.

    Args:
        features: Features [N, D], of any range.
        neighbours: Number k of neighbours, fewer than N.
        chunk: Number of rows that are compared with all others at once, in memory for chunk * N numbers.

    Returns:
        Indices [N, k] and cosines [N, k].

    Raises:
        InvalidArgument: the features have another shape or are not finite, or N - 1 is less than `neighbours`.
    """
    check_tensor("features", features)
    check_count("chunk", chunk)
    if features.dim() == 2 and features.numel() and not 0 <= neighbours < len(features):
        raise InvalidArgument(
            "neighbours", f"must be between 0 and {len(features) - 1} for {len(features)} rows, not {neighbours}"
        )
    unit = directions(features)
    buffer = unit.new_empty(chunk, len(unit))  # allocating each chunk would take as long as the products
    cosines = unit.new_empty(len(unit), neighbours)
    indices = torch.empty_like(cosines, dtype=torch.long)
    for start in range(0, len(unit), chunk):
        rows = unit[start : start + chunk]
        table = torch.mm(rows, unit.T, out=buffer[: len(rows)])
        table[:, start:].fill_diagonal_(-2.0)  # a row is no neighbour of itself
        cosines[start : start + chunk], indices[start : start + chunk] = table.topk(neighbours, dim=1)
    return indices, cosines


@torch.no_grad()
def directions(features: Tensor) -> Tensor:
    """Return unit vectors [N, P] whose products are the cosines by which :func:`nearest_neighbours` compares rows.

    They are the leading principal components of the centred features, P = min(D, `COMPONENTS`), scaled to length 1.

    Args:
        features: Features [N, D], of any range.

    Raises:
        InvalidArgument: the features have another shape or are not finite.

    Example:
        >>> directions(torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor([[ 1.,  0.],
                [-1.,  0.]])
    """
    check_tensor("features", features)
    if features.dim() != 2 or not features.numel():
        raise InvalidArgument(
            "features", f"must have shape [N, D] and at least one row, not shape {list(features.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise InvalidArgument("features", "must be finite to have nearest neighbours, and some are not finite")
    features = rescaled(features).float()
    centred = features - features.mean(dim=0)
    products = centred.T @ centred
    if len(products) > COMPONENTS:
        # Few rows or copies repeat an eigenvalue. In single precision eigh may then not converge, or return NaN.
        vectors = torch.linalg.eigh(products.double()).eigenvectors  # by ascending eigenvalue
        centred = centred @ vectors[:, -COMPONENTS:].float()
        if not bool(centred.isfinite().all()):
            raise InvalidArgument("features", "must have finite principal components, and these are not finite")
    return F.normalize(centred, dim=1)
