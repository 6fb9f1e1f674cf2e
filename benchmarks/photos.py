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


def link_photos(options: argparse.Namespace, split: int, target: Path) -> Path:
    """Make a folder of links, in which some photos of each kind have a label, and return the folder of the others.

    The names of the others begin with their kind. Where there are test photos, the folder has the parts train and test.
    """
    draw, train = random.Random(split), target
    if options.test:
        train = target / "train"
        for kind in options.kinds:
            (target / "test" / kind).mkdir(parents=True)
            for file in sorted((options.test / kind).iterdir()):
                (target / "test" / kind / file.name).symlink_to(file.resolve())
    others = train / "unlabelled"
    others.mkdir(parents=True)
    for kind in options.kinds:
        files = sorted(os.listdir(options.photos / kind))
        draw.shuffle(files)
        (train / kind).mkdir()
        for index, name in enumerate(files[: options.number]):
            place = train / kind / name
            if index >= options.labels:
                place = others / f"{kind}-{index:05d}{Path(name).suffix}"
            place.symlink_to((options.photos / kind / name).resolve())
    return others


def run(*words: str) -> None:
    """Run a command of scnf (CalledProcessError where it fails)."""
    subprocess.run([sys.executable, "-m", "scnf", *words], check=True, stdout=subprocess.DEVNULL)


def accuracy(run_directory: Path, photos: Path, table: Path) -> float:
    """Classify photos whose names begin with their kind, and return the share that is right."""
    run("predict", str(run_directory), str(photos), "--out", str(table))
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return statistics.fmean(row["class"] == kind_of(Path(row["file"])) for row in rows)


def kind_of(file: Path) -> str:
    """Return the kind of an unlabelled photo."""
    return file.name.rsplit("-", 1)[0]


def pixels(files: list[Path]) -> np.ndarray:
    """Return the pixels of images of one size, [N, D] in [0, 1]."""
    return np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.float32).ravel() / 255 for file in files])


def regression(train: Path, scored: list[Path], truth: list[str], kinds: list[str]) -> float:
    """Return the accuracy of logistic regression on the pixels of the labelled photos."""
    from sklearn.linear_model import LogisticRegression

    labelled = [(file, kind) for kind in kinds for file in sorted((train / kind).iterdir())]
    model = LogisticRegression(C=0.01, max_iter=2000)
    model.fit(pixels([file for file, _ in labelled]), [kind for _, kind in labelled])
    return float(np.mean(model.predict(pixels(scored)) == np.array(truth)))


def measure(options: argparse.Namespace, split: int, folder: Path) -> dict[str, float]:
    """Return accuracies, minutes and memory of one split."""
    others, logs = link_photos(options, split, folder / "photos"), folder / "logs"
    result: dict[str, float] = {}
    for name, words in (("scnf train", options.options), ("labels alone", LABELS_ALONE)):
        run("train", str(folder / "photos"), "--runs.root", str(logs), *words)
        last = max(logs.iterdir(), key=lambda path: path.name)
        summary = json.loads((last / "summary.json").read_text())
        test = summary["test"]
        result[name] = test["accuracy"] if test else accuracy(last, others, folder / "predictions.csv")
        result |= {f"{name}, minutes": summary["minutes"], f"{name}, MB": summary["peak_memory_mb"]}
        if test and "bits_per_dim" in test:
            result["bits/dim"] = test["bits_per_dim"]
    scored = sorted(others.iterdir())
    truth = [kind_of(file) for file in scored]
    if options.test:
        scored = [file for kind in options.kinds for file in sorted((folder / "photos" / "test" / kind).iterdir())]
        truth = [file.parent.name for file in scored]
    result["logistic regression"] = regression(others.parent, scored, truth, options.kinds)
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
