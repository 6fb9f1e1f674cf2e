"""Write what is usual among the images of a training beside its weights."""

import json

import numpy as np
from torch import Tensor

from scnf.analysis.unusual import FEWEST, Usual
from scnf.experiment import Experiment
from scnf.runs import Run
from scnf.trained import UNUSUAL, TrainedModel
from scnf.weights import Weights

_HELD_OUT = 100
"""Number of validation rows from which these rows are the reference."""
_ROWS = 1000


def write_usual(experiment: Experiment, weights: Weights) -> None:
    """Write the statistics of usual rows beside weights, for :meth:`scnf.trained.TrainedModel.unusual`.

    Nothing is written for a model without p(x), or for fewer than 20 rows.

    Args:
        experiment: Data and model with these weights. No label is read.
        weights: Location of the weights.
    """
    model = TrainedModel(experiment.model, experiment.dataset.inputs())
    rows, source = reference_rows(experiment)
    if model.has_density and len(rows) >= FEWEST:
        statistics = model.unusual_statistics(rows, model.answers(rows)[1])
        if np.isfinite(statistics).all(axis=1).sum() >= FEWEST:
            values = Usual.fit(statistics).to_json() | {"rows": source, "weights": weights.sha256}
            Run(weights.directory).write_text(UNUSUAL, json.dumps(values) + "\n")


def reference_rows(experiment: Experiment) -> tuple[Tensor, str]:
    """Return at most 1,000 rows to which others are compared, and their source.

    These are validation rows, which the weights were not fitted to. With fewer than 100 of them, they are training
    rows, with and without a label: a flow that has learned them by heart calls new images more unusual.
    """
    split = experiment.split
    chosen, source = split.validation, "validation"
    if len(chosen) < _HELD_OUT:
        chosen, source = split.train, "training"
    order = np.random.default_rng(0).permutation(len(chosen))[:_ROWS]
    return experiment.dataset.train_x[chosen[np.sort(order)]], source
