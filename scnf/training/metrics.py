"""Compute the metrics of a model on a data split, from one or more draws of the noise."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scnf.batch import Batch
from scnf.checks import check_count, check_data, check_labels, check_tensor
from scnf.data.augment import Augmentation
from scnf.data.batches import dequantize
from scnf.errors import InvalidArgument, NotFinite
from scnf.models.base import JointModel

NOISE_DRAWS = 8
"""The number of noise draws behind reported metrics. A single draw can move an accuracy as much as other labels can."""
_SEED_STRIDE = 1_000_003
"""The difference between the seeds of one draw, or view, and the next."""


def bits_per_dim(log_likelihood: Tensor | float, dims: int, levels: int) -> Tensor | float:
    """Return -log2 p of the grey levels per dimension, from log p(x) in nats of x dequantised to [0, 1).

    A cell of width 1/levels has probability density / levels, so that the result is
    -(log p(x) / D - log levels) / log 2.

    Example:
        >>> round(bits_per_dim(0.0, dims=784, levels=256), 6)  # the uniform density
        8.0
    """
    return (math.log(levels) - log_likelihood / dims) / math.log(2.0)


def expected_calibration_error(class_log_probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins (arXiv 1706.04599, eq. 3).

    Args:
        class_log_probs: Class log-probabilities [N, K].
        y: True labels [N].
        bins: Number of bins of the confidence.

    Raises:
        InvalidArgument: The labels do not fit the rows, or there are no bins.
    """
    _check_labels_fit(class_log_probs, y)
    check_count("bins", bins)
    confidence, prediction = class_log_probs.exp().max(dim=1)
    index = (confidence * bins).long().clamp(0, bins - 1)
    gap = (prediction == y).double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.double).index_add(0, index.cpu(), gap.cpu()).abs().sum() / len(y))


def brier_score(class_log_probs: Tensor, y: Tensor) -> float:
    """Return the mean over rows of sum_k (p_k - [y = k])^2, from 0 to 2 (Brier, Monthly Weather Review 78(1), 1950).

    Args:
        class_log_probs: Class log-probabilities [N, K].
        y: True labels [N].

    Raises:
        InvalidArgument: The labels do not fit the rows.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log(), torch.tensor([0, 0]))
        1.25
    """
    _check_labels_fit(class_log_probs, y)
    probs = class_log_probs.double().exp()
    return float((probs - torch.nn.functional.one_hot(y, probs.shape[1])).square().sum(dim=1).mean())


def noisy_batches(
    x: Tensor, levels: int | None, batch_size: int, seed: int, augment: float | Augmentation = 0.0
) -> Iterator[Tensor]:
    """Yield dequantised batches of x with the noise of `seed`, after seeding torch's generator for each batch.

    With `augment`, an :class:`~scnf.data.augment.Augmentation` or its strength, random maps move the images first. The
    maps depend on `seed`, too. What a
    model draws first in a batch, such as binary images, is therefore the same in every pass and for every model. Noise
    and maps are drawn on the CPU, and are the same on every device. The caller's random state is restored at the end.

    Raises:
        InvalidArgument: The data do not fit `levels`, or `batch_size` is below 1.
    """
    check_data(x, levels)
    check_count("batch_size", batch_size)
    seed, batch_size = int(seed), int(batch_size)  # PyTorch refuses integers of numpy
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        for index, batch in enumerate(x.cpu().split(batch_size)):
            torch.manual_seed(seed + 1 + index)  # a stream that differs from the generator's
            moved = Augmentation.of(augment)(batch, levels or 256) if augment else batch
            yield dequantize(moved, levels, generator).to(x.device)


