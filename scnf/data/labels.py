"""Choose the rows that keep their label and the rows of the validation split.

The draw depends on `data_seed` alone, so runs with different training seeds share one split. The split is drawn once,
saved with the run and checked on resume. Training never holds hidden labels, only UNLABELLED in their place.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.errors import InvalidArgument


@dataclass(frozen=True)
class Split:
    """Row indices that split the training set into labelled, unlabelled and validation rows.

    Attributes:
        labelled: Rows that keep their label, int64 [L], ascending.
        validation: Validation rows, int64 [V], ascending. No training step uses them, but their labels select the best
            weights.
        num_rows: Number of rows in the training set.
    """

    labelled: Tensor
    validation: Tensor
    num_rows: int

    @property
    def train(self) -> Tensor:
        """Training rows, int64 [N - V], which are all but the validation rows in ascending order."""
        keep = torch.ones(self.num_rows, dtype=torch.bool)
        keep[self.validation] = False
        return keep.nonzero().squeeze(1)

    def visible(self, labels: Tensor) -> Tensor:
        """Return the labels [N] that training may use, with UNLABELLED in place of each hidden label."""
        hidden = torch.full_like(labels, UNLABELLED)
        hidden[self.labelled] = labels[self.labelled]
        return hidden

    @property
    def sha256(self) -> str:
        """SHA-256 checksum that identifies this split."""
        parts = [torch.tensor([self.num_rows]), torch.tensor([len(self.labelled)]), self.labelled, self.validation]
        return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the split as it is written to `split.json`."""
        return {
            "sha256": self.sha256,
            "num_rows": self.num_rows,
            "labelled": self.labelled.tolist(),
            "validation": self.validation.tolist(),
        }


def draw_split(
    labels: Tensor, num_classes: int, num_labels: int | None, num_validation: int, data_seed: int, balanced: bool = True
) -> Split:
    """Draw the validation rows first, then the labelled rows among the remaining rows.

    Rows whose class nobody knows are training rows without a label.

    Args:
        labels: True labels [N] of the training set, UNLABELLED where nobody knows the class.
        num_classes: Number of classes K.
        num_labels: Number of rows that keep their label, over all classes; None for all labels.
        num_validation: Number of validation rows.
        data_seed: Seed of the draw, which depends on it and the labels alone.
        balanced: Whether each class gets the same number of labels.

    Raises:
        InvalidArgument: a label is not one of the classes, the data has too few rows, or `num_labels` cannot be shared
            equally.

    Example:
        >>> split = draw_split(torch.arange(100) % 10, 10, num_labels=20, num_validation=30, data_seed=0)
        >>> len(split.labelled), len(split.validation), len(split.train)
        (20, 30, 70)
    """
    check_labels(labels, num_classes, argument="labels")
    total, known = len(labels), int((labels != UNLABELLED).sum())
    kind = "training rows" if known == total else "rows with a label"
    if not 0 <= num_validation < max(1, known):
        raise InvalidArgument("num_validation", f"must be between 0 and {max(0, known - 1)}, not {num_validation}")
    if num_labels is not None and not 0 <= num_labels <= known - num_validation:
        raise InvalidArgument(
            "num_labels",
            f"asks for {num_labels} labels and the data has {known - num_validation} {kind} "
            f"beside {num_validation} validation rows: ask for fewer labels",
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(int(data_seed)))
    order = order[labels[order] != UNLABELLED]
    validation, pool = order[:num_validation], order[num_validation:]
    if num_labels is None:
        labelled = pool
    elif balanced:
        per_class, remainder = divmod(num_labels, num_classes)
        if remainder:
            fewer = f"{per_class * num_classes} or " if per_class else ""
            raise InvalidArgument(
                "num_labels",
                f"= {num_labels} cannot be shared equally by {num_classes} classes: take "
                f"{fewer}{(per_class + 1) * num_classes}, or set balanced to false",
            )
        by_class = [pool[labels[pool] == label] for label in range(num_classes)]
        for label, rows in enumerate(by_class):
            if len(rows) < per_class:
                raise InvalidArgument(
                    "num_labels",
                    f"= {num_labels} needs {per_class} labels of each class, and class {label} has "
                    f"only {len(rows)} training rows: ask for fewer labels, or set balanced to false",
                )
        labelled = torch.cat([rows[:per_class] for rows in by_class])
    else:
        labelled = pool[:num_labels]
    return Split(labelled.sort().values, validation.sort().values, total)
