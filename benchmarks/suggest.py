"""Measure on digits whether suggested labels help more than random ones, and whether wrong labels are found.

    python benchmarks/suggest.py labels --seeds 0 1 2 3 4 --by diverse margin entropy
    python benchmarks/suggest.py check --seeds 0 1 2 3 4

`labels`: a model trains on 50 random labels of the 1,347 training images. 50 more are suggested, and 50 others are
random; a new model trains on each of the two sets of 100. The columns are accuracies. `check`: a model trains on 300
random labels, of which 30 are wrong; the columns count how many of these are among the first 30 and 60 doubted.

Runs are those of `digits.yaml` without validation. Other words are settings, such as `--epochs 8`. Accuracy is that of
the test split. With `--split validation` it is that of 250 training images, which then do not train; choices are made
by these.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from scnf import UNLABELLED, cli, load
from scnf.analysis.suggest import doubted, suggest
from scnf.data.sources import DATASETS, Dataset
from scnf.data.sources import load as load_data
from scnf.runs import Run
from scnf.trained import TrainedModel

LABELS, MORE = 50, 50
NOISY, WRONG = 300, 30
HELD_OUT = 250
SETTINGS = "--data.name part --num_labels all --num_validation 0 --select last --threads 1"


class Trial:
    """The training images of one seed, in random order, and the trainings on some of their labels."""

    def __init__(self, seed: int, split: str, settings: list[str]) -> None:
        digits = load_data("digits")
        rows = torch.from_numpy(np.random.default_rng(1000).permutation(len(digits.train_x)))
        held_out, rows = (rows[:HELD_OUT], rows[HELD_OUT:]) if split == "validation" else (rows[:0], rows)
        self.x, self.y = digits.train_x[rows], digits.train_y[rows].numpy()
        self.score = (
            (digits.train_x[held_out], digits.train_y[held_out])
            if split == "validation"
            else (
                digits.test_x,
                digits.test_y,
            )
        )
        self.order = np.random.default_rng(seed).permutation(len(rows))
        self.settings = [*SETTINGS.split(), "--seed", str(seed), *settings]

    def train(self, rows: np.ndarray, labels: np.ndarray) -> tuple[TrainedModel, float]:
        """Train on the labels of some rows and on all images; return the model and its accuracy."""
        y = np.full(len(self.x), UNLABELLED)
        y[rows] = labels
        DATASETS["part"] = lambda root: Dataset("part", self.x, torch.from_numpy(y), *self.score, 10, 17)
        with tempfile.TemporaryDirectory() as folder:
            words = ["train", "--config", "digits.yaml", "--runs.root", folder, *self.settings]
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = cli.main(words)
            if code:
                raise SystemExit(f"scnf {' '.join(words)} ended with {code}: {output.getvalue()[-800:]}")
            run = Run.find(Path(folder), "last")
            return load(run.path), run.read_json("summary.json")["test"]["accuracy"]

    def answers(self, model: TrainedModel, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return p(y | x) and the representation of some rows."""
        x = self.x[torch.from_numpy(rows)]
        return model.answers(x)[0], model.representation(x)


def labels(trial: Trial, criteria: list[str]) -> dict[str, float]:
    """Return accuracies with the first labels, with random further labels and with suggested ones."""
    first, rest = np.split(trial.order, [LABELS])
    model, accuracy = trial.train(first, trial.y[first])
    posteriors, features = trial.answers(model, rest)
    rows = {"random": rest[:MORE]} | {by: rest[suggest(posteriors, features, MORE, by)] for by in criteria}
    return {"first": accuracy} | {
        name: trial.train(chosen, trial.y[chosen])[1]
        for name, more in rows.items()
        for chosen in [np.concatenate([first, more])]
    }


def check(trial: Trial, seed: int) -> dict[str, float]:
    """Return the accuracy with wrong labels, and how many of these are among the first doubted."""
    rows = trial.order[:NOISY]
    y = trial.y[rows]
    y[:WRONG] = (y[:WRONG] + np.random.default_rng(seed + 99).integers(1, 10, WRONG)) % 10
    model, accuracy = trial.train(rows, y)
    chosen, _ = doubted(*trial.answers(model, rows), y, 2 * WRONG)
    return {
        "accuracy": accuracy,
        "first 30": int((chosen[:WRONG] < WRONG).sum()),
        "first 60": int((chosen < WRONG).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["labels", "check"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--by", nargs="+", default=["diverse"], help="criteria of suggestions (diverse)")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    options, settings = parser.parse_known_args()
    results = []
    for seed in options.seeds:
        trial = Trial(seed, options.split, settings)
        results.append(labels(trial, options.by) if options.what == "labels" else check(trial, seed))
        print(json.dumps({"seed": seed, **results[-1]}), flush=True)
    means = {name: round(statistics.mean(row[name] for row in results), 4) for name in results[0]}
    print(json.dumps({"seed": "mean", **means}))


if __name__ == "__main__":
    main()
