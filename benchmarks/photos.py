"""Measure a training on photos, of which a few have a label, beside networks and a regression on these labels alone.

    python benchmarks/photos.py photos --kinds cat deer horse ship truck --number 600 --labels 12
    python benchmarks/photos.py photos --labels 400 --test photos_test

`photos` holds a folder for each kind. For each split, links to its files make a folder in which `--labels` photos of
each kind have a label, and the others lie in `unlabelled/`. `scnf train` trains on it, and the unlabelled photos, or
those of `--test`, are scored. Their kinds are used for nothing else. Options after `--` go to `scnf train`.
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LABELS_ALONE = [
    *("--recipe", "classifier", "--classifier", "residual", "--labelled_share", "1", "--classifier_weight", "0"),
    *("--consistency_weight", "0", "--baseline", "false", "--max_steps", "3000", "--epochs", "1", "--passes", "1000"),
    *("--num_validation", "0", "--select", "last"),
]
"""The network that reads the class in scnf-reader, on the labels alone, with the same augmentation."""


def link_photos(source: Path, target: Path, kinds: list[str], number: int | None, labels: int, split: int) -> None:
    """Make a folder of links, in which `labels` photos of each kind have a label. Names of the others begin with it."""
    draw = random.Random(split)
    (target / "unlabelled").mkdir(parents=True)
    for kind in kinds:
        files = sorted(os.listdir(source / kind))
        draw.shuffle(files)
        (target / kind).mkdir()
        for index, name in enumerate(files[:number]):
            place = f"{kind}/{name}" if index < labels else f"unlabelled/{kind}-{index:05d}{Path(name).suffix}"
            (target / place).symlink_to((source / kind / name).resolve())


def run(*words: str) -> None:
    """Run a command of scnf (CalledProcessError where it fails)."""
    subprocess.run([sys.executable, "-m", "scnf", *words], check=True, stdout=subprocess.DEVNULL)


def accuracy(logs: Path, photos: Path, table: Path) -> float:
    """Classify photos whose folders, or else whose names, begin with their kind, and return the share that is right."""
    run("predict", "last", str(photos), "--logs", str(logs), "--out", str(table))
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return statistics.fmean(
        row["class"] == (row["file"].split("/")[0] if "/" in row["file"] else row["file"].rsplit("-", 1)[0])
        for row in rows
    )


def pixels(files: list[Path]) -> np.ndarray:
    """Return the pixels of images of one size, [N, D] in [0, 1]."""
    return np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.float32).ravel() / 255 for file in files])


def regression(train: Path, unlabelled: list[Path], truth: list[str], kinds: list[str]) -> float:
    """Return the accuracy of logistic regression on the pixels of the labelled photos."""
    from sklearn.linear_model import LogisticRegression

    labelled = [(file, kind) for kind in kinds for file in sorted((train / kind).iterdir())]
    model = LogisticRegression(C=0.01, max_iter=2000)
    model.fit(pixels([file for file, _ in labelled]), [kind for _, kind in labelled])
    return float(np.mean(model.predict(pixels(unlabelled)) == np.array(truth)))


def measure(options: argparse.Namespace, split: int, folder: Path) -> dict[str, float]:
    """Return accuracies and minutes of one split."""
    train, logs = folder / "photos", folder / "logs"
    link_photos(options.photos, train, options.kinds, options.number, options.labels, split)
    scored = options.test or train / "unlabelled"
    result: dict[str, float] = {}
    for name, words in (("scnf train", options.options), ("labels alone", LABELS_ALONE)):
        run("train", str(train), "--runs.root", str(logs), *words)
        last = max(logs.iterdir(), key=lambda path: path.name)
        result[name] = accuracy(logs, scored, folder / "predictions.csv")
        result[f"{name}, minutes"] = json.loads((last / "summary.json").read_text())["minutes"]
    files = [file for kind in options.kinds for file in (scored / kind).glob("*")] or sorted(scored.iterdir())
    truth = [file.parent.name if file.parent.name in options.kinds else file.name.rsplit("-", 1)[0] for file in files]
    result["logistic regression"] = regression(train, files, truth, options.kinds)
    return result


def main() -> None:
    """Print a line for each split, and mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--number", type=int, help="photos of each kind; all by default")
    parser.add_argument("--labels", type=int, required=True, help="photos of each kind that have a label")
    parser.add_argument("--test", type=Path, help="folder of photos to score; the unlabelled ones by default")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    words, _, options = " ".join(sys.argv[1:]).partition(" -- ")
    arguments = parser.parse_args(words.split())
    arguments.options = options.split()
    arguments.kinds = arguments.kinds or sorted(path.name for path in arguments.photos.iterdir() if path.is_dir())
    results = []
    for split in arguments.splits:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(arguments, split, Path(folder)))
        print(
            f"split {split}: {json.dumps({name: round(value, 4) for name, value in results[-1].items()})}", flush=True
        )
    for name in results[0]:
        values = [result[name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.fmean(values):.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()
