"""Correct the posteriors of `scnf predict --prior` for another mix of classes."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from scnf.errors import InvalidArgument, UserError

if TYPE_CHECKING:
    import numpy as np

    from scnf.trained import TrainedModel

_NEARLY_ALL, _SEVERAL = 0.95, 20
"""Share of one class in an estimated mix, and number of images, from which a note is printed."""


class Densities(NamedTuple):
    """The density log p(x) in nats, and how unusual an image is; None where the model does not know."""

    log_prob: float
    unusual: float | None = None


Prediction = tuple[str, "np.ndarray", Densities]
"""Name of an image, p(y | x) [K], and its densities."""


def add_options(parser: Any) -> None:
    """Add --prior and --training-prior to a parser."""
    parser.add_argument(
        "--prior",
        metavar="em|uniform|[...]",
        help="mix of classes among these images: estimated from them, uniform, or K probabilities (that of training)",
    )
    parser.add_argument(
        "--training-prior",
        metavar="uniform|[...]",
        help="mix of classes that p(y | x) was trained for, where it is not the p(y) of the model",
    )


def reweighted(model: "TrainedModel", predictions: Iterator[Prediction], options: Any) -> Iterator[Prediction]:
    """Return the predictions under the prior of the options.

    An estimated prior needs the posteriors of all images first, and is printed.

    Raises:
        UserError: The options are no priors over the classes of the model.
    """
    num_classes = len(model.class_names)
    if options.prior is None:
        if options.training_prior is not None:
            raise UserError("--training-prior has an effect with --prior alone: add --prior em")
        return predictions
    trained = _training_prior(model, options.training_prior)
    if options.prior == "em":
        return _estimated(model, predictions, trained)
    return _fixed(predictions, trained, _parse("--prior", options.prior, num_classes, "em, uniform"))


def _training_prior(model: "TrainedModel", text: str | None) -> "np.ndarray":
    """Return the prior of training [K]: the one given, else that of the model, else the uniform one with a note."""
    import numpy as np

    num_classes = len(model.class_names)
    if text is not None:
        prior = _parse("--training-prior", text, num_classes, "uniform")
        if not (prior > 0).all():
            raise UserError("--training-prior must be above 0 for each class, because posteriors are divided by it")
        return prior
    if (prior_of_model := model.prior) is not None:
        return prior_of_model
    print(
        "note: this model has no p(y): the classes of its labels are taken to be equally frequent. --training-prior "
        "names another mix",
        file=sys.stderr,
    )
    return np.full(num_classes, 1 / num_classes)


def _parse(name: str, text: str, num_classes: int, words: str) -> "np.ndarray":
    """Return the prior [K] that an option names (UserError)."""
    import numpy as np

    from scnf.analysis.label_shift import check_prior

    if text == "uniform":
        return np.full(num_classes, 1 / num_classes)
    try:
        return check_prior(name, json.loads(text), num_classes)
    except (ValueError, TypeError, RecursionError) as error:
        problem = error.problem if isinstance(error, InvalidArgument) else f"must be {words} or [p1,p2,...]"
        raise UserError(f"{name} {problem}, not {text:.80}") from error


def _estimated(model: "TrainedModel", predictions: Iterator[Prediction], trained: "np.ndarray") -> Iterator[Prediction]:
    import numpy as np

    from scnf.analysis.label_shift import estimate_prior, reweight

    if model.calibration is None:
        print(
            "note: the estimate relies on p(y | x), which is not calibrated: run `scnf calibrate` before",
            file=sys.stderr,
        )
    listed = list(predictions)
    if not listed:
        return
    posteriors = np.stack([posterior for _, posterior, _ in listed])
    prior = estimate_prior(posteriors, trained)
    pairs = zip(model.class_names, prior, trained, strict=True)
    if len(listed) >= _SEVERAL and prior.max() > _NEARLY_ALL > trained.max():
        print(
            "note: nearly all images are estimated to be of one class, which a model that is seldom right gives, too: "
            "compare with its predictions without --prior",
            file=sys.stderr,
        )
    print("estimated p(y) (training): " + ", ".join(f"{name} {new:.3f} ({old:.3f})" for name, new, old in pairs))
    posteriors = reweight(posteriors, trained, prior)
    yield from ((name, row, density) for (name, _, density), row in zip(listed, posteriors, strict=True))


def _fixed(predictions: Iterator[Prediction], trained: "np.ndarray", prior: "np.ndarray") -> Iterator[Prediction]:
    from scnf.analysis.label_shift import reweight

    for name, posterior, density in predictions:
        yield name, reweight(posterior[None], trained, prior)[0], density
