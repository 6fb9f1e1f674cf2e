"""Define a plain network p(y | x), the baseline of every semi-supervised result."""

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.distributions import at_least_float32
from scnf.models.base import JointModel, select_label
from scnf.nn import head_inputs


class Classifier(JointModel):
    """A classifier models log p(y | x) on labelled rows, and has no p(x).

    The log-likelihood of a row with a hidden label is 0.

    Args:
        network: Network from x [N, ...] to class logits [N, K].
        num_classes: Number of classes K.

    Example:
        >>> from scnf.batch import Batch
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), num_classes=10)
        >>> model(Batch(torch.rand(2, 1, 8, 8), torch.tensor([3, -1]))).log_likelihood[1]
        tensor(0., grad_fn=<SelectBackward0>)
    """

    exact = True
    likelihood_of = "labels"

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return log p(y | x) where y is known and 0 where it is hidden, and log p(y | x) of every class."""
        log_q = torch.log_softmax(at_least_float32(self.network(x)), dim=1)
        return torch.where(y == UNLABELLED, 0.0, select_label(log_q[: len(y)], y)), log_q, None

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """Raise an error, because the model has no p(x).

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a plain classifier knows no p(x): it has accuracy and calibration, no likelihood")

    def representation(self, x: Tensor) -> Tensor:
        """Return the hidden units [N, hidden] that the head of the network reads."""
        return head_inputs(self.network, x)

    def sample(self, y: Tensor) -> Tensor:
        """Raise an error, because the model has no p(x | y) to draw from.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a plain classifier cannot draw images: it models p(y | x) alone")
