"""The one semi-supervised loss, for exact and variational models alike."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.arguments import Range, check_arguments
from scnf.batch import Batch
from scnf.checks import at_hand, check_labels, check_tensor
from scnf.models.base import JointOutput, at_label

Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e9)]


class Weights(NamedTuple):
    """The weights of :func:`semi_supervised_loss`; as they are by default, its likelihood alone.

    Attributes:
        labelled: how much the likelihood of a labelled row counts, beside 1 for an unlabelled one.
        classifier: weight of the cross-entropy of labelled rows.
        consistency: weight of the cross-entropy of views.
        kl: weight of the divergence between latents and their prior in a variational bound: below 1 to warm up
            (https://arxiv.org/abs/1602.02282, section 2.3), above 1 for a beta-VAE (Higgins et al., 2017).
    """

    labelled: float = 1.0
    classifier: float = 0.0
    consistency: float = 0.0
    kl: float = 1.0


@dataclass(frozen=True)
class Objective:
    """The loss of a training: weights, their schedules over the training, and the temperature of cross-entropies.

    Raises:
        InvalidArgument: a number out of its range.

    Example:
        >>> Objective(labelled_weight=4.0, labelled_decay=0.5).weights_at(0.25).labelled
        2.5
    """

    labelled_weight: Weight = 1.0
    """Weight of the likelihood of a labelled row at the start, beside 1 for an unlabelled one."""
    labelled_decay: Share = 0.0
    """Share of all steps in which that weight comes to 1, linearly; 0 keeps it."""
    classifier_weight: Weight = 0.0
    """Weight of the cross-entropy of p(y | x) on labelled rows: on moved versions of them where data.augment is above
    0. Rows with a propagated label count as labelled where there are no views."""
    temperature: Annotated[float, Range(0, 1e6, above=True)] = 1.0
    """Temperature of p(y | x) in cross-entropies and confidences."""
    consistency_weight: Weight = 0.0
    """Weight of the cross-entropy between a view of an unlabelled row (moved by data.augment, with noise of its own)
    and its target: the class that the model is sure of for the row, or its propagated label."""
    consistency_ramp: Share = 0.3
    """Share of all steps in which that weight rises from 0, linearly."""
    confidence: Share = 0.9
    """Posterior probability above which a class becomes the target of a view."""
    kl_weight: Weight = 1.0
    """Weight of the latents' divergence in a variational bound; above 1 a beta-VAE."""
    kl_warmup: Share = 0.0
    """Share of all steps in which that weight rises from 0, linearly."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_arguments(self)

    def weights_at(self, done: float) -> Weights:
        """The weights when a share `done` of the training is done."""
        gone = min(1.0, done / self.labelled_decay) if self.labelled_decay else 0.0
        return Weights(
            self.labelled_weight + gone * (1 - self.labelled_weight),
            self.classifier_weight,
            self.consistency_weight * min(1.0, done / max(self.consistency_ramp, 1e-9)),
            self.kl_weight * (min(1.0, done / self.kl_warmup) if self.kl_warmup else 1.0),
        )

    def __call__(self, output: JointOutput, batch: Batch, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """:func:`semi_supervised_loss` when a share `done` of the training is done."""
        return semi_supervised_loss(output, batch, self.weights_at(done), self.temperature, self.confidence)


def semi_supervised_loss(
    output: JointOutput,
    batch: Batch,
    weights: Weights = Weights(),  # noqa: B008 (a tuple does not change)
    temperature: float = 1.0,
    confidence: float = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the rows, plus weighted cross-entropies of labels and views.

    L = -mean_i [w_i log p(x_i, y_i)] + weights.classifier * CE(labels) + weights.consistency * CE(views).

    In the first term, the objective of arXiv 1905.00505, log p(x_i) stands where y_i is hidden; w_i is
    weights.labelled for labelled rows and 1 elsewhere, and the mean is weighted. CE(labels) is the mean cross-entropy
    of labelled rows, or of the batch's moved rows where it has some: that of Kingma et al.
    (https://arxiv.org/abs/1406.5298, eq. 9), whose alpha, 0.1 N beside a sum over N rows, is 0.1 here, beside means.

    CE(views) is the mean over all views, those without a target counting 0. The target of a view is its guess, where
    the batch has one for it. Elsewhere, after FixMatch (Sohn et al., https://arxiv.org/abs/2001.07685, eq. 4), it is
    the class of the row that the view shows, where the tempered posterior of that row exceeds `confidence`. Unlike
    there, the row itself is not augmented.

    Cross-entropies are of softmax(log q(y | x) / temperature): the posterior of a density is surer than it is right,
    for the misfits of all dimensions of what depends on y (z_f in a semi-conditional flow, all of x in M2) add up in
    log p(x | y), and temperature scaling mends that (Guo et al., https://arxiv.org/abs/1706.04599). Static shapes, no
    host synchronisation.

    Args:
        output: of a model for the batch.
        batch: labels, and how many rows are moved ones and views.
        weights: of the terms.
        temperature: of the posterior in cross-entropies and confidences.
        confidence: the least posterior that makes a target.

    Returns:
        the loss in nats per image, inf where a row has density 0, and detached metrics. These are "loss",
        "labelled_nll" and "unlabelled_nll" (nats per image, with a KL of weight 1; 0 where the batch has no such
        row), and "labelled_accuracy" of the rows of CE(labels). With views there is "pseudo_labelled", the share of
        views that have a target; with latents there is "kl", their mean divergence.

    Raises:
        ValueError: batch.y are no labels, the output is of another batch, or the temperature is not above 0.

    Example:
        >>> output = JointOutput(torch.tensor([-3.0, -5.0]), torch.tensor([[-0.1, -2.3], [-0.7, -0.7]]))
        >>> loss, metrics = semi_supervised_loss(output, Batch(torch.rand(2, 3), torch.tensor([0, UNLABELLED])))
        >>> loss
        tensor(4.)
    """
    y, nll = batch.y, -output.log_likelihood
    check_tensor("y", y)
    if at_hand(y):
        check_labels(y, output.class_log_probs.shape[1])
    _check_fit(output, batch)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature!r}")
    labelled = y != UNLABELLED
    weight = 1.0 + (weights.labelled - 1.0) * labelled.to(nll.dtype)
    weighed = nll if output.kl is None or weights.kl == 1 else nll + (weights.kl - 1) * output.kl
    loss = (weight * torch.where(weight == 0, 0.0, weighed)).sum() / weight.sum().clamp_min(1e-8)

    told, truth = (output.class_log_probs, y) if output.moved is None else (output.moved, batch.moved_y)
    assert truth is not None
    telling = truth != UNLABELLED
    if weights.classifier:
        log_q = torch.log_softmax(told / temperature, dim=1)
        loss = loss - weights.classifier * _mean(at_label(log_q, truth), telling)
    metrics = {}
    if output.views is not None:
        shown = output.class_log_probs[len(y) - len(output.views) :].detach()
        sure, target = torch.log_softmax(shown / temperature, dim=1).exp().max(dim=1)
        trusted = sure > confidence
        if batch.targets is not None:
            guessed = batch.targets != UNLABELLED
            trusted, target = guessed | trusted, torch.where(guessed, batch.targets, target)
        log_q = torch.log_softmax(output.views / temperature, dim=1)
        loss = loss - weights.consistency * torch.where(trusted, at_label(log_q, target), 0.0).mean()
        metrics["pseudo_labelled"] = trusted.to(nll.dtype).mean()
    if output.kl is not None:
        metrics["kl"] = output.kl.detach().mean()
    with torch.no_grad():
        hits = (told.argmax(dim=1) == truth).to(nll.dtype)
        metrics |= {
            "loss": loss.detach(),
            "labelled_nll": _mean(nll, labelled),
            "unlabelled_nll": _mean(nll, ~labelled),
            "labelled_accuracy": _mean(hits, telling),
        }
    return loss, metrics


def _check_fit(output: JointOutput, batch: Batch) -> None:
    """Refuse an output of another batch (ValueError)."""
    if output.log_likelihood.shape != batch.y.shape or len(output.class_log_probs) != len(batch.y):
        raise ValueError(
            f"the output is of another batch: log_likelihood {list(output.log_likelihood.shape)} and class_log_probs "
            f"{list(output.class_log_probs.shape)} beside {len(batch.y)} labels"
        )
    for name, rows, labels in (("moved", output.moved, batch.moved_y), ("views", output.views, batch.targets)):
        if rows is not None and labels is not None and len(rows) != len(labels):
            raise ValueError(f"the output is of another batch: {len(rows)} {name} beside {len(labels)} labels of them")
    if (output.moved is None) != (batch.moved_y is None or not len(batch.moved_y)):
        raise ValueError("moved rows are missing in the output, or their labels moved_y in the batch")
    if output.views is not None and len(output.views) > len(batch.y):
        raise ValueError(f"views show rows of the batch, and there are {len(output.views)} of {len(batch.y)} rows")


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of values [N] over the rows of a mask [N], 0 where there are none; other values may be infinite."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp_min(1)
