"""The one semi-supervised loss, for exact and variational models alike."""

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.models.base import JointOutput


def semi_supervised_loss(
    output: JointOutput, y: Tensor, labelled_weight: float = 1.0, classifier_weight: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the batch, log p(x, y) where y is known and log p(x) where hidden.

    L = -mean_i [w_i log p(x_i, y_i or nothing)] - classifier_weight * mean over labelled rows of log q(y | x),
    with w_i = labelled_weight on labelled rows and 1 elsewhere, the mean being weighted (arXiv 1905.00505, eq. 4;
    the second term is alpha of Kingma et al., https://arxiv.org/abs/1406.5298, eq. 9). Static shapes, no host
    synchronisation.

    Args:
        output: of a model at (x, y).
        y: [N], UNLABELLED where hidden.
        labelled_weight: how much a labelled row counts, beside 1 for an unlabelled one.
        classifier_weight: weight of the cross-entropy on labelled rows.

    Returns:
        the loss in nats per image, and detached metrics: "loss", "labelled_nll" and "unlabelled_nll" (nats per image; 0
        where the batch has no such row), "labelled_accuracy".

    Example:
        >>> output = JointOutput(torch.tensor([-3.0, -5.0]), torch.tensor([[-0.1, -2.3], [-0.7, -0.7]]))
        >>> loss, metrics = semi_supervised_loss(output, torch.tensor([0, UNLABELLED]))
        >>> loss
        tensor(4.)
    """
    labelled = (y != UNLABELLED).to(output.log_likelihood.dtype)
    count = labelled.sum().clamp_min(1)
    weights = 1.0 + (labelled_weight - 1.0) * labelled
    nll = -output.log_likelihood
    cross_entropy = -output.class_log_probs.gather(1, y.clamp_min(0).unsqueeze(1)).squeeze(1)
    loss = (weights * nll).sum() / weights.sum().clamp_min(1e-8)
    if classifier_weight:
        loss = loss + classifier_weight * (labelled * cross_entropy).sum() / count
    with torch.no_grad():
        hits = (output.class_log_probs.argmax(dim=1) == y).to(labelled.dtype)
        metrics = {
            "loss": loss.detach(),
            "labelled_nll": (labelled * nll).sum() / count,
            "unlabelled_nll": ((1 - labelled) * nll).sum() / (1 - labelled).sum().clamp_min(1),
            "labelled_accuracy": hits.sum() / count,
        }
    return loss, metrics
