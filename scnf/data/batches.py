"""Draw batches on the device, where images stay as uint8 and a batch is selected by row indices."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.checks import check_count, check_data, check_inputs, check_labels, check_share
from scnf.data.augment import Augmentation
from scnf.data.columns import Columns
from scnf.errors import InvalidArgument
from scnf.words import noun_of


def dequantize(x: Tensor, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
    """Add uniform noise to grey levels 0..levels-1 and scale them to [0, 1).

    Each grey level fills its own cell: floor(levels * result) gives the level back, for up to 65,536 levels and in
    spite of rounding. With D pixels, E[log p(result)] - D log levels is a lower bound of the log-probability of the
    grey levels, where the expectation is over the noise (Theis et al., https://arxiv.org/abs/1511.01844, section 3.1).

    Args:
        x: Images of whole numbers [N, C, H, W], uint8 for up to 256 levels. Points, float32 [N, D], are returned
            unchanged.
        levels: Number of grey levels; None for points.
        generator: Random generator of the noise; torch's global generator by default.

    Raises:
        InvalidArgument: the images hold floats.
    """
    if levels is None:
        return x
    if x.is_floating_point():
        raise InvalidArgument("x", f"must hold whole grey levels, not {x.dtype}: the images may be dequantised already")
    return add_noise(x, torch.rand(x.shape, device=x.device, generator=generator), levels)


def add_noise(x: Tensor, noise: Tensor, levels: int) -> Tensor:
    """Add noise in [0, 1) of the shape [N, C, H, W] or [C, H, W] to grey levels, as :func:`dequantize` does."""
    dequantized = (x + noise).div_(levels)
    error = (levels * dequantized).floor_().sub_(x)  # 1 or -1 where rounding has left the cell
    return dequantized.addcmul_(dequantized, error, value=-2 * torch.finfo(dequantized.dtype).eps)


def binarize(x: Tensor, noise: Tensor, levels: int) -> Tensor:
    """Return black and white pixels from grey levels and noise in [0, 1), which broadcast against each other.

    A pixel is white, in the middle of the cell of the last grey level, with a probability equal to its brightness. Else
    it is 0. A likelihood that draws binary images leaves these pixels as they are.

    Example:
        >>> binarize(torch.tensor([0, 1, 2, 3]), torch.tensor(0.5), levels=4)
        tensor([0.0000, 0.0000, 0.8750, 0.8750])
    """
    return torch.where(noise * (levels - 1) < x, 1 - 0.5 / levels, 0.0)


class Batches:
    """Batches that mix labelled and unlabelled rows in a fixed proportion.

    An epoch passes `passes` times over all rows as unlabelled rows. Labelled rows take part too, without their labels,
    and an incomplete last batch is dropped. The labelled rows of the batches repeat as often as `labelled_share`
    requires. The seed and the epoch alone decide which rows are drawn, so any step of any epoch can be drawn again.
    Noise and augmentation come from torch's global generator.

    Moved images do not follow the density of the original images, so the likelihood leaves them out. With `augment`, a
    batch adds a moved version of each labelled row; with `views`, it adds a moved version of each unlabelled row. Both
    serve cross-entropies alone, see :class:`scnf.batch.Batch`.

    Pseudo-labels `guesses` [N], for example from propagation, may be set between epochs. They are the targets of
    views, or without views the labels of the unlabelled rows. UNLABELLED marks a row without a pseudo-label.

    Args:
        x: Images of whole numbers [M, C, H, W], uint8 for up to 256 levels, or points float32 [M, D], on the device
            of the training. Batches read their rows from x, which may be larger than memory and mapped from a file.
        y: Labels int64 [N] of the rows that take part, UNLABELLED where hidden.
        batch_size: Number of rows in a batch.
        labelled_share: Share of labelled rows in a batch, in [0, 1].
        seed: Seed of the order of rows.
        levels: Number of grey levels, see :func:`dequantize`; None for points.
        augment: Augmentation of moved images, or the strength of its affine maps; for points, the standard deviation of
            the Gaussian noise of moved points, in the scales of `columns` where they are given.
        views: Whether batches hold views, that is moved versions of their unlabelled rows.
        passes: Number of passes over all rows in an epoch.
        in_place: Whether labelled rows are replaced by their moved versions, for networks p(y | x) without a
            likelihood of x.
        columns: Statistics of the columns of points, by which whole numbers get noise of one step; None for images, and
            for points that stay as they are.
        rows: Rows [N] of x that take part, in the order of y; all rows of x by default.

    Attributes:
        noun: Word for a row of the data, "image" or "vector", also where these are codes.
        num_labelled: Number of labelled rows in a batch.
        num_unlabelled: Number of unlabelled rows in a batch.
        num_moved: Number of moved versions of labelled rows in a batch.
        num_views: Number of views of unlabelled rows in a batch.

    Raises:
        InvalidArgument: x or y has the wrong type or shape, `batch_size` or `passes` is below 1, or `labelled_share`
            lies outside [0, 1]. Or the batch is too small for the share, no row has a label, or points have views
            without noise.

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
        augment: float | Augmentation = 0.0,
        views: bool = False,
        passes: int = 1,
        in_place: bool = False,
        columns: Columns | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self._check(x, levels)
        check_labels(y, rows=len(x) if rows is None else len(rows))
        check_count("batch_size", batch_size)
        check_count("passes", passes)
        check_share("labelled_share", labelled_share)
        self._x, self._rows = x, None if rows is None else rows.to(x.device)
        self.y, self.seed, self.levels, self.passes, self.in_place = y, seed, levels, passes, in_place
        self.noun = noun_of(levels)
        self.guesses: Tensor | None = None
        self.columns = columns
        self.labelled = (y != UNLABELLED).nonzero().squeeze(1).cpu()
        self.num_labelled = round(batch_size * labelled_share)
        self.num_unlabelled = batch_size - self.num_labelled
        self.augment, self.num_views = Augmentation.of(augment), self.num_unlabelled if views else 0
        self.num_moved = self.num_labelled if self.augment and not in_place else 0
        if levels is None and views and not self.augment:
            raise InvalidArgument(
                "augment", "must be above 0 for views of points, which differ from the points by its noise alone"
            )
        if labelled_share > 0 and not len(self.labelled):
            raise InvalidArgument(
                "labelled_share", "asks for labelled rows, and no row has a label: set it to 0, or num_labels above 0"
            )
        if (labelled_share > 0 and not self.num_labelled) or (labelled_share < 1 and not self.num_unlabelled):
            raise InvalidArgument(
                "batch_size",
                f"of {batch_size} cannot hold a labelled share of {labelled_share:g}: it would have "
                f"{self.num_labelled} labelled and {self.num_unlabelled} unlabelled rows. Raise it, or change "
                "labelled_share",
            )
        self.steps_per_epoch = max(1, passes * len(y) // (self.num_unlabelled or batch_size))

    @property
    def x(self) -> Tensor:
        """The rows [N, ...] that take part, in memory where they are not all rows of the data."""
        return self._x if self._rows is None else self._x[self._rows]

    @property
    def device(self) -> torch.device:
        """The device of the training."""
        return self._x.device

    def take(self, rows: Tensor) -> Tensor:
        """Return a copy of some of the rows that take part, by their positions [R] in y."""
        return self._x[rows if self._rows is None else self._rows[rows]]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from step `start` on.

        Labelled rows come first, and images are float32 in [0, 1).
        """
        generator = torch.Generator().manual_seed(int(self.seed * 1_000_003 + epoch))
        labelled = self._draw(self.labelled, self.num_labelled, generator)
        unlabelled = self._draw(torch.arange(len(self.y)), self.num_unlabelled, generator)
        rows = torch.cat([labelled, unlabelled], dim=1).to(self.device)
        guesses = torch.full_like(self.y, UNLABELLED) if self.guesses is None else self.guesses
        for step in range(start, self.steps_per_epoch):
            with_label, without = rows[step].split([self.num_labelled, self.num_unlabelled])
            view_rows = without[: self.num_views]
            sizes = [len(with_label) + len(without), self.num_moved, self.num_views]
            x, moved, views = self._inputs(with_label, without, view_rows).split(sizes)
            hidden = torch.full_like(without, UNLABELLED)
            y = torch.cat([self.y[with_label], hidden if self.num_views else guesses[without]])
            batch = Batch(x, y)
            if self.num_moved:
                batch = batch._replace(moved=moved, moved_y=self.y[with_label])
            if self.num_views:
                batch = batch._replace(views=views, targets=guesses[view_rows])
            yield batch

    def _inputs(self, labelled: Tensor, unlabelled: Tensor, view_rows: Tensor) -> Tensor:
        """Return the inputs of a batch: labelled and unlabelled rows, moved labelled rows, and views, in this order."""
        moved = self.take(torch.cat([labelled, view_rows]))
        if self.augment and len(moved):
            if self.levels is not None:
                moved = self.augment(moved, self.levels)
            else:
                scale = 1.0 if self.columns is None else self.columns.scale
                moved = moved + self.augment.strength * scale * torch.randn_like(moved)
        inputs = self._arrange(labelled, unlabelled, *moved.tensor_split([len(labelled)]))
        return dequantize(inputs, self.levels) if self.columns is None else self.columns.dequantize(inputs)

    def _arrange(self, labelled: Tensor, unlabelled: Tensor, moved: Tensor, views: Tensor) -> Tensor:
        """Concatenate rows, moved rows and views in the order of :meth:`_inputs`."""
        first = moved if self.in_place else self.take(labelled)
        return torch.cat([first, self.take(unlabelled), moved if self.num_moved else moved[:0], views])

    def _check(self, x: Tensor, levels: int | None) -> None:
        check_data(x, levels)

    def _draw(self, rows: Tensor, per_step: int, generator: torch.Generator) -> Tensor:
        """Return `rows` in random order as [steps, per_step], in as many permutations as it takes."""
        total = per_step * self.steps_per_epoch
        permutations = -(-total // len(rows)) if total else 0
        shuffled = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(permutations)]
        return torch.cat([rows[:0], *shuffled])[:total].view(self.steps_per_epoch, per_step)


class EncodedBatches(Batches):
    """Batches of codes that a frozen network computes once, in place of the inputs of other batches.

    Each row is encoded unchanged. Labelled rows are encoded in `copies` moved versions as well, of which a batch draws
    one. With views, each row has one more moved version, which is its view in every epoch.

    Args:
        batches: Batches of images or points.
        encode: Network that maps inputs [M, ...] of a batch to codes [M, D]; called without gradients.
        copies: Number of moved versions of each labelled row.
        chunk: Number of rows that are encoded at once.
    """

    def __init__(
        self, batches: Batches, encode: Callable[[Tensor], Tensor], copies: int = 100, chunk: int = 1000
    ) -> None:
        from tqdm import tqdm

        rows, no_rows = torch.arange(len(batches.y)), torch.arange(0)
        moved = batches.labelled.repeat(copies if batches.augment else 1)
        view_rows = rows if batches.num_views else no_rows
        total = len(rows) + len(moved) + len(view_rows)
        bar = tqdm(total=total, unit="row", desc="latents", disable=None, leave=False)

        def encode_rows(rows: Tensor, move: bool) -> Tensor:
            codes = []
            for part in rows.split(chunk):
                roles = (no_rows, no_rows, part) if move else (no_rows, part, no_rows)
                codes.append(encode(batches._inputs(*roles)))
                bar.update(len(part))
            return torch.cat(codes)

        with torch.no_grad(), bar:
            codes = encode_rows(rows, move=False)
            copies_shape = -1, len(batches.labelled)
            self.moved = encode_rows(moved, move=True).unflatten(0, copies_shape) if len(moved) else codes[None, :0]
            self.views = encode_rows(view_rows, move=True) if len(view_rows) else codes[:0]
        size = batches.num_labelled + batches.num_unlabelled
        share = batches.num_labelled / size
        views, settings = batches.num_views > 0, (batches.seed, batches.levels, batches.augment)
        super().__init__(codes, batches.y, size, share, *settings, views, batches.passes, batches.in_place)
        self.levels = None

    def _check(self, x: Tensor, levels: int | None) -> None:
        check_inputs(x)

    def _inputs(self, labelled: Tensor, unlabelled: Tensor, view_rows: Tensor) -> Tensor:
        copy = torch.randint(len(self.moved), labelled.shape, device=labelled.device)
        position = torch.searchsorted(self.labelled.to(labelled.device), labelled)
        return self._arrange(labelled, unlabelled, self.moved[copy, position], self.views[view_rows])
