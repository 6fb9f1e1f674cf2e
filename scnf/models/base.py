"""Define the interface of every model p(x, y), whether its likelihood is exact or a lower bound."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.checks import check_inputs, check_labels, check_rows, check_tensor, is_readable
from scnf.distributions import Temperature
from scnf.errors import InvalidArgument
from scnf.transforms import initialize_from_data


class JointOutput(NamedTuple):
    """The output of a model holds its log-likelihoods and class posteriors for a batch, in nats.

    Attributes:
        log_likelihood: log p(x, y) where y is known and log p(x) where it is hidden, or lower bounds of these, [N].
        class_log_probs: Classifier log q(y | x), [N, K]. For a flow it is the exact posterior.
        kl: KL divergence [N] of latent variables from their prior, already subtracted in a variational bound. An
            objective may weight it otherwise. None for a model without latent variables.
        moved: Classifier log q(y | x) of the batch's moved rows, [M, K]; None without moved rows.
        views: Classifier log q(y | x) of the batch's views, [V, K]; None without views.
    """

    log_likelihood: Tensor
    class_log_probs: Tensor
    kl: Tensor | None = None
    moved: Tensor | None = None
    views: Tensor | None = None


def output_from_table(log_joint: Tensor, class_logits: Tensor, y: Tensor, kl: Tensor | None = None) -> JointOutput:
    """Build the output of a model that enumerates its labels from its table of log p(x, y = k).

    Labelled rows take their column of the table. Unlabelled rows take sum_k q_k (log_joint_k - log q_k) with q =
    softmax(class_logits), the bound of M2 (Kingma et al., https://arxiv.org/abs/1406.5298, eq. 7).

    Where `class_logits` is `log_joint` itself, q is the exact posterior. The sum then equals logsumexp_k log_joint_k in
    value and in gradient. A row of density 0 has log_joint -inf for every class and log-likelihood -inf. Its exact
    posterior, 0 / 0, is replaced by the uniform distribution.

    Args:
        log_joint: log p(x, y = k) or a lower bound of it, [N, K].
        class_logits: Logits of the classifier q(y | x), [N, K].
        y: Labels [N], UNLABELLED where hidden.
        kl: KL divergence [N, K] of the latent variables given each label, already subtracted in `log_joint`.
    """
    no_density = class_logits.amax(dim=1, keepdim=True) == -torch.inf
    log_q = torch.log_softmax(class_logits.masked_fill(no_density, 0.0), dim=1)

    def select(labelled: Tensor, unlabelled: Tensor) -> Tensor:
        return torch.where(y == UNLABELLED, expectation(log_q, unlabelled), select_label(labelled, y))

    return JointOutput(select(log_joint, log_joint - log_q), log_q, None if kl is None else select(kl, kl))


def select_label(values: Tensor, y: Tensor) -> Tensor:
    """Return the values [N, K] at the labels y [N], and at class 0 for hidden labels.

    The look-up raises an error for any other number that is no label.
    """
    return values.gather(1, torch.where(y == UNLABELLED, 0, y).unsqueeze(1)).squeeze(1)


def expectation(log_q: Tensor, values: Tensor) -> Tensor:
    """Return sum_k q_k values_k [N] from log q [N, K] and values [N, K].

    Values at which q_k is 0 do not count, even infinite ones.
    """
    q = log_q.exp()
    return (q * values.masked_fill(q == 0, 0.0)).sum(dim=1)


class JointModel(nn.Module):
    """A joint model p(x, y) describes images x [N, C, H, W] in [0, 1], or points [N, D], and labels y [N].

    Attributes:
        exact: Whether log-likelihoods are exact. Otherwise they are lower bounds.
        likelihood_of: Quantity that log p(x) measures. "levels" is the density of dequantised grey levels (or of
            points), which bits/dim compare. "binary" is the probability of binarised images. "labels" means that the
            model has no p(x).
        num_classes: Number of classes K.
        pixels: Smallest and largest value that a pixel of an image may have.
        shape: Shape of one input, (C, H, W) or (D,), for which the recipe built the model; None for any shape.
    """

    exact: bool
    likelihood_of: Literal["levels", "binary", "labels"] = "levels"
    num_classes: int
    pixels: tuple[float, float] = (-torch.inf, torch.inf)
    shape: tuple[int, ...] | None = None

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Refuse inputs x [N, ...] or labels y [N] that the model does not take.

        Raises:
            InvalidArgument: The inputs or labels are of another type, shape or range.
        """
        check_inputs(x, *self.pixels)
        self._check_shape(x)
        if y is not None:
            check_labels(y, self.num_classes, rows=len(x))

    def _check_shape(self, x: Tensor) -> None:
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise InvalidArgument("x", f"must be of shape {['N', *self.shape]} for this model, not {list(x.shape)}")

    def _check_batch(self, batch: Batch) -> None:
        """Check that the parts of a batch fit together, and check the labels of its moved rows and views."""
        if not isinstance(batch, Batch):
            raise InvalidArgument("batch", f"must be a scnf.batch.Batch(x, y), not {type(batch).__name__}")
        check_tensor("x", batch.x)
        check_tensor("y", batch.y)
        if batch.y.dim() == 1:
            check_rows(len(batch.x), len(batch.y))
        pairs = ("moved", batch.moved, "moved_y", batch.moved_y), ("views", batch.views, "targets", batch.targets)
        for rows_name, rows, labels_name, labels in pairs:
            if rows is not None and len(rows) > len(batch.x):
                raise InvalidArgument(
                    rows_name, f"must show rows of the batch, which has {len(batch.x)} rows, not {len(rows)}"
                )
            if rows is not None and labels is not None:
                check_rows(len(rows), len(labels), labels_name)
                if is_readable(labels):
                    check_labels(labels, self.num_classes, argument=labels_name)
        if (batch.moved is None) != (batch.moved_y is None):
            raise InvalidArgument("moved", "must be given together with the labels moved_y of the moved rows")

    def _check_step(self, x: Tensor, y: Tensor) -> None:
        """Check inputs x [N, ...] and labels y of a step, and their values only where no device has to wait."""
        if is_readable(x):
            self.check(x)
            check_labels(y, self.num_classes)
        else:
            self._check_shape(x)

    def forward(self, batch: Batch) -> JointOutput:
        """Compute log-likelihoods and class posteriors of a batch, and class posteriors of its moved rows and views.

        Raises:
            InvalidArgument: The model does not take the rows or the labels.
        """
        self._check_batch(batch)
        inputs = batch.inputs()
        self._check_step(inputs, batch.y)
        log_likelihood, log_q, kl = self._train_step(inputs, batch)
        class_log_probs, moved, views = log_q.split(batch.sizes)
        return JointOutput(
            log_likelihood, class_log_probs, kl, moved if len(moved) else None, views if len(views) else None
        )

    def _train_step(self, inputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute :meth:`step` of the inputs of a batch, for a loss that takes a gradient."""
        return self.step(inputs, batch.y)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the quantities of :meth:`forward` in one pass over all inputs.

        Args:
            x: Inputs [N + R, ...]. The first N rows get a likelihood and a class posterior, the other R rows a class
                posterior alone.
            y: Labels [N] of the first N rows, UNLABELLED where hidden.

        Returns:
            Log-likelihoods [N], log q(y | x) [N + R, K], and the KL divergence [N] of latent variables or None without
                them.
        """
        raise NotImplementedError

    def class_log_probs(self, x: Tensor) -> Tensor:
        """Return the classifier log q(y | x) [N, K], averaged over draws of latent variables where the model has any.

        Raises:
            InvalidArgument: The model does not take the inputs x.
        """
        self.check(x)
        return self.step(x, torch.zeros(0, dtype=torch.long, device=x.device))[1]

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """Return log p(x) [N] in nats, exactly or as the bound from `num_samples` importance samples."""
        raise NotImplementedError

    def representation(self, x: Tensor) -> Tensor:
        """Return the features [N, D] that the classifier reads.

        In a trained model, neighbouring rows tend to be of one class.
        """
        raise NotImplementedError

    def sample(self, y: Tensor) -> Tensor:
        """Draw one x for each label of y [N]."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor) -> None:
        """Initialise, from a first batch, the parts of the model that start from data.

        Layers that have been started before keep their values, and the training mode stays as it is.

        Args:
            x: Inputs [N, ...].
            y: Labels [N], UNLABELLED where hidden.

        Raises:
            InvalidArgument: The model does not take this data.
        """
        self.check(x, y)
        training = self.training
        self.train()
        try:
            self._initialize(x, y)
        finally:
            self.train(training)

    def _initialize(self, x: Tensor, y: Tensor) -> None:
        initialize_from_data(self, Batch(x, y))

    def anneal(self, progress: float) -> None:
        """Set all temperatures before an optimiser step.

        Args:
            progress: Share of all optimiser steps that are done.
        """
        for module in self.modules():
            if isinstance(module, Temperature):
                module.anneal(progress)
