"""What is promised of data and labels, checked at the doors: where they come in from outside.

A check reads values, for which a GPU would have to wait. So sources of batches, evaluation and the start of a model
check always, a step of training where the values are at hand (:func:`at_hand`). What slips through there, a label of
no class on a GPU, is refused by the look-up itself.
"""

from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.errors import InvalidArgument


def at_hand(values: Tensor) -> bool:
    """Whether values can be read at once: on the CPU, unless a compiler traces what is done with them."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse what is not among the choices (InvalidArgument).

    Example:
        >>> check_choice("scale", "exp", ["sigmoid", "symmetric"])
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: scale must be one of sigmoid, symmetric; not 'exp'
    """
    if value not in choices:
        raise InvalidArgument(name, f"must be one of {', '.join(choices)}; not {value!r}")


def check_count(name: str, value: int, low: int = 1) -> None:
    """Refuse what is no whole number of `low` or more (InvalidArgument).

    Example:
        >>> check_count("batch_size", 0)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: batch_size must be a whole number of 1 or more, not 0
    """
    if not isinstance(value, Integral) or value < low:
        raise InvalidArgument(name, f"must be a whole number of {low} or more, not {value!r}")


def check_share(name: str, value: float, ends: bool = True) -> None:
    """Refuse what is no number from 0 to 1, or without `ends` what is 0 or 1 (InvalidArgument).

    Example:
        >>> check_share("alpha", 1.0, ends=False)
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: alpha must lie in (0, 1), not at 1.0
    """
    if not isinstance(value, Real) or not (0 <= value <= 1 if ends else 0 < value < 1):
        raise InvalidArgument(name, f"must lie in {'[0, 1]' if ends else '(0, 1)'}, not at {value!r}")


def check_tensor(name: str, value: Tensor) -> None:
    """Refuse arrays and lists (InvalidArgument)."""
    if not isinstance(value, Tensor):
        raise InvalidArgument(name, f"must be a tensor, not {type(value).__name__}: torch.as_tensor makes one")


def check_rows(rows: int, labels: int) -> None:
    """Refuse labels that are not as many as the rows they are of (ValueError)."""
    if rows != labels:
        raise ValueError(f"there are {rows} rows and {labels} labels")


def check_labels(y: Tensor, num_classes: int | None = None, hidden: bool = True, rows: int | None = None) -> None:
    """Refuse what is no vector of labels.

    Args:
        y: int64 [N].
        num_classes: K; labels may be of any class by default.
        hidden: whether some may be UNLABELLED.
        rows: N, where it is known.

    Raises:
        ValueError: another type, shape or length, or a number that is no label.

    Example:
        >>> check_labels(torch.tensor([0, 2, UNLABELLED]), num_classes=3)
        >>> check_labels(torch.tensor([0, -100]))
        Traceback (most recent call last):
        ...
        ValueError: labels are 0 or more, or UNLABELLED (-1) where they are hidden; these run from -100 to 0
    """
    check_tensor("y", y)
    if y.dtype != torch.int64 or y.dim() != 1:
        raise ValueError(f"labels are int64 of shape [N], not {y.dtype} of shape {list(y.shape)}")
    if rows is not None:
        check_rows(rows, len(y))
    if not len(y):
        return
    low, high = (int(end) for end in y.aminmax())
    if low < (UNLABELLED if hidden else 0) or (num_classes is not None and high >= num_classes):
        some = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        some += f", or UNLABELLED ({UNLABELLED}) where they are hidden" if hidden else ""
        raise ValueError(f"labels are {some}; these run from {low} to {high}")


def check_images(x: Tensor) -> None:
    """Refuse what are no images [N, C, H, W], one at least, with a pixel at least (ValueError)."""
    check_tensor("x", x)
    if x.dim() != 4:
        raise ValueError(f"images are of shape [N, C, H, W], not {list(x.shape)}")
    if not x.numel():
        raise ValueError(f"these images of shape {list(x.shape)} hold no pixel")


def check_data(x: Tensor, levels: int | None) -> None:
    """Refuse what are no data: images in whole grey levels, or points; one row at least.

    Args:
        x: whole numbers 0..levels-1, uint8 for up to 256 levels, [N, C, H, W]; or points, floats [N, D].
        levels: number of grey levels; None for points.

    Raises:
        ValueError: another type, shape or range.

    Example:
        >>> check_data(torch.randint(17, (2, 1, 8, 8), dtype=torch.uint8), levels=16)
        Traceback (most recent call last):
        ...
        ValueError: 16 grey levels are 0 to 15; these run from 0 to 16
    """
    check_tensor("x", x)
    if levels is None:
        if not x.is_floating_point() or x.dim() != 2:
            raise ValueError(
                f"points are floats of shape [N, D], not {x.dtype} of shape {list(x.shape)}; of images, say how many "
                "grey levels they have"
            )
        if not x.numel():
            raise ValueError(f"these points of shape {list(x.shape)} hold no number")
        if not bool(x.isfinite().all()):
            raise ValueError("some of these points are not finite")
        return
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        kind = "torch.uint8" if levels <= 256 else "torch.int32"
        raise ValueError(
            f"images of {levels} grey levels are whole numbers, not {x.dtype}: of floats in [0, 1], "
            f"(x * {levels - 1}).round().to({kind}) makes them"
        )
    check_images(x)
    low, high = (int(end) for end in x.aminmax())
    if low < 0 or high >= levels:
        raise ValueError(f"{levels} grey levels are 0 to {levels - 1}; these run from {low} to {high}")


def check_inputs(x: Tensor, low: float = -torch.inf, high: float = torch.inf) -> None:
    """Refuse what no model takes: whole numbers, numbers that are not finite, or, of images, that are no pixels.

    Args:
        x: floats [N, ...].
        low: the least that a pixel of x [N, C, H, W] may be.
        high: the most.

    Raises:
        ValueError: another type or range.
    """
    check_tensor("x", x)
    if not x.is_floating_point():
        raise ValueError(
            f"a model takes floats, not {x.dtype}: scnf.data.batches.dequantize makes pixels in [0, 1) of grey levels"
        )
    if not x.numel():
        return
    least, most = (float(end) for end in x.detach().aminmax())
    if not (-torch.inf < least and most < torch.inf):  # also where they are no numbers
        raise ValueError("some of these inputs are not finite")
    if x.dim() == 4 and (least < low or most > high):
        raise ValueError(
            f"pixels lie in [0, 1], and these run from {least:.2f} to {most:.2f}: do not standardise them; "
            "scnf.data.batches.dequantize makes them of grey levels"
        )
