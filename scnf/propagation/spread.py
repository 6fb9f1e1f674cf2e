"""Spread labels over a graph of neighbours.

The iteration is from Zhou et al., "Learning with Local and Global Consistency" (NIPS 2003).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_count, check_labels, check_share, check_tensor
from scnf.errors import InvalidArgument
from scnf.propagation.arrays import rescaled
from scnf.propagation.graph import nearest_neighbours


def propagate(
    features: Tensor, y: Tensor, neighbours: int = 10, alpha: float = 0.99, steps: int = 50
) -> tuple[Tensor, Tensor]:
    """Propagate the labels of a few rows to the others, over the graph of nearest neighbours.

    Weights are the fourth power of cosines, and 0 for negative cosines; see :func:`spread`.

    Args:
        features: Features [N, D], on any device.
        y: Labels [N], UNLABELLED where hidden; at least one row has a label.
        neighbours: Number k of neighbours of each row; at most N - 1 are taken.
        alpha: Share of a row's label that comes from its neighbours, in (0, 1).
        steps: Number of iterations.

    Returns:
        Labels [N], unchanged for labelled rows, and their certainty [N] in [0, 1].

    Raises:
        InvalidArgument: no row has a label, y does not hold labels of the rows, a feature is not finite, or
            `neighbours`, `alpha` or `steps` is out of range.

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
    """Raise InvalidArgument for arguments that :func:`spread` refuses, before the slow search for neighbours."""
    check_labels(y, rows=rows)
    check_share("alpha", alpha, ends=False)
    check_count("steps", steps, 0)
    if not bool((y != UNLABELLED).any()):
        raise InvalidArgument("y", "must hold a label to spread, and no row has one")


def spread(indices: Tensor, weights: Tensor, y: Tensor, alpha: float, steps: int) -> tuple[Tensor, Tensor]:
    """Spread the labels of a few rows to the others, over a graph of neighbours.

    W is the sum of the weights in both directions, and S = D^-1/2 W D^-1/2 for its degrees D. From F = Y, the one-hot
    labels, the iteration is F <- alpha S F + (1 - alpha) Y (Zhou et al., section 2). Then each column of F is scaled to
    sum to the number of labels of its class, after the class mass normalisation of Zhu et al. (ICML 2003, section 4).
    No row gets a class that has no label. A row that no label reaches gets the first class, with certainty 0.

    Args:
        indices: Neighbours of each row, [N, k].
        weights: Weights of the neighbours, [N, k], of any range but not negative.
        y: Labels [N], UNLABELLED where hidden; at least one row has a label.
        alpha: Share of a row's label that comes from its neighbours, in (0, 1).
        steps: Number of iterations.

    Returns:
        Labels [N], unchanged for labelled rows, and their certainty [N] in [0, 1].

    Raises:
        InvalidArgument: no row has a label, or y does not hold labels of the rows; a weight is negative or not finite;
            an index is not a row, or indices and weights differ in shape; `alpha` or `steps` is out of range.

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
        raise InvalidArgument(
            "indices",
            f"must be rows 0 to {len(y) - 1} in the shape [N, k] of the weights, not indices of shape "
            f"{list(indices.shape)} with weights of shape {list(weights.shape)}, or other rows",
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InvalidArgument("weights", "must be finite and at least 0, and some are not")
    labelled = y != UNLABELLED
    weights = rescaled(weights) if weights.numel() else weights
    rows = torch.arange(len(y), device=y.device).unsqueeze(1).expand_as(indices)
    directed = torch.stack([rows, indices]).flatten(1)
    edges = torch.cat([directed, directed.flip(0)], dim=1)
    weights = weights.flatten().repeat(2)
    degrees = weights.new_zeros(len(y)).index_add(0, edges[0], weights).clamp_min(1e-12)
    weights = weights / (degrees[edges[0]] * degrees[edges[1]]).sqrt()
    with torch.sparse.check_sparse_tensor_invariants(False):
        graph = torch.sparse_coo_tensor(edges, weights, (len(y), len(y))).coalesce()
    one_hot = F.one_hot(torch.where(labelled, y, 0)).to(weights.dtype) * labelled.unsqueeze(1)
    mass = one_hot
    for _ in range(steps):
        mass = alpha * torch.sparse.mm(graph, mass) + (1 - alpha) * one_hot
    mass = mass * one_hot.sum(dim=0) / mass.sum(dim=0).clamp_min(1e-12)
    certainty, labels = (mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-12)).max(dim=1)
    return torch.where(labelled, y, labels), torch.where(labelled, 1.0, certainty)


def most_certain(labels: Tensor, certainty: Tensor, share: float) -> Tensor:
    """Keep the most certain share of the labels [N] of each class, and set the other labels to UNLABELLED.

    A label of certainty 0 is never kept.

    Example:
        >>> most_certain(torch.tensor([0, 0, 1, 1]), torch.tensor([0.6, 0.9, 0.8, 0.7]), 0.5)
        tensor([-1,  0,  1, -1])
    """
    selection = torch.full_like(labels, UNLABELLED)
    for k in labels.unique():
        rows = (labels == k).nonzero().squeeze(1)
        best = rows[certainty[rows].argsort(descending=True)[: round(share * len(rows))]]
        selection[best] = k
    return torch.where(certainty > 0, selection, UNLABELLED)


def surest_of_classes(log_posterior: Tensor, y: Tensor, share: float) -> Tensor:
    """Return the most probable class of the rows that are surest of it, in the mix of classes of the labels.

    A class of n_k among n labels gets at most `share` N (n_k + 1) / (n + K) rows, those of the largest p(y = k | x)
    among the rows whose most probable class it is. A classifier that trains itself therefore cannot give nearly all
    rows to one class. Labelled rows have their own label and come first.

    Args:
        log_posterior: Logarithm [N, K] of p(y | x), in nats.
        y: Labels [N], UNLABELLED where hidden.
        share: Share of the rows that get a label, in [0, 1].

    Returns:
        Labels [N], UNLABELLED for the other rows.

    Raises:
        InvalidArgument: y does not hold labels of the rows, or `share` lies outside [0, 1].

    Example:
        >>> posterior = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
        >>> surest_of_classes(posterior.log(), torch.tensor([0, -1, -1, -1]), 0.75)
        tensor([ 0,  0, -1,  1])
    """
    check_tensor("log_posterior", log_posterior)
    check_labels(y, log_posterior.shape[1], rows=len(log_posterior))
    check_share("share", share)
    labelled, classes = y != UNLABELLED, log_posterior.shape[1]
    certainty, labels = log_posterior.max(dim=1)
    labels, certainty = torch.where(labelled, y, labels), torch.where(labelled, torch.inf, certainty)
    counts = torch.bincount(y[labelled], minlength=classes) + 1.0
    selection = torch.full_like(y, UNLABELLED)
    for label, quota in enumerate((share * len(y) * counts / counts.sum()).round().int().tolist()):
        rows = (labels == label).nonzero().squeeze(1)
        selection[rows[certainty[rows].argsort(descending=True, stable=True)[:quota]]] = label
    return selection