class Draws(NamedTuple):
    """The outputs of a model for each row, averaged over draws of the noise, in nats.

    Attributes:
        log_likelihood: Mean [N] of log p(x), or of a lower bound of log p(x).
        log_mean: Logarithm [N] of the mean of p(x), or of unbiased estimates of p(x) where the likelihood is a bound.
        class_log_probs: Logarithm [N, K] of the mean of p(y | x).
        predictions: Most likely class [draws, N] in each draw.
    """

    log_likelihood: Tensor
    log_mean: Tensor
    class_log_probs: Tensor
    predictions: Tensor


@contextmanager
def evaluation_mode(model: JointModel) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate_draws(
    model: JointModel,
    x: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
    draws: int = NOISE_DRAWS,
) -> Draws:
    """Evaluate `model` on unlabelled rows x over draws of the noise, with the arguments of :func:`evaluate`.

    Every draw has its own seed, and draw 0 equals a single draw. Except for the predictions, memory does not grow with
    the number of draws. An exact model of points has no noise and takes one draw.
    """
    from tqdm import tqdm

    if levels is None and model.exact:
        draws = 1
    total, predictions = torch.zeros((), dtype=torch.double), []
    log_mean = log_posterior = torch.tensor(-math.inf)
    with evaluation_mode(model):
        for draw in tqdm(range(draws), unit="draw", desc="draws of the noise", disable=None, leave=False):
            batches = []
            for batch in noisy_batches(x, levels, batch_size, seed + _SEED_STRIDE * draw):
                output = model(Batch.unlabelled(batch))
                unbiased = output.log_likelihood
                if not model.exact and _has_bits(model, levels):  # exp(ELBO in closed form) is no unbiased estimate
                    unbiased = model.log_likelihood(batch)
                batches.append((output.log_likelihood, unbiased, output.class_log_probs))
            log_likelihood, unbiased, class_log_probs = (torch.cat(parts) for parts in zip(*batches, strict=True))
            total = total + log_likelihood.double()
            log_mean = torch.logaddexp(log_mean, unbiased)
            log_posterior = torch.logaddexp(log_posterior, class_log_probs)
            predictions.append(class_log_probs.argmax(dim=1))
    log_draws = math.log(draws)
    return Draws(total / draws, log_mean - log_draws, log_posterior - log_draws, torch.stack(predictions))


class Evaluation(NamedTuple):
    """The metrics of a model on one split, and the predictions behind them.

    Attributes:
        metrics: Metrics of :func:`evaluate` by name.
        class_log_probs: Logarithm [N, K] of the mean of p(y | x) over draws of the noise.
    """

    metrics: dict[str, float]
    class_log_probs: Tensor


def evaluate(
    model: JointModel,
    x: Tensor,
    y: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
    draws: int = 1,
    views: int = 0,
    augment: float | Augmentation = 0.0,
) -> dict[str, float]:
    """Evaluate accuracy, likelihood and calibration on one split, with labels used only to score.

    The noise of dequantisation, binarisation, latent variables and views comes from `seed`. The same weights in batches
    of the same size therefore give the same metrics. The random state of the caller stays unchanged.

    Args:
        model: Model to evaluate, which sees all rows as unlabelled.
        x: Images uint8 [N, C, H, W], or points float32 [N, D].
        y: True labels [N].
        levels: Number of grey levels, None for points.
        batch_size: Number of rows in a batch.
        seed: Seed of the noise.
        draws: Number of draws of the noise for each row, `NOISE_DRAWS` for reported metrics.
        views: Number of moved versions of each image for "views_accuracy", each with its own noise.
        augment: Augmentation that moves the views, or the strength of its affine maps.

    Returns:
        The metrics by name. "accuracy" and "ece" (a fraction) score the mean of p(y | x) over the draws. The mean
        estimates p(y | grey levels), with the noise of training in place of the model's posterior of the noise.

        With more than one draw, "one_draw_accuracy" and "one_draw_accuracy_std" are the mean and the standard deviation
        over draws of the accuracy of a single draw. With `views`, "views_accuracy" scores the mean of p(y | x) over one
        draw of an image and its views.

        Where the model knows p(x), "nll" is the negative log-likelihood in nats per row, as a mean over rows and draws.
        A lower bound may take the place of log p(x). Here p is the density of images on [0, 1)^D, which may exceed 1,
        or the probability of binarised images.

        Where p is a density of grey levels, "bits_per_dim" is the NLL in bits. In expectation it is an upper bound of
        the code length, for any number of draws. With more than one draw, "bits_per_dim_over_draws" is the tighter
        bound from the logarithm of the mean of p(x) over the draws of a row (Burda et al.,
        https://arxiv.org/abs/1509.00519, eq. 8, with the noise as the latent variable).

    Raises:
        InvalidArgument: The data do not fit `levels`, or the labels do not fit the rows and the model's classes. Or
            `batch_size` or `draws` is below 1, `views` is below 0, or `augment` is 0 with `views`.

    Example:
        >>> from scnf.recipes import build
        >>> model = build("scnf-digits", (1, 4, 4), 3, channels=8, steps=2)
        >>> x, y = torch.randint(17, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6) % 3
        >>> metrics = evaluate(model, x, y, levels=17, draws=4)
        >>> metrics["bits_per_dim_over_draws"] < metrics["bits_per_dim"]
        True
    """
    return evaluate_rows(model, x, y, levels, batch_size, seed, draws, views, augment).metrics


