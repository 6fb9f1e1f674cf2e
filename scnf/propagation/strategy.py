"""Decide when a training propagates labels, and over which neighbours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.data.augment import Augmentation
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel
from scnf.propagation.distortion import distortion_labels
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.self_training import self_trained_features
from scnf.propagation.spread import most_certain, propagate, surest_of_classes
from scnf.training.metrics import evaluate_draws, representations

Neighbours = Literal["pixels", "gradients", "distortion", "self-training", "posterior"]


@dataclass(frozen=True)
class Propagation:
    """Schedule that propagates labels to unlabelled rows at even intervals over the epochs of a training.

    The first propagation comes before the first epoch and uses the neighbours that `neighbours` names. Later
    propagations find neighbours by the model's current representations (Iscen et al.,
    https://arxiv.org/abs/1904.04717). With gradients, the cosines of representations and of gradients are added. Each
    propagation keeps the most certain share of the pseudo-labels of each class. For pixels and gradients the share
    starts at 0.6 and reaches 1 in the middle of the training. For self-training and image distortion it is 1 from the
    start.

    With "posterior" there are no neighbours. The model's own p(y | x) gives the pseudo-labels, see
    :func:`~scnf.propagation.spread.surest_of_classes`, for a share of the rows that rises from 0 to 0.9
    in the first two thirds of the training.

    Args:
        x: Grey levels [N, C, H, W] of all rows, on the device of the training; codes [N, D] where `fixed`.
        y: Labels [N], UNLABELLED where hidden.
        levels: Number of grey levels; None for codes.
        times: Number of propagations in the training.
        epochs: Number of epochs of the training.
        neighbours: Measure of the first propagation. Neighbours have the largest cosine among pixels, histograms of
            oriented gradients or features of self-trained networks, or the least image distortion.
        networks: Number of networks that self-training trains in turn.
        augment: Augmentation of images in self-training, or the strength of its affine maps.
        autocast: Whether self-training computes in bf16.
        fixed: Whether the rows are codes of a trained flow that does not change. Then labels are propagated once, and
            all pseudo-labels are kept.
        batch_size: Number of rows whose representations are computed at once.
        log: Callback that takes each progress message.

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
    augment: float | Augmentation = 0.0
    autocast: bool = False
    fixed: bool = False
    batch_size: int = 500
    log: Callable[[str], None] = print

    def __call__(self, model: JointModel, epoch: int) -> Tensor | None:
        """Return pseudo-labels [N] before an epoch, UNLABELLED where uncertain, or None where none is due."""
        if epoch and (self._is_once or epoch * self.times // self.epochs == (epoch - 1) * self.times // self.epochs):
            return None
        if self.neighbours == "posterior":
            return surest_of_classes(self._log_posterior(model), self.y, 0.9 * min(1.0, 1.5 * epoch / self.epochs))
        if not epoch and not self.fixed and self.neighbours == "distortion":
            self.log("searching neighbours by image distortion before the first epoch")
            return most_certain(*distortion_labels(self.x, self.y), 1.0)
        features = self._codes(model) if epoch or self.fixed else self._first_features()
        if epoch and self.neighbours == "gradients":
            features = torch.cat([F.normalize(features, dim=1), self._first_features()], dim=1)  # of length 1, too
        initial_share = 1.0 if self.fixed or self.neighbours in ("distortion", "self-training") else 0.6
        return most_certain(*propagate(features, self.y), min(1.0, initial_share + 0.8 * epoch / self.epochs))

    @property
    def _is_once(self) -> bool:
        """Whether one propagation is enough, because what defines the neighbours does not change."""
        return self.fixed and self.neighbours != "posterior"

    def _log_posterior(self, model: JointModel) -> Tensor:
        return evaluate_draws(model, self.x, self.levels, self.batch_size, draws=1).class_log_probs

    def _codes(self, model: JointModel) -> Tensor:
        return representations(model, self.x, self.levels, self.batch_size)

    def _first_features(self) -> Tensor:
        if self.neighbours == "gradients":
            return oriented_gradients(self.x)
        if self.neighbours == "pixels":
            return self.x.flatten(1)
        if self.neighbours != "self-training" or self.levels is None:
            raise InvalidArgument(
                "neighbours",
                "must be pixels, gradients, distortion, posterior or, for grey levels, self-training; not "
                f"{self.neighbours!r}",
            )
        self.log(f"self-training: {self.networks} networks before the first epoch")
        return self_trained_features(self.x, self.y, self.levels, self.networks, self.augment, self.autocast)
