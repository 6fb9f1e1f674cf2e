"""Models side by side."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scnf.analysis import compare
from scnf.cli import main
from scnf.models.base import JointModel
from scnf.recipes import build
from scnf.runs import Run
from scnf.training.metrics import NOISE_DRAWS, brier_score

Scnf = Callable[..., Any]

PLAIN = "--max_steps 5 --augment 0 --consistency_weight 0 --classifier_weight 1 --batch_size 64"
KINDS = {
    "m2": "--model.recipe m2 --model.hidden 16 --model.latent 4 --model.likelihood logistic",
    "bernoulli": "--model.recipe m2 --model.hidden 16 --model.latent 4 --model.likelihood bernoulli",
    "iwae": "--model.recipe m2 --model.hidden 16 --model.latent 4 --model.likelihood logistic "
    "--model.importance_samples 5",
    "classifier": "--model.recipe classifier --model.hidden 16",
    "other": "--model.recipe classifier --model.hidden 16 --data.data_seed 1",
    "moons": "--model.channels 8 --model.steps 1",
}


def trained(root: Path, kind: str) -> Path:
    data = "moons" if kind == "moons" else "digits"
    words = [
        "--config",
        f"{data}.yaml",
        *PLAIN.split(),
        *KINDS[kind].split(),
        "--runs.root",
        str(root),
        "--runs.name",
        kind,
    ]
    assert main(["train", *words]) == 0
    return Run.find(root, "last").path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, on one label split of digits but for "other", and "moons". Tests only read them."""
    root = tmp_path_factory.mktemp("compared")
    return {kind: trained(root, kind) for kind in KINDS}


def table(directory: Path) -> dict[str, dict[str, str]]:
    with open(directory / "comparison.csv", newline="") as handle:
        return {row["run"].split()[-1]: row for row in csv.DictReader(handle)}


