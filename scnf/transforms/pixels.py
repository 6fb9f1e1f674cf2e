"""Transforms that map pixels in [0, 1] to the real line."""

import math
from statistics import NormalDist
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf.checks import check_count
from scnf.errors import InvalidArgument
from scnf.native import exporting, intervals, look_up
from scnf.transforms.base import Transform, sum_except_batch
from scnf.transforms.normalization import DataDependentTransform


class Logit(Transform):
    """Compute y = logit(alpha + (1 - 2 alpha) x) for pixels x in [0, 1].

    The map comes from Real NVP (arXiv 1605.08803, section 4.1), made symmetric as in MAF (arXiv 1705.07057).

    alpha keeps y finite at both ends of [0, 1]. The range of the inverse exceeds [0, 1] by alpha / (1 - 2 alpha) on
    each side: clamp samples before showing them. Beyond this range the density is 0 and logabsdet is -inf.

    Args:
        alpha: Share of (0, 1) that is left out at each end, in (0, 0.5).

    Example:
        >>> outputs, logabsdet = Logit(0.05)(torch.rand(2, 1, 4, 4))
        >>> bool(outputs.isfinite().all())
        True
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0.0 < alpha < 0.5:
            raise InvalidArgument("alpha", f"must be above 0 and below 0.5, not {alpha}")
        self.alpha = alpha

    def _log_slope(self, outputs: Tensor) -> Tensor:
        """Return log dy/dx [N, ...] = log(1 - 2 alpha) - log s(y) - log s(-y).

        It is a function of y, so that both directions share it; s is the sigmoid.
        """
        return math.log(1 - 2 * self.alpha) - F.logsigmoid(outputs) - F.logsigmoid(-outputs)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        share = self.alpha + (1 - 2 * self.alpha) * inputs
        bounds = torch.finfo(share.dtype).tiny, 1 - torch.finfo(share.dtype).eps / 2
        outputs = torch.logit(share.clamp(*bounds))
        return outputs, _zero_outside(sum_except_batch(self._log_slope(outputs)), share)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        outputs = (torch.sigmoid(inputs) - self.alpha) / (1 - 2 * self.alpha)
        return outputs, -sum_except_batch(self._log_slope(inputs))


class GreyLevels(DataDependentTransform):
    """Map the darkest grey level to a Gaussian, and each level above it to an interval of learned length.

    Uniform dequantisation spreads grey level k evenly over [k, k + 1) / levels. A Gaussian model of this uniform noise
    loses at least log2(2 pi e / 12) / 2 = 0.25 bits. An affine coupling has this loss at each pixel whose level it can
    predict. In images of strokes on black, these are four pixels in five.

    The darkest level, x < 1/levels, therefore becomes y = Phi^-1(tail + (1 - 2 tail) levels x). This model loses only
    -log2(1 - 2 tail) = 0.015 bits. Above this level, y continues from Phi^-1(1 - tail) with one slope for each level.
    Levels of many pixels, such as full ink, get longer intervals than others.

    A first batch sets the slopes (:func:`~scnf.transforms.normalization.initialize_from_data`). One half of the total
    length is divided in proportion to pixel counts, the other half evenly. The mean slope is 10 times the square root
    of the odds that a pixel is above the darkest level. The odds are clamped to [1e-3, 1e3]. The mean slope is about 5
    for MNIST, and 10 where the odds are even.

    Samples may have pixels outside of [0, 1]: clamp them before showing them. No sample has a pixel below
    -tail / ((1 - 2 tail) levels): there the density is 0 and logabsdet is -inf.

    Args:
        levels: Number of grey levels.
        slope: Slope of each level above the darkest before a first batch; the Gaussian has standard deviation 1.
        tail: Share of the Gaussian that is left out on each side, in (0, 0.5).

    Raises:
        InvalidArgument: A number is out of its range.

    Example:
        >>> outputs, _ = GreyLevels(256)(torch.rand(1000, 1) / 256)  # black
        >>> bool(outputs.abs().max() < 2.6)
        True
    """

    def __init__(self, levels: int, slope: float = 5.0, tail: float = 0.005) -> None:
        super().__init__()
        check_count("levels", levels, 2)
        if not 0 < slope < math.inf:
            raise InvalidArgument("slope", f"must be above 0 and finite, not {slope}")
        if not 0 < tail < 0.5:
            raise InvalidArgument("tail", f"must be above 0 and below 0.5, not {tail}")
        self.levels, self.tail, self.highest = levels, tail, NormalDist().inv_cdf(1 - tail)
        self.log_slope = nn.Parameter(torch.full((levels - 1,), math.log(slope)))

    def initialize(self, inputs: Tensor) -> None:
        """Set the slopes from the grey levels of a batch [N, ...] in [0, 1]."""
        counts = torch.bincount(self._level(self.levels * inputs).flatten(), minlength=self.levels).to(inputs.dtype)
        dark_count, counts = counts[0], counts[1:]
        odds = (counts.sum() / dark_count.clamp_min(1)).clamp(1e-3, 1e3)
        shares = torch.where(counts.sum() > 0, counts / counts.sum().clamp_min(1), 1 / len(counts))
        self.log_slope.copy_((10 * odds.sqrt() * (0.5 + 0.5 * shares * len(counts))).log())

    def _level(self, scaled: Tensor) -> Tensor:
        return scaled.clamp(max=self.levels - 1).int().clamp_min(0)  # NaN becomes level 0

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Return, for each level [levels], the y at which it begins and its log dy/dx; both are 0 for the darkest."""
        ends = self.highest + self.log_slope.exp().cumsum(dim=0) / self.levels
        begins = torch.cat([ends.new_tensor([0.0, self.highest]), ends[:-1]])
        return begins, F.pad(self.log_slope, (1, 0))

    def _log_slopes(self, is_dark: Tensor, outputs: Tensor, log_slope: Tensor) -> Tensor:
        """Return log dy/dx [N, ...] as a function of y, so that both directions share it.

        `log_slope` holds the logarithmic slope of each pixel's level.
        """
        log_slope_at_zero = math.log(self.levels * (1 - 2 * self.tail) * math.sqrt(2 * math.pi))
        return is_dark * log_slope_at_zero + (is_dark * outputs).square() / 2 + log_slope

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        begins, log_slopes = self._tables()
        scaled = self.levels * inputs
        level = self._level(scaled)
        float_level, is_dark = _as_floats(level, inputs)
        share = self.tail + (1 - 2 * self.tail) * scaled.clamp(max=1)
        dark_outputs, log_slope = math.sqrt(2) * _erfinv(2 * share.clamp_min(1e-6) - 1), look_up(log_slopes, level)
        light_outputs = look_up(begins, level) + (inputs - float_level / self.levels) * log_slope.exp()
        outputs = is_dark * dark_outputs + (1 - is_dark) * light_outputs
        logabsdet = sum_except_batch(self._log_slopes(is_dark, dark_outputs, log_slope))
        return outputs, _zero_outside(logabsdet, share)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        begins, log_slopes = self._tables()
        level = intervals(begins[1:], inputs)
        float_level, is_dark = _as_floats(level, inputs)
        share = (1 + torch.erf(inputs / math.sqrt(2))) / 2
        dark_outputs = (share - self.tail) / ((1 - 2 * self.tail) * self.levels)
        log_slope = look_up(log_slopes, level)
        light_outputs = float_level / self.levels + (inputs - look_up(begins, level)) * (-log_slope).exp()
        dark_mask = level == 0  # a product by `is_dark` would be NaN where the other value is infinite
        outputs, dark_inputs = torch.where(dark_mask, dark_outputs, light_outputs), torch.where(dark_mask, inputs, 0)
        return outputs, -sum_except_batch(self._log_slopes(is_dark, dark_inputs, log_slope))


