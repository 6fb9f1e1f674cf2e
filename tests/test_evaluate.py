"""`scnf evaluate`: scores of each class, confusion matrices, JSON, and labelled files elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from PIL import Image

from conftest import TINY_DIGITS, write_photos
from scnf.data.sources import load
from scnf.runs import Run

SMALL = [*TINY_DIGITS, "--passes", "1", "--epochs", "1", "--max_steps", "4"]
"""A model that trains in no time."""


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Run:
    """The finished run on digits as number 1 in logs/ of the test's directory."""
    shutil.copytree(finished, tmp_path / "logs" / finished.name)
    return Run(tmp_path / "logs" / finished.name)


@pytest.fixture
def pets(scnf: Callable[..., Any], image_cache: Path, tmp_path: Path) -> Path:
    """A folder of photos in which a tiny model was trained, without validation and test rows."""
    for name, low in (("cat", 128), ("dog", 0)):
        write_photos(tmp_path / "pets" / name, low, range(12))
    outcome = scnf("train pets", *SMALL)
    assert outcome.code == 0, outcome.err
    return tmp_path / "pets"


def test_evaluate_classes_prints_a_table_a_matrix_and_draws_a_picture(scnf: Callable[..., Any], copied: Run) -> None:
    plain = scnf("evaluate last").out.splitlines()
    outcome = scnf("evaluate last --classes")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line for line in lines if line in plain] == plain
    assert sum(line.startswith("class  rows  precision") for line in lines) == 2
    assert lines[-1].endswith("confusion.png")
    assert image.imread(copied.path / "confusion.png").shape[1] > 1000  # two panels


def test_evaluate_json_agrees_with_the_summary_and_prints_nothing_else(scnf: Callable[..., Any], copied: Run) -> None:
    outcome = scnf("evaluate last --json")
    content = json.loads(outcome.out)  # one object, and nothing else
    assert outcome.code == 0 and content["class_names"] == list("0123456789")
    assert not (copied.path / "confusion.png").exists()
    for split in ("validation", "test"):
        figures, summary = content["splits"][split], copied.read_json("summary.json")[split]
        assert all(abs(figures[name] - value) < 1e-6 for name, value in summary.items() if name in figures)
        confusion = np.array(figures["confusion"])
        assert abs(np.trace(confusion) / confusion.sum() - figures["accuracy"]) < 1e-9
        assert confusion.sum() == figures["rows"] == {"validation": 250, "test": 450}[split]
        recalls = [each["recall"] for each in figures["classes"]]
        assert abs(np.mean(recalls) - figures["balanced_accuracy"]) < 1e-9
        assert all(
            low <= each["recall"] <= high for each in figures["classes"] for low, high in [each["recall_interval"]]
        )


def test_evaluate_json_keeps_notes_out_of_standard_output(scnf: Callable[..., Any], copied: Run) -> None:
    copied.weights.unlink()  # the best weights so far, with a note
    outcome = scnf("evaluate last --json --split test --threads auto --out picture.png")
    assert outcome.code == 0 and list(json.loads(outcome.out)["splits"]) == ["test"]
    assert "is not finished" in outcome.err and "picture.png" in outcome.err and Path("picture.png").is_file()


def test_evaluate_says_where_a_split_has_no_rows(scnf: Callable[..., Any], pets: Path) -> None:
    outcome = scnf("evaluate last --classes")
    assert outcome.code == 0 and outcome.out.splitlines() == ["validation  no rows", "test        no rows"]
    content = json.loads(scnf("evaluate last --json").out)
    assert content["class_names"] == ["cat", "dog"] and content["splits"] == {"validation": None, "test": None}


