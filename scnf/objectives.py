"""Define the one semi-supervised loss, which exact and variational models share."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.arguments import Range, check_arguments
from scnf.batch import Batch
from scnf.checks import check_labels, check_tensor, is_readable
from scnf.errors import InvalidArgument
from scnf.models.base import JointOutput, select_label

Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e9)]


class Weights(NamedTuple):
    """These are the weights of :func:`semi_supervised_loss`, which by default keep only its likelihood.

    Attributes:
        labelled: Weight of the likelihood of a labelled row, beside 1 for an unlabelled row.
        classifier: Weight of the cross-entropy of labelled rows.
        consistency: Weight of the cross-entropy of views.
        kl: Weight of the KL divergence between latents and their prior in a variational bound. Values below 1 warm the
            divergence up (https://arxiv.org/abs/1602.02282, section 2.3). Values above 1 make a beta-VAE (Higgins et
            al., 2017).
    """

    labelled: float = 1.0
    classifier: float = 0.0
    consistency: float = 0.0
    kl: float = 1.0


@dataclass(frozen=True)
class Objective:
    """An objective is the loss of a training: weights, their schedules, and the temperature of cross-entropies.

    Raises:
        InvalidArgument: A number is out of its range.

    Example:
        >>> Objective(labelled_weight=4.0, labelled_decay=0.5).weights_at(0.25).labelled
        2.5
    """

    labelled_weight: Weight = 1.0
    """Weight of the likelihood of a labelled row at the start, beside 1 for an unlabelled row."""
    labelled_decay: Share = 0.0
    """Share of all steps over which labelled_weight changes linearly to 1; 0 keeps it constant."""
    classifier_weight: Weight = 0.0
    """Weight of the cross-entropy of p(y | x) on labelled rows. Where data.augment is above 0, it is computed on moved
    versions of these rows. Rows with a propagated label count as labelled where there are no views."""
    temperature: Annotated[float, Range(0, 1e6, above=True)] = 1.0
    """Temperature of p(y | x) in cross-entropies and confidences. Values above 1 make the posterior less confident."""
    consistency_weight: Weight = 0.0
    """Weight of the cross-entropy between a view of an unlabelled row and its target. A view is the row moved by
    data.augment, with noise of its own. Its target is the propagated label of the row, or the class that the model
    predicts for the row with a probability above the confidence threshold."""
    consistency_ramp: Share = 0.3
    """Share of all steps over which consistency_weight rises linearly from 0; 0 applies it in full after the first
    step."""
    confidence: Share | Literal["adaptive"] = 0.9
    """Posterior probability above which a class becomes the target of a view. Higher thresholds give fewer targets.
    adaptive sets the threshold of each class by the mean posterior of the batch."""
    kl_weight: Weight = 1.0
    """Weight of the latents' KL divergence in a variational bound. A value above 1 makes a beta-VAE."""
    kl_warmup: Share = 0.0
    """Share of all steps over which kl_weight rises linearly from 0; 0 applies it in full from the start."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_arguments(self)

    def weights_at(self, progress: float) -> Weights:
        """Return the weights at a `progress`, the share of all steps that are done."""
        decay = min(1.0, progress / self.labelled_decay) if self.labelled_decay else 0.0
        return Weights(
            self.labelled_weight + decay * (1 - self.labelled_weight),
            self.classifier_weight,
            self.consistency_weight * min(1.0, progress / max(self.consistency_ramp, 1e-9)),
            self.kl_weight * (min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0),
        )

    def __call__(self, output: JointOutput, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute :func:`semi_supervised_loss` at a `progress`, the share of all steps that are done."""
        return semi_supervised_loss(output, batch, self.weights_at(progress), self.temperature, self.confidence)