def evaluate_rows(
    model: JointModel,
    x: Tensor,
    y: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
    draws: int = 1,
    views: int = 0,
    augment: float | Augmentation = 0.0,
) -> Evaluation:
    """Evaluate a model as :func:`evaluate` does, and return the posteriors, too.

    Raises:
        InvalidArgument: As :func:`evaluate`.
    """
    from tqdm import tqdm

    check_split(x, y, levels)
    check_count("batch_size", batch_size)
    check_count("draws", draws)
    check_count("views", views, 0)
    if views and not augment:
        raise InvalidArgument(
            "augment",
            f"must be above 0 to move views of each image, not {augment}; draws vary only the noise",
        )

    outputs = evaluate_draws(model, x, levels, batch_size, seed, draws)
    metrics = compute_metrics(model, outputs, y, levels, math.prod(x.shape[1:]))
    if views:
        posterior = torch.zeros(())
        with evaluation_mode(model):
            for view in tqdm(range(views + 1), unit="view", desc="views", disable=None, leave=False):
                moved = noisy_batches(x, levels, batch_size, seed + _SEED_STRIDE * view, augment if view else 0.0)
                posterior = posterior + torch.cat([model.class_log_probs(batch) for batch in moved]).exp()
        has_nan = bool(posterior.isnan().any())  # argmax would take NaN for the most likely class
        metrics["views_accuracy"] = math.nan if has_nan else float((posterior.argmax(dim=1) == y).double().mean())
    return Evaluation(metrics, outputs.class_log_probs)


def check_split(x: Tensor, y: Tensor, levels: int | None) -> None:
    """Refuse wrong rows x or wrong true labels y before a pass over all rows (InvalidArgument)."""
    check_data(x, levels)
    check_labels(y, hidden=False, rows=len(x))


def check_metrics(metrics: Mapping[str, Any], name: str) -> None:
    """Refuse reported metrics that are NaN. Infinite metrics are valid, because a density may be 0.

    Args:
        metrics: Reported metrics by name. Values other than floats are ignored.
        name: Name of the split or model, for the message.

    Raises:
        NotFinite: A metric is NaN.

    Example:
        >>> check_metrics({"accuracy": 0.1, "nll": float("inf")}, "test")
    """
    keys = [key for key, value in metrics.items() if isinstance(value, float) and math.isnan(value)]
    if keys:
        raise NotFinite(
            f"{name}: {', '.join(keys)} came out as NaN: these weights are too large, or went wrong in training"
        )


