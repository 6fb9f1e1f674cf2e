"""From pixels in [0, 1] to the real line."""

import math
from statistics import NormalDist
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf.errors import InvalidArgument
from scnf.native import look_up
from scnf.transforms.base import Transform, sum_except_batch
from scnf.transforms.normalization import StartsFromData


class Logit(Transform):
    """y = logit(alpha + (1 - 2 alpha) x), for pixels x in [0, 1].

    Real NVP (arXiv 1605.08803, section 4.1), made symmetric as in MAF (arXiv 1705.07057).

    alpha keeps the ends away from infinity. The image of the inverse is a little larger than [0, 1], by
    alpha / (1 - 2 alpha) on each side: clamp samples before showing them. Beyond that the density is 0, logabsdet -inf.

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
            raise InvalidArgument("alpha", f"must be above 0 and below 0.5, not {alpha}")
        self.alpha = alpha

    def _log_slope(self, outputs: Tensor) -> Tensor:
        """Log dy/dx [N, ...], in y so that both directions share it: log(1 - 2 alpha) - log s(y) - log s(-y)."""
        return math.log(1 - 2 * self.alpha) - F.logsigmoid(outputs) - F.logsigmoid(-outputs)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, logabsdet [N])."""
        share = self.alpha + (1 - 2 * self.alpha) * inputs
        smallest = torch.finfo(share.dtype).tiny, 1 - torch.finfo(share.dtype).eps / 2
        outputs = torch.logit(share.clamp(*smallest))
        return outputs, _nowhere(sum_except_batch(self._log_slope(outputs)), share)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, logabsdet [N])."""
        outputs = (torch.sigmoid(inputs) - self.alpha) / (1 - 2 * self.alpha)
        return outputs, -sum_except_batch(self._log_slope(inputs))


class GreyLevels(StartsFromData):
    """A learned length for each grey level; the darkest becomes a Gaussian, the others stand in line above it.

    Uniform dequantisation spreads grey level k evenly over [k, k + 1) / levels. Of a uniform variable the best Gaussian
    falls short by log2(2 pi e / 12) / 2 = 0.25 bits, and an affine coupling makes a Gaussian of what it knows all else
    about: in images of strokes on black, of four pixels in five. So y = Phi^-1(tail + (1 - 2 tail) levels x) for
    x < 1/levels, which falls short by -log2(1 - 2 tail) = 0.015 bits, and y goes on from Phi^-1(1 - tail) with a slope
    for each level. Levels that many pixels have, such as full ink, get more room than others. A first batch sets the
    slopes (:func:`~scnf.transforms.normalization.start_from`): half of the room is dealt out by its numbers of pixels,
    the other half evenly. The mean slope starts at 10 times the root of the odds that a pixel is not of the darkest
    level, these odds being clamped to [1e-3, 1e3]: at 5 for MNIST, at 10 where the odds are even.

    Samples may lie outside of [0, 1], as pixels that are darker or lighter than any: clamp them before showing them. No
    sample has a pixel darker than -tail / ((1 - 2 tail) levels): there the density is 0, logabsdet -inf.

    Args:
        levels: number of grey levels.
        slope: mean of those above the darkest without a first batch, beside a background of standard deviation 1.
        tail: share of a Gaussian that is left out on each side of the background, in (0, 0.5).

    Example:
        >>> outputs, _ = GreyLevels(256)(torch.rand(1000, 1) / 256)  # black
        >>> bool(outputs.abs().max() < 2.6)
        True
    """

    def __init__(self, levels: int, slope: float = 5.0, tail: float = 0.005) -> None:
        super().__init__()
        if not (levels > 1 and 0 < slope < math.inf and 0 < tail < 0.5):
            raise ValueError(
                f"levels must be above 1, slope above 0, tail between 0 and 0.5; not {levels}, {slope} and {tail}"
            )
        self.levels, self.tail, self.highest = levels, tail, NormalDist().inv_cdf(1 - tail)
        self.log_slope = nn.Parameter(torch.full((levels - 1,), math.log(slope)))

    def start(self, inputs: Tensor) -> None:
        """Deal out the room by the levels of a batch [N, ...] in [0, 1]."""
        counts = torch.bincount(self._level(self.levels * inputs).flatten(), minlength=self.levels).to(inputs.dtype)
        dark, counts = counts[0], counts[1:]
        odds = (counts.sum() / dark.clamp_min(1)).clamp(1e-3, 1e3)
        share = torch.where(counts.sum() > 0, counts / counts.sum().clamp_min(1), 1 / len(counts))
        self.log_slope.copy_((10 * odds.sqrt() * (0.5 + 0.5 * share * len(counts))).log())

    def _level(self, scaled: Tensor) -> Tensor:
        return scaled.clamp(max=self.levels - 1).int().clamp_min(0)  # 0 where it is not a number

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Of each level [levels], the darkest first, for which all are 0: the y at which it begins, and log dy/dx."""
        ends = self.highest + self.log_slope.exp().cumsum(dim=0) / self.levels
        begins = torch.cat([ends.new_tensor([0.0, self.highest]), ends[:-1]])
        return begins, F.pad(self.log_slope, (1, 0))

    def _log_slopes(self, is_dark: Tensor, outputs: Tensor, log_slope: Tensor) -> Tensor:
        """Log dy/dx [N, ...], in y so that both directions share it; `log_slope` is that of each pixel's level."""
        at_zero = math.log(self.levels * (1 - 2 * self.tail) * math.sqrt(2 * math.pi))
        return is_dark * at_zero + (is_dark * outputs).square() / 2 + log_slope

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, logabsdet [N])."""
        begins, log_slopes = self._tables()
        scaled = self.levels * inputs
        level = self._level(scaled)
        whole, is_dark = _as_numbers(level, inputs)
        share = self.tail + (1 - 2 * self.tail) * scaled.clamp(max=1)
        dark, log_slope = math.sqrt(2) * _erfinv(2 * share.clamp_min(1e-6) - 1), _look_up(log_slopes, level)
        light = _look_up(begins, level) + (inputs - whole / self.levels) * log_slope.exp()
        outputs = is_dark * dark + (1 - is_dark) * light
        logabsdet = sum_except_batch(self._log_slopes(is_dark, dark, log_slope))
        return outputs, _nowhere(logabsdet, share)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, logabsdet [N])."""
        begins, log_slopes = self._tables()
        level = torch.searchsorted(begins[1:], inputs.detach().contiguous(), right=True, out_int32=True)
        whole, is_dark = _as_numbers(level, inputs)
        share = (1 + torch.erf(inputs / math.sqrt(2))) / 2
        dark, log_slope = (share - self.tail) / ((1 - 2 * self.tail) * self.levels), _look_up(log_slopes, level)
        light = whole / self.levels + (inputs - _look_up(begins, level)) * (-log_slope).exp()
        darkest = level == 0  # a choice, as what is not chosen may be infinite
        outputs, seen = torch.where(darkest, dark, light), torch.where(darkest, inputs, 0)
        return outputs, -sum_except_batch(self._log_slopes(is_dark, seen, log_slope))


