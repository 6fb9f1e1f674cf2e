"""The one semi-supervised loss, for exact and variational models alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import at_hand, check_labels, check_tensor
from scnf.models.base import JointOutput, at_label


class Consistency(NamedTuple):
    """What is asked of augmented views: the class that somebody is sure of on the image itself.

    The target of a view is its guess, where y has one for it. Elsewhere, after FixMatch (Sohn et al.,
    https://arxiv.org/abs/2001.07685, eq. 4): where the tempered posterior of an unlabelled row exceeds `confidence`,
    its class is the target of the row's view. Unlike there, the row itself is not augmented.

    Attributes:
        views: number of views: the last rows of the batch show its last unlabelled rows, in order.
        weight: times the mean cross-entropy over all views, those without a target counting 0.
        confidence: the least posterior that makes a target.
    """

    views: int
    weight: float
    confidence: float = 0.9


def semi_supervised_loss(
    output: JointOutput,
    y: Tensor,
    labelled_weight: float = 1.0,
    classifier_weight: float = 0.0,
    temperature: float = 1.0,
    consistency: Consistency | None = None,
    kl_weight: float = 1.0,
    moved: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the batch, log p(x, y) where y is known and log p(x) where hidden.

    L = -mean_i [w_i log p(x_i, y_i or nothing)] + classifier_weight * mean over labelled rows of the cross-entropy,
    with w_i = labelled_weight on labelled rows and 1 elsewhere, the mean being weighted. The first term is the
    objective of arXiv 1905.00505; the second is that of Kingma et al. (https://arxiv.org/abs/1406.5298, eq. 9), whose
    alpha, 0.1 N beside a sum over N rows, is 0.1 here, beside means over the batch. Where a batch holds moved versions
    of its labelled rows, this cross-entropy is of these instead. With `consistency`, plus its weight times the
    cross-entropy of views. Moved rows and views count in no likelihood.

    Cross-entropies are of softmax(log q(y | x) / temperature): the posterior of a density is surer than it is right,
    for the misfits of all dimensions of what depends on y (z_f in a semi-conditional flow, all of x in M2) add up in
    log p(x | y), and temperature scaling mends that (Guo et al., https://arxiv.org/abs/1706.04599). Static shapes, no
    host synchronisation.

    Args:
        output: of a model at (x, y).
        y: [N], UNLABELLED where hidden; for views a guess or UNLABELLED. A guess for any other row counts as its label.
            Rows come as in :class:`scnf.data.batches.Batches`: those of the likelihood, moved ones, views.
        labelled_weight: how much a labelled row counts, beside 1 for an unlabelled one.
        classifier_weight: weight of the cross-entropy on labelled rows.
        temperature: of the posterior in cross-entropies and confidences.
        consistency: whether the batch ends in views, and what is asked of them.
        kl_weight: of the divergence between latents and their prior in a variational bound: below 1 to warm up
            (https://arxiv.org/abs/1602.02282, section 2.3), above 1 for a beta-VAE (Higgins et al., 2017). The
            metrics "labelled_nll" and "unlabelled_nll" are those of weight 1 all the same.
        moved: number of rows before the views that are moved versions of labelled rows.

    Returns:
        the loss in nats per image, inf where a row has density 0, and detached metrics. These are "loss",
        "labelled_nll" and "unlabelled_nll" (nats per image; 0 where the batch has no such row), and
        "labelled_accuracy" of the rows of the classifier's cross-entropy. With views there is "pseudo_labelled",
        the share of views that have a target; with latents there is "kl", their mean divergence.

    Raises:
        ValueError: y are no labels.

    Example:
        >>> output = JointOutput(torch.tensor([-3.0, -5.0]), torch.tensor([[-0.1, -2.3], [-0.7, -0.7]]))
        >>> loss, metrics = semi_supervised_loss(output, torch.tensor([0, UNLABELLED]))
        >>> loss
        tensor(4.)
    """
    check_tensor("y", y)
    if at_hand(y):
        check_labels(y, output.class_log_probs.shape[1])
    views = consistency.views if consistency else 0
    own = len(y) - views - moved
    told = slice(own, own + moved) if moved else slice(own)  # rows of the classifier's cross-entropy
    log_q = torch.log_softmax(output.class_log_probs / temperature, dim=1)
    nll, targets, guesses = -output.log_likelihood[:own], y[told], y[own + moved :]
    y, telling = y[:own], targets != UNLABELLED
    labelled = y != UNLABELLED
    weights = 1.0 + (labelled_weight - 1.0) * labelled.to(nll.dtype)
    weighed = nll if output.kl is None or kl_weight == 1 else nll + (kl_weight - 1) * output.kl[:own]
    loss = (weights * torch.where(weights == 0, 0.0, weighed)).sum() / weights.sum().clamp_min(1e-8)
    if classifier_weight:
        loss = loss - classifier_weight * _mean(at_label(log_q[told], targets), telling)
    metrics = {}
    if consistency and views:
        sure, target = log_q[own - views : own].detach().exp().max(dim=1)
        guessed = guesses != UNLABELLED
        trusted = guessed | (sure > consistency.confidence)
        target = torch.where(guessed, guesses, target)
        loss = loss - consistency.weight * torch.where(trusted, at_label(log_q[own + moved :], target), 0.0).mean()
        metrics["pseudo_labelled"] = trusted.to(nll.dtype).mean()
    if output.kl is not None:
        metrics["kl"] = output.kl[:own].detach().mean()
    with torch.no_grad():
        hits = (output.class_log_probs[told].argmax(dim=1) == targets).to(nll.dtype)
        metrics |= {
            "loss": loss.detach(),
            "labelled_nll": _mean(nll, labelled),
            "unlabelled_nll": _mean(nll, ~labelled),
            "labelled_accuracy": _mean(hits, telling),
        }
    return loss, metrics


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of values [N] over the rows of a mask [N], 0 where there are none; other values may be infinite."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp_min(1)