@pytest.fixture(scope="module")
def folder(finished: Path, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a comparison of one run of each kind that goes together. Tests only read it."""
    refs = [runs["classifier"], runs["bernoulli"], runs["m2"], finished]
    out = tmp_path_factory.mktemp("comparison")
    assert main(["compare", *map(str, refs), "--k", "20", "--limit", "0", "--out", str(out)]) == 0
    return out


@pytest.fixture
def compared(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the comparison's table, by name of the run."""
    return table(folder)


def test_compare_gives_flows_the_exact_figures_of_evaluate(compared: dict[str, dict[str, str]], finished: Path) -> None:
    row = compared["digits-scnf-digits"]
    expected = Run(finished).read_json("summary.json")["validation"]
    assert (row["recipe"], row["likelihood"]) == ("scnf-digits", "exact")
    assert -float(row["nats"]) == pytest.approx(expected["nll"], rel=1e-9)
    for key in ("bits_per_dim", "bits_per_dim_over_draws", "accuracy", "one_draw_accuracy", "ece"):
        assert float(row[key]) == pytest.approx(expected[key], rel=1e-9)
    assert {row[key] for key in ("iwae_nats", "gap_nats", "iwae_bits_per_dim", "gap_bits_per_dim")} == {""}


def test_compare_elbo_lies_below_the_importance_weighted_bound(compared: dict[str, dict[str, str]]) -> None:
    row = compared["m2"]
    elbo, iwae, gap = (float(row[key]) for key in ("nats", "iwae_nats", "gap_nats"))
    assert row["likelihood"] == "bound" and gap == pytest.approx(iwae - elbo) and gap > 0
    for kind, nats in (("", elbo), ("iwae_", iwae)):
        assert float(row[f"{kind}bits_per_dim"]) == pytest.approx((math.log(17) - nats / 64) / math.log(2))
    assert float(row["gap_bits_per_dim"]) == pytest.approx(gap / 64 / math.log(2))


def test_compare_marks_binarised_pixels_and_gives_no_bits_per_dim(
    compared: dict[str, dict[str, str]], folder: Path
) -> None:
    row = compared["bernoulli"]
    assert row["likelihood_of"] == "binary" and float(row["nats"]) < float(row["iwae_nats"])
    assert {row[key] for key in ("bits_per_dim", "iwae_bits_per_dim", "gap_bits_per_dim")} == {""}
    lines = (folder / "comparison.md").read_text().splitlines()
    starred = [line for line in lines if "*" in line]
    assert len(starred) == 2 and "bernoulli" in starred[0] and starred[0].count("* |") == 3
    assert starred[1] == "*) binarised pixels: not comparable with bits/dim"


def test_compare_leaves_the_likelihood_of_classifiers_empty(compared: dict[str, dict[str, str]]) -> None:
    row = compared["classifier"]
    assert row["likelihood_of"] == "labels"
    assert {row[key] for key in ("likelihood", "nats", "iwae_nats", "density_images_per_second")} == {""}
    assert 0 <= float(row["accuracy"]) <= 1 and 0 <= float(row["brier"]) <= 2


def test_compare_table_is_ranked_by_density_and_its_files_parse(
    compared: dict[str, dict[str, str]], folder: Path
) -> None:
    *comparable, before_last, last = compared.values()
    bits = [float(row["iwae_bits_per_dim"] or row["bits_per_dim"]) for row in comparable]
    assert len(bits) == 2 and bits == sorted(bits)
    assert [before_last["recipe"], last["recipe"]] == ["classifier", "m2"]  # as they were typed
    for row in compared.values():
        assert float(row["posterior_images_per_second"]) > 0 and int(row["parameters"]) > 0
    lines = (folder / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("250 validation images of digits.") and "20 importance samples" in lines[0]
    assert len({line.count("|") for line in lines[2:8]}) == 1
    with Image.open(folder / "comparison.png") as image:
        assert image.width > 500
    assert len(list(folder.iterdir())) == 3


def test_compare_elbo_ignores_the_importance_samples_of_training(
    scnf: Scnf, runs: dict[str, Path], tmp_path: Path
) -> None:
    assert scnf("compare", runs["iwae"], "--k 5 --limit 0").code == 0
    elbo = f"{float(table(tmp_path / 'logs/comparison')['iwae']['bits_per_dim']):.3f} bits/dim"
    assert elbo in scnf("evaluate", runs["iwae"], "--split validation --model.importance_samples 1").out
    assert elbo not in scnf("evaluate", runs["iwae"], "--split validation").out


def test_compare_limit_takes_the_first_images(scnf: Scnf, finished: Path, tmp_path: Path) -> None:
    outcome = scnf("compare", finished, "--limit 7")
    assert outcome.code == 0 and outcome.out.startswith("7 validation images of digits.")
    assert outcome.out.endswith("comparison.csv, .md and .png are in logs/comparison\n")
    assert outcome.out.startswith((tmp_path / "logs/comparison/comparison.md").read_text())
    assert 7 * float(table(tmp_path / "logs/comparison")["digits-scnf-digits"]["accuracy"]) % 1 == pytest.approx(0)


def test_compare_accepts_different_label_splits_on_the_test_set_only(
    scnf: Scnf, runs: dict[str, Path], tmp_path: Path
) -> None:
    for split in ("validation", "test"):
        outcome = scnf("compare", runs["m2"], runs["other"], "--split", split)
        assert outcome.code == 2 and "label split of 000005 other is not that of 000001 m2" in outcome.err
        assert "same data.* settings" in outcome.err and "--same-test-set" in outcome.err
    outcome = scnf("compare", runs["m2"], runs["other"], "--same-test-set --k 1 --limit 0 --out here")
    assert outcome.code == 0 and outcome.out.startswith("450 test images of digits.")
    assert set(table(tmp_path / "here")) == {"m2", "other"}


def test_compare_without_rows_names_a_split_that_has_some(scnf: Scnf, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    np.savez(tmp_path / "test.npz", x=x, y=y, test_x=x, test_y=y)
    np.savez(tmp_path / "none.npz", x=x, y=y)
    for name, advice in (("test", "compare on its test rows, with --split test"), ("none", "train with --num_valid")):
        assert scnf(f"train {name}.npz --max_steps 1 --threads 1 --device cpu").code == 0
        outcome = scnf("compare last")
        assert outcome.code == 2 and f"{name} has no validation rows: {advice}" in outcome.err
    outcome = scnf("compare 1 --split test")
    assert outcome.code == 0 and outcome.out.startswith("40 test vectors of test."), outcome.err
    outcome = scnf("evaluate last")
    assert outcome.code == 0 and "`scnf evaluate last FILES` scores labelled files" in outcome.err


@pytest.mark.parametrize("words", ["", "--same-test-set"])
def test_compare_refuses_runs_on_different_datasets(scnf: Scnf, runs: dict[str, Path], words: str) -> None:
    outcome = scnf("compare", runs["m2"], runs["moons"], words)
    assert outcome.code == 2 and "000001 m2 on digits, 000006 moons on moons" in outcome.err


def test_compare_counts_shipped_weights_among_the_models(scnf: Scnf, runs: dict[str, Path]) -> None:
    outcome = scnf("compare", runs["m2"], "--pretrained")
    assert outcome.code == 2 and "000001 m2 on digits, shipped on mnist" in outcome.err


def test_compare_measures_points_in_nats(scnf: Scnf, runs: dict[str, Path], tmp_path: Path) -> None:
    assert scnf("compare", runs["moons"], "--limit 50").code == 0
    row = table(tmp_path / "logs/comparison")["moons"]
    assert row["bits_per_dim"] == "" and math.isfinite(float(row["nats"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("last --k 0", "--k: it must be a whole number between 1 and 10000, not '0'"),
        ("last --limit -1", "--limit: it must be a whole number between 0 and 1000000000, not '-1'"),
        ("", "the following arguments are required: RUN|PATH"),
        ("nowhere", "there is no run 'nowhere'"),
    ],
)
def test_compare_command_reports_invalid_arguments_as_user_errors(scnf: Scnf, words: str, message: str) -> None:
    outcome = scnf("compare", words)
    assert outcome.code == 2 and message in outcome.err


@pytest.mark.parametrize("training", [True, False])
def test_measure_leaves_model_and_random_state_unchanged(training: bool) -> None:
    model: JointModel = build("m2", (1, 8, 8), 10, levels=17, hidden=16, latent=4, norm="batch").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randint(17, (21, 1, 8, 8), dtype=torch.uint8), torch.arange(21) % 10
    state = torch.get_rng_state()
    first, again = (compare.measure(model, x, y, 17, 3, batch_size=8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(first[key] == again[key] for key in first if not key.endswith("per_second"))


def test_measure_shows_all_models_the_same_pixels() -> None:
    x, y = torch.randint(17, (21, 1, 8, 8), dtype=torch.uint8), torch.arange(21) % 10
    seen: list[list[torch.Tensor]] = []
    for recipe in ("m2", "classifier"):
        model = build(recipe, (1, 8, 8), 10, levels=17, hidden=16)
        images: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda _, inputs, images=images: images.append(inputs[0].x))
        compare.measure(model, x, y, 17, 3, batch_size=8)
        seen.append(images)
    assert len(seen[0]) == 3 * NOISE_DRAWS + 4  # draws of three batches; a first call and a pass for the speed
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_importance_samples_tighten_the_measured_bound() -> None:
    model = build("m2", (1, 8, 8), 10, levels=17, hidden=16, latent=4, likelihood="logistic")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, y = torch.randint(17, (100, 1, 8, 8), dtype=torch.uint8), torch.arange(100) % 10
    one, many = (compare.measure(model, x, y, 17, k) for k in (1, 20))
    assert one["nats"] == many["nats"] < one["iwae_nats"] < many["iwae_nats"] - 0.1


def test_brier_score_equals_a_calculation_by_hand() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (0.9**2 + 0.1**2 + 0.8**2) + 2) / 3
    assert brier_score(probs.log(), torch.tensor([0, 0, 1])) == pytest.approx(expected, abs=1e-6)
