"""Draw image grids, two-dimensional samples and training curves as PNG files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scnf.files import atomic_write
from scnf.streams import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 2  # pixels between the images of a grid
_VISIBLE = 48  # pixels, to which the longer side of a small image is enlarged at least
_GREY = "0.45"
_CAPTION = 24  # characters under an image
CAPTIONED = 200
"""Largest number of images of a grid with captions."""


def image_grid(images: Tensor, path: Path, columns: int, row_labels: Sequence[str] | None = None) -> None:
    """Write images as one grid, row by row, and enlarge small images without smoothing.

    Args:
        images: Images [N, C, H, W], clamped to [0, 1]. Three channels are colours; otherwise the first channel is
            shown.
        path: Path of the PNG file.
        columns: Number of images in a row; an incomplete last row is filled with blank space.
        row_labels: Text to the left of each row.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "grid.png"
        >>> image_grid(torch.rand(10, 1, 8, 8), target, columns=5, row_labels=["real", "model"])
        >>> target.exists()
        True
    """
    from PIL import Image, ImageDraw, ImageFont

    rgb = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = (rgb.detach().float().nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    scale = max(1, math.ceil(_VISIBLE / max(pixels.shape[2:])))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
    height, width = pixels.shape[1] + _GAP, pixels.shape[2] + _GAP

    font = ImageFont.load_default(size=max(10, min(16, height // 3)))
    labels = row_labels or []
    margin = max((math.ceil(font.getlength(label)) + 4 * _GAP for label in labels), default=0)
    size = (margin + columns * width + _GAP, math.ceil(len(pixels) / columns) * height + _GAP)
    canvas = Image.new("RGB", size, "white")
    for index, image in enumerate(pixels.numpy()):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(image), (margin + column * width + _GAP, row * height + _GAP))
    for row, label in enumerate(labels):
        position = (margin - 2 * _GAP, row * height + height // 2)
        ImageDraw.Draw(canvas).text(position, label, fill="black", font=font, anchor="rm")
    with atomic_write(path) as file:
        canvas.save(file, format="png")


def captioned_grid(images: Tensor, captions: Sequence[str], path: Path, columns: int) -> None:
    """Write images as one grid with a line of text under each.

    Args:
        images: Images [N, C, H, W] in [0, 1], at most `CAPTIONED`. Three channels are colours; otherwise the first
            channel is shown.
        captions: Text of each image [N].
        path: Path of the PNG file.
        columns: Largest number of images in a row.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "grid.png"
        >>> captioned_grid(torch.rand(3, 1, 8, 8), ["cat", "dog", "cat"], target, columns=2)
        >>> target.exists()
        True
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shown = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = shown.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    figure = Figure(figsize=(1.2 * columns, 1.4 * rows), layout="constrained")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if index < len(images):
            axes.imshow(pixels[index], interpolation="nearest")
            axes.set_title(plain(captions[index])[:_CAPTION], fontsize=7, y=-0.22)
    save(figure, path)


def points(points: Tensor, labels: Tensor, path: Path, density: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
    """Write a scatter plot of two-dimensional samples, one colour per class.

    Args:
        points: Samples [N, 2].
        labels: Classes of the samples [N]; negative numbers are hidden labels, which are drawn in grey.
        path: Path of the PNG file.
        density: Background as (xs [A], ys [B], values [B, A]), such as a density or a posterior.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    if density is not None:
        xs, ys, values = (part.detach().float().cpu().numpy() for part in density)
        figure.colorbar(axes.pcolormesh(xs, ys, values, cmap="Greys", shading="auto", alpha=0.35), ax=axes, shrink=0.8)
    samples, classes = points.detach().float().cpu(), labels.detach().cpu()
    present = sorted(set(classes.tolist()))
    palette = matplotlib.colormaps["tab10"] if max(present, default=0) < 10 else matplotlib.colormaps["turbo"]
    for label in present:
        members = samples[classes == label]
        color = _GREY if label < 0 else palette(label if palette.N <= 10 else label / max(present))
        name = "hidden" if label < 0 else str(label)
        axes.scatter(members[:, 0], members[:, 1], s=8, color=color, linewidths=0, alpha=0.8, label=name)
    if 0 < len(present) <= 12:
        axes.legend(title="class", markerscale=2, frameon=True, fontsize=8)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title=f"{len(samples)} samples")
    low, high = axes.dataLim.get_points()
    width, height = high - low
    if 0.01 * width <= height <= 100 * width:  # else one axis would have no room
        axes.set_aspect("equal")
    save(figure, path)


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plot training loss, validation accuracy and validation bits/dim against the epoch.

    The negative log-likelihood stands in for bits/dim where no row has any.

    Args:
        rows: Rows of metrics from `Run.read_metrics`; any column may be missing in any row.
        path: Path of the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, likelihood = figure.subplots(1, 3)
    _curve(loss, rows, "train.loss", "Training loss", "loss")
    _curve(accuracy, rows, "validation.accuracy", "Validation accuracy", "accuracy [%]", factor=100)
    if any("validation.bits_per_dim" in row for row in rows):
        _curve(likelihood, rows, "validation.bits_per_dim", "Validation density", "bits/dim")
    else:
        _curve(likelihood, rows, "validation.nll", "Validation negative log-likelihood", "nats")
    save(figure, path)


def _curve(
    axes: Axes, rows: Sequence[Mapping[str, float]], column: str, title: str, unit: str, factor: float = 1.0
) -> None:
    from matplotlib.ticker import MaxNLocator

    pairs = [(row["epoch"], factor * row[column]) for row in rows if "epoch" in row and column in row]
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if pairs:
        axes.plot(*zip(*pairs, strict=True), marker="o" if len(pairs) <= 40 else "", markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no values", ha="center", va="center", color=_GREY, transform=axes.transAxes)


def plain(text: str) -> str:
    r"""Escape dollar signs for matplotlib, which would start a formula, and characters that are not printable.

    >>> print(plain("a $ b"))
    a \$ b
    """
    return printable(text).replace("$", r"\$")


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as a PNG file, and raise a UserError where the file cannot be written."""
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # matplotlib draws an empty box instead
        figure.savefig(file, format="png", dpi=dpi)
