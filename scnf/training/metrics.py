"""Figures of a model on a data split, all from one pass."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_data, check_labels
from scnf.data.augment import random_affine
from scnf.data.batches import dequantize
from scnf.models.base import JointModel


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
        ValueError: y are no such labels.
    """
    check_labels(y, class_log_probs.shape[1], hidden=False)
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
        ValueError: y are no such labels.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log(), torch.tensor([0, 0]))
        1.25
    """
    check_labels(y, class_log_probs.shape[1], hidden=False)
    probs = class_log_probs.double().exp()
    return float((probs - torch.nn.functional.one_hot(y, probs.shape[1])).square().sum(dim=1).mean())


def noisy_batches(x: Tensor, levels: int | None, batch_size: int, seed: int, augment: float = 0.0) -> Iterator[Tensor]:
    """Dequantised batches of x, with the noise of `seed`, and torch's own generator set anew for each.

    With `augment`, images are moved first by random affine maps of that strength, which depend on `seed` too. So what a
    model draws first in a batch, such as binary images, is the same in every pass and for every model. Noise and maps
    are drawn on the CPU, and so are the same on every device. The random state of the caller comes back at the end.

    Raises:
        ValueError: x are no such data.
    """
    check_data(x, levels)
    seed, batch_size = int(seed), int(batch_size)  # of numpy, too, which PyTorch refuses
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        for index, batch in enumerate(x.cpu().split(batch_size)):
            torch.manual_seed(seed + 1 + index)  # another stream than the generator's
            moved = random_affine(batch, augment) if augment else batch
            yield dequantize(moved, levels, generator).to(x.device)


@torch.no_grad()
def evaluate(
    model: JointModel,
    x: Tensor,
    y: Tensor,
    levels: int | None,
    batch_size: int = 500,
    seed: int = 0,
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
        views: versions of each image for "views_accuracy", each with its own noise.
        augment: strength of the random affine maps that move them; at 0 their noise alone differs.

    Returns:
        "accuracy", of p(y | x) for one draw of the noise; with `views` also "views_accuracy", of the mean of p(y | x)
        over an image and its versions. If these are not moved, that of a flow is p(y | grey levels), the mean of
        p(y | x) over p(x | grey levels), but with the noise of training in place of the model's own. "ece", a fraction,
        is that of p(y | x). Where the model knows p(x), "nll", nats per row: minus the mean of log p(x), or of a lower
        bound of it, where p is the density of images on [0, 1)^D and may exceed 1, or the probability of binarised
        images. Where that is a density of grey levels, "bits_per_dim", from one draw of the noise: in expectation an
        upper bound of the code length.

    Raises:
        ValueError: x are no such data, or y no labels of the model's classes.
    """
    from tqdm import tqdm

    was_training = model.training
    model.eval()

    def outputs(seed: int, augment: float, only_posterior: bool = False) -> tuple[Tensor, Tensor]:
        found = [
            model(batch, torch.full((len(batch),), UNLABELLED, device=x.device), views=only_posterior * len(batch))
            for batch in noisy_batches(x, levels, batch_size, seed, augment)
        ]
        return torch.cat([each.log_likelihood for each in found]), torch.cat([each.class_log_probs for each in found])

    def accuracy(scores: Tensor) -> float:
        return float((scores.argmax(dim=1) == y).double().mean())

    likelihoods, class_log_probs = outputs(seed, 0.0)
    figures = {"accuracy": accuracy(class_log_probs)}
    if views:
        turns = tqdm(range(1, views + 1), unit="view", desc="views", disable=None, leave=False)
        others = [outputs(seed + 1_000_003 * view, augment, only_posterior=True)[1].exp() for view in turns]
        figures["views_accuracy"] = accuracy(class_log_probs.exp() + torch.stack(others).sum(dim=0))
    model.train(was_training)
    if model.likelihood_of != "labels":
        figures["nll"] = -likelihoods.double().mean().item()
    figures["ece"] = expected_calibration_error(class_log_probs, y)
    if model.likelihood_of == "levels" and levels is not None:
        figures["bits_per_dim"] = float(bits_per_dim(-figures["nll"], math.prod(x.shape[1:]), levels))
    return figures


@torch.no_grad()
def representations(model: JointModel, x: Tensor, levels: int | None, batch_size: int = 500, seed: int = 0) -> Tensor:
    """What the model makes of each row, [N, D], for distances between rows; arguments as in :func:`evaluate`."""
    was_training = model.training
    model.eval()
    rows = torch.cat([model.representation(batch) for batch in noisy_batches(x, levels, batch_size, seed)])
    model.train(was_training)
    return rows


def likelihood_text(figures: Mapping[str, float]) -> str:
    """The likelihood among the figures of :func:`evaluate`, for people: bits/dim of images, nats of points."""
    if "nll" not in figures:
        return "no p(x)"
    return f"{figures['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in figures else f"NLL {figures['nll']:.3f} nats"


def figures_text(figures: Mapping[str, float]) -> str:
    """The figures of :func:`evaluate` in a line, for people."""
    views = f" ({100 * figures['views_accuracy']:.2f} % over views)" if "views_accuracy" in figures else ""
    return f"accuracy {100 * figures['accuracy']:.2f} %{views}, {likelihood_text(figures)}, ECE {figures['ece']:.3f}"
