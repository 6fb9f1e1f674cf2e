"""Batches drawn on the device: images stay there as uint8, a batch is an index draw."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.checks import check_count, check_data, check_inputs, check_labels, check_share
from scnf.data.augment import random_affine
from scnf.errors import UserError


def dequantize(x: Tensor, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
    """Uniform dequantisation: grey levels 0..levels-1 become numbers in [0, 1), each in its cell.

    The level of a number x is floor(levels * x), also as floats are rounded, for up to 65,536 levels.
    With D pixels, the expectation over the noise of log p(result) - D log levels is a lower bound of the
    log-probability of the grey levels (Theis et al., https://arxiv.org/abs/1511.01844, section 3.1).

    Args:
        x: whole numbers [N, C, H, W], uint8 for up to 256 levels; or points, float32 [N, D], which are given back as
            they are.
        levels: number of grey levels; None for points.
        generator: source of the noise; the global one by default.

    Raises:
        ValueError: images of floats.
    """
    if levels is None:
        return x
    if x.is_floating_point():
        raise ValueError(f"grey levels are whole numbers, not {x.dtype}: these may be dequantised already")
    noise = torch.rand(x.shape, device=x.device, generator=generator)
    dequantized = (x + noise).div_(levels)
    off = (levels * dequantized).floor_().sub_(x)  # sum and quotient are rounded: 1 or -1 where that is past an end
    return dequantized.addcmul_(dequantized, off, value=-2 * torch.finfo(dequantized.dtype).eps)


class Batches:
    """Batches of labelled and unlabelled rows in a fixed proportion.

    An epoch passes `passes` times over all rows as unlabelled ones (the labelled rows too, as if they were not; what
    does not fill a last batch is left out), while the labelled rows come round as often as their share asks for. Which
    rows are drawn depends on the seed and the epoch alone, so any step of any epoch can be drawn again; noise and
    augmentation come from the global generator.

    Moved images have another density than images as they are, so the likelihood takes none of them: with `augment`, a
    batch has a moved version of each labelled row beside it, and with `views` one of each unlabelled row. These are for
    cross-entropies alone, see :class:`scnf.batch.Batch`.
    `guesses` [N], labels found by propagation, say, may be set between epochs: they are the targets of views, or where
    there are no views the labels of the unlabelled rows themselves; UNLABELLED where nobody guesses.

    Args:
        x: whole numbers [N, C, H, W], uint8 for up to 256 levels, or float32 [N, D], on the device of the training.
        y: int64 [N], UNLABELLED where hidden.
        batch_size: rows of a batch.
        labelled_share: share of a batch that is labelled, in [0, 1].
        seed: decides the order.
        levels: as in :func:`dequantize`.
        augment: strength of the random affine maps of moved rows, see :mod:`scnf.data.augment`.
        views: whether batches have moved versions, or views, of their unlabelled rows.
        passes: over all rows in an epoch.
        in_place: move the labelled rows themselves, for networks p(y | x) that have no likelihood of x.

    Attributes:
        num_labelled: labelled rows of a batch.
        num_unlabelled: unlabelled rows of a batch.
        num_moved: moved versions of labelled rows that a batch has.
        num_views: views of unlabelled rows that a batch has.

    Raises:
        ValueError: x are no such rows, or y no labels of theirs; `batch_size` or `passes` is below 1, or
            `labelled_share` outside [0, 1].
        UserError: the batch is too small to hold the share, there are no labels to fill it, or points are to be
            augmented.

    Example:
        >>> x, y = torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.full((40,), UNLABELLED)
        >>> y[:4] = torch.arange(4)
        >>> batches = Batches(x, y, batch_size=10, labelled_share=0.2, seed=0, levels=256)
        >>> batch = next(batches.epoch(0))
        >>> batch.x.shape, int((batch.y >= 0).sum()), batches.steps_per_epoch
        (torch.Size([10, 1, 4, 4]), 2, 5)
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        labelled_share: float,
        seed: int,
        levels: int | None,
        augment: float = 0.0,
        views: bool = False,
        passes: int = 1,
        in_place: bool = False,
    ) -> None:
        self._check(x, levels)
        check_labels(y, rows=len(x))
        check_count("batch_size", batch_size)
        check_count("passes", passes)
        check_share("labelled_share", labelled_share)
        self.x, self.y, self.seed, self.levels, self.passes, self.in_place = x, y, seed, levels, passes, in_place
        self.guesses: Tensor | None = None
        self.labelled = (y != UNLABELLED).nonzero().squeeze(1).cpu()
        self.num_labelled = round(batch_size * labelled_share)
        self.num_unlabelled = batch_size - self.num_labelled
        self.augment, self.num_views = augment, self.num_unlabelled if views else 0
        self.num_moved = self.num_labelled if augment and not in_place else 0
        if levels is None and (augment or views):
            raise UserError("points have no augmented views: set data.augment and objective.consistency_weight to 0")
        if labelled_share > 0 and not len(self.labelled):
            raise UserError("no row has a label: set data.labelled_share to 0 or data.num_labels above 0")
        if (labelled_share > 0 and not self.num_labelled) or (labelled_share < 1 and not self.num_unlabelled):
            raise UserError(
                f"a batch of {batch_size} cannot hold a labelled share of {labelled_share:g}: it would have "
                f"{self.num_labelled} labelled and {self.num_unlabelled} unlabelled rows. Raise train.batch_size "
                "or change data.labelled_share"
            )
        self.steps_per_epoch = max(1, passes * len(x) // (self.num_unlabelled or batch_size))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from step `start` on; labelled rows come first, and images are float32 in [0, 1)."""
        generator = torch.Generator().manual_seed(int(self.seed * 1_000_003 + epoch))
        labelled = self._draw(self.labelled, self.num_labelled, generator)
        unlabelled = self._draw(torch.arange(len(self.x)), self.num_unlabelled, generator)
        rows = torch.cat([labelled, unlabelled], dim=1).to(self.x.device)
        guesses = torch.full_like(self.y, UNLABELLED) if self.guesses is None else self.guesses
        for step in range(start, self.steps_per_epoch):
            known, others = rows[step].split([self.num_labelled, self.num_unlabelled])
            viewed = others[: self.num_views]
            sizes = [len(known) + len(others), self.num_moved, self.num_views]
            x, moved, views = self._inputs(known, others, viewed).split(sizes)
            y = torch.cat([self.y[known], torch.full_like(others, UNLABELLED) if self.num_views else guesses[others]])
            batch = Batch(x, y)
            if self.num_moved:
                batch = batch._replace(moved=moved, moved_y=self.y[known])
            if self.num_views:
                batch = batch._replace(views=views, targets=guesses[viewed])
            yield batch

    def _inputs(self, labelled: Tensor, unlabelled: Tensor, viewed: Tensor) -> Tensor:
        """What a batch holds of these rows: they themselves, moved labelled ones and views, in this order."""
        moved = self.x[torch.cat([labelled, viewed])]
        if self.augment and len(moved):
            moved = random_affine(moved, self.augment)
        return dequantize(self._arrange(labelled, unlabelled, *moved.tensor_split([len(labelled)])), self.levels)

    def _arrange(self, labelled: Tensor, unlabelled: Tensor, moved: Tensor, views: Tensor) -> Tensor:
        """The rows of `x` and what was made of them, in the order of :meth:`_inputs`."""
        first = moved if self.in_place else self.x[labelled]
        return torch.cat([first, self.x[unlabelled], moved if self.num_moved else moved[:0], views])

    def _check(self, x: Tensor, levels: int | None) -> None:
        check_data(x, levels)

    def _draw(self, rows: Tensor, per_step: int, generator: torch.Generator) -> Tensor:
        """[steps, per_step]: `rows` in random order, begun anew as often as needed."""
        needed = per_step * self.steps_per_epoch
        rounds = -(-needed // len(rows)) if needed else 0
        shuffled = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)]
        return torch.cat([rows[:0], *shuffled])[:needed].view(self.steps_per_epoch, per_step)


