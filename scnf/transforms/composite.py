"""One transform after the other, and how to train many of them in the memory of one."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scnf.transforms.base import Cascade, Transform, Undone, gradients
from scnf.transforms.linear import LINEAR
from scnf.transforms.normalization import ActNorm
from scnf.transforms.shape import FactorOut

_WITHOUT_CONTEXT = {ActNorm, *LINEAR.values()}


class CompositeTransform(Cascade):
    """Transforms in a row; the log-determinants add up.

    With `reversible` set, training keeps no activations between the transforms: backward computes each input again from
    the output, by inverting the transform, so that memory does not grow with depth (Gomez et al., "The Reversible
    Residual Network", https://arxiv.org/abs/1707.04585, section 3.2). Inputs that want no gradient, as data, are kept.
    Gradients are those of plain backpropagation up to the rounding of the inverses. Transforms that split their input
    (`FactorOut`) keep it; a composite inside them is treated likewise if its own flag is set. A transform that can find
    its inputs and the gradients there at once has a method `undo(outputs, context, grad_outputs, grad_logabsdet)` that
    gives them, see :class:`scnf.transforms.base.Undone`.

    Args:
        transforms: in the order in which data become noise.

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
        """Data -> noise: (outputs, logabsdet [N]); of the transforms from `start` up to `stop`, of all by default."""
        transforms = list(self._transforms)[start:stop]
        if not (self.reversible and torch.is_grad_enabled()):
            return self._cascade(inputs, transforms, context)
        total = inputs.new_zeros(inputs.shape[0])
        for splits, run in itertools.groupby(_flat(transforms), lambda layer: isinstance(layer, FactorOut)):
            layers = list(run)
            if splits:
                inputs, logabsdet = self._cascade(inputs, layers, context)
            else:
                parameters = [p for layer in layers for p in layer.parameters()]
                inputs, logabsdet = _Recomputed.apply(layers, inputs, context, *parameters)
            total = total + logabsdet
        return inputs, total

    def before_context(self) -> int:
        """How many of the transforms stand before the first that may look at the context, the `stop` of their part."""
        known = 0
        for layer in self._transforms if type(self) is CompositeTransform else ():
            if type(layer) not in _WITHOUT_CONTEXT:
                break
            known += 1
        return known


def _flat(transforms: Iterable[nn.Module]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, Cascade):
            yield from _flat(transform._transforms)
        else:
            assert isinstance(transform, Transform)
            yield transform


class _Recomputed(torch.autograd.Function):
    """A run of transforms that remembers its last output alone, and data that it is given."""

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
        # taken first: small gradients, which stay, would break up the memory that layers take and free in turns
        room = {parameter: torch.empty_like(parameter) for parameter in ctx.parameters if parameter.requires_grad}
        found: dict[Tensor, Tensor] = {}
        for index, layer in reversed(list(enumerate(ctx.layers))):
            known = None if index else data
            with torch.autocast(**ctx.autocast):
                outputs, grad_outputs, grads = _undone(layer, outputs, context, grad_outputs, grad_logabsdet, known)
            for tensor, grad in grads.items():
                if tensor in found:
                    found[tensor] = found[tensor] + grad
                else:
                    found[tensor] = room.pop(tensor).copy_(grad) if tensor in room else grad
        grad_context = None if context is None else found.get(context)
        # a parameter of two layers stands there twice, and its gradients are added up already
        return None, grad_outputs, grad_context, *(found.pop(parameter, None) for parameter in ctx.parameters)


def _undone(
    layer: Transform,
    outputs: Tensor,
    context: Tensor | None,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    inputs: Tensor | None,
) -> Undone:
    """What the layer says itself, unless its class goes forward in another way; or by its inverse and another pass.

    Where the inputs are known, by a pass from them.
    """
    if inputs is not None:
        return _passed_again(layer, inputs, context, grad_outputs, grad_logabsdet)
    kind: Any = type(layer)
    owner: Any = next((base for base in kind.__mro__ if "undo" in vars(base)), None)
    if owner is not None and kind.forward is owner.forward:
        undone: Undone = owner.undo(layer, outputs, context, grad_outputs, grad_logabsdet)
        return undone
    return _passed_again(layer, layer.inverse(outputs, context)[0], context, grad_outputs, grad_logabsdet)


def _passed_again(
    layer: Transform, inputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor
) -> Undone:
    leaf = inputs.detach().requires_grad_()
    with torch.enable_grad():
        results = layer(leaf, context)
    wanted = [leaf, *layer.parameters(), *([] if context is None else [context])]
    found = gradients(results, (grad_outputs, grad_logabsdet), wanted)
    return Undone(inputs, found.pop(leaf), found)
