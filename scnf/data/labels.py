"""Which rows keep their label, and which are set apart for validation.

The draw depends on `data_seed` alone, so runs with another training seed share one split. It is made once, written down
and checked on resume; after it, hidden labels are gone: training holds UNLABELLED in their place.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.errors import UserError


@dataclass(frozen=True)
class Split:
    """Rows of the training set by their use.

    Attributes:
        labelled: int64 [L], rows that keep their label, ascending.
        validation: int64 [V], rows that no step of a training sees, but whose labels pick the weights kept; ascending.
        num_rows: rows of the training set in all.
    """

    labelled: Tensor
    validation: Tensor
    num_rows: int

    @property
    def train(self) -> Tensor:
        """The rows to train on, int64 [N - V], which are all but the validation rows, ascending."""
        keep = torch.ones(self.num_rows, dtype=torch.bool)
        keep[self.validation] = False
        return keep.nonzero().squeeze(1)

    def visible(self, labels: Tensor) -> Tensor:
        """Labels [N] as training may see them: UNLABELLED wherever the label is hidden."""
        hidden = torch.full_like(labels, UNLABELLED)
        hidden[self.labelled] = labels[self.labelled]
        return hidden

    @property
    def sha256(self) -> str:
        """What tells this split from any other."""
        parts = [torch.tensor([self.num_rows]), torch.tensor([len(self.labelled)]), self.labelled, self.validation]
        return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The split for `split.json`."""
        return {
            "sha256": self.sha256,
            "num_rows": self.num_rows,
            "labelled": self.labelled.tolist(),
            "validation": self.validation.tolist(),
        }


def draw_split(
    labels: Tensor, num_classes: int, num_labels: int, num_validation: int, data_seed: int, balanced: bool = True
) -> Split:
    """Draw the validation rows first, then the labelled rows among the others.

    Args:
        labels: true labels [N] of the training set.
        num_classes: K.
        num_labels: how many rows keep their label, over all classes.
        num_validation: how many rows are set apart.
        data_seed: decides the draw, together with the labels.
        balanced: the same number of labels for each class.

    Raises:
        ValueError: `labels` are none of these classes.
        UserError: more rows are asked for than there are, or `num_labels` cannot be shared equally.

    Example:
        >>> split = draw_split(torch.arange(100) % 10, 10, num_labels=20, num_validation=30, data_seed=0)
        >>> len(split.labelled), len(split.validation), len(split.train)
        (20, 30, 70)
    """
    check_labels(labels, num_classes, hidden=False)
    total = len(labels)
    if num_validation < 1 or num_validation >= total:
        raise UserError(f"data.num_validation must lie between 1 and {total - 1}, not at {num_validation}")
    if not 0 <= num_labels <= total - num_validation:
        raise UserError(
            f"data.num_labels asks for {num_labels} labels and the data has {total - num_validation} training rows "
            f"beside {num_validation} for validation: ask for fewer"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(int(data_seed)))
    validation, pool = order[:num_validation], order[num_validation:]
    if balanced:
        each, rest = divmod(num_labels, num_classes)
        if rest:
            fewer = f"{each * num_classes} or " if each else ""
            raise UserError(
                f"data.num_labels = {num_labels} cannot be shared equally by {num_classes} classes: take "
                f"{fewer}{(each + 1) * num_classes}, or set data.balanced to false"
            )
        by_class = [pool[labels[pool] == label] for label in range(num_classes)]
        for label, rows in enumerate(by_class):
            if len(rows) < each:
                raise UserError(
                    f"data.num_labels = {num_labels} needs {each} labels of each class, and class {label} has only "
                    f"{len(rows)} training rows: ask for fewer, or set data.balanced to false"
                )
        labelled = torch.cat([rows[:each] for rows in by_class])
    else:
        labelled = pool[:num_labels]
    return Split(labelled.sort().values, validation.sort().values, total)
