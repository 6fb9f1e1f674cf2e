"""Figures of a model on a data split, all from one pass."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scnf.batch import Batch
from scnf.checks import check_count, check_data, check_labels, check_tensor
from scnf.data.augment import random_affine
from scnf.data.batches import dequantize
from scnf.errors import UserError
from scnf.models.base import JointModel

NOISE_DRAWS = 8
"""Noise draws behind reported figures, because one other draw moves an accuracy as much as other labels may."""
_NEXT = 1_000_003
"""From the seed of one draw, or view, to that of the next."""


def bits_per_dim(log_likelihood: Tensor | float, dims: int, levels: int) -> Tensor | float:
    """-log2 p per dimension of the grey levels, from log p(x) in nats of x dequantised to [0, 1).

    A pixel of `levels` grey levels spread over [0, 1) has density times 1/levels: -(log p(x) / D - log levels) / log 2.

    Example:
        >>> round(bits_per_dim(0.0, dims=784, levels=256), 6)  # the uniform density
        8.0
    """
    return (math.log(levels) - log_likelihood / dims) / math.log(2.0)


def expected_calibration_error(class_log_probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (arXiv 1706.04599, eq. 3).

    Args:
        class_log_probs: [N, K].
        y: true labels [N].
        bins: number of bins.

    Raises:
        ValueError: y are no labels of these rows, or there are no bins.
    """
    _check_scored(class_log_probs, y)
    check_count("bins", bins)
    confidence, prediction = class_log_probs.exp().max(dim=1)
    index = (confidence * bins).long().clamp(0, bins - 1)
    gap = (prediction == y).double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.double).index_add(0, index.cpu(), gap.cpu()).abs().sum() / len(y))


def brier_score(class_log_probs: Tensor, y: Tensor) -> float:
    """Mean over rows of sum_k (p_k - [y = k])^2, from 0 to 2 (Brier, Monthly Weather Review 78(1), 1950).

    Args:
        class_log_probs: [N, K].
        y: true labels [N].

    Raises:
        ValueError: y are no labels of these rows.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log(), torch.tensor([0, 0]))
        1.25
    """
    _check_scored(class_log_probs, y)
    probs = class_log_probs.double().exp()
    return float((probs - torch.nn.functional.one_hot(y, probs.shape[1])).square().sum(dim=1).mean())


def noisy_batches(x: Tensor, levels: int | None, batch_size: int, seed: int, augment: float = 0.0) -> Iterator[Tensor]:
    """Dequantised batches of x, with the noise of `seed`, and torch's own generator set anew for each.

    With `augment`, images are moved first by random affine maps of that strength, which depend on `seed` too. So what a
    model draws first in a batch, such as binary images, is the same in every pass and for every model. Noise and maps
    are drawn on the CPU, and so are the same on every device. The random state of the caller comes back at the end.

    Raises:
        ValueError: x are no such data, or `batch_size` is below 1.
    """
    check_data(x, levels)
    check_count("batch_size", batch_size)
    seed, batch_size = int(seed), int(batch_size)  # of numpy, too, which PyTorch refuses
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        for index, batch in enumerate(x.cpu().split(batch_size)):
            torch.manual_seed(seed + 1 + index)  # another stream than the generator's
            moved = random_affine(batch, augment) if augment else batch
            yield dequantize(moved, levels, generator).to(x.device)


class Draws(NamedTuple):
    """What a model says of each row over some draws of the noise, in nats.

    Attributes:
        log_likelihood: [N]: the mean of log p(x), or of a lower bound of it.
        log_mean: [N]: the logarithm of the mean of p(x), of unbiased estimates where a likelihood is a bound.
        class_log_probs: [N, K]: the logarithm of the mean of p(y | x).
        predictions: [draws, N]: the likeliest class in each draw.
    """

    log_likelihood: Tensor
    log_mean: Tensor
    class_log_probs: Tensor
    predictions: Tensor


