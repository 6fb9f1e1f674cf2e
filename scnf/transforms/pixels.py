"""From pixels in [0, 1] to the real line."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.transforms.base import Transform, sum_except_batch


class Logit(Transform):
    """y = logit(alpha + (1 - 2 alpha) x), for pixels x in [0, 1].

    Real NVP (arXiv 1605.08803, section 4.1), made symmetric as in MAF (arXiv 1705.07057).

    alpha keeps the ends away from infinity. The image of the inverse is a little larger than [0, 1], by
    alpha / (1 - 2 alpha) on each side: clamp samples before showing them.

    Args:
        alpha: in (0, 0.5).

    Example:
        >>> outputs, logabsdet = Logit(0.05)(torch.rand(2, 1, 4, 4))
        >>> bool(outputs.isfinite().all())
        True
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0.0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, not at {alpha}")
        self.alpha = alpha

    def _log_slope(self, outputs: Tensor) -> Tensor:
        """Log dy/dx [N, ...], in y so that both directions share it: log(1 - 2 alpha) - log s(y) - log s(-y)."""
        return math.log(1 - 2 * self.alpha) - F.logsigmoid(outputs) - F.logsigmoid(-outputs)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, logabsdet [N])."""
        outputs = torch.logit(self.alpha + (1 - 2 * self.alpha) * inputs)
        return outputs, sum_except_batch(self._log_slope(outputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, logabsdet [N])."""
        outputs = (torch.sigmoid(inputs) - self.alpha) / (1 - 2 * self.alpha)
        return outputs, -sum_except_batch(self._log_slope(inputs))
