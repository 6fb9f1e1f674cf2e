"""Averaged weights have activations of their own, and so need statistics of their own where these are normalised."""

from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from scnf.data.batches import Batches
from scnf.models.base import JointModel


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