def semi_supervised_loss(
    output: JointOutput,
    batch: Batch,
    weights: Weights = Weights(),  # noqa: B008 (a tuple does not change)
    temperature: float = 1.0,
    confidence: float | Literal["adaptive"] = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the negative log-likelihood of the rows, plus weighted cross-entropies of labels and views.

    L = -mean_i [w_i log p(x_i, y_i)] + weights.classifier * CE(labels) + weights.consistency * CE(views).

    The first term is the objective of arXiv 1905.00505. It takes log p(x_i) where y_i is hidden. The weight w_i is
    weights.labelled for labelled rows and 1 elsewhere, and the mean is weighted.

    CE(labels) is the mean cross-entropy of labelled rows, or of the batch's moved rows where it has some. It is the
    classification term of Kingma et al. (https://arxiv.org/abs/1406.5298, eq. 9). Their alpha is 0.1 N beside a sum
    over N rows, and becomes 0.1 beside the means here.

    CE(views) is the mean over all views, where a view without a target counts 0. The target of a view is its guess,
    where the batch has one for it. Elsewhere, after FixMatch (Sohn et al., https://arxiv.org/abs/2001.07685, eq. 4), it
    is the most probable class of the row that the view shows. The tempered posterior of this class must exceed
    `confidence`. Unlike in FixMatch, the row itself is not augmented. The confidence "adaptive" follows FreeMatch (Wang
    et al., https://arxiv.org/abs/2205.07246, eq. 8), see :func:`adaptive_thresholds`.

    Cross-entropies take softmax(log q(y | x) / temperature), because the posterior of a density is overconfident. The
    mismatches of all dimensions that depend on y add up in log p(x | y). These dimensions are z_f in a semi-conditional
    flow, and all of x in M2. Temperature scaling mends the overconfidence (Guo et al.,
    https://arxiv.org/abs/1706.04599).

    Shapes are static, and nothing synchronises with the host.

    Args:
        output: Output of a model for the batch.
        batch: Batch with labels, and with the moved rows and views of the output.
        weights: Weights of the terms.
        temperature: Temperature of the posterior in cross-entropies and confidences.
        confidence: Posterior probability above which a class becomes the target of a view, or "adaptive".

    Returns:
        The loss in nats per image, inf where a row has density 0, and detached metrics. The metrics are "loss",
            "labelled_nll" and "unlabelled_nll" (nats per image, with a KL of weight 1; 0 where the batch has no such
            row), and "labelled_accuracy" of the rows of CE(labels). With views there is "pseudo_labelled", the share of
            views that have a target. With latents there is "kl", their mean divergence.

    Raises:
        InvalidArgument: batch.y is not a vector of labels, the output is of another batch, or the temperature is not
            above 0.

    Example:
        >>> output = JointOutput(torch.tensor([-3.0, -5.0]), torch.tensor([[-0.1, -2.3], [-0.7, -0.7]]))
        >>> loss, metrics = semi_supervised_loss(output, Batch(torch.rand(2, 3), torch.tensor([0, UNLABELLED])))
        >>> loss
        tensor(4.)
    """
    y, nll = batch.y, -output.log_likelihood
    check_tensor("y", y)
    if is_readable(y):
        check_labels(y, output.class_log_probs.shape[1])
    _check_fit(output, batch)
    if not temperature > 0:
        raise InvalidArgument("temperature", f"must be above 0, not {temperature!r}")
    labelled = y != UNLABELLED
    weight = 1.0 + (weights.labelled - 1.0) * labelled.to(nll.dtype)
    row_loss = nll if output.kl is None or weights.kl == 1 else nll + (weights.kl - 1) * output.kl
    loss = (weight * torch.where(weight == 0, 0.0, row_loss)).sum() / weight.sum().clamp_min(1e-8)

    log_probs, truth = (output.class_log_probs, y) if output.moved is None else (output.moved, batch.moved_y)
    assert truth is not None
    has_truth = truth != UNLABELLED
    if weights.classifier:
        log_q = torch.log_softmax(log_probs / temperature, dim=1)
        loss = loss - weights.classifier * _mean(select_label(log_q, truth), has_truth)
    metrics = {}
    if output.views is not None:
        originals = output.class_log_probs[len(y) - len(output.views) :].detach()
        probabilities = torch.softmax(originals / temperature, dim=1)
        top_prob, target = probabilities.max(dim=1)
        threshold = adaptive_thresholds(probabilities)[target] if confidence == "adaptive" else confidence
        has_target = top_prob > threshold
        if batch.targets is not None:
            has_guess = batch.targets != UNLABELLED
            has_target, target = has_guess | has_target, torch.where(has_guess, batch.targets, target)
        log_q = torch.log_softmax(output.views / temperature, dim=1)
        loss = loss - weights.consistency * torch.where(has_target, select_label(log_q, target), 0.0).mean()
        metrics["pseudo_labelled"] = has_target.to(nll.dtype).mean()
    if output.kl is not None:
        metrics["kl"] = output.kl.detach().mean()
    with torch.no_grad():
        hits = (log_probs.argmax(dim=1) == truth).to(nll.dtype)
        metrics |= {
            "loss": loss.detach(),
            "labelled_nll": _mean(nll, labelled),
            "unlabelled_nll": _mean(nll, ~labelled),
            "labelled_accuracy": _mean(hits, has_truth),
        }
    return loss, metrics


def adaptive_thresholds(probabilities: Tensor) -> Tensor:
    """Return the probability [K] above which each class becomes a target, from posteriors [N, K] of a batch.

    The threshold of a class is the mean probability of the rows' top classes, times the mean posterior of this class
    relative to the class with the largest one. It therefore rises while a model grows sure, and is lower for classes
    that the model seldom sees. This is the threshold of FreeMatch (Wang et al., https://arxiv.org/abs/2205.07246, eq.
    8), which averages over steps where this function takes one batch.

    Example:
        >>> adaptive_thresholds(torch.tensor([[0.9, 0.1], [0.7, 0.3]]))
        tensor([0.8000, 0.2000])
    """
    mean = probabilities.mean(dim=0)
    return probabilities.amax(dim=1).mean() * mean / mean.max()


def _check_fit(output: JointOutput, batch: Batch) -> None:
    """Refuse an output that does not belong to the batch (InvalidArgument)."""
    if output.log_likelihood.shape != batch.y.shape or len(output.class_log_probs) != len(batch.y):
        raise InvalidArgument(
            "output",
            f"must belong to the batch of {len(batch.y)} labels, not have log_likelihood "
            f"{list(output.log_likelihood.shape)} and class_log_probs {list(output.class_log_probs.shape)}",
        )
    for name, rows, labels in (("moved rows", output.moved, batch.moved_y), ("views", output.views, batch.targets)):
        if rows is not None and labels is not None and len(rows) != len(labels):
            raise InvalidArgument(
                "output", f"must belong to the batch of {len(labels)} labels of {name}, not have {len(rows)} {name}"
            )
    if (output.moved is None) != (batch.moved_y is None or not len(batch.moved_y)):
        raise InvalidArgument("output", "must have moved rows where the batch has their labels moved_y, and only there")
    if output.views is not None and len(output.views) > len(batch.y):
        raise InvalidArgument(
            "output", f"must have views of rows of the batch, which has {len(batch.y)} rows, not {len(output.views)}"
        )


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of values [N] over the rows of a mask [N], or 0 for an empty mask.

    Values outside of the mask may be infinite.
    """
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp_min(1)
