"""A plain network p(y | x): the number every semi-supervised result is compared with."""

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.distributions import single_or_better
from scnf.errors import UserError
from scnf.models.base import JointModel, at_label
from scnf.nn import before_head


class Classifier(JointModel):
    """log p(y | x) on labelled rows; hidden labels add nothing, and there is no p(x).

    Args:
        network: x [N, ...] -> class logits [N, K].
        num_classes: K.

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
        """Log p(y | x) where y is known, 0 where hidden; and log p(y | x) of every class."""
        log_q = torch.log_softmax(single_or_better(self.network(x)), dim=1)
        return torch.where(y == UNLABELLED, 0.0, at_label(log_q[: len(y)], y)), log_q, None

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError("a plain classifier knows no p(x): it has accuracy and calibration, no likelihood")

    def representation(self, x: Tensor) -> Tensor:
        """What the last layer of the network sees [N, hidden]."""
        return before_head(self.network, x)

    def sample(self, y: Tensor) -> Tensor:
        """There are none.

        Raises:
            UserError: always.
        """
        raise UserError("a plain classifier draws no images: it knows p(y | x) alone")
