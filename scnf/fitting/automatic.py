"""Choose the settings of a training from the data, for people who name data and nothing else."""

from scnf import UNLABELLED
from scnf.data.sources import Dataset

_FEW_LABELS = 500
"""Number of labels below which none is held out for validation."""
_STEPS = 2000
"""Number of optimiser steps that a training takes at least."""
_BATCH = 64
_UNLABELLED_ROWS = 48  # in a batch
_VECTORS = {
    "model.recipe": "scnf-vectors",
    "model.prior": "empirical",
    "data.augment": "1",
    "objective.classifier_weight": "100",
    "objective.consistency_weight": "1000",
    "objective.consistency_ramp": "0",
    "objective.temperature": "8",
    "objective.confidence": "1",
    "objective.propagations": "10",
    "objective.neighbours": "posterior",
    "train.lr": "1e-2",
}
"""The settings of vectors, chosen on validation rows, see benchmarks/vectors.py."""
_FEW_VECTORS = 1000
"""Number of vectors below which the flow is linear, and the training takes `_LINEAR_STEPS`."""
_LINEAR_STEPS = 800


def choose(dataset: Dataset, steps: int | None = None) -> dict[str, str]:
    """Return settings by name for data of this size and with this number of labels.

    With few labels all of them train, and the last weights are kept. Otherwise a fifth of the labels selects the best
    weights. Images of 16 pixels or more train the recipe of the main job, smaller ones that of the digits.
    Large images get no consistency term: on photos with few labels, most targets by the model itself were wrong.

    Args:
        dataset: Data of the training.
        steps: Number of optimiser steps; None chooses it.
    """
    labels, rows = int((dataset.train_y != UNLABELLED).sum()), len(dataset.train_y)
    held_out = 0 if labels < _FEW_LABELS else min(5000, labels // 5)
    chosen = {
        "data.num_labels": "all",
        "data.num_validation": str(held_out),
        "train.select": "accuracy" if held_out else "last",
        "train.batch_size": str(_BATCH),
        "train.lr": "2e-3",
        "train.ema": "0.998",
    }
    least = _STEPS
    if dataset.levels is None:
        is_linear = rows < _FEW_VECTORS
        chosen |= _VECTORS | {"model.steps": "0" if is_linear else "2", "train.ema": "0.99" if is_linear else "0.998"}
        least = _LINEAR_STEPS if is_linear else _STEPS
    else:
        large = min(dataset.train_x.shape[2:]) >= 16
        colour = dataset.train_x.shape[1] == 3
        chosen |= {
            "model.recipe": "scnf-hybrid" if large else "scnf-digits",
            "data.augment": "1" if colour else "0.5",
            "data.flip": str(colour).lower(),
            "objective.classifier_weight": "2000" if large else "30",
            "objective.consistency_weight": "0" if large else "30",
            "objective.temperature": "4",
        }
    if steps is not None:
        in_epochs = held_out or dataset.levels is None  # which evaluate, or renew the pseudo-labels
        return chosen | _length(rows - held_out, steps, 10 if in_epochs else 1)
    per_pass = max(1, (rows - held_out) // _UNLABELLED_ROWS)
    passes = max(1, -(-least // (10 * per_pass)))
    return chosen | {"train.epochs": "10", "train.passes": str(passes)}


def _length(rows: int, steps: int, epochs: int) -> dict[str, str]:
    """Return the settings of a training of `steps` steps, with at most 1,000 passes over the rows in an epoch."""
    passes = min(1000, -(-steps * _UNLABELLED_ROWS // (epochs * rows)))
    per_epoch = max(1, passes * rows // _UNLABELLED_ROWS)
    epochs = max(epochs, -(-steps // per_epoch))
    return {"train.epochs": str(epochs), "train.passes": str(max(1, passes)), "train.max_steps": str(steps)}