@contextmanager
def evaluating(model: JointModel) -> Iterator[None]:
    """The model in evaluation mode, without gradients, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def over_draws(
    model: JointModel,
    x: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
    draws: int = NOISE_DRAWS,
) -> Draws:
    """What `model` says of unlabelled rows x over draws of the noise; arguments as in :func:`evaluate`.

    Draw j has a seed of its own, and draw 0 that of a single one. Memory does not grow with the number of draws, but
    for the predictions. An exact model of points has no noise, and so one draw.
    """
    from tqdm import tqdm

    if levels is None and model.exact:
        draws = 1
    total, predictions = torch.zeros((), dtype=torch.double), []
    log_mean = log_posterior = torch.tensor(-math.inf)
    with evaluating(model):
        for draw in tqdm(range(draws), unit="draw", desc="draws of the noise", disable=None, leave=False):
            batches = []
            for batch in noisy_batches(x, levels, batch_size, seed + _NEXT * draw):
                output = model(Batch.unlabelled(batch))
                unbiased = output.log_likelihood
                if not model.exact and _has_bits(model, levels):  # the ELBO in closed form exponentiates to no estimate
                    unbiased = model.log_likelihood(batch)
                batches.append((output.log_likelihood, unbiased, output.class_log_probs))
            log_likelihood, unbiased, class_log_probs = (torch.cat(parts) for parts in zip(*batches, strict=True))
            total = total + log_likelihood.double()
            log_mean = torch.logaddexp(log_mean, unbiased)
            log_posterior = torch.logaddexp(log_posterior, class_log_probs)
            predictions.append(class_log_probs.argmax(dim=1))
    many = math.log(draws)
    return Draws(total / draws, log_mean - many, log_posterior - many, torch.stack(predictions))


def evaluate(
    model: JointModel,
    x: Tensor,
    y: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
    draws: int = 1,
    views: int = 0,
    augment: float = 0.0,
) -> dict[str, float]:
    """Accuracy, likelihood and calibration on one split; the labels are used only to score.

    All noise, of dequantisation, binarisation, latent variables and views, comes from `seed`, so the same weights
    in batches of the same size give the same figures; the random state of the caller stays as it is.

    Args:
        model: evaluated as it would meet unlabelled data.
        x: uint8 [N, C, H, W], or points float32 [N, D].
        y: true labels [N].
        levels: grey levels; None for points.
        batch_size: rows at once.
        seed: of the noise.
        draws: of the noise for each row; `NOISE_DRAWS` for figures that are reported.
        views: moved versions of each image for "views_accuracy", each with its own noise.
        augment: strength of the random affine maps that move them.

    Returns:
        "accuracy" and "ece" (a fraction) of the mean of p(y | x) over the draws. This mean estimates p(y | grey
        levels), but with the noise of training in place of the model's own. With more than one draw,
        "one_draw_accuracy" and "one_draw_accuracy_std", mean and standard deviation over the draws of the accuracy that
        each has alone. With `views`, "views_accuracy", of the mean of p(y | x) over one draw of an image and its
        versions.

        Where the model knows p(x), "nll", nats per row: minus the mean over rows and draws of log p(x), or of a lower
        bound of it, where p is the density of images on [0, 1)^D and may exceed 1, or the probability of binarised
        images. Where that is a density of grey levels, "bits_per_dim" in bits: in expectation an upper bound of the
        code length, however many draws it is the mean of. With more than one draw also "bits_per_dim_over_draws", the
        tighter bound from the logarithm of the mean of p(x) over a row's draws (Burda et al.,
        https://arxiv.org/abs/1509.00519, eq. 8, with the noise as the latent variable).

    Raises:
        ValueError: x are no such data, or y no labels of the model's classes, one for each row; `batch_size` or
            `draws` is below 1, `views` below 0, or nothing moves the views.

    Example:
        >>> from scnf.recipes import build
        >>> model = build("scnf-digits", (1, 4, 4), 3, channels=8, steps=2)
        >>> x, y = torch.randint(17, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6) % 3
        >>> figures = evaluate(model, x, y, levels=17, draws=4)
        >>> figures["bits_per_dim_over_draws"] < figures["bits_per_dim"]
        True
    """
    from tqdm import tqdm

    check_split(x, y, levels)
    check_count("batch_size", batch_size)
    check_count("draws", draws)
    check_count("views", views, 0)
    if views and not augment:
        raise ValueError("views are moved versions of an image: augment must be above 0; draws vary the noise alone")

    drawn = over_draws(model, x, levels, batch_size, seed, draws)
    figures = figures_of(model, drawn, y, levels, math.prod(x.shape[1:]))
    if views:
        posterior = torch.zeros(())
        with evaluating(model):
            for view in tqdm(range(views + 1), unit="view", desc="views", disable=None, leave=False):
                moved = noisy_batches(x, levels, batch_size, seed + _NEXT * view, augment if view else 0.0)
                posterior = posterior + torch.cat([model.class_log_probs(batch) for batch in moved]).exp()
        unknown = bool(posterior.isnan().any())  # which argmax would take for a class
        figures["views_accuracy"] = math.nan if unknown else float((posterior.argmax(dim=1) == y).double().mean())
    return figures


def check_split(x: Tensor, y: Tensor, levels: int | None) -> None:
    """Refuse what are no rows x, or no true labels y of them, before a pass over all (ValueError)."""
    check_data(x, levels)
    check_labels(y, hidden=False, rows=len(x))


def check_figures(figures: Mapping[str, Any], of: str) -> None:
    """Refuse figures that are no numbers, which nobody may take for a result; infinite ones are of density 0.

    Args:
        figures: that are reported, by name; others than floats do not matter.
        of: what they are of, for the message.

    Raises:
        UserError: a figure is NaN.

    Example:
        >>> check_figures({"accuracy": 0.1, "nll": float("inf")}, "test")
    """
    wrong = [name for name, value in figures.items() if isinstance(value, float) and math.isnan(value)]
    if wrong:
        raise UserError(
            f"{of}: {', '.join(wrong)} came out as NaN, no number: these weights are too large, or went wrong in "
            "training. Take others, of an earlier checkpoint say, or train anew with a smaller train.lr"
        )


def figures_of(model: JointModel, drawn: Draws, y: Tensor, levels: int | None, dims: int) -> dict[str, float]:
    """The figures of :func:`evaluate` but for views, from what `model` said.

    Args:
        model: whose draws they are.
        drawn: of :func:`over_draws`.
        y: true labels [N].
        levels: grey levels; None for points.
        dims: numbers in a row of x.
    """
    _check_scored(drawn.class_log_probs, y)
    right = (drawn.predictions == y).double().mean(dim=1)
    several = len(right) > 1
    figures = {"accuracy": float((drawn.class_log_probs.argmax(dim=1) == y).double().mean())}
    if several:
        figures |= {"one_draw_accuracy": float(right.mean()), "one_draw_accuracy_std": float(right.std())}
    if model.likelihood_of != "labels":
        figures["nll"] = -float(drawn.log_likelihood.mean())
    figures["ece"] = expected_calibration_error(drawn.class_log_probs, y)
    if levels is not None and _has_bits(model, levels):
        figures["bits_per_dim"] = float(bits_per_dim(-figures["nll"], dims, levels))
        if several:
            tighter = float(drawn.log_mean.double().mean())
            figures["bits_per_dim_over_draws"] = float(bits_per_dim(tighter, dims, levels))
    return figures


def representations(model: JointModel, x: Tensor, levels: int | None, batch_size: int = 500, seed: int = 0) -> Tensor:
    """What the model makes of each row, [N, D], for distances between rows; arguments as in :func:`evaluate`."""
    with evaluating(model):
        parts = []
        for batch in noisy_batches(x, levels, batch_size, seed):
            model.check(batch)
            parts.append(model.representation(batch))
        return torch.cat(parts)


def likelihood_text(figures: Mapping[str, float]) -> str:
    """The likelihood among the figures of :func:`evaluate`, for people: bits/dim of images, nats of points."""
    if "nll" not in figures:
        return "no p(x)"
    if "bits_per_dim" not in figures:
        return f"NLL {figures['nll']:.3f} nats"
    over = f" ({figures['bits_per_dim_over_draws']:.3f} over draws)" if "bits_per_dim_over_draws" in figures else ""
    return f"{figures['bits_per_dim']:.3f} bits/dim{over}"


def figures_text(figures: Mapping[str, float]) -> str:
    """The figures of :func:`evaluate` in a line, for people.

    Example:
        >>> figures_text({"accuracy": 0.97, "one_draw_accuracy": 0.9671, "one_draw_accuracy_std": 0.001, "ece": 0.02})
        'accuracy 97.00 % (one draw 96.71 %, deviation 0.10 %), no p(x), ECE 0.020'
    """
    beside = []
    if "one_draw_accuracy" in figures:
        one, deviation = 100 * figures["one_draw_accuracy"], 100 * figures["one_draw_accuracy_std"]
        beside.append(f"one draw {one:.2f} %, deviation {deviation:.2f} %")
    if "views_accuracy" in figures:
        beside.append(f"over views {100 * figures['views_accuracy']:.2f} %")
    others = f" ({'; '.join(beside)})" if beside else ""
    return f"accuracy {100 * figures['accuracy']:.2f} %{others}, {likelihood_text(figures)}, ECE {figures['ece']:.3f}"


def _check_scored(class_log_probs: Tensor, y: Tensor) -> None:
    check_tensor("class_log_probs", class_log_probs)
    if class_log_probs.dim() != 2 or not len(class_log_probs):
        raise ValueError(f"log p(y | x) is of shape [N, K], of a row at least, not {list(class_log_probs.shape)}")
    check_labels(y, class_log_probs.shape[1], hidden=False, rows=len(class_log_probs))


def _has_bits(model: JointModel, levels: int | None) -> bool:
    """Whether log p(x) is a density of grey levels, which has bits/dim."""
    return model.likelihood_of == "levels" and levels is not None
