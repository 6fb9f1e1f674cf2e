"""Choose the settings of a training from the data, for people who name data and nothing else."""

from scnf import UNLABELLED
from scnf.data.sources import Dataset

_FEW_LABELS = 500
"""Number of labels below which none is held out for validation."""
_STEPS = 3000
"""Number of optimiser steps that a training takes at least."""
_SHARE_UNLABELLED = 0.75
"""Share of unlabelled rows in a batch."""
_VECTOR_STEPS = 2000
_PHOTOS = {
    "model.recipe": "scnf-reader",
    "data.augment": "1",
    "data.augmentation": "photo",
    "objective.classifier_weight": "1",
    "objective.consistency_weight": "1",
    "objective.confidence": "adaptive",
    "train.batch_size": "128",
}
_SMALL_IMAGES = {
    "model.recipe": "scnf-digits",
    "data.augment": "0.5",
    "objective.classifier_weight": "30",
    "objective.consistency_weight": "30",
    "objective.temperature": "4",
}
_STANDARDISED = {
    "model.recipe": "scnf-toy",
    "model.conditional": "gaussian",
    "model.steps": "2",
    "model.channels": "32",
    "data.augment": "0.8",
    "objective.classifier_weight": "100",
    "objective.consistency_weight": "100",
    "objective.temperature": "8",
    "objective.confidence": "0.8",
    "train.lr": "5e-3",
}
"""The settings of standardised vectors, chosen on validation rows, see benchmarks/vectors.py."""


def choose(dataset: Dataset, steps: int | None = None, standardised: bool = False) -> dict[str, str]:
    """Return settings by name for data of this size and with this number of labels.

    With few labels all of them train, and the last weights are kept. Otherwise a fifth of the labels selects the best
    weights. Images of 16 pixels or more, of even sides, train the recipe of photos, and other images that of digits.

    Args:
        dataset: Data of the training.
        steps: Number of optimiser steps; None chooses it.
        standardised: Whether vectors have columns of mean 0 and standard deviation 1, so that noise may move them.
    """
    labels, rows = int((dataset.train_y != UNLABELLED).sum()), len(dataset.train_y)
    held_out = 0 if labels < _FEW_LABELS else min(5000, labels // 5)
    chosen = {
        "data.num_labels": "all",
        "data.num_validation": str(held_out),
        "train.select": "accuracy" if held_out else "last",
        "train.batch_size": "64",
        "train.lr": "2e-3",
        "train.ema": "0.998",
    }
    if dataset.levels is None and standardised:
        chosen |= _STANDARDISED
        steps = _VECTOR_STEPS if steps is None else steps
    elif dataset.levels is None:
        chosen["model.recipe"] = "scnf-toy"
        chosen["objective.classifier_weight"] = "1"
    else:
        channels, *size = dataset.train_x.shape[1:]
        large = min(size) >= 16 and all(side % 2 == 0 for side in size)
        chosen |= {"train.baseline": "true"} | (_PHOTOS if large else _SMALL_IMAGES)
        if channels == 1:  # digits and letters must not be flipped
            chosen["data.augmentation"] = "affine"
    per_step = round(_SHARE_UNLABELLED * int(chosen["train.batch_size"]))
    if steps is not None:
        return chosen | _length(rows - held_out, per_step, steps, 10 if held_out else 1)
    per_pass = max(1, (rows - held_out) // per_step)
    passes = max(1, -(-_STEPS // (10 * per_pass)))
    return chosen | {"train.epochs": "10", "train.passes": str(passes)}


def _length(rows: int, per_step: int, steps: int, epochs: int) -> dict[str, str]:
    """Return the settings of a training of `steps` steps, with at most 1,000 passes over the rows in an epoch.

    A step takes `per_step` unlabelled rows.
    """
    passes = min(1000, -(-steps * per_step // (epochs * rows)))
    per_epoch = max(1, passes * rows // per_step)
    epochs = max(epochs, -(-steps // per_epoch))
    return {"train.epochs": str(epochs), "train.passes": str(max(1, passes)), "train.max_steps": str(steps)}
