"""Score each class of an evaluated split: precision, recall, F1 and the confusion matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scnf.analysis import plots
from scnf.checks import check_count, check_labels, check_share
from scnf.errors import InvalidArgument
from scnf.streams import printable
from scnf.words import counted

SHOWN = 20
"""Number of classes up to which text shows all of them, and the confusion matrix."""
_NORMAL_95 = 1.959964
_PAIRS = 5
_WIDTH = 100  # columns of the text
_NAME = 24  # columns of a name


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability from the share of successes (Wilson, JASA 22, 1927).

    Args:
        share: Share of successes, from 0 to 1.
        trials: Number of trials.

    Raises:
        InvalidArgument: The share is outside of [0, 1], or there are no trials.

    Example:
        >>> [round(end, 4) for end in wilson_interval(0.01, 10_000)]
        [0.0082, 0.0121]
    """
    check_share("share", share)
    check_count("trials", trials)
    centre = share + _NORMAL_95**2 / (2 * trials)
    spread = _NORMAL_95 * math.sqrt(share * (1 - share) / trials + _NORMAL_95**2 / (4 * trials**2))
    low, high = ((centre + sign * spread) / (1 + _NORMAL_95**2 / trials) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)  # rounding may leave [0, 1]


@dataclass(frozen=True)
class ClassScore:
    """The score of one class. A share of no rows is None.

    Attributes:
        name: Name of the class.
        rows: Number of rows of the class.
        predicted: Number of rows that are predicted as the class.
        precision: Share of the predicted rows that are of the class.
        recall: Share of the rows of the class that are predicted as the class.
        recall_interval: 95 % interval of the recall, see :func:`wilson_interval`.
        f1: Harmonic mean of precision and recall; 0 where no prediction is right.
    """

    name: str
    rows: int
    predicted: int
    precision: float | None
    recall: float | None
    recall_interval: tuple[float, float] | None
    f1: float | None


