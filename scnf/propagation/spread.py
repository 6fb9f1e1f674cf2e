"""Labels that spread over a graph of neighbours.

The iteration is that of Zhou et al., "Learning with Local and Global Consistency" (NIPS 2003).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_count, check_labels, check_share, check_tensor
from scnf.propagation.arrays import rescaled
from scnf.propagation.graph import nearest_neighbours


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
