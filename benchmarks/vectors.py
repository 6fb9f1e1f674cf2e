"""Compare the estimator with scikit-learn's on vectors of which a tenth has a label.

    python benchmarks/vectors.py                 # accuracy on test rows, mean and spread of three label splits
    python benchmarks/vectors.py --validation    # on validation rows, by which defaults are chosen
    python benchmarks/vectors.py --validation --set objective.classifier_weight=3 --only scnf

A split holds out 30 % of the rows as test rows, then 25 % of the others as validation rows. A tenth of the training
rows keeps its label, stratified by class. Test figures train on training and validation rows together, of which a tenth
has a label. All methods see standardised columns. LabelSpreading has scikit-learn's default (rbf) and neighbours (knn).
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from scnf import SemiSupervisedClassifier

DATASETS = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}
SHARE = 0.1
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(name: str, seed: int, validation: bool) -> Rows:
    """Training rows with hidden labels (-1), and the rows to score with their labels."""
    x, y = DATASETS[name](return_X_y=True)
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    if validation:
        x, test_x, y, test_y = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    labelled, _ = train_test_split(np.arange(len(y)), train_size=SHARE, stratify=y, random_state=seed)
    visible = np.full_like(y, -1)
    visible[labelled] = y[labelled]
    return x, visible, test_x, test_y


class Supervised(LogisticRegression):
    """Logistic regression on the labelled rows alone."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Supervised":
        super().fit(X[y >= 0], y[y >= 0])
        return self


def methods(settings: dict[str, Any]) -> dict[str, Callable[[int], Any]]:
    named = {name: settings.pop(name) for name in ("steps", "lr", "classifier_weight") if name in settings}
    return {
        "logistic regression": lambda seed: Supervised(max_iter=1000),
        "self-training": lambda seed: SelfTrainingClassifier(LogisticRegression(max_iter=1000)),
        "label spreading, rbf": lambda seed: LabelSpreading(),
        "label spreading, knn": lambda seed: LabelSpreading(kernel="knn"),
        "scnf": lambda seed: SemiSupervisedClassifier(settings=settings, random_state=seed, device="cpu", **named),
    }


def scores(name: str, make: Callable[[int], Any], seeds: range, validation: bool) -> Iterator[float]:
    for seed in seeds:
        x, y, test_x, test_y = split(name, seed, validation)
        model = make_pipeline(StandardScaler(), make(seed)).fit(x, y)
        yield 100 * float(np.mean(model.predict(test_x) == test_y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", action="store_true", help="score validation rows")
    parser.add_argument("--seeds", type=int, default=3, help="number of label splits (3)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters and settings of scnf")
    parser.add_argument("--only", nargs="*", help="these methods alone")
    parser.add_argument("--data", nargs="*", default=list(DATASETS), help="these data alone")
    options = parser.parse_args()
    settings: dict[str, Any] = dict(word.split("=", 1) for word in options.set)
    for name, kind in (("steps", int), ("lr", float), ("classifier_weight", float)):
        if name in settings:
            settings[name] = kind(settings[name])
    warnings.simplefilter("ignore")
    seeds = range(100, 100 + options.seeds) if options.validation else range(options.seeds)
    print(f"{'accuracy in %, mean and standard deviation':44}" + "".join(f"{name:>20}" for name in options.data))
    for method, make in methods(settings).items():
        if options.only and method not in options.only:
            continue
        cells, started = [], time.perf_counter()
        for name in options.data:
            values = list(scores(name, make, seeds, options.validation))
            cells.append(f"{np.mean(values):.1f} +- {np.std(values, ddof=1):.1f}")
        seconds = (time.perf_counter() - started) / (len(seeds) * len(cells))
        print(f"{method:24}{seconds:12.2f} s a fit" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