@dataclass(frozen=True)
class ClassReport:
    """Scores of all classes on one split.

    Attributes:
        class_names: Names of the classes [K].
        confusion: Numbers of rows [K, K], where row i and column j count the rows of class i predicted as class j.
        scores: Scores of the classes [K].

    Example:
        >>> report = score_classes(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), ("cat", "dog"))
        >>> report.confusion.tolist(), round(report.scores[0].recall, 2), report.scores[1].precision
        ([[2, 1], [0, 1]], 0.67, 0.5)
        >>> print(report.confused_text())
        1 of 3 rows of cat was taken for dog (33 %)
    """

    class_names: tuple[str, ...]
    confusion: np.ndarray
    scores: tuple[ClassScore, ...]

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have rows."""
        return float(np.mean([score.recall for score in self.scores if score.recall is not None]))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have rows or predictions."""
        return float(np.mean([score.f1 for score in self.scores if score.f1 is not None]))

    def confused(self, num: int | None = None) -> list[tuple[str, str, int]]:
        """Return class, predicted class and number of rows of pairs that are confused, the most frequent first.

        Args:
            num: Largest number of pairs; all by default.
        """
        errors = self.confusion.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[: np.count_nonzero(errors)]
        pairs = [divmod(int(index), len(errors)) for index in order[:num]]
        return [(self.class_names[true], self.class_names[other], int(errors[true, other])) for true, other in pairs]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers for a JSON file; a share of no rows is None."""
        keys = ("name", "rows", "predicted", "precision", "recall", "recall_interval", "f1")
        return {
            "rows": sum(score.rows for score in self.scores),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "classes": [{key: getattr(score, key) for key in keys} for score in self.scores],
            "confusion": self.confusion.tolist(),
            "most_confused": [{"class": a, "predicted": b, "rows": rows} for a, b, rows in self.confused(_PAIRS)],
        }

    def text(self) -> str:
        """Return the report for people: a table of classes, the confusion matrix of few classes, and confused pairs.

        With more than 20 classes, the table shows the 20 classes of lowest recall.
        """
        return "\n\n".join(part for part in (self._table_text(), self._matrix_text(), self.confused_text()) if part)

    def confused_text(self) -> str:
        """Return lines on the pairs that are confused most often."""
        rows = {score.name: score.rows for score in self.scores}
        lines = [
            f"{count:,} of {counted(rows[true], 'row')} of {printable(true)} {'was' if count == 1 else 'were'} taken "
            f"for {printable(other)} ({100 * count / rows[true]:.0f} %)"
            for true, other, count in self.confused(_PAIRS)
        ]
        return "\n".join(lines) if lines else "no class was taken for another"

    def _table_text(self) -> str:
        scores = list(self.scores)
        note = ""
        if len(scores) > SHOWN:
            scores = sorted(scores, key=lambda score: math.inf if score.recall is None else score.recall)[:SHOWN]
            note = f"\nthe {SHOWN} of {len(self.scores)} classes with the lowest recall; --json has all"
        lines = [["class", "rows", "precision", "recall", "95 % interval", "F1"]]
        for score in scores:
            ends = score.recall_interval
            interval = "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"
            shares = [_per_cent(score.precision), _per_cent(score.recall), interval, _per_cent(score.f1)]
            lines.append([_short(score.name, _NAME), f"{score.rows:,}", *shares])
        total = sum(score.rows for score in self.scores)
        lines.append(["mean", f"{total:,}", "", _per_cent(self.balanced_accuracy), "", _per_cent(self.macro_f1)])
        return _aligned(lines) + note

    def _matrix_text(self) -> str:
        if len(self.class_names) > SHOWN:
            return ""
        margin = max(len(_short(name, _NAME)) for name in self.class_names)
        digits = len(f"{int(self.confusion.max()):,}")
        width = max(digits, min(10, (_WIDTH - margin) // len(self.class_names) - 2), 3)
        lines = [["", *(_short(name, width) for name in self.class_names)]]
        for name, counts in zip(self.class_names, self.confusion.tolist(), strict=True):
            lines.append([_short(name, _NAME), *(f"{count:,}" if count else "." for count in counts)])
        return "rows of each class (down) by prediction (across)\n" + _aligned(lines)


def score_classes(y: Tensor | np.ndarray, predictions: Tensor | np.ndarray, class_names: Sequence[str]) -> ClassReport:
    """Score predictions against true labels, class by class.

    Args:
        y: True labels [N].
        predictions: Predicted labels [N].
        class_names: Names of the classes [K].

    Raises:
        InvalidArgument: There are no rows, the lengths differ, or a label is of no class.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from torch import as_tensor

    y, predictions = as_tensor(y).cpu(), as_tensor(predictions).cpu()
    if not len(y):
        raise InvalidArgument("y", "must hold at least one label")
    check_labels(y, len(class_names), hidden=False)
    check_labels(predictions, len(class_names), hidden=False, rows=len(y), argument="predictions")
    labels = range(len(class_names))
    confusion = confusion_matrix(y.numpy(), predictions.numpy(), labels=labels)
    shares = precision_recall_fscore_support(y.numpy(), predictions.numpy(), labels=labels, zero_division=np.nan)
    scores = []
    for index, (precision, recall, f1, rows) in enumerate(zip(*shares, strict=True)):
        interval = wilson_interval(float(recall), int(rows)) if rows else None
        predicted = int(confusion[:, index].sum())
        scores.append(
            ClassScore(
                class_names[index], int(rows), predicted, _known(precision), _known(recall), interval, _known(f1)
            )
        )
    return ClassReport(tuple(class_names), confusion, tuple(scores))


def plot_confusion(reports: dict[str, ClassReport], path: Path) -> None:
    """Draw the confusion matrix of each split in one picture, with counts, and colours by the share of a row.

    Args:
        reports: Reports by the title of their panel.
        path: Path of the PNG file.

    Raises:
        UserError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    num_classes = max(len(report.class_names) for report in reports.values())
    side = min(max(3.5, 1.5 + 0.45 * num_classes), 30.0)
    figure = Figure(figsize=(side * len(reports) + 0.8, side), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for axes, (title, report) in zip(panels, reports.items(), strict=True):
        rows = report.confusion.sum(axis=1, keepdims=True)
        shares = report.confusion / np.maximum(rows, 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [plots.plain(_short(name, _NAME)) for name in report.class_names]
        size = 9 if num_classes <= SHOWN else max(3.0, 9 * SHOWN / num_classes)
        axes.set_xticks(range(len(names)), names, rotation=90 if num_classes > 3 else 0, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set(title=plots.plain(title), xlabel="prediction", ylabel="class")
        for true, predicted in zip(*np.nonzero(report.confusion), strict=True):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            text = f"{report.confusion[true, predicted]:,}"
            axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=size)
    figure.colorbar(image, ax=panels, label="share of the class", shrink=0.8)
    plots.save(figure, path)


def _known(share: float) -> float | None:
    return None if math.isnan(share) else float(share)


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _short(name: str, width: int) -> str:
    name = printable(name)
    return name if len(name) <= width else name[: width - 1] + "…"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is aligned to the left and whose other columns to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)
