"""The score of unusual images: its figures on images that the density alone calls normal, its file, and its command."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

import scnf
from scnf.analysis.unusual import Usual, code_lengths, statistics
from scnf.data.inputs import Inputs
from scnf.data.sources import load
from scnf.errors import InvalidArgument, UserError
from scnf.recipes import build
from scnf.trained import UNUSUAL, TrainedModel

GOAL = 0.9
SMALL = {"channels": 16, "model.steps": 2, "conditional_hidden": 16, "augment": 0, "threads": 1, "device": "cpu"}


def auroc(model: TrainedModel, own: np.ndarray, other: np.ndarray) -> float:
    scores = model.unusual(np.concatenate([own, other]))
    return float(roc_auc_score(np.arange(len(scores)) >= len(own), scores))


def density_auroc(model: TrainedModel, own: np.ndarray, other: np.ndarray) -> float:
    """The AUROC of a low density, which fails for smooth images."""
    log_probs = model.log_prob(np.concatenate([own, other]))
    return float(roc_auc_score(np.arange(len(log_probs)) >= len(own), -log_probs))


def blurred(images: np.ndarray, sigma: float = 2) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(sigma)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])


def plain_and_noise(number: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, (number, *[1] * len(shape)), dtype=np.uint8)
    return np.broadcast_to(levels, (number, *shape)).copy(), rng.integers(0, 256, (number, *shape), dtype=np.uint8)


def photos() -> np.ndarray:
    """Patches of 16x16 pixels of two photos, without those of the plain sky, in random order."""
    patches = []
    for photo in load_sample_images().images:
        small = np.asarray(Image.fromarray(photo).resize((240, 160)))
        patches += [small[top : top + 16, left : left + 16] for top in range(0, 145, 8) for left in range(0, 225, 8)]
    kept = [patch for patch in patches if np.abs(np.diff(patch.astype(int), axis=1)).mean() > 6]
    return np.random.default_rng(0).permutation(np.stack(kept))


def large_digits(number: int) -> np.ndarray:
    images = (load("digits").test_x[:number, 0].numpy() * 15.9).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((16, 16)).convert("RGB")) for image in images])


def test_unusual_score_finds_smooth_images_that_the_density_of_photos_prefers(tmp_path: Path) -> None:
    x = photos()
    y = np.where(np.arange(420) < 40, np.arange(420) % 2, -1)
    options = SMALL | {"max_steps": 40, "batch_size": 32, "baseline": False}
    model = scnf.fit(x[:420], y, "scnf-fast", options, root=tmp_path, verbose=False).model
    own, (plain, noise), digits = x[420:], plain_and_noise(100, 16, 16, 3), large_digits(100)
    assert density_auroc(model, own, blurred(own)) < 0.4
    for other in (plain, noise, digits, blurred(own)):
        assert auroc(model, own, other) >= GOAL
    assert (model.unusual(own) > 0.95).mean() < 0.2


def test_unusual_score_of_shipped_digits_finds_other_images() -> None:
    model, own = scnf.load("scnf-digits"), load("digits").test_x[:150]
    pixels = (photos().mean(axis=3)[:150, ::2, ::2] / 15.1).astype(np.int64)
    plain, noise = (each // 16 for each in plain_and_noise(150, 8, 8))
    for other in (plain, noise, pixels, 16 - own[:, 0].numpy()):
        assert auroc(model, own[:, 0].numpy(), other) >= GOAL
    assert 0.4 < model.unusual(own).mean() < 0.6


def _images_of(name: str, split: str, number: int) -> np.ndarray:
    root = os.environ.get("SCNF_DATA_ROOT", str(Path(__file__).parents[2] / "data"))
    folder = {"mnist": "MNIST", "fashion": "FashionMNIST"}[name]
    if not (Path(root) / folder / "raw").is_dir():
        pytest.skip(f"no {folder} files; set SCNF_DATA_ROOT")
    data = load(name, root)
    return (data.train_x if split == "train" else data.test_x)[:number, 0].numpy()


@pytest.mark.parametrize("name", ["scnf-fast", "scnf-hybrid"])
def test_unusual_score_of_shipped_mnist_finds_other_images(name: str) -> None:
    model, own, fashion = (
        scnf.load(name, device="cpu"),
        *(_images_of(data, "test", 40) for data in ("mnist", "fashion")),
    )
    grey = np.stack([np.asarray(Image.fromarray(image).resize((28, 28)).convert("L")) for image in photos()[:40]])
    for other in (fashion, grey, *plain_and_noise(40, 28, 28), blurred(own)):
        assert auroc(model, own, other) >= GOAL


def test_unusual_score_of_a_fashion_model_finds_digits(tmp_path: Path) -> None:
    x, own, mnist = _images_of("fashion", "train", 1000), *(_images_of(n, "test", 100) for n in ("fashion", "mnist"))
    y = np.where(np.arange(1000) < 40, np.arange(1000) % 2, -1)
    options = SMALL | {"max_steps": 40, "batch_size": 32}
    model = scnf.fit(x, y, "scnf-fast", options, root=tmp_path, verbose=False).model
    assert density_auroc(model, own, mnist) < 0.4
    for other in (mnist, *plain_and_noise(100, 28, 28), blurred(own)):
        assert auroc(model, own, other) >= GOAL


def test_unusual_score_does_not_depend_on_other_images() -> None:
    model, x = scnf.load("scnf-digits"), load("digits").test_x[:20]
    together = model.unusual(x)
    for row in (0, 19):
        np.testing.assert_allclose(model.unusual(x[row]), together[row : row + 1], atol=1e-4)
    np.testing.assert_array_equal(model.unusual(x), together)


def test_unusual_score_of_points_is_two_sided_and_infinite_density_scores_highest() -> None:
    log_probs = np.random.default_rng(0).normal(size=999)
    usual = Usual.fit(statistics(log_probs, load("moons").train_x, None))
    low, middle, high, none, broken = usual.scores(np.array([[-5.0], [0.0], [5.0], [-np.inf], [np.nan]]))
    assert low == high == none == broken == 0.999 and middle < 0.1
    new = usual.scores(np.random.default_rng(1).normal(size=(2000, 1)))
    assert 0.03 < (new >= 0.95).mean() < 0.07


def test_usual_with_a_constant_statistic_calls_every_other_value_of_it_unusual() -> None:
    usual = Usual.fit(np.stack([np.random.default_rng(0).normal(size=99), np.full(99, 2.0)], axis=1))
    same, other = usual.scores(np.array([[0.0, 2.0], [0.0, 2.1]]))
    assert same < 0.2 and other == 0.99


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "must hold format 1"),
        ({"mean": ["a"]}, "must hold arrays of numbers"),
        ({"mean": [1.0, 2.0]}, "covariance must be of shape"),
        ({"mean": [float("nan")]}, "must be finite"),
        ({"covariance": [[-1.0]]}, "covariance must be positive definite"),
        ({"distances": [1.0]}, "distances must be 20 or more"),
        ({"distances": [2.0, *[1.0] * 30]}, "distances must be 20 or more, sorted"),
    ],
)
def test_usual_refuses_damaged_values(values: dict[str, Any], problem: str) -> None:
    whole = Usual.fit(np.arange(30.0)[:, None]).to_json()
    with pytest.raises(InvalidArgument, match=problem):
        Usual.from_json(whole | values if values else {"format": 2})
    with pytest.raises(InvalidArgument, match="must be finite for 20 rows or more, not for 0"):
        Usual.fit(np.full((30, 1), np.inf))


def test_code_length_is_small_for_smooth_images_and_the_same_for_grey_as_colour() -> None:
    rng = np.random.default_rng(0)
    grey, noise = np.full((1, 1, 16, 16), 77, np.uint8), rng.integers(0, 256, (1, 1, 16, 16), dtype=np.uint8)
    ramp = np.arange(16, dtype=np.uint8)[None, None, :, None] * np.ones((1, 1, 1, 16), np.uint8)
    lengths = [float(code_lengths(each, 256)[0]) for each in (grey, ramp, noise)]
    assert lengths == sorted(lengths) and lengths[2] > 5 * lengths[0] / 2
    colour = code_lengths(noise.repeat(3, axis=1), 256)[0]
    assert colour < 2 * lengths[2] < code_lengths(rng.integers(0, 256, (1, 3, 16, 16)), 256)[0]
    assert code_lengths(noise[..., :8, :8] // 16, 16)[0] < 64 * np.log(256)  # far below 16 levels of 8 bits


def test_trained_model_without_reference_says_what_to_do() -> None:
    classes = Inputs((1, 8, 8), 256, ("cat", "dog"))
    images = np.zeros((1, 8, 8), np.uint8)
    with pytest.raises(InvalidArgument, match="a plain classifier has no p"):
        TrainedModel(build("classifier", (1, 8, 8), 2, hidden=8), classes).unusual(images)
    with pytest.raises(InvalidArgument, match="--pretrained RUN and --epochs 0"):
        TrainedModel(build("scnf-fast", (1, 8, 8), 2), classes).unusual(images)


def test_training_writes_what_is_usual_and_a_predicted_line_has_the_score(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run)
    assert json.loads((run / UNUSUAL).read_text())["rows"] in ("validation", "training")
    np.savez(tmp_path / "x.npz", x=np.stack([np.full((8, 8), 8), load("digits").test_x[0, 0]]).astype(np.uint8))
    for name in ("a.csv", "a.jsonl"):
        assert scnf("predict", run, tmp_path / "x.npz", "--out", tmp_path / name).code == 0
    with open(tmp_path / "a.csv") as file:
        scores = [row["unusual"] for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [float(score) for score in scores] == [line["unusual"] for line in lines]
    assert 0 <= lines[1]["unusual"] < 1
    (run / UNUSUAL).unlink()
    assert scnf("predict", run, tmp_path / "x.npz", "--out", tmp_path / "b.csv").code == 0
    assert "unusual" not in (tmp_path / "b.csv").read_text()


def test_load_refuses_damaged_reference_and_ignores_that_of_other_weights(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run)
    values = json.loads((run / UNUSUAL).read_text())
    (run / UNUSUAL).write_text(json.dumps(values | {"weights": "0" * 64}))
    assert scnf.load(run).usual is None and "is of other weights" in capsys.readouterr().err
    (run / UNUSUAL).write_text("{")
    with pytest.raises(UserError, match=r"unusual\.json is damaged"):
        scnf.load(run)
