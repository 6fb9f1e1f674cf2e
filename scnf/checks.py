"""Check data and labels where they enter the library from outside.

A check reads values, for which a GPU would have to wait. So sources of batches, evaluation and the start of a model
always check. A step of training checks values only where they can be read at once (:func:`is_readable`). Where a step
on a GPU skips the check, the look-up itself refuses a label of no class.
"""

from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.errors import InvalidArgument

LARGEST = 1e36
"""Largest magnitude of a number of a point, so that noise and differences stay finite in single precision."""


def is_readable(values: Tensor) -> bool:
    """Return whether values can be read at once: on the CPU, unless a compiler traces the computation."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not among the choices (InvalidArgument).

    Example:
        >>> check_choice("scale", "exp", ["sigmoid", "symmetric"])
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: scale must be one of sigmoid, symmetric; not 'exp'
    """
    if value not in choices:
        raise InvalidArgument(name, f"must be one of {', '.join(choices)}; not {value!r}")


def check_count(name: str, value: int, low: int = 1) -> None:
    """Refuse a value that is not a whole number of `low` or more (InvalidArgument).

    Example:
        >>> check_count("batch_size", 0)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: batch_size must be a whole number of 1 or more, not 0
    """
    if not isinstance(value, Integral) or value < low:
        raise InvalidArgument(name, f"must be a whole number of {low} or more, not {value!r}")


def check_share(name: str, value: float, ends: bool = True) -> None:
    """Refuse a value that is not a number from 0 to 1, or, without `ends`, that is 0 or 1 (InvalidArgument).

    Example:
        >>> check_share("alpha", 1.0, ends=False)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: alpha must lie in (0, 1), not at 1.0
    """
    if not isinstance(value, Real) or not (0 <= value <= 1 if ends else 0 < value < 1):
        raise InvalidArgument(name, f"must lie in {'[0, 1]' if ends else '(0, 1)'}, not at {value!r}")


def check_tensor(name: str, value: Tensor) -> None:
    """Refuse a value that is not a tensor, such as an array or a list (InvalidArgument)."""
    if not isinstance(value, Tensor):
        raise InvalidArgument(name, f"must be a tensor, not {type(value).__name__}: convert it with torch.as_tensor")


def check_rows(rows: int, labels: int, argument: str = "y") -> None:
    """Refuse labels `argument` whose number differs from the number of rows (InvalidArgument)."""
    if rows != labels:
        raise InvalidArgument(argument, f"must hold one label for each of {rows} rows, not {labels} labels")