def _nowhere(logabsdet: Tensor, share: Tensor) -> Tensor:
    """-inf for rows with a share outside of [0, 1], by more than those of samples are, which are rounded."""
    share = share.detach().flatten(1)
    return logabsdet.masked_fill((share.amin(dim=1) < -1e-6) | (share.amax(dim=1) > 1 + 1e-6), -math.inf)


def _as_numbers(level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The level, and 1 for the darkest and 0 for others: where they are kept, truth values take ten times as long."""
    whole = level.to(like.dtype)
    return whole, (1 - whole).clamp_min(0)


def _erfinv(x: Tensor) -> Tensor:
    return cast(Tensor, _erfinv_apart(x)) if torch.compiler.is_compiling() else x.erfinv()


@torch.library.custom_op("scnf::erfinv", mutates_args=())
def _erfinv_apart(x: Tensor) -> Tensor:
    return x.erfinv()


@_erfinv_apart.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_output(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _erfinv_gradient(ctx: Any, grad: Tensor) -> Tensor:
    (output,) = ctx.saved_tensors
    return cast(Tensor, grad * (math.sqrt(math.pi) / 2 * output.square().exp()))


_erfinv_apart.register_autograd(_erfinv_gradient, setup_context=_keep_output)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """The entry of a vector at each index."""
    found = look_up(table, index)
    return table.index_select(0, index.flatten()).view_as(index) if found is None else found
