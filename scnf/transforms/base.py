"""The contract of every layer: it is invertible and knows its log-determinant.

A :class:`Transform` has a method `forward(inputs, context=None) -> (outputs, logabsdet)`, and `inverse` with the same
signature:

* `inputs` and `outputs` have one leading batch dimension. `logabsdet` [N] belongs to the direction called, in nats.
* `context` is [N, C] or None. Every transform takes it, and most ignore it, so that all transforms compose.
* Shapes are fixed when the layer is built, so a model that has just been loaded can sample at once.
* A call changes no argument and remembers nothing. Layers that start from data do so in `initialize_from_data` alone.
* Densities stay in float32 or better, also under autocast. Only the networks compute in half precision.

The forward direction maps data to noise. The contract comes from nflows (Durkan et al., 2020,
https://doi.org/10.5281/zenodo.4296287). Transforms of nflows therefore work in scnf, and transforms of scnf work in the
`Flow` of nflows. This is the only module that imports nflows.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from nflows.transforms.base import CompositeTransform as Cascade
from nflows.transforms.base import InverseTransform, Transform
from torch import Tensor

__all__ = ["Cascade", "InverseTransform", "Transform", "UndoResult", "full_precision", "gradients", "sum_except_batch"]


class UndoResult(NamedTuple):
    """The inputs and gradients that backpropagation through a layer recovers from the layer's outputs alone.

    Attributes:
        inputs: Inputs of the layer, recomputed from its outputs.
        grad_inputs: Gradient with respect to the inputs.
        grads: Gradients with respect to the layer's parameters, and to the context if it requires a gradient.
    """

    inputs: Tensor
    grad_inputs: Tensor
    grads: dict[Tensor, Tensor]  # tensors hash by identity


def gradients(results: Sequence[Tensor], grads: Sequence[Tensor], tensors: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return the gradients of those `tensors` that `results` depend on, given the gradients of `results`."""
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if result.requires_grad]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    if not pairs or not leaves:
        return {}
    outputs, grad_outputs = zip(*pairs, strict=True)
    with full_precision(outputs[0]):
        grad_leaves = torch.autograd.grad(outputs, leaves, grad_outputs, allow_unused=True)
    return {leaf: grad for leaf, grad in zip(leaves, grad_leaves, strict=True) if grad is not None}


def sum_except_batch(values: Tensor) -> Tensor:
    """Sum [N, ...] over all dimensions but the batch dimension, which gives [N]."""
    return values.flatten(1).sum(dim=1)


def full_precision(inputs: Tensor) -> Any:
    """Return a context manager in which matrix products keep the precision of `inputs`, even under autocast."""
    return torch.autocast(device_type=inputs.device.type, enabled=False)
