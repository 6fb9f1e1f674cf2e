"""Compose transforms, and train many of them with the activation memory of one."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scnf.transforms.base import Cascade, Transform, UndoResult, gradients
from scnf.transforms.linear import LINEAR
from scnf.transforms.normalization import ActNorm
from scnf.transforms.shape import FactorOut

_WITHOUT_CONTEXT = {ActNorm, *LINEAR.values()}


class CompositeTransform(Cascade):
    """Apply transforms one after another and add up their log-determinants.

    With `reversible` set, training keeps no activations between the transforms, so memory does not grow with depth. The
    backward pass recomputes the inputs of each transform from its outputs, by the inverse (Gomez et al., "The
    Reversible Residual Network", https://arxiv.org/abs/1707.04585, section 3.2). Inputs that require no gradient, such
    as data, are kept. The gradients equal the gradients of plain backpropagation, up to the rounding of the inverses.

    Transforms that split their input (`FactorOut`) keep it. A composite inside them recomputes its inputs if its own
    flag is set. A transform may have a method `undo(outputs, context, grad_outputs, grad_logabsdet)`, which computes
    its inputs and gradients together, see :class:`scnf.transforms.base.UndoResult`.

    Args:
        transforms: Transforms in the order in which data become noise.

    Example:
        >>> from scnf.transforms import ActNorm, FullLinear
        >>> transform = CompositeTransform([layer for _ in range(8) for layer in (ActNorm(4), FullLinear(4))])
        >>> transform.reversible = True
        >>> outputs, logabsdet = transform(torch.randn(16, 4))
        >>> (outputs.square().sum() - logabsdet.sum()).backward()
    """

    reversible = False

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map data to noise by the transforms from `start` up to `stop`, by default all: (outputs, logabsdet [N])."""
        transforms = list(self._transforms)[start:stop]
        if not (self.reversible and torch.is_grad_enabled()):
            return self._cascade(inputs, transforms, context)
        total = inputs.new_zeros(inputs.shape[0])
        for is_split, group in itertools.groupby(_flat(transforms), lambda layer: isinstance(layer, FactorOut)):
            layers = list(group)
            if is_split:
                inputs, logabsdet = self._cascade(inputs, layers, context)
            else:
                parameters = [p for layer in layers for p in layer.parameters()]
                inputs, logabsdet = _Recomputed.apply(layers, inputs, context, *parameters)
            total = total + logabsdet
        return inputs, total

    def before_context(self) -> int:
        """Return the number of transforms before the first that may use the context, as a `stop` of :meth:`forward`."""
        count = 0
        for layer in self._transforms if type(self) is CompositeTransform else ():
            if type(layer) not in _WITHOUT_CONTEXT:
                break
            count += 1
        return count


def _flat(transforms: Iterable[nn.Module]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, Cascade):
            yield from _flat(transform._transforms)
        else:
            assert isinstance(transform, Transform)
            yield transform


class _Recomputed(torch.autograd.Function):
    """Apply transforms and save only their outputs, the context, and inputs that require no gradient."""

    @staticmethod
    def forward(
        ctx: Any, layers: list[Transform], inputs: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        data = None if ctx.needs_input_grad[1] else inputs
        inputs, total = Cascade._cascade(inputs, layers, context)
        ctx.layers, ctx.parameters = layers, parameters
        device = inputs.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(inputs, context, data)
        return inputs, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_logabsdet: Tensor) -> tuple[Tensor | None, ...]:
        outputs, context, data = ctx.saved_tensors
        context = None if context is None else context.detach().requires_grad_(ctx.needs_input_grad[2])
        # allocated first: small gradients stay, and would fragment the memory that layers allocate and free in turn
        buffers = {parameter: torch.empty_like(parameter) for parameter in ctx.parameters if parameter.requires_grad}
        totals: dict[Tensor, Tensor] = {}
        for index, layer in reversed(list(enumerate(ctx.layers))):
            inputs = None if index else data
            with torch.autocast(**ctx.autocast):
                outputs, grad_outputs, grads = _undo(layer, outputs, context, grad_outputs, grad_logabsdet, inputs)
            for tensor, grad in grads.items():
                if tensor in totals:
                    totals[tensor] = totals[tensor] + grad
                else:
                    totals[tensor] = buffers.pop(tensor).copy_(grad) if tensor in buffers else grad
        grad_context = None if context is None else totals.get(context)
        # pop: a parameter that two layers share is listed twice, and its total counts once
        return None, grad_outputs, grad_context, *(totals.pop(parameter, None) for parameter in ctx.parameters)


def _undo(
    layer: Transform,
    outputs: Tensor,
    context: Tensor | None,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    inputs: Tensor | None,
) -> UndoResult:
    """Compute the inputs and gradients of a layer from its outputs.

    If `inputs` are known, a forward pass from them gives the gradients. Otherwise the layer's method `undo` applies,
    unless a subclass overrides `forward` but not `undo`. In all other cases, the inverse gives the inputs for the
    forward pass.
    """
    if inputs is not None:
        return _undo_by_forward(layer, inputs, context, grad_outputs, grad_logabsdet)
    kind: Any = type(layer)
    owner: Any = next((base for base in kind.__mro__ if "undo" in vars(base)), None)
    if owner is not None and kind.forward is owner.forward:
        result: UndoResult = owner.undo(layer, outputs, context, grad_outputs, grad_logabsdet)
        return result
    return _undo_by_forward(layer, layer.inverse(outputs, context)[0], context, grad_outputs, grad_logabsdet)


def _undo_by_forward(
    layer: Transform, inputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor
) -> UndoResult:
    leaf = inputs.detach().requires_grad_()
    with torch.enable_grad():
        results = layer(leaf, context)
    leaves = [leaf, *layer.parameters(), *([] if context is None else [context])]
    grads = gradients(results, (grad_outputs, grad_logabsdet), leaves)
    return UndoResult(inputs, grads.pop(leaf), grads)
