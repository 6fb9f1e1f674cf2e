"""Run `scnf calibrate`, which fits a temperature and prediction sets to labelled images outside of training."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scnf.commands import options
from scnf.errors import InvalidArgument, UserError
from scnf.words import counted

if TYPE_CHECKING:
    import numpy as np

    from scnf.analysis.calibration import Calibration, CrossFit

_FEW_LABELS = 50
"""Number of labels below which the figures are too uncertain to rely on."""


def calibrate(words: Sequence[str]) -> int:
    """Fit a calibration, write it beside the weights, and print what it changes."""
    arguments, overrides = _parser().parse_known_args(words)

    from scnf import shipped
    from scnf.analysis import calibration as analysis
    from scnf.analysis import reliability
    from scnf.files import write_text
    from scnf.trained import CALIBRATION
    from scnf.weights import find_weights

    weights = find_weights(arguments.weights, arguments.logs)
    if arguments.out is None and shipped.is_shipped(weights.directory):
        raise UserError(
            f"nothing is written beside weights that ship: name a directory with --out DIR, and apply the calibration "
            f"with `scnf predict {arguments.weights} IMAGES --calibration DIR`"
        )
    log_probs, y, source = _labelled_rows(arguments, overrides)
    if len(y) < _FEW_LABELS:
        print(
            f"warning: {counted(len(y), 'label is', 'labels are')} few for a calibration: its figures are "
            f"uncertain below {_FEW_LABELS}",
            file=sys.stderr,
        )
    try:
        fitted = analysis.calibrate(log_probs, y, arguments.alpha)
        crossed = analysis.cross_fit(log_probs, y, arguments.alpha)
    except InvalidArgument as error:
        raise UserError(f"these rows cannot be calibrated on: {error}. Give others") from error
    if not fitted.threshold:
        print(
            f"note: {counted(len(y), 'label is', 'labels are')} too few for sets that miss the class in "
            f"{100 * arguments.alpha:g} % of the rows at most: the sets hold all classes",
            file=sys.stderr,
        )
    figures = _figures(log_probs, crossed, y)
    print(_text(fitted, figures, len(y), source, log_probs.shape[1]))
    out = arguments.out or weights.directory
    values = fitted.to_json() | {"weights": weights.sha256, "labels_from": source, "cross_fitted": figures}
    reliability.draw(log_probs, crossed.log_probs, y, out / "calibration.png")
    write_text(out / CALIBRATION, json.dumps(values, indent=2) + "\n")
    print(f"{CALIBRATION} and calibration.png are in {out}")
    return 0


def _parser() -> options.Parser:
    parser = options.weights_parser(
        "calibrate",
        "Fit a temperature and prediction sets to the validation rows of a run, or to labelled images of your own.",
    )
    parser.add_argument(
        "--alpha", type=_share, default=0.1, help="share of images whose prediction set may miss the class (0.1)"
    )
    parser.add_argument(
        "--labels",
        type=options.path,
        metavar="PATH",
        help="folder, CSV list or .npz file of labelled images that were not trained on (the validation rows)",
    )
    parser.add_argument("--out", type=options.path, metavar="DIR", help="directory for the files (beside the weights)")
    return parser


def _share(text: str) -> float:
    """Convert the text of --alpha, which is above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"it must be a number between 0 and 1, not {text!r}")
    return value


def _labelled_rows(arguments: Any, overrides: Sequence[str]) -> "tuple[np.ndarray, np.ndarray, str]":
    """Return log p(y | x) [N, K], labels [N] and a name of the labelled rows."""
    from scnf.experiment import load_model, load_trained
    from scnf.trained import TrainedModel
    from scnf.weights import find_weights

    if arguments.labels is not None:
        model = TrainedModel(*load_model(arguments.weights, arguments.logs, overrides))
        weights = find_weights(arguments.weights, arguments.logs)
        rows, y = options.labelled_rows(arguments.labels, model.inputs, weights, "--labels ")
        return model.log_answers(rows)[0], y.numpy(), str(arguments.labels)
    experiment = load_trained(arguments.weights, arguments.logs, overrides)
    rows, y = experiment.rows_of("validation")
    if not len(y):
        noun = experiment.dataset.inputs().noun
        raise UserError(
            f"{arguments.weights} has no validation rows to calibrate on: train with some, `scnf train FILES "
            f"--num_validation N`, or give labelled {noun}s that were not trained on with --labels PATH"
        )
    experiment.set_threads(experiment.trial_evaluation, options.print_line)
    model = TrainedModel(experiment.model, experiment.dataset.inputs())
    return model.log_answers(rows)[0], y.numpy(), "validation"


def _figures(log_probs: "np.ndarray", crossed: "CrossFit", y: "np.ndarray") -> dict[str, Any]:
    """Return the metrics before and after calibration, and coverage and mean size of the prediction sets."""
    import numpy as np

    from scnf.analysis.calibration import FOLDS, measure

    return {
        "folds": min(FOLDS, len(y)),
        "before": measure(log_probs, y),
        "after": measure(crossed.log_probs, y),
        "coverage": float(crossed.sets[np.arange(len(y)), y].mean()),
        "mean_size": float(crossed.sets.sum(axis=1).mean()),
    }


def _text(fitted: "Calibration", figures: dict[str, Any], rows: int, source: str, num_classes: int) -> str:
    """Return the figures as a table with what they are of."""
    named = {
        "accuracy": ("accuracy", "{:.3f}"),
        "ece": ("ECE", "{:.3f}"),
        "nll": ("NLL [nats]", "{:.3f}"),
        "brier": ("Brier score", "{:.3f}"),
        "aurc": ("area under risk-coverage", "{:.3f}"),
    }
    before, after = figures["before"], figures["after"]
    coverage = figures["coverage"]
    deviation, goal = (coverage * (1 - coverage) / rows) ** 0.5, 100 * (1 - fitted.alpha)
    words = (
        ("validation row",) if source == "validation" else (f"labelled row of {source}", f"labelled rows of {source}")
    )
    return "\n".join(
        [
            f"{counted(rows, *words)}; `after` and the sets are cross-fitted: each of {figures['folds']} parts by "
            "the others",
            f"{'':<26}{'before':>8}{'after':>8}",
            *(
                f"{name:<26}{form.format(before[key]):>8}{form.format(after[key]):>8}"
                for key, (name, form) in named.items()
            ),
            f"prediction sets (LAC, goal {goal:.4g} %): {100 * coverage:.1f} % hold the class (deviation "
            f"{100 * deviation:.1f} %), {figures['mean_size']:.2f} of {num_classes} classes each",
            f"temperature {fitted.temperature:.3g}, lowest probability in a set {fitted.threshold:.3g}",
        ]
    )
