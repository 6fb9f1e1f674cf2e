"""The moving average of weights, and the statistics of normalised activations that it needs of its own."""

from collections.abc import Callable
from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scnf.data.batches import Batches
from scnf.models.base import JointModel


def averaged_model(model: JointModel, decay: float) -> AveragedModel | None:
    """The moving average of the model's weights, None without a decay."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def averaging(averaged: AveragedModel | None, model: JointModel, decay: float) -> Callable[[], None]:
    """A function to call after each step, which takes the model's weights into their average.

    It does what `averaged.update_parameters(model)` does, but for what that looks up, and waits for, at every step.
    """
    if averaged is None:
        return lambda: None
    first, update = not averaged.n_averaged, get_ema_multi_avg_fn(decay)
    own, other = (list(each.parameters()) for each in (averaged.module, model))
    buffers = list(zip(averaged.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def keep_average() -> None:
        nonlocal first
        if first:  # there is nothing to average with
            averaged.update_parameters(model)
            first = False
            return
        update(own, other, averaged.n_averaged)
        for mine, its in buffers:
            mine.copy_(its)
        averaged.n_averaged += 1

    return keep_average


@torch.no_grad()
def renormalize(model: JointModel, batches: Batches, count: int = 50) -> None:
    """Set the statistics of batch normalisation anew, from batches as they come in training.

    Those that training keeps are of the weights of single steps. Their average is not right either: it begins with
    mean 0 and variance 1, of no weights at all, and the variances of averaged weights are smaller than the average
    variance (Izmailov et al., https://arxiv.org/abs/1803.05407, section 3.2, count them anew, too). A model without
    such layers is left alone, and so are layers that are frozen in evaluation mode, torch's generators, and the mode.

    Args:
        model: of averaged weights.
        batches: those of the training.
        count: of batches, of which there may be fewer in an epoch.

    Example:
        >>> from torch import nn
        >>> from scnf.models.classifier import Classifier
        >>> model = Classifier(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)), num_classes=3)
        >>> x, y = torch.full((8, 2), 5.0), torch.arange(8) % 3
        >>> renormalize(model, Batches(x, y, batch_size=4, labelled_share=1.0, seed=0, levels=None))
        >>> model.network[0].running_mean
        tensor([5., 5.])
    """
    training, device = model.training, batches.x.device
    model.train()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [layer.momentum for layer in layers]
    try:
        if layers:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # all batches count alike
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(batches.seed)
                for batch in islice(batches.epoch(0), count):
                    model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(training)