def _zero_outside(logabsdet: Tensor, share: Tensor) -> Tensor:
    """Set logabsdet to -inf in rows with a share outside of [0, 1].

    A tolerance of 1e-6 admits samples, whose shares are rounded.
    """
    share = share.detach().flatten(1)
    return logabsdet.masked_fill((share.amin(dim=1) < -1e-6) | (share.amax(dim=1) > 1 + 1e-6), -math.inf)


def _as_floats(level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the level, and 1 for the darkest level and 0 for others, as floats.

    Booleans take ten times as long where a compiled step stores them.
    """
    float_level = level.to(like.dtype)
    return float_level, (1 - float_level).clamp_min(0)


def _erfinv(x: Tensor) -> Tensor:
    needs_operator = torch.compiler.is_compiling() and not exporting()
    return cast(Tensor, _erfinv_operator(x)) if needs_operator else x.erfinv()


@torch.library.custom_op("scnf::erfinv", mutates_args=())
def _erfinv_operator(x: Tensor) -> Tensor:
    return x.erfinv()


@_erfinv_operator.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_output(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _erfinv_gradient(ctx: Any, grad: Tensor) -> Tensor:
    (output,) = ctx.saved_tensors
    return cast(Tensor, grad * (math.sqrt(math.pi) / 2 * output.square().exp()))


_erfinv_operator.register_autograd(_erfinv_gradient, setup_context=_keep_output)
