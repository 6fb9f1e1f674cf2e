"""When labels are propagated in a training, and over which neighbours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from scnf.models.base import JointModel
from scnf.propagation.distortion import distortion_labels
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.self_training import self_trained_features
from scnf.propagation.spread import propagate, surest
from scnf.training.metrics import representations

Neighbours = Literal["pixels", "gradients", "distortion", "self-training"]


@dataclass(frozen=True)
class Propagation:
    """Labels for the rows of a training by their neighbours, at even distances over the epochs.

    The first time comes before the first epoch, with the neighbours that `neighbours` names. Later times take
    neighbours by what the model has made of the rows by then (Iscen et al., https://arxiv.org/abs/1904.04717). Labels
    that are not sure stay out: the surest share of each class counts. It is 0.6 at first for pixels and gradients, and
    all from the middle of the training on; after self-training and with image distortion it is all from the start.

    Args:
        x: [N, C, H, W], grey levels of all rows, on the device of the training; codes [N, D] where `fixed`.
        y: [N], UNLABELLED where hidden.
        levels: number of grey levels; None of codes.
        times: how often in the training.
        epochs: of the training.
        neighbours: of the first time: rows of largest cosine among pixels or histograms of oriented gradients, images
            of the least distortion, or rows of largest cosine among features of networks that train themselves.
        networks: of self-training, one after the other.
        augment: strength of the random maps in self-training, see :mod:`scnf.data.augment`.
        autocast: bf16 in self-training.
        fixed: rows are codes of a trained flow that does not change, so one time is enough, and all labels count.
        batch_size: rows at once of what the model makes of them.
        say: takes a line for people.

    Example:
        >>> import torch
        >>> from scnf.recipes import build
        >>> x, y = torch.randint(17, (60, 1, 8, 8), dtype=torch.uint8), torch.full((60,), -1)
        >>> y[:6] = torch.arange(6) % 3
        >>> guess = Propagation(x, y, 17, times=2, epochs=4)
        >>> model = build("scnf-digits", (1, 8, 8), 3, levels=17, channels=8, steps=1)
        >>> [guess(model, epoch) is None for epoch in range(4)]
        [False, True, False, True]
    """

    x: Tensor
    y: Tensor
    levels: int | None
    times: int
    epochs: int
    neighbours: Neighbours = "pixels"
    networks: int = 3
    augment: float = 0.0
    autocast: bool = False
    fixed: bool = False
    batch_size: int = 500
    say: Callable[[str], None] = print

    def __call__(self, model: JointModel, epoch: int) -> Tensor | None:
        """Labels [N] before an epoch, UNLABELLED where none is sure; None where it is not time."""
        if epoch and (self.fixed or epoch * self.times // self.epochs == (epoch - 1) * self.times // self.epochs):
            return None
        if not epoch and not self.fixed and self.neighbours == "distortion":
            self.say("looking for neighbours by image distortion before the first epoch")
            return surest(*distortion_labels(self.x, self.y), 1.0)
        features = self._first_features() if not (epoch or self.fixed) else self._codes(model)
        first = 1.0 if self.fixed or self.neighbours in ("distortion", "self-training") else 0.6
        return surest(*propagate(features, self.y), min(1.0, first + 0.8 * epoch / self.epochs))

    def _codes(self, model: JointModel) -> Tensor:
        return representations(model, self.x, self.levels, self.batch_size)

    def _first_features(self) -> Tensor:
        if self.neighbours == "gradients":
            return oriented_gradients(self.x)
        if self.neighbours == "pixels":
            return self.x.flatten(1)
        if self.neighbours != "self-training" or self.levels is None:
            raise ValueError(f"there are no neighbours by {self.neighbours!r} of these rows")
        self.say(f"self-training: {self.networks} networks before the first epoch")
        return self_trained_features(self.x, self.y, self.levels, self.networks, self.augment, self.autocast)
