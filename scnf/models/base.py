"""What every model p(x, y) answers, whether its likelihood is exact or a bound."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.checks import at_hand, check_inputs, check_labels, check_rows, check_tensor
from scnf.distributions import Temperature
from scnf.transforms import start_from


class JointOutput(NamedTuple):
    """What a model says of a batch, in nats.

    Attributes:
        log_likelihood: [N]: log p(x, y) where y is known and log p(x) where it is hidden, or lower bounds of them.
        class_log_probs: [N, K]: log q(y | x), the classifier; the exact posterior for a flow.
        kl: [N]: the divergence of latent variables from their prior that a variational bound has subtracted, for an
            objective that weighs it otherwise; None where there is none.
        moved: [M, K]: log q(y | x) of the batch's moved rows; None without any.
        views: [V, K]: log q(y | x) of the batch's views; None without any.
    """

    log_likelihood: Tensor
    class_log_probs: Tensor
    kl: Tensor | None = None
    moved: Tensor | None = None
    views: Tensor | None = None


def output_from_table(log_joint: Tensor, class_logits: Tensor, y: Tensor, kl: Tensor | None = None) -> JointOutput:
    """From the table log p(x, y = k) to the output: the form that every model which enumerates its labels shares.

    Labelled rows take their column. Unlabelled rows take sum_k q_k (log_joint_k - log q_k), q = softmax(class_logits):
    M2's bound (Kingma et al., https://arxiv.org/abs/1406.5298, eq. 7). Where q is the exact posterior, that is where
    `class_logits` is `log_joint` itself, it equals logsumexp_k log_joint_k in value and in gradient. A row of density
    0, whose log_joint is -inf for every class, has -inf; an exact posterior, which is 0 / 0 there, is taken as uniform.

    Args:
        log_joint: [N, K], log p(x, y = k) or a lower bound.
        class_logits: [N, K].
        y: [N], UNLABELLED where hidden.
        kl: [N, K], of the latent variables given each label, contained in `log_joint`.
    """
    nowhere = class_logits.amax(dim=1, keepdim=True) == -torch.inf
    log_q = torch.log_softmax(class_logits.masked_fill(nowhere, 0.0), dim=1)

    def pick(visible: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(y == UNLABELLED, expected(log_q, hidden), at_label(visible, y))

    return JointOutput(pick(log_joint, log_joint - log_q), log_q, None if kl is None else pick(kl, kl))


def at_label(values: Tensor, y: Tensor) -> Tensor:
    """Values [N, K] at the labels y [N]; of hidden labels, at class 0. Other numbers that are no label are an error."""
    return values.gather(1, torch.where(y == UNLABELLED, 0, y).unsqueeze(1)).squeeze(1)


def expected(log_q: Tensor, values: Tensor) -> Tensor:
    """sum_k q_k values_k [N] for log q and values [N, K]: where q_k is 0, values do not count, also infinite ones."""
    q = log_q.exp()
    return (q * values.masked_fill(q == 0, 0.0)).sum(dim=1)


class JointModel(nn.Module):
    """p(x, y) over images x [N, C, H, W] in [0, 1] (or points [N, D]) and labels y [N].

    Attributes:
        exact: whether log-likelihoods are exact; lower bounds otherwise.
        likelihood_of: what log p(x) speaks of: "levels", the density of dequantised grey levels (or of points), which
            bits/dim compare; "binary", binarised images; "labels", nothing but labels: the model knows no p(x).
        num_classes: K.
        pixels: the least and the most that a pixel of an image may be.
        shape: of one input, (C, H, W) or (D,), which a recipe was built for; None for any.
    """

    exact: bool
    likelihood_of: Literal["levels", "binary", "labels"] = "levels"
    num_classes: int
    pixels: tuple[float, float] = (-torch.inf, torch.inf)
    shape: tuple[int, ...] | None = None

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Refuse what are no inputs x [N, ...] of the model, or no labels y [N] of theirs.

        Raises:
            ValueError: of another type, shape or range.
        """
        check_inputs(x, *self.pixels)
        self._check_shape(x)
        if y is not None:
            check_labels(y, self.num_classes, rows=len(x))

    def _check_shape(self, x: Tensor) -> None:
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this model takes inputs of shape {['N', *self.shape]}, not {list(x.shape)}")

    def _check_batch(self, batch: Batch) -> None:
        """Check that the parts of a batch fit together, and the labels of its moved rows and views."""
        if not isinstance(batch, Batch):
            raise ValueError(f"a model takes a scnf.batch.Batch(x, y), not {type(batch).__name__}")
        check_tensor("x", batch.x)
        check_tensor("y", batch.y)
        if batch.y.dim() == 1:
            check_rows(len(batch.x), len(batch.y))
        for name, rows, labels in (("moved", batch.moved, batch.moved_y), ("views", batch.views, batch.targets)):
            if rows is not None and len(rows) > len(batch.x):
                raise ValueError(f"{name} show rows of the batch, and there are {len(rows)} of {len(batch.x)} rows")
            if rows is not None and labels is not None:
                check_rows(len(rows), len(labels))
                if at_hand(labels):
                    check_labels(labels, self.num_classes)
        if (batch.moved is None) != (batch.moved_y is None):
            raise ValueError("moved rows and their labels moved_y come together")

    def _check_step(self, x: Tensor, y: Tensor) -> None:
        """Check inputs x [N, ...] and labels y of a step; values only where no device is waited for."""
        if at_hand(x):
            self.check(x)
            check_labels(y, self.num_classes)
        else:
            self._check_shape(x)

    def forward(self, batch: Batch) -> JointOutput:
        """Log-likelihood and class posterior of the rows of a batch, and class posterior of its moved rows and views.

        Raises:
            ValueError: the rows or labels are none that the model takes.
        """
        self._check_batch(batch)
        inputs = batch.inputs()
        self._check_step(inputs, batch.y)
        log_likelihood, log_q, kl = self.step(inputs, batch.y)
        own, moved, views = log_q.split(batch.sizes)
        return JointOutput(log_likelihood, own, kl, moved if len(moved) else None, views if len(views) else None)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What :meth:`forward` computes, in one pass over all inputs.

        Args:
            x: [N + R, ...]: N rows, and R others of which the class posterior alone is wanted.
            y: [N], UNLABELLED where hidden.

        Returns:
            log-likelihoods [N], log q(y | x) [N + R, K], and the divergence [N] of latent variables, None without.
        """
        raise NotImplementedError

    def class_log_probs(self, x: Tensor) -> Tensor:
        """The classifier, log q(y | x) [N, K]; averaged over the model's draws where latent variables are drawn.

        Raises:
            ValueError: x are no inputs of the model.
        """
        self.check(x)
        return self.step(x, torch.zeros(0, dtype=torch.long, device=x.device))[1]

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """Log p(x) [N] in nats: exact, or the bound from `num_samples` importance samples."""
        raise NotImplementedError

    def representation(self, x: Tensor) -> Tensor:
        """What the classifier stands on, [N, D]: near rows are of one class, where the model has learned anything."""
        raise NotImplementedError

    def sample(self, y: Tensor) -> Tensor:
        """One x for each label of y [N]."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor) -> None:
        """Start from a first batch what starts from data, and is not started yet; the mode stays as it is.

        Args:
            x: [N, ...].
            y: [N], UNLABELLED where hidden.

        Raises:
            ValueError: this is no data for the model.
        """
        self.check(x, y)
        training = self.training
        self.train()
        try:
            self._start(x, y)
        finally:
            self.train(training)

    def _start(self, x: Tensor, y: Tensor) -> None:
        start_from(self, Batch(x, y))

    def anneal(self, done: float) -> None:
        """Before each optimiser step of training: the share of all steps that are done, for temperatures."""
        for module in self.modules():
            if isinstance(module, Temperature):
                module.anneal(done)