def check_labels(
    y: Tensor,
    num_classes: int | None = None,
    hidden: bool = True,
    rows: int | None = None,
    argument: str = "y",
) -> None:
    """Refuse a value that is not a vector of labels.

    Args:
        y: Labels [N], int64.
        num_classes: Number of classes K; by default labels may be of any class.
        hidden: Whether some labels may be UNLABELLED.
        rows: Number of rows N, where it is known.
        argument: Name of the caller's argument that holds the labels.

    Raises:
        InvalidArgument: The labels are of another type, shape or length, or a number is no label.

    Example:
        >>> check_labels(torch.tensor([0, 2, UNLABELLED]), num_classes=3)
        >>> check_labels(torch.tensor([0, -100]), num_classes=3, hidden=False)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: y must hold labels of 0 to 2, not numbers from -100 to 0
    """
    check_tensor(argument, y)
    if y.dtype != torch.int64 or y.dim() != 1:
        raise InvalidArgument(
            argument, f"must hold labels as int64 of shape [N], not {y.dtype} of shape {list(y.shape)}"
        )
    if rows is not None:
        check_rows(rows, len(y), argument)
    if not len(y):
        return
    low, high = (int(end) for end in y.aminmax())
    if low < (UNLABELLED if hidden else 0) or (num_classes is not None and high >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        allowed += f", or UNLABELLED ({UNLABELLED}) where they are hidden" if hidden else ""
        raise InvalidArgument(argument, f"must hold labels of {allowed}, not numbers from {low} to {high}")


def check_images(x: Tensor, argument: str = "x") -> None:
    """Refuse values `argument` that are not images [N, C, H, W] with at least one pixel (InvalidArgument)."""
    check_tensor(argument, x)
    if x.dim() != 4:
        raise InvalidArgument(argument, f"must hold images of shape [N, C, H, W], not of shape {list(x.shape)}")
    if not x.numel():
        raise InvalidArgument(argument, f"must hold at least one pixel, not images of shape {list(x.shape)}")


def check_data(x: Tensor, levels: int | None, argument: str = "x") -> None:
    """Refuse data that are neither images in whole grey levels nor points, or that have no rows.

    Args:
        x: Images [N, C, H, W] of whole numbers 0..levels-1, uint8 for up to 256 levels; or points [N, D] of floats.
        levels: Number of grey levels; None for points.
        argument: Name of the caller's argument that holds the data.

    Raises:
        InvalidArgument: The data are of another type, shape or range.

    Example:
        >>> check_data(torch.randint(17, (2, 1, 8, 8), dtype=torch.uint8), levels=16)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: x must hold 16 grey levels, which are 0 to 15, not numbers from 0 to 16
    """
    check_tensor(argument, x)
    if levels is None:
        _check_points(x, argument)
        return
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        kind = "torch.uint8" if levels <= 256 else "torch.int32"
        raise InvalidArgument(
            argument,
            f"must hold {levels} grey levels as whole numbers, not {x.dtype}: convert floats in [0, 1] "
            f"by (x * {levels - 1}).round().to({kind})",
        )
    check_images(x, argument)
    low, high = (int(end) for end in x.aminmax())
    if low < 0 or high >= levels:
        raise InvalidArgument(
            argument, f"must hold {levels} grey levels, which are 0 to {levels - 1}, not numbers from {low} to {high}"
        )


def _check_points(x: Tensor, argument: str) -> None:
    if not x.is_floating_point() or x.dim() != 2:
        raise InvalidArgument(
            argument,
            f"must hold points as floats of shape [N, D], not {x.dtype} of shape {list(x.shape)}; for images, say how "
            "many grey levels they have",
        )
    if not x.numel():
        raise InvalidArgument(argument, f"must hold at least one number, not points of shape {list(x.shape)}")
    if not bool((x.abs() <= LARGEST).all()):  # NaN is not
        raise InvalidArgument(
            argument, f"must hold finite points, and some are not finite, or hold numbers beyond {LARGEST:g}"
        )


def check_inputs(x: Tensor, low: float = -torch.inf, high: float = torch.inf) -> None:
    """Refuse inputs that no model takes: inputs that are not floats, not finite, or pixels out of range.

    Args:
        x: Inputs [N, ...], floats.
        low: Smallest value that a pixel of x [N, C, H, W] may have.
        high: Largest value that a pixel of x [N, C, H, W] may have.

    Raises:
        InvalidArgument: The inputs are of another type or range.
    """
    check_tensor("x", x)
    if not x.is_floating_point():
        raise InvalidArgument(
            "x",
            f"must hold floats, not {x.dtype}: scnf.data.batches.dequantize turns grey levels into pixels in [0, 1)",
        )
    if not x.numel():
        return
    least, most = (float(end) for end in x.detach().aminmax())
    if not (-torch.inf < least and most < torch.inf):  # NaN fails the comparison, too
        raise InvalidArgument("x", "must hold finite inputs, and some are not finite")
    if x.dim() == 4 and (least < low or most > high):
        raise InvalidArgument(
            "x",
            f"must hold pixels in [0, 1], not from {least:.2f} to {most:.2f}: do not standardise them; "
            "scnf.data.batches.dequantize turns grey levels into pixels in [0, 1)",
        )
