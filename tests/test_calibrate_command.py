"""`scnf calibrate`, what loaded models and `scnf predict` make of it, and `scnf predict --prior`."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scnf as package
from scnf.analysis.calibration import Calibration
from scnf.data.sources import load
from scnf.errors import InvalidArgument, UserError
from scnf.trained import CALIBRATION


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to calibrate."""
    return Path(shutil.copytree(finished, tmp_path / "logs" / finished.name))


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test digits as an array file, with labels."""
    digits = load("digits")
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x=digits.test_x.numpy(), y=digits.test_y.numpy())
    return path


def figures_of(text: str, name: str) -> tuple[float, float]:
    line = next(line for line in text.splitlines() if line.startswith(name))
    before, after = line.removeprefix(name).split()
    return float(before), float(after)


def test_calibrate_command_mends_the_probabilities_of_a_run(scnf: Callable[..., Any], run: Path) -> None:
    rows = load("digits").test_x
    before, density = package.load(run).predict_proba(rows), package.load(run).log_prob(rows)
    outcome = scnf("calibrate last --alpha 0.2")
    assert outcome.code == 0, outcome.err
    assert "250 validation rows; `after` and the sets are cross-fitted: each of 5 parts by the others" in outcome.out
    assert "goal 80 %" in outcome.out and (run / "calibration.png").is_file()
    nll = figures_of(outcome.out, "NLL [nats]")
    assert nll[1] < nll[0] and figures_of(outcome.out, "accuracy")[0] == figures_of(outcome.out, "accuracy")[1]
    model = package.load(run)
    assert model.calibration is not None and model.calibration.alpha == 0.2 and model.calibration.num_labels == 250
    after = model.predict_proba(rows)
    tempered = before ** (1 / model.calibration.temperature)
    np.testing.assert_allclose(after, tempered / tempered.sum(axis=1, keepdims=True), atol=1e-9)
    assert abs(after - before).max() > 0.01
    np.testing.assert_array_equal(model.log_prob(rows), density)
    assert scnf("calibrate last --alpha 0.2").out == outcome.out  # of the weights, not of calibrated answers


def test_prediction_sets_of_a_calibrated_run_cover_new_images(scnf: Callable[..., Any], run: Path) -> None:
    assert scnf("calibrate last --alpha 0.2").code == 0
    model, digits = package.load(run), load("digits")
    sets, y = model.prediction_sets(digits.test_x), digits.test_y.tolist()
    covered = np.mean([str(label) in names for label, names in zip(y, sets, strict=True)])
    assert abs(covered - 0.8) < 0.08  # deviation of 250 labels and 450 images: 0.03
    assert 1 < np.mean([len(names) for names in sets]) < 9
    posteriors, predicted = model.predict_proba(digits.test_x), model.predict(digits.test_x)
    for row in range(0, 450, 50):
        assert sets[row][0] == predicted[row]
        order = [posteriors[row, int(name)] for name in sets[row]]
        assert order == sorted(order, reverse=True)


def test_prediction_sets_need_a_calibration() -> None:
    with pytest.raises(
        InvalidArgument, match=r"model must be calibrated to give prediction sets: run `scnf calibrate`"
    ):
        package.load("scnf-digits").prediction_sets(np.zeros((1, 8, 8)))


def test_predict_command_writes_the_sets_of_a_calibrated_run(
    scnf: Callable[..., Any], run: Path, digits_file: Path, tmp_path: Path
) -> None:
    assert scnf("predict last", digits_file).code == 0
    assert "set" not in next(csv.reader((tmp_path / "predictions.csv").open()))
    assert scnf("calibrate last").code == 0
    outcome = scnf("predict last", digits_file)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    expected = package.load(run).prediction_sets(load("digits").test_x)
    assert [tuple(json.loads(row["set"])) for row in rows] == expected and list(rows[0])[-1] == "set"
    assert scnf("predict last", digits_file, "--out p.jsonl").code == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [tuple(line["set"]) for line in lines] == expected


def test_calibrate_command_takes_labelled_files(
    scnf: Callable[..., Any], run: Path, digits_file: Path, tmp_path: Path
) -> None:
    outcome = scnf("calibrate last --out other --labels", digits_file)
    assert outcome.code == 0, outcome.err
    assert f"450 labelled rows of {digits_file}" in outcome.out and not (run / CALIBRATION).exists()
    assert package.load(run).calibration is None
    model = package.load(run, calibration=tmp_path / "other")
    assert model.calibration is not None and model.calibration.num_labels == 450
    assert scnf("predict last --calibration other", digits_file).code == 0
    digits = load("digits")
    np.savez(tmp_path / "few.npz", x=digits.test_x[:8].numpy(), y=digits.test_y[:8].numpy())
    outcome = scnf("calibrate last --labels few.npz")
    assert outcome.code == 0 and "warning: 8 labels are few for a calibration" in outcome.err
    assert "8 labels are too few for sets that miss the class in 10 % of the rows" in outcome.err


def test_calibrate_command_writes_nothing_beside_shipped_weights(scnf: Callable[..., Any], tmp_path: Path) -> None:
    outcome = scnf("calibrate scnf-digits")
    assert outcome.code == 2 and "nothing is written beside weights that ship: name a directory with --out DIR" in (
        outcome.err
    )
    outcome = scnf("calibrate scnf-digits --out shipped")
    assert outcome.code == 0 and {path.name for path in (tmp_path / "shipped").iterdir()} == {
        CALIBRATION,
        "calibration.png",
    }
    assert package.load("scnf-digits", calibration="shipped").calibration is not None


def test_load_notes_a_calibration_of_other_weights(
    scnf: Callable[..., Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scnf("calibrate scnf-digits --out", run).code == 0
    capsys.readouterr()
    assert package.load(run).calibration is None
    assert "calibration.json was fitted to other weights than" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"calibration\.json was fitted to other weights than"):
        package.load(run, calibration=run)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"format": 1, "temperature": -1}', "[" * 100_000])
def test_load_refuses_a_damaged_calibration(run: Path, text: str) -> None:
    (run / CALIBRATION).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"calibration\.json is damaged \(.*\): run `scnf calibrate` again"):
        package.load(run)
    values = Calibration(2.0, 0.1, 0.1, 9).to_json() | {"temperature": None}
    (run / CALIBRATION).write_text(json.dumps(values))
    with pytest.raises(UserError, match="is damaged"):
        package.load(run)


@pytest.fixture
def harbour(tmp_path: Path) -> np.ndarray:
    """All test images of an eight, and four of a one, as an array file; their labels."""
    digits = load("digits")
    y = digits.test_y.numpy()
    rows = np.concatenate([np.flatnonzero(y == 8), np.flatnonzero(y == 1)[:4]])
    np.savez(tmp_path / "mixed.npz", x=digits.test_x[rows].numpy())
    return y[rows]


def test_predict_command_estimates_another_mix_of_classes(
    scnf: Callable[..., Any], harbour: np.ndarray, tmp_path: Path
) -> None:
    assert scnf("calibrate scnf-digits --out cal").code == 0
    accuracies = {}
    for words in ("", "--prior em", "--prior [0,0.1,0,0,0,0,0,0,0.9,0]"):
        outcome = scnf("predict scnf-digits mixed.npz --calibration cal", *words.split())
        assert outcome.code == 0, outcome.err
        rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
        accuracies[words] = np.mean([int(row["class"]) for row in rows] == harbour)
        assert ("set" in rows[0]) == (not words) == ("sets hold for the mix of classes of training" not in outcome.err)
        np.testing.assert_allclose([sum(float(row[f"p({k})"]) for k in range(10)) for row in rows], 1, atol=1e-5)
        if words == "--prior em":
            name = "estimated p(y) (training): "
            line = next(line for line in outcome.out.splitlines() if line.startswith(name))
            shares = [float(part.split()[1]) for part in line.removeprefix(name).split(", ")]
            np.testing.assert_allclose(shares, np.bincount(harbour, minlength=10) / len(harbour), atol=0.08)
            assert line.count("(0.100)") == 10
    assert accuracies["--prior em"] >= accuracies[""] + 0.02
    assert accuracies["--prior [0,0.1,0,0,0,0,0,0,0.9,0]"] >= accuracies["--prior em"]


def test_predict_command_takes_the_mix_of_training(
    scnf: Callable[..., Any], harbour: np.ndarray, tmp_path: Path
) -> None:
    posteriors = {}
    mixed = "[0.05,0.4,0.05,0.05,0.05,0.05,0.05,0.05,0.2,0.05]"
    for words in ("--prior uniform", f"--prior {mixed}", f"--prior {mixed} --training-prior {mixed}"):
        assert scnf("predict scnf-digits mixed.npz", *words.split()).code == 0
        rows = csv.DictReader((tmp_path / "predictions.csv").open())
        posteriors[words] = np.array([[float(row[f"p({k})"]) for k in range(10)] for row in rows])
    model, digits = package.load("scnf-digits"), np.load(tmp_path / "mixed.npz")["x"]
    uniform, moved, same = posteriors.values()
    np.testing.assert_allclose(uniform, model.predict_proba(digits), atol=1e-5)
    np.testing.assert_allclose(same, uniform, atol=1e-5)
    assert (moved[:, 1] >= uniform[:, 1] - 1e-5).all() and moved[:, 1].sum() > uniform[:, 1].sum() + 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("calibrate last --alpha 2", "--alpha: it must be a number between 0 and 1, not '2'"),
        ("calibrate last --alpha often", "--alpha: it must be a number between 0 and 1, not 'often'"),
        ("calibrate last --labels nowhere", "--labels nowhere "),
        ("calibrate last --labels unlabelled.npz", "holds no image with a label"),
        ("calibrate last --labels other.npz", "--labels other.npz has the class 'cat', and the model knows"),
        ("calibrate last --labels one.npz", "y must hold two labels or more"),
        ("calibrate none", "there is no run 'none'"),
        ("predict last x.npz --prior most", "--prior must be em, uniform or [p1,p2,...], not most"),
        ("predict last x.npz --prior [0.5,0.5]", "--prior must be 10 numbers of 0 or more that sum to 1"),
        ("predict last x.npz --training-prior uniform", "--training-prior has an effect with --prior alone"),
        (
            "predict last x.npz --prior em --training-prior [1,0,0,0,0,0,0,0,0,0]",
            "--training-prior must be above 0 for each class",
        ),
        ("predict last x.npz --calibration gone", "there is no calibration gone: `scnf calibrate` writes one"),
    ],
)
def test_command_on_unusable_arguments_says_what_to_do(
    scnf: Callable[..., Any], run: Path, tmp_path: Path, words: str, message: str
) -> None:
    x = np.zeros((2, 8, 8), np.uint8)
    for name, y in (("unlabelled", [-1, -1]), ("other", ["cat", "3"]), ("one", [3, -1])):
        np.savez(
            tmp_path / f"{name}.npz", x=x, y=np.array(y), **({"class_names": list("0123456789")} if y[1] == -1 else {})
        )
    np.savez(tmp_path / "x.npz", x=x)
    outcome = scnf(words)
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert not (run / CALIBRATION).exists() and not (tmp_path / "predictions.csv").exists()


def test_calibrate_command_without_validation_rows_says_how_to_get_some(
    scnf: Callable[..., Any], tmp_path: Path
) -> None:
    digits = load("digits")
    y = np.where(np.arange(300) < 60, digits.train_y[:300], -1)
    np.savez(tmp_path / "digits.npz", x=digits.train_x[:300].numpy(), y=y)
    words = "--recipe classifier --classifier_weight 0 --consistency_weight 0 --max_steps 2 --threads 1 --augment 0"
    assert scnf("train digits.npz --device cpu", *words.split()).code == 0
    outcome = scnf("calibrate last")
    assert outcome.code == 2 and "`scnf train FILES --num_validation N`" in outcome.err and "--labels" in outcome.err
    outcome = scnf("predict last digits.npz --prior em")
    assert outcome.code == 0 and "note: this model has no p(y)" in outcome.err and "estimated p(y)" in outcome.out
    assert "which is not calibrated: run `scnf calibrate` before" in outcome.err
