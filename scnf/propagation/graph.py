"""The graph of nearest neighbours, after Iscen et al. (https://arxiv.org/abs/1904.04717)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.checks import check_count, check_tensor
from scnf.propagation.arrays import rescaled

COMPONENTS = 64
"""The number of principal components in which distances are measured, to save time and drop noise."""


@torch.no_grad()
def nearest_neighbours(features: Tensor, neighbours: int, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """The rows of largest cosine to each row, by the leading principal components of the centred features.

    Args:
        features: [N, D], of any range.
        neighbours: k, fewer than N.
        chunk: rows compared with all others at once, which takes chunk * N numbers of memory.

    Returns:
        indices [N, k], and cosines [N, k].

    Raises:
        ValueError: these are no features, or one is not finite; there are not so many neighbours.
    """
    check_tensor("features", features)
    check_count("chunk", chunk)
    if features.dim() != 2 or not features.numel():
        raise ValueError(f"features are of shape [N, D], of a row at least, not {list(features.shape)}")
    if not 0 <= neighbours < len(features):
        raise ValueError(f"a row has 0 to {len(features) - 1} neighbours among {len(features)} rows, not {neighbours}")
    if not bool(features.isfinite().all()):
        raise ValueError("there are no neighbours by features that are not finite")
    features = rescaled(features).float()
    centred = features - features.mean(dim=0)
    products = centred.T @ centred
    if len(products) > COMPONENTS:
        # in double precision: in single, where few rows or copies make an eigenvalue come often, the algorithm may not
        # converge, or give vectors that are no numbers
        vectors = torch.linalg.eigh(products.double()).eigenvectors  # of ascending eigenvalues
        centred = centred @ vectors[:, -COMPONENTS:].float()
        if not bool(centred.isfinite().all()):
            raise ValueError("the principal components of these features are not finite")
    unit = F.normalize(centred, dim=1)
    buffer = unit.new_empty(chunk, len(unit))  # new memory for every chunk would take as long as the products
    cosines = unit.new_empty(len(unit), neighbours)
    indices = torch.empty_like(cosines, dtype=torch.long)
    for start in range(0, len(unit), chunk):
        rows = unit[start : start + chunk]
        table = torch.mm(rows, unit.T, out=buffer[: len(rows)])
        table[:, start:].fill_diagonal_(-2.0)  # nobody is one's own neighbour
        cosines[start : start + chunk], indices[start : start + chunk] = table.topk(neighbours, dim=1)
    return indices, cosines
