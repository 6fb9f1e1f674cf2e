"""Turn images or vectors in memory, with labels of which some are missing, into a dataset."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.class_names import check_class_names, confusable_names, natural_key
from scnf.data.inputs import Inputs, numbers
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument
from scnf.words import counted

_LEVELS = 256


def dataset_of(x: Any, y: Any, name: str = "arrays") -> Dataset:
    """Return a dataset of images or vectors in memory, without a test split.

    Args:
        x: Images [N, C, H, W], [N, H, W, C] or [N, H, W], as arrays or tensors of whole grey levels 0..255 or of floats
            in [0, 1], or vectors of numbers [N, D].
        y: Labels [N], which are integers or texts. -1, None or "" marks a row without a label.
        name: Name of the dataset.

    Raises:
        InvalidArgument: x holds no images or vectors, or y no labels of two classes or more.

    Example:
        >>> dataset = dataset_of(np.zeros((3, 8, 8)), ["cat", None, "dog"])
        >>> dataset.train_x.shape, dataset.train_y, dataset.class_names
        (torch.Size([3, 1, 8, 8]), tensor([ 0, -1,  1]), ('cat', 'dog'))
    """
    rows = rows_of(x)
    labels, names = labels_of(y)
    if len(labels) != len(rows):
        raise InvalidArgument(
            "y", f"must hold a label for each of the {counted(len(rows), 'row')} of x, not {len(labels)}"
        )
    levels = None if rows.dim() == 2 else _LEVELS
    dataset = Dataset(name, rows, labels, rows[:0], labels[:0], len(names), levels, names)
    known = int((labels != UNLABELLED).sum())
    report = f"{dataset.inputs().counted(len(rows))}, {known:,} of them with a label of {len(names)} classes"
    return replace(dataset, report=(report, *confusable_names(names)))


def labels_of(y: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as indices of classes [N], UNLABELLED where a row has none, and the names of the classes.

    Raises:
        InvalidArgument: y holds neither integers nor texts, or fewer than two classes.

    Example:
        >>> labels_of([7, -1, 3, 7])
        (tensor([ 1, -1,  0,  1]), ('3', '7'))
    """
    if isinstance(y, str) or not (hasattr(y, "tolist") or isinstance(y, Iterable)):
        raise InvalidArgument("y", "must hold a label for each row, or -1, None or '' for a row without one")
    values = y.tolist() if hasattr(y, "tolist") else list(y)
    if not isinstance(values, list):
        raise InvalidArgument("y", f"must hold a label for each row, not {values!r} alone")
    texts = [_text(value) for value in values]
    names = tuple(sorted({text for text in texts if text}, key=natural_key))
    try:
        check_class_names(names)
    except InvalidArgument as error:
        raise InvalidArgument("y", error.problem) from error
    if not names:
        raise InvalidArgument("y", "must hold labels of two classes or more, and no row has a label")
    index = {"": UNLABELLED} | {text: label for label, text in enumerate(names)}
    return torch.tensor([index[text] for text in texts]), names


def _text(label: Any) -> str:
    """Return a label as a text, "" where a row has none."""
    if isinstance(label, np.generic | Tensor):
        label = label.item()
    if label is None or (isinstance(label, str) and not label):
        return ""
    if isinstance(label, str):
        return label
    if isinstance(label, bool) or not isinstance(label, int) or label < UNLABELLED:
        raise InvalidArgument(
            "y", f"must hold texts, integers of 0 or more, or -1, None or '' for no label, not {label!r}"
        )
    return "" if label == UNLABELLED else str(label)


def rows_of(x: Any) -> Tensor:
    """Return grey levels, uint8 [N, C, H, W], or vectors, float32 [N, D], see :func:`dataset_of`.

    Raises:
        InvalidArgument: x holds no images or vectors.
    """
    if isinstance(x, Sequence) and x and hasattr(x[0], "shape"):
        x = np.stack([np.asarray(each) for each in x])
    array = numbers(x, "x")
    if array.dim() == 2:
        return Inputs((array.shape[1],), None, ("", "")).rows(array)
    channels = (1, 3)
    if array.dim() == 3:
        array = array[:, None]
    if array.dim() == 4 and array.shape[1] not in channels and array.shape[3] in channels:
        array = array.permute(0, 3, 1, 2)
    if array.dim() != 4 or array.shape[1] not in channels or not array.numel():
        raise InvalidArgument(
            "x", f"must be images [N, C, H, W], [N, H, W, C] or [N, H, W], or vectors [N, D], not {list(array.shape)}"
        )
    return Inputs(tuple(array.shape[1:]), _LEVELS, ("", "")).rows(array.contiguous())
