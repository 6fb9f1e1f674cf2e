"""Trained weights from Python: classes, posteriors, densities and samples of images of any kind."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scnf
from scnf.data.inputs import Inputs
from scnf.data.sources import load
from scnf.errors import InvalidArgument, UserError
from scnf.experiment import INPUTS
from scnf.recipes import build
from scnf.trained import TrainedModel
from scnf.training.metrics import evaluate

PRETRAINED = Path(__file__).parents[1] / "pretrained"
FOLDERS = sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    """The shipped model of digits."""
    return scnf.load("scnf-digits")


@pytest.mark.parametrize("name", FOLDERS)
def test_shipped_weights_say_which_inputs_they_take(name: str) -> None:
    shape, levels = ((1, 8, 8), 17) if name == "scnf-digits" else ((1, 28, 28), 256)
    inputs = Inputs.from_json(json.loads((PRETRAINED / name / INPUTS).read_text()))
    assert (inputs.shape, inputs.levels, inputs.class_names) == (shape, levels, tuple("0123456789"))


def test_trained_model_classifies_as_well_as_evaluate_says(model: TrainedModel) -> None:
    digits = load("digits")
    metrics = evaluate(model.model, digits.test_x, digits.test_y, 17, draws=8)
    accuracy = (model.predict(digits.test_x).astype(int) == digits.test_y.numpy()).mean()
    assert abs(accuracy - metrics["accuracy"]) < 0.01
    expected = 64 * (math.log(17) - math.log(2) * metrics["bits_per_dim_over_draws"])  # nats, from other draws
    assert abs(model.log_prob(digits.test_x).mean() - expected) < 0.5


def test_trained_model_answers_do_not_depend_on_other_images(model: TrainedModel) -> None:
    x = load("digits").test_x[:40]
    together, density = model.predict_proba(x), model.log_prob(x)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    for row in (0, 17, 39):
        np.testing.assert_allclose(model.predict_proba(x[row]), together[row : row + 1], atol=1e-5)
        np.testing.assert_allclose(model.log_prob(x[row]), density[row : row + 1], atol=1e-3)
    np.testing.assert_array_equal(model.predict_proba(x), together)


def test_trained_model_gives_sixteen_threads_one_answer(model: TrainedModel) -> None:
    x = load("digits").test_x[:30]
    expected = model.predict_proba(x), model.log_prob(x)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: (model.predict_proba(x), model.log_prob(x)), range(32)))
    for posterior, density in answers:
        np.testing.assert_allclose(posterior, expected[0], atol=1e-6)
        np.testing.assert_allclose(density, expected[1], rtol=1e-5)


@pytest.mark.parametrize("recipe", ["m1", "adgm"])
def test_trained_model_with_latent_draws_repeats_its_answers(recipe: str) -> None:
    torch.manual_seed(3)
    arguments = {"hidden": 16, "latent": 4, "likelihood": "logistic"}
    model = TrainedModel(build(recipe, (1, 8, 8), 3, **arguments), Inputs((1, 8, 8), 256, ("a", "b", "c")))
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    state = torch.get_rng_state()
    first = model.predict_proba(x), model.log_prob(x), model.sample("b", 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    for answer, again in zip(first, (model.predict_proba(x), model.log_prob(x), model.sample(1, 2)), strict=True):
        np.testing.assert_array_equal(answer, again)


def test_trained_model_of_binary_images_answers_each_image_alone() -> None:
    model = TrainedModel(build("m2", (1, 8, 8), 3, hidden=16, latent=4), Inputs((1, 8, 8), 256, ("a", "b", "c")))
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    together = model.predict_proba(x)
    for row in range(6):
        np.testing.assert_allclose(model.predict_proba(x[row]), together[row : row + 1], atol=1e-6)


def test_trained_model_draws_images_of_a_class(model: TrainedModel) -> None:
    samples = model.sample("3", 50)
    assert samples.shape == (50, 1, 8, 8) and samples.min() >= 0 and samples.max() <= 1
    assert (model.predict(samples) == "3").mean() > 0.8
    assert not np.array_equal(samples, model.sample("3", 50, seed=1))
    with pytest.raises(InvalidArgument, match="label must be one of the classes"):
        model.sample("ten")


def test_trained_classifier_has_no_density() -> None:
    model = TrainedModel(build("classifier", (1, 8, 8), 2, hidden=8), Inputs((1, 8, 8), 256, ("cat", "dog")))
    image = Image.new("L", (8, 8))
    assert model.predict_proba(image).shape == (1, 2) and model.predict(image)[0] in ("cat", "dog")
    for call in (lambda: model.log_prob(image), lambda: model.sample("cat")):
        with pytest.raises(InvalidArgument, match="model must know p"):
            call()


def test_load_reads_a_run_without_its_data_and_refuses_damaged_inputs(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: digits", "name: folder").replace("root: data", "root: gone"))
    assert scnf.load(run).predict(np.zeros((2, 8, 8))).shape == (2,)
    (run / INPUTS).write_text('{"shape": [8]}')
    with pytest.raises(UserError, match=r"inputs\.json is damaged"):
        scnf.load(run)


def test_load_reads_a_run_of_an_earlier_version_by_its_data(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run)
    (run / INPUTS).unlink()
    assert scnf.load(str(run)).inputs == Inputs((1, 8, 8), 17, tuple("0123456789"))
