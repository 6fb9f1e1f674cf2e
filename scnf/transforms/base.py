"""The contract of every layer: invertible, knows its log-determinant.

A :class:`Transform` maps `forward(inputs, context=None) -> (outputs, logabsdet)` and `inverse` alike:

* `inputs` and `outputs` have one leading batch dimension, `logabsdet` is [N], of the direction just computed, in nats;
* `context` is [N, C] or None: every transform takes it, most ignore it, so that all compose;
* shapes are fixed when the layer is built: a model just loaded can sample at once;
* arguments are never changed and nothing is remembered, but for ActNorm's first batch;
* densities stay in float32 or better, also under autocast: half precision lives inside the networks only.

Forward is data -> noise. The contract is that of nflows (Durkan et al., 2020, https://doi.org/10.5281/zenodo.4296287),
so its transforms plug into ours and ours into its `Flow`. This is the only module that imports nflows.
"""

from typing import Any, NamedTuple

import torch
from nflows.transforms.base import CompositeTransform as Cascade
from nflows.transforms.base import InverseTransform, Transform
from torch import Tensor

__all__ = ["Cascade", "InverseTransform", "Replay", "Transform", "full_precision", "sum_except_batch"]


class Replay(NamedTuple):
    """A layer run again from its outputs, for backpropagation that kept nothing else.

    Attributes:
        inputs: what the layer was given, without a graph.
        outputs: of the layer, with a graph.
        logabsdet: [N], with a graph.
        leaves: from which that graph starts: the sum of their gradients is that of `inputs`.
    """

    inputs: Tensor
    outputs: Tensor
    logabsdet: Tensor
    leaves: tuple[Tensor, ...]


def sum_except_batch(values: Tensor) -> Tensor:
    """Sum [N, ...] over everything but the batch, giving [N]."""
    return values.flatten(1).sum(dim=1)


def full_precision(inputs: Tensor) -> Any:
    """A context in which matrix products keep the precision of `inputs`, whatever autocast says around it."""
    return torch.autocast(device_type=inputs.device.type, enabled=False)
