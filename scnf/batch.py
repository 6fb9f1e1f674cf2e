"""Define a batch, which holds rows, labels, and moved versions of rows by name."""

from typing import NamedTuple

import torch
from torch import Tensor

from scnf import UNLABELLED


class Batch(NamedTuple):
    """A batch holds the inputs of one optimiser step.

    The likelihood is computed on the rows `x` alone. Moved versions of rows have another density, so they count in
    cross-entropies alone. `moved` shows the first M labelled rows, and `views` shows the last V rows of `x`, in order.

    Attributes:
        x: Images in [0, 1) or points, [N, ...].
        y: Labels [N], UNLABELLED where hidden. A guess for a hidden label counts as a label.
        moved: Moved versions of labelled rows, [M, ...]; None without moved rows.
        moved_y: Labels of the moved rows, [M].
        views: Moved versions of unlabelled rows, [V, ...]; None without views.
        targets: Class [V] for each view, UNLABELLED for a view without a guess; None if no view has a guess.

    Example:
        >>> batch = Batch(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, -1, -1, -1, -1]), views=torch.rand(4, 1, 8, 8))
        >>> batch.inputs().shape, batch.sizes
        (torch.Size([10, 1, 8, 8]), [6, 0, 4])
    """

    x: Tensor
    y: Tensor
    moved: Tensor | None = None
    moved_y: Tensor | None = None
    views: Tensor | None = None
    targets: Tensor | None = None

    @classmethod
    def unlabelled(cls, x: Tensor) -> "Batch":
        """Build a batch of rows x [N, ...] whose labels are all hidden."""
        return cls(x, torch.full((len(x),), UNLABELLED, device=x.device))

    def inputs(self) -> Tensor:
        """Return rows, moved rows and views as one tensor [N + M + V, ...], so that a network sees them in one pass."""
        extra = [each for each in (self.moved, self.views) if each is not None]
        return torch.cat([self.x, *extra]) if extra else self.x

    @property
    def sizes(self) -> list[int]:
        """Return the numbers of rows, moved rows and views, [N, M, V]."""
        return [len(self.x), *(0 if each is None else len(each) for each in (self.moved, self.views))]
