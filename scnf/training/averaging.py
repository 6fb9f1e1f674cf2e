"""Average the weights of a model, and compute the batch statistics that averaged weights need."""

from collections.abc import Callable
from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scnf.data.batches import Batches
from scnf.models.base import JointModel


def averaged_model(model: JointModel, decay: float) -> AveragedModel | None:
    """Return an exponential moving average of the model's weights, or None where the decay is 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def averaging(averaged: AveragedModel | None, model: JointModel, decay: float) -> Callable[[], None]:
    """Return a function that updates the average with the model's weights, to be called after each step.

    The function equals `averaged.update_parameters(model)`, without its look-ups and synchronisation at every step.
    """
    if averaged is None:
        return lambda: None
    first, update = not averaged.n_averaged, get_ema_multi_avg_fn(decay)
    averages, parameters = (list(module.parameters()) for module in (averaged.module, model))
    buffers = list(zip(averaged.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update_average() -> None:
        nonlocal first
        if first:  # the average starts as a copy of the weights
            averaged.update_parameters(model)
            first = False
            return
        update(averages, parameters, averaged.n_averaged)
        for target, source in buffers:
            target.copy_(source)
        averaged.n_averaged += 1

    return update_average


@torch.no_grad()
def renormalize(model: JointModel, batches: Batches, count: int = 50) -> None:
    """Recompute the batch-normalisation statistics of averaged weights from training batches.

    The statistics of the training belong to the weights of single steps. Their average is not right either. It starts
    from mean 0 and variance 1, which belong to no weights. The variances of averaged weights are also smaller than the
    average variance. Izmailov et al. (https://arxiv.org/abs/1803.05407, section 3.2) recompute the statistics, too.

    A model without batch normalisation stays unchanged, and so do layers that are frozen in evaluation mode, torch's
    generators and the mode of the model.

    Args:
        model: Model with averaged weights.
        batches: Batches of the training.
        count: Maximum number of batches. One epoch may have fewer.

    Example:
        >>> from torch import nn
        >>> from scnf.models.classifier import Classifier
        >>> model = Classifier(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)), num_classes=3)
        >>> x, y = torch.full((8, 2), 5.0), torch.arange(8) % 3
        >>> renormalize(model, Batches(x, y, batch_size=4, labelled_share=1.0, seed=0, levels=None))
        >>> model.network[0].running_mean
        tensor([5., 5.])
    """
    training, device = model.training, batches.device
    model.train()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [layer.momentum for layer in layers]
    try:
        if layers:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the statistics become the mean over all batches
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(batches.seed)
                for batch in islice(batches.epoch(0), count):
                    model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(training)
