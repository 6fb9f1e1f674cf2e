"""The class prior p(y), which is fixed or learned."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.errors import InvalidArgument


class ClassPrior(nn.Module):
    """A prior over classes, p(y) = softmax(logits), which is uniform by default.

    Args:
        num_classes: Number of classes, K.
        probabilities: Probabilities of the classes, K positive numbers that sum to 1; uniform by default.
        learned: Whether training changes the prior.

    Raises:
        InvalidArgument: The probabilities are not K positive numbers that sum to 1.

    Example:
        >>> ClassPrior(4).log_prob_all().exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(
        self, num_classes: int, probabilities: Sequence[float] | Tensor | None = None, learned: bool = False
    ) -> None:
        super().__init__()
        if probabilities is None:
            values = torch.full((num_classes,), 1.0 / num_classes)
        else:
            values = torch.as_tensor(probabilities, dtype=torch.float32)
        if values.shape != (num_classes,) or not bool((values > 0).all()) or abs(float(values.sum()) - 1) > 1e-4:
            raise InvalidArgument(
                "probabilities", f"must be {num_classes} positive numbers that sum to 1, one for each class"
            )
        if learned:
            self.logits = nn.Parameter(values.log())
        else:
            self.register_buffer("logits", values.log())

    @classmethod
    def empirical(cls, y: Tensor, num_classes: int) -> "ClassPrior":
        """Estimate the prior from the visible labels of y [N], with one added to each count so that none is zero.

        Raises:
            InvalidArgument: y is not a vector of labels.
        """
        check_labels(y, num_classes)
        counts = torch.bincount(y[y != UNLABELLED].cpu(), minlength=num_classes) + 1.0
        return cls(num_classes, counts / counts.sum())

    def log_prob_all(self) -> Tensor:
        """Return log p(y) [K], in nats."""
        return torch.log_softmax(self.logits, dim=0)

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Draw [num] labels."""
        return torch.multinomial(self.log_prob_all().exp(), num, replacement=True)


def make_prior(kind: str | Sequence[float], num_classes: int, visible: Tensor | None = None) -> ClassPrior:
    """Return the prior that an argument of a recipe names.

    Args:
        kind: Name "uniform", "empirical" or "learned" (uniform at the start), or K probabilities.
        num_classes: Number of classes, K.
        visible: Labels [N] that training may use, UNLABELLED where hidden. The empirical prior needs them.

    Raises:
        InvalidArgument: The name is unknown, the labels are missing, or the probabilities are not K positive numbers
            that sum to 1.
    """
    if not isinstance(kind, str):
        return ClassPrior(num_classes, kind)
    if kind == "empirical":
        if visible is None:
            raise InvalidArgument("prior", "must be a ClassPrior, because an empirical one needs labels: make_prior")
        return ClassPrior.empirical(visible, num_classes)
    if kind not in ("uniform", "learned"):
        raise InvalidArgument("prior", f"must be uniform, empirical, learned or a list of probabilities, not {kind!r}")
    return ClassPrior(num_classes, learned=kind == "learned")
