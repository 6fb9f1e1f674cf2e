"""What scnf uses of nflows, which has no annotations."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

class Transform(nn.Module):
    def __call__(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

class CompositeTransform(Transform):
    _transforms: nn.ModuleList
    def __init__(self, transforms: Iterable[Transform]) -> None: ...
    @staticmethod
    def _cascade(
        inputs: Tensor, funcs: Iterable[Callable[..., tuple[Tensor, Tensor]]], context: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

class InverseTransform(Transform):
    _transform: Transform
    def __init__(self, transform: Transform) -> None: ...