def compute_metrics(model: JointModel, outputs: Draws, y: Tensor, levels: int | None, dims: int) -> dict[str, float]:
    """Return the metrics of :func:`evaluate`, except for views, from outputs of the model.

    Args:
        model: Model that gave the outputs.
        outputs: Outputs of :func:`evaluate_draws`.
        y: True labels [N].
        levels: Number of grey levels, None for points.
        dims: Number of dimensions of a row of x.
    """
    _check_labels_fit(outputs.class_log_probs, y)
    accuracies = (outputs.predictions == y).double().mean(dim=1)
    has_several_draws = len(accuracies) > 1
    metrics = {"accuracy": float((outputs.class_log_probs.argmax(dim=1) == y).double().mean())}
    if has_several_draws:
        metrics |= {"one_draw_accuracy": float(accuracies.mean()), "one_draw_accuracy_std": float(accuracies.std())}
    if model.likelihood_of != "labels":
        metrics["nll"] = -float(outputs.log_likelihood.mean())
    metrics["ece"] = expected_calibration_error(outputs.class_log_probs, y)
    if levels is not None and _has_bits(model, levels):
        metrics["bits_per_dim"] = float(bits_per_dim(-metrics["nll"], dims, levels))
        if has_several_draws:
            tighter_bound = float(outputs.log_mean.double().mean())
            metrics["bits_per_dim_over_draws"] = float(bits_per_dim(tighter_bound, dims, levels))
    return metrics


def representations(model: JointModel, x: Tensor, levels: int | None, batch_size: int = 500, seed: int = 0) -> Tensor:
    """Return the model's representations [N, D] of rows, for distances, with the arguments of :func:`evaluate`."""
    with evaluation_mode(model):
        parts = []
        for batch in noisy_batches(x, levels, batch_size, seed):
            model.check(batch)
            parts.append(model.representation(batch))
        return torch.cat(parts)


def likelihood_text(metrics: Mapping[str, float]) -> str:
    """Format the likelihood among the metrics of :func:`evaluate`, in bits/dim for grey levels and else in nats."""
    if "nll" not in metrics:
        return "no p(x)"
    if "bits_per_dim" not in metrics:
        return f"NLL {metrics['nll']:.3f} nats"
    over = f" ({metrics['bits_per_dim_over_draws']:.3f} over draws)" if "bits_per_dim_over_draws" in metrics else ""
    return f"{metrics['bits_per_dim']:.3f} bits/dim{over}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Format the metrics of :func:`evaluate` as one line.

    Example:
        >>> metrics_text({"accuracy": 0.97, "one_draw_accuracy": 0.9671, "one_draw_accuracy_std": 0.001, "ece": 0.02})
        'accuracy 97.00 % (one draw 96.71 %, deviation 0.10 %), no p(x), ECE 0.020'
    """
    if not metrics:
        return "no rows"
    details = []
    if "one_draw_accuracy" in metrics:
        one, deviation = 100 * metrics["one_draw_accuracy"], 100 * metrics["one_draw_accuracy_std"]
        details.append(f"one draw {one:.2f} %, deviation {deviation:.2f} %")
    if "views_accuracy" in metrics:
        details.append(f"over views {100 * metrics['views_accuracy']:.2f} %")
    others = f" ({'; '.join(details)})" if details else ""
    return f"accuracy {100 * metrics['accuracy']:.2f} %{others}, {likelihood_text(metrics)}, ECE {metrics['ece']:.3f}"


def _check_labels_fit(class_log_probs: Tensor, y: Tensor) -> None:
    check_tensor("class_log_probs", class_log_probs)
    if class_log_probs.dim() != 2 or not len(class_log_probs):
        raise InvalidArgument(
            "class_log_probs", f"must have the shape [N, K] with at least one row, not {list(class_log_probs.shape)}"
        )
    check_labels(y, class_log_probs.shape[1], hidden=False, rows=len(class_log_probs))


def _has_bits(model: JointModel, levels: int | None) -> bool:
    """Return whether log p(x) is a density of grey levels, which has bits/dim."""
    return model.likelihood_of == "levels" and levels is not None
