"""Draw how well posteriors fit labels: reliability diagrams, and the curve of risk and coverage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scnf.analysis.calibration import measure, risk_coverage
from scnf.analysis.plots import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 15  # those of the ECE
_COLOURS = {"before": "0.45", "after": "tab:blue"}


def draw(before: np.ndarray, after: np.ndarray, y: np.ndarray, path: Path) -> None:
    """Write reliability diagrams before and after calibration beside the risk-coverage curve.

    Args:
        before: log p(y | x) [N, K] in nats.
        after: Calibrated log p(y | x) [N, K] in nats.
        y: Labels [N].
        path: Path of the PNG file.

    Raises:
        InvalidArgument: There are no rows, or the labels do not fit the rows.
        UserError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "calibration.png"
        >>> log_probs = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        >>> draw(log_probs, log_probs, np.array([0, 1, 1]), target)
        >>> target.exists()
        True
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    *reliability, risk = figure.subplots(1, 3)
    for axes, (name, log_probs) in zip(reliability, (("before", before), ("after", after)), strict=True):
        _reliability(axes, log_probs, y, _COLOURS[name])
        axes.set_title(f"{name} calibration: ECE {measure(log_probs, y)['ece']:.3f}")
        coverage, risks = risk_coverage(log_probs, y)
        risk.plot(100 * coverage, 100 * risks, color=_COLOURS[name], label=f"{name}: area {risks.mean():.3f}")
    risk.set(xlabel="rows that are answered, surest first [%]", ylabel="errors among them [%]", xlim=(0, 100))
    risk.set_ylim(bottom=0)
    risk.set_title("risk and coverage")
    risk.legend(frameon=False)
    for axes in (*reliability, risk):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _reliability(axes: Axes, log_probs: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Plot accuracy against confidence by bins, with the share of the rows in each bin as bars."""
    confidence, is_right = np.exp(log_probs.max(axis=1)), log_probs.argmax(axis=1) == y
    index = np.clip((confidence * _BINS).astype(int), 0, _BINS - 1)
    rows = np.bincount(index, minlength=_BINS)
    bins = np.flatnonzero(rows)
    means = [100 * np.bincount(index, values, _BINS)[bins] / rows[bins] for values in (confidence, is_right)]
    centres = 100 * (np.arange(_BINS) + 0.5) / _BINS
    axes.bar(centres, 100 * rows / len(y), 90 / _BINS, color=colour, alpha=0.2, label="share of the rows")
    axes.plot([0, 100], [0, 100], color="black", linestyle=":", linewidth=1)
    axes.plot(*means, color=colour, marker="o", clip_on=False, label="accuracy")
    axes.set(xlabel="confidence [%]", ylabel="accuracy [%]", xlim=(0, 100), ylim=(0, 100))
    axes.legend(frameon=False, loc="upper left")
