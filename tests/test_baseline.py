"""The labels-only network that a training of images is compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conftest import TINY_DIGITS
from scnf.runs import Run

SMALL = [*TINY_DIGITS, "--passes", "20", "--epochs", "2"]


def test_baseline_without_held_out_rows_is_cross_validated(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    outcome = scnf("train photos", *SMALL)
    assert outcome.code == 0, outcome.err
    summary = last_run().read_json("summary.json")
    baseline, steps = summary["baseline"], summary["steps"]
    assert baseline["validation"] == baseline["test"] == {} and baseline["labels"] == 24
    assert baseline["steps"] == steps  # no longer than the training
    assert baseline["cross_validation"]["accuracy"] >= 0.7  # bright and dark photos are easy
    assert " % on cross-validation (a network of the 24 labelled rows" in outcome.out


def test_baseline_is_scored_on_validation_and_test_rows(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    train, test = photos.parent / "both" / "train", photos.parent / "both" / "test"
    photos.rename(photos.parent / "train")
    train.parent.mkdir()
    (photos.parent / "train").rename(train)
    for name in ("day", "nuit, étoilée"):
        (test / name).mkdir(parents=True)
        for number in range(6):
            (train / name / f"{number}.png").rename(test / name / f"{number}.png")
    outcome = scnf("train both", *SMALL, "--num_validation 4 --select accuracy")
    assert outcome.code == 0, outcome.err
    baseline = last_run().read_json("summary.json")["baseline"]
    assert baseline["cross_validation"] == {} and baseline["labels"] == 8
    assert baseline["validation"]["accuracy"] >= 0.75 and baseline["test"]["accuracy"] >= 0.75
    before, _, after = outcome.out.partition("epoch ")
    assert "on validation" in before and "on test" not in before and "% on test (a network" in after


def test_training_that_is_worse_than_its_baseline_says_so(scnf: Callable[..., Any], photos: Path) -> None:
    note = "note: labels alone were better on validation, so the unlabelled images did harm: try"
    words = [*SMALL, "--num_validation", "8", "--select", "accuracy"]
    assert note in scnf("train photos", *words, "--lr 1e-9 --optimizer adam").out
    assert note not in scnf("train photos", *words, "--baseline false").out


def test_baseline_leaves_the_training_as_it_is_and_is_kept_by_a_resume(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    weights = []
    for baseline in ("false", "true"):
        assert scnf("train photos", *SMALL, f"--baseline {baseline} --max_steps 2").code == 0
        assert (last_run().path / "baseline.json").is_file() == ("baseline" in last_run().read_json("summary.json"))
        weights.append(load_file(last_run().weights))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    run = last_run()
    before = (run.path / "baseline.json").read_bytes()
    outcome = scnf("train --resume last --max_steps 4")
    assert outcome.code == 0 and "labels alone: " in outcome.out, outcome.err
    assert (run.path / "baseline.json").read_bytes() == before
    assert run.read_json("summary.json")["baseline"]["steps"] == 2


def test_baseline_with_a_single_label_of_a_class_is_not_cross_validated(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    for number in range(1, 12):
        (photos / "day" / f"{number}.png").rename(photos / "unlabelled" / f"day-{number}.png")
    outcome = scnf("train photos", *SMALL, "--max_steps 2")
    assert outcome.code == 0 and "labels alone" not in outcome.out, outcome.err
    assert last_run().read_json("summary.json")["baseline"]["cross_validation"] == {}


def test_baseline_of_points_or_without_labels(scnf: Callable[..., Any], photos: Path) -> None:
    outcome = scnf("train --config moons.yaml --baseline --max_steps 1")
    assert outcome.code == 2 and "set train.baseline to false" in outcome.err
    words = "--num_labels 0 --labelled_share 0 --augment 0 --consistency_weight 0 --classifier_weight 0 --max_steps 1"
    outcome = scnf("train photos", *SMALL, words)
    assert outcome.code == 0 and "labels alone" not in outcome.out, outcome.err
