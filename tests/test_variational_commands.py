"""The variational family through the command: trained, stacked, evaluated, refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scnf.runs import Run
from scnf.training.checkpoint import load_tensors

Command = Callable[..., Any]
DIGITS = "train --config digits.yaml --hidden 16 --batch_size 64 --augment 0 --consistency_weight 0 --max_steps 4"
BAD: dict[str, tuple[str, str]] = {
    "bernoulli on points": (
        "--data.name moons --num_labels 10 --model.recipe m2",
        "model.likelihood must be gaussian for points",
    ),
    "no importance sample": ("--model.recipe m1 --importance_samples 0", "must be between 1 and"),
    "no sample": ("--model.recipe m1 --num_samples 0", "must be between 1 and"),
    "temperature 0": ("--model.recipe m2 --labels gumbel --model.temperature 0", "above 0"),
    "final temperature below 0": ("--model.recipe m2 --labels gumbel --final_temperature -1", "above 0"),
    "no M1": ("--model.recipe m1-m2", "model.m1 must be a trained M1: train one (--config mnist_m1.yaml)"),
    "M1 that is not there": ("--model.recipe m1-m2 --model.m1 nowhere", "there is no run 'nowhere'"),
    "coupling of width 1": ("--model.recipe m1 --latent 1 --posterior coupling", "model.latent must be 2 or more"),
    "score with one sample": ("--model.recipe m2 --labels score", "model.num_samples must be 2 or more"),
    "weighed KL of importance samples": ("--model.recipe m1 --importance_samples 2 --kl_weight 2", "kl_weight to 1"),
    "density of a classifier": ("--model.recipe classifier --select bits_per_dim", "knows no p(x)"),
    "no latent": ("--model.recipe m2 --latent 0", "model.latent must be between 1 and"),
    "an argument of flows": ("--model.recipe m2 --model.spread 2", "takes no argument 'spread'"),
}


@pytest.fixture
def train(scnf: Command) -> Command:
    return lambda *words: scnf(DIGITS, *words)


@pytest.mark.parametrize(("words", "hint"), BAD.values(), ids=BAD)
def test_train_refuses_impossible_settings_of_variational_models(
    words: str, hint: str, train: Command, tmp_path: Path
) -> None:
    outcome = train(words)
    assert outcome.code == 2 and hint in outcome.err and "Traceback" not in outcome.err
    runs = [*(tmp_path / "logs").glob("*")] if (tmp_path / "logs").is_dir() else []
    assert all(not (run / "model.safetensors").exists() for run in runs)


@pytest.mark.parametrize("recipe", ["m1", "m2", "adgm", "ladder-vae", "ladder-dgm", "gumbel-autoencoder", "classifier"])
def test_recipe_trains_and_is_evaluated(
    recipe: str, train: Command, scnf: Command, last_run: Callable[[], Run]
) -> None:
    outcome = train("--model.recipe", recipe)
    assert outcome.code == 0, outcome.err
    summary = last_run().read_json("summary.json")
    assert ("nll" in summary["test"]) == (recipe != "classifier") and "bits_per_dim" not in summary["test"]
    again = scnf("evaluate last --split test").out
    assert f"accuracy {100 * summary['test']['accuracy']:.2f} %" in again
    if recipe == "classifier":
        refused = scnf("sample last")
        assert "no p(x)" in again and refused.code == 2 and scnf("compare last").code == 0
        assert refused.err == "error: a plain classifier cannot draw images: it models p(y | x) alone\n"
    else:
        assert f"NLL {summary['test']['nll']:.3f} nats" in again
        assert scnf("sample last --label 3 --num 4").code == 0


@pytest.mark.parametrize("likelihood", ["logistic", "gaussian"])
def test_likelihoods_of_grey_levels_have_bits_per_dim(
    likelihood: str, train: Command, last_run: Callable[[], Run]
) -> None:
    assert train("--model.recipe m2 --model.likelihood", likelihood).code == 0
    assert last_run().read_json("summary.json")["test"]["bits_per_dim"] > 0


def test_m2_on_m1_carries_its_m1_along(train: Command, scnf: Command, last_run: Callable[[], Run]) -> None:
    assert train("--model.recipe m1 --latent 6").code == 0
    m1 = last_run()
    assert train("--model.recipe m1-m2 --model.m1 last").code == 0
    both = last_run()
    frozen, whole = load_tensors(m1.weights)[0], load_tensors(both.weights)[0]
    assert all(whole[f"m1.{name}"].equal(value) for name, value in frozen.items())
    figures = scnf("evaluate last")
    shutil.rmtree(m1.path)
    assert figures.code == 0 and scnf("evaluate last").out == figures.out
    again = scnf("train --config", str(both.path / "config.yaml"))  # stands on the copy, `last` though it was given
    assert again.code == 0 and str(both.path.relative_to(Path.cwd()) / "m1") in again.out
    assert scnf("train --resume last --max_steps 6").code == 0


def test_m1_of_another_dataset_is_refused(train: Command, tmp_path: Path) -> None:
    points = "--data.name moons --num_labels 10 --model.recipe m1 --model.likelihood gaussian --latent 2"
    assert train(points).code == 0
    outcome = train("--model.recipe m1-m2 --model.m1 last")
    assert outcome.code == 2 and "was trained on moons, not on digits" in outcome.err


def test_m1_without_one_gaussian_latent_is_refused(train: Command) -> None:
    for words in ("ladder-vae --latent [6,4]", "m2", "classifier", "m1 --latent [6,4]"):
        assert train(f"--model.recipe {words}").code == 0
        outcome = train("--model.recipe m1-m2 --model.m1 last")
        assert outcome.code == 2 and "one Gaussian latent" in outcome.err
    assert "no M1 ships" in train("--model.recipe m1-m2 --model.m1 shipped").err


def test_m1_of_another_split_is_noted(train: Command) -> None:
    assert train("--model.recipe m1 --latent 6 --data_seed 1").code == 0
    assert "saw another label split" in train("--model.recipe m1-m2 --model.m1 last").out


@pytest.mark.parametrize("words", ["--labels gumbel --final_temperature 0.1", "--importance_samples 3"])
def test_same_seed_gives_the_same_checkpoint(words: str, train: Command, last_run: Callable[[], Run]) -> None:
    weights = []
    for _ in range(2):
        assert train("--model.recipe m2", words).code == 0
        weights.append(load_tensors(last_run().checkpoint("last"))[0])
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[1][name].equal(value) for name, value in weights[0].items())


def test_gumbel_temperature_falls_towards_its_final_value(train: Command, last_run: Callable[[], Run]) -> None:
    assert train("--model.recipe m2 --labels gumbel --model.temperature 1 --final_temperature 0.25").code == 0
    value = load_tensors(last_run().weights)[0]["labels.temperature.value"]
    assert 0.25 < float(value) < 0.5  # the last of four steps begins when three quarters are done


def test_batch_normalisation_of_one_row_is_refused_with_its_setting(train: Any, tmp_path: Path) -> None:
    outcome = train("--model.recipe m2 --batch_size 1 --labelled_share 1")
    assert outcome.code == 2 and "error: model.norm must be layer or none where a batch holds one row" in outcome.err
    assert not list(tmp_path.rglob("error.txt"))
