"""Label propagation: labels walk over the graph of nearest neighbours.

The iteration is that of Zhou et al., "Learning with Local and Global Consistency" (NIPS 2003); the graph of cosines,
and propagation in turns with training, on what the network has made of the images by then, are after Iscen et al.
(https://arxiv.org/abs/1904.04717).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_count, check_labels, check_share, check_tensor
from scnf.data.gradients import rescaled

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


def propagate(
    features: Tensor, y: Tensor, neighbours: int = 10, alpha: float = 0.99, steps: int = 50
) -> tuple[Tensor, Tensor]:
    """A label for every row that the labels of the few reach, over the graph of nearest neighbours.

    Weights are the fourth power of cosines, 0 where these are negative; see :func:`spread`.

    Args:
        features: [N, D], on any device.
        y: [N], UNLABELLED where hidden; some row has a label.
        neighbours: k of the graph; at most N - 1 are taken.
        alpha: how much comes from the neighbours, in (0, 1).
        steps: iterations.

    Returns:
        labels [N], those of labelled rows being their own, and how certain each is, in [0, 1].

    Raises:
        ValueError: no row has a label, y are no labels of the rows, or a feature is not finite; `neighbours`, `alpha`
            or `steps` is out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
        >>> labels, certainty = propagate(features, torch.tensor([0, -1, -1, 1, -1, -1]), neighbours=2)
        >>> labels
        tensor([0, 0, 0, 1, 1, 1])
    """
    check_tensor("features", features)
    check_count("neighbours", neighbours)
    check_spread(y, len(features), alpha, steps)
    indices, cosines = nearest_neighbours(features, min(neighbours, len(features) - 1))
    return spread(indices, cosines.clamp_min(0).pow(4), y, alpha, steps)


def check_spread(y: Tensor, rows: int, alpha: float, steps: int) -> None:
    """Refuse what :func:`spread` cannot start from, before neighbours are looked for, which takes long (ValueError)."""
    check_labels(y, rows=rows)
    check_share("alpha", alpha, ends=False)
    check_count("steps", steps, 0)
    if not bool((y != UNLABELLED).any()):
        raise ValueError("labels cannot spread where no row has one")


def spread(indices: Tensor, weights: Tensor, y: Tensor, alpha: float, steps: int) -> tuple[Tensor, Tensor]:
    """A label for every row that the labels of the few reach, over a graph of neighbours that is given.

    With W the sum of the weights both ways, and S = D^-1/2 W D^-1/2 for its degrees D, a number of steps
    F <- alpha S F + (1 - alpha) Y (Zhou et al., section 2) from F = Y, the one-hot labels. Then the columns of F are
    scaled to sum to the number of labels of each class, after the class mass normalisation of Zhu et al. (ICML 2003,
    section 4). A class without a label is given to no row. A row that no label reaches gets the first class, with
    certainty 0.

    Args:
        indices: [N, k], the neighbours of each row.
        weights: [N, k], of these, 0 or more, of any range.
        y: [N], UNLABELLED where hidden; some row has a label.
        alpha: how much comes from the neighbours, in (0, 1).
        steps: iterations.

    Returns:
        labels [N], those of labelled rows being their own, and how certain each is, in [0, 1].

    Raises:
        ValueError: no row has a label, y are no labels of the rows, or a weight is negative or not finite; indices
            are no rows, or are not as many as the weights; `alpha` or `steps` is out of range.

    Example:
        >>> chain = torch.tensor([[1], [2], [3], [2]])
        >>> labels, _ = spread(chain, torch.tensor([[1.0], [0.1], [1.0], [1.0]]), torch.tensor([0, -1, -1, 1]), 0.9, 20)
        >>> labels
        tensor([0, 0, 1, 1])
    """
    check_tensor("indices", indices)
    check_tensor("weights", weights)
    check_spread(y, len(indices), alpha, steps)
    if indices.dim() != 2 or indices.shape != weights.shape or not bool(((indices >= 0) & (indices < len(y))).all()):
        raise ValueError(
            f"neighbours are rows 0 to {len(y) - 1}, as many as their weights: [N, k], not {list(indices.shape)} and "
            f"{list(weights.shape)}"
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights of neighbours are 0 or more, and finite")
    labelled = y != UNLABELLED
    weights = rescaled(weights) if weights.numel() else weights
    rows = torch.arange(len(y), device=y.device).unsqueeze(1).expand_as(indices)
    there = torch.stack([rows, indices]).flatten(1)
    edges = torch.cat([there, there.flip(0)], dim=1)
    weights = weights.flatten().repeat(2)
    degrees = weights.new_zeros(len(y)).index_add(0, edges[0], weights).clamp_min(1e-12)
    weights = weights / (degrees[edges[0]] * degrees[edges[1]]).sqrt()
    with torch.sparse.check_sparse_tensor_invariants(False):
        graph = torch.sparse_coo_tensor(edges, weights, (len(y), len(y))).coalesce()
    given = F.one_hot(torch.where(labelled, y, 0)).to(weights.dtype) * labelled.unsqueeze(1)
    mass = given
    for _ in range(steps):
        mass = alpha * torch.sparse.mm(graph, mass) + (1 - alpha) * given
    mass = mass * given.sum(dim=0) / mass.sum(dim=0).clamp_min(1e-12)
    certainty, labels = (mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-12)).max(dim=1)
    return torch.where(labelled, y, labels), torch.where(labelled, 1.0, certainty)


def surest(labels: Tensor, certainty: Tensor, share: float) -> Tensor:
    """The labels [N] of that share of each class whose certainty [N] is largest, UNLABELLED for the others.

    Certainty 0 is never enough.

    Example:
        >>> surest(torch.tensor([0, 0, 1, 1]), torch.tensor([0.6, 0.9, 0.8, 0.7]), 0.5)
        tensor([-1,  0,  1, -1])
    """
    kept = torch.full_like(labels, UNLABELLED)
    for k in labels.unique():
        rows = (labels == k).nonzero().squeeze(1)
        best = rows[certainty[rows].argsort(descending=True)[: round(share * len(rows))]]
        kept[best] = k
    return torch.where(certainty > 0, kept, UNLABELLED)