class EncodedBatches(Batches):
    """The same batches of what a frozen network makes of the inputs, computed once.

    Each row is encoded as it is; labelled rows also in `copies` moved versions, of which a batch draws one; and where
    there are views, each row moved once more, which is its view in every epoch.

    Args:
        batches: of images, or of points.
        encode: inputs [M, ...] as a batch holds them -> [M, D]; called without gradients.
        copies: moved versions of each labelled row.
        chunk: rows encoded at once.
    """

    def __init__(
        self, batches: Batches, encode: Callable[[Tensor], Tensor], copies: int = 100, chunk: int = 1000
    ) -> None:
        from tqdm import tqdm

        rows, none = torch.arange(len(batches.x)), torch.arange(0)
        moved = batches.labelled.repeat(copies if batches.augment else 1)
        viewed = rows if batches.num_views else none
        bar = tqdm(total=len(rows) + len(moved) + len(viewed), unit="row", desc="latents", disable=None, leave=False)

        def encoded(rows: Tensor, as_they_are: bool = False) -> Tensor:
            pieces = []
            for some in rows.split(chunk):
                pieces.append(
                    encode(batches._inputs(none, some, none) if as_they_are else batches._inputs(none, none, some))
                )
                bar.update(len(some))
            return torch.cat(pieces)

        with torch.no_grad(), bar:
            plain = encoded(rows, as_they_are=True)
            self.moved = encoded(moved).unflatten(0, (-1, len(batches.labelled))) if len(moved) else plain[None, :0]
            self.views = encoded(viewed) if len(viewed) else plain[:0]
        size = batches.num_labelled + batches.num_unlabelled
        share = batches.num_labelled / size
        views, own = batches.num_views > 0, (batches.seed, batches.levels, batches.augment)
        super().__init__(plain, batches.y, size, share, *own, views, batches.passes, batches.in_place)
        self.levels = None

    def _check(self, x: Tensor, levels: int | None) -> None:
        check_inputs(x)

    def _inputs(self, labelled: Tensor, unlabelled: Tensor, viewed: Tensor) -> Tensor:
        which = torch.randint(len(self.moved), labelled.shape, device=labelled.device)
        place = torch.searchsorted(self.labelled.to(labelled.device), labelled)
        return self._arrange(labelled, unlabelled, self.moved[which, place], self.views[viewed])
