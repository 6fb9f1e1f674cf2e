"""The contract of every layer: invertible, knows its log-determinant.

A :class:`Transform` maps `forward(inputs, context=None) -> (outputs, logabsdet)` and `inverse` alike:

* `inputs` and `outputs` have one leading batch dimension, `logabsdet` is [N], of the direction just computed, in nats;
* `context` is [N, C] or None: every transform takes it, most ignore it, so that all compose;
* shapes are fixed when the layer is built: a model just loaded can sample at once;
* arguments are never changed and nothing is remembered: layers that start from data do so in `start_from` alone;
* densities stay in float32 or better, also under autocast: half precision lives inside the networks only.

Forward is data -> noise. The contract is that of nflows (Durkan et al., 2020, https://doi.org/10.5281/zenodo.4296287),
so its transforms plug into ours and ours into its `Flow`. This is the only module that imports nflows.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from nflows.transforms.base import CompositeTransform as Cascade
from nflows.transforms.base import InverseTransform, Transform
from torch import Tensor

__all__ = ["Cascade", "InverseTransform", "Transform", "Undone", "full_precision", "gradients", "sum_except_batch"]


class Undone(NamedTuple):
    """Backpropagation through a layer of which nothing but the outputs was kept.

    Attributes:
        inputs: what the layer was given, found from its outputs.
        grad_inputs: the gradient there.
        found: the gradients of its parameters, and of the context if that wants one.
    """

    inputs: Tensor
    grad_inputs: Tensor
    found: dict[Tensor, Tensor]  # tensors hash by identity


def gradients(results: Sequence[Tensor], grads: Sequence[Tensor], wanted: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Gradients of those of `wanted` on which `results` depend, from the gradients at `results`."""
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if result.requires_grad]
    leaves = [tensor for tensor in wanted if tensor.requires_grad]
    if not pairs or not leaves:
        return {}
    ends, upstream = zip(*pairs, strict=True)
    with full_precision(ends[0]):
        found = torch.autograd.grad(ends, leaves, upstream, allow_unused=True)
    return {leaf: grad for leaf, grad in zip(leaves, found, strict=True) if grad is not None}


def sum_except_batch(values: Tensor) -> Tensor:
    """Sum [N, ...] over everything but the batch, giving [N]."""
    return values.flatten(1).sum(dim=1)


def full_precision(inputs: Tensor) -> Any:
    """A context in which matrix products keep the precision of `inputs`, whatever autocast says around it."""
    return torch.autocast(device_type=inputs.device.type, enabled=False)