def test_evaluate_on_a_folder_needs_no_data_of_the_training(
    scnf: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    write_photos(tmp_path / "new" / "dog", 0, range(7))
    write_photos(tmp_path / "new" / "cat", 128, range(5))
    write_photos(tmp_path / "new" / "unlabelled", 60, range(3))
    Image.new("L", (30, 20)).save(tmp_path / "new" / "dog" / "large.gif")
    (tmp_path / "new" / "dog" / "broken.png").write_bytes(b"\x89PNG")
    shutil.rmtree(pets)
    outcome = scnf("evaluate last new --json")
    assert outcome.code == 0, outcome.err
    figures = json.loads(outcome.out)["splits"]["files"]
    assert [(each["name"], each["rows"]) for each in figures["classes"]] == [("cat", 5), ("dog", 8)]
    assert "note: 3 rows without a label do not count" in outcome.err
    assert "skipped 1 file (dog/broken.png: " in outcome.err
    outcome = scnf("evaluate last new --classes --out new.png")
    assert outcome.code == 0 and outcome.out.startswith("files       accuracy ")
    assert "class  rows" in outcome.out and Path("new.png").is_file()


def test_evaluate_on_files_counts_their_test_split_alone(scnf: Callable[..., Any], pets: Path, tmp_path: Path) -> None:
    for split, number in (("train", 3), ("test", 2)):
        write_photos(tmp_path / "both" / split / "cat", 128, range(number))
        write_photos(tmp_path / "both" / split / "dog", 0, range(number))
    outcome = scnf("evaluate last both --json")
    assert json.loads(outcome.out)["splits"]["files"]["rows"] == 4
    assert "note: the test split counts, and 6 training rows do not" in outcome.err


def test_evaluate_on_an_array_file_agrees_with_the_split_that_it_holds(
    scnf: Callable[..., Any], copied: Run, tmp_path: Path
) -> None:
    digits = load("digits")
    np.savez(tmp_path / "digits.npz", x=digits.test_x.numpy(), y=digits.test_y.numpy())
    of_split = json.loads(scnf("evaluate last --split test --json").out)["splits"]["test"]
    of_files = json.loads(scnf("evaluate last digits.npz --json").out)["splits"]["files"]
    for name in ("accuracy", "ece", "bits_per_dim", "confusion"):
        assert np.allclose(of_files[name], of_split[name], atol=1e-5), name


def test_evaluate_scores_points_and_classifiers(scnf: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez(tmp_path / "points.npz", x=rng.normal(size=(60, 2)) + 4 * y[:, None], y=y.astype(str))
    assert scnf("train points.npz --model.channels 8 --model.steps 1 --max_steps 2 --threads 1").code == 0
    outcome = scnf("evaluate last points.npz --classes --out points.png")
    assert outcome.code == 0 and "NLL" in outcome.out and "class  rows" in outcome.out
    assert scnf("train --config digits.yaml --recipe classifier --max_steps 2 --threads 1", *CLASSIFIER).code == 0
    content = json.loads(scnf("evaluate last --split test --json").out)["splits"]["test"]
    assert content["rows"] == 450 and "nll" not in content


CLASSIFIER = ["--labelled_share", "1", "--propagations", "0", "--consistency_weight", "0", "--classifier_weight", "0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("last other", "other has the class 'horse', and the model knows cat, dog alone"),
        ("last other --split test", "--split names rows of the training, and other is scored as a whole"),
        ("last nowhere", "nowhere does not exist"),
        ("last loose", "loose holds no image with a label: put each into a folder of its class"),
        ("last points.npz", "points.npz must hold images, as the model takes, not vectors of 3 numbers"),
        ("last --device cpu other", "'other' stands alone"),
    ],
)
def test_evaluate_on_unusable_files_says_what_is_wrong(
    scnf: Callable[..., Any], pets: Path, tmp_path: Path, words: str, message: str
) -> None:
    write_photos(tmp_path / "other" / "horse", 0, range(2))
    write_photos(tmp_path / "other" / "dog", 0, range(2))
    write_photos(tmp_path / "loose" / "unlabelled", 0, range(2))
    np.savez(tmp_path / "points.npz", x=np.zeros((2, 3)), y=["cat", "dog"])
    outcome = scnf("evaluate", words)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err
