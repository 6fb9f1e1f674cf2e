"""Training on arrays in memory: the run, its model, resume, and what is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

import scnf as package
from scnf.data.memory import dataset_of
from scnf.errors import InvalidArgument, UserError
from scnf.fitting.arrays import settings_for

TINY = {"model.channels": 8, "model.steps": 1, "model.conditional_hidden": 8, "threads": 1, "device": "cpu"}


def images(rows: int = 24) -> tuple[np.ndarray, list[str | None]]:
    """Bright and dark images, of which every third has no label."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, (rows, 8, 8)).astype(np.uint8) + 128 * (np.arange(rows) % 2)[:, None, None].astype(
        np.uint8
    )
    return x, [None if row % 3 == 2 else ("dark", "bright")[row % 2] for row in range(rows)]


def fit(root: Path, **more: Any) -> package.fitting.arrays.FitResult:
    x, y = images()
    return package.fit(x, y, settings=TINY, root=root, **{"max_steps": 2, "epochs": 1, "verbose": False, **more})


def test_fit_writes_a_run_that_load_and_evaluate_read(scnf: Callable[..., Any], tmp_path: Path) -> None:
    result = fit(tmp_path / "logs")
    assert result.model.class_names == ("bright", "dark") and result.summary["status"] == "finished"
    names = {path.name for path in result.run.iterdir()}
    assert {"model.safetensors", "config.yaml", "inputs.json", "curves.png", "samples.png", "data.npz"} <= names
    x = images()[0]
    loaded = package.load(result.run)
    np.testing.assert_array_equal(loaded.predict_proba(x), result.model.predict_proba(x))
    outcome = scnf("evaluate", result.run)
    assert outcome.code == 0, outcome.err


def test_fit_resumes_by_the_command(scnf: Callable[..., Any], tmp_path: Path) -> None:
    result = fit(tmp_path / "logs")
    outcome = scnf("train --resume", result.run, "--max_steps 3 --epochs 5")
    assert outcome.code == 0 and "resuming after" in outcome.out, outcome.err


def test_fit_without_its_data_is_loaded_and_says_what_a_resume_needs(scnf: Callable[..., Any], tmp_path: Path) -> None:
    result = fit(tmp_path / "logs", keep_data=False)
    assert package.load(result.run).predict(images()[0]).shape == (24,)
    outcome = scnf("train --resume", result.run, "--max_steps 3 --epochs 5")
    assert outcome.code == 2 and f"data.root does not exist: {result.run / 'data.npz'}" in outcome.err


def test_fit_gives_the_weights_of_the_command(scnf: Callable[..., Any], tmp_path: Path) -> None:
    result = fit(tmp_path / "logs", epochs=1)
    x, y = images()
    np.savez(tmp_path / "arrays.npz", x=x, y=np.array([each or "" for each in y]))
    words = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    outcome = scnf("train arrays.npz --recipe scnf-digits --max_steps 2 --epochs 1 --runs.root other", *words)
    assert outcome.code == 0, outcome.err
    command = package.load("last", tmp_path / "other")
    for name, value in result.model.model.state_dict().items():
        assert torch.equal(command.model.state_dict()[name], value), name


def test_fit_beside_other_threads_is_the_same(tmp_path: Path) -> None:
    model, done = package.load("scnf-digits"), Event()
    drawn = model.sample("3", 2)

    def draw() -> bool:
        while not done.is_set():
            package.load("scnf-digits")
            if not np.array_equal(model.sample("3", 2), drawn):
                return False
        return True

    alone = fit(tmp_path).model.model.state_dict()
    with ThreadPoolExecutor(4) as pool:
        draws = [pool.submit(draw) for _ in range(2)]
        results = list(pool.map(lambda _: fit(tmp_path), range(2)))
        done.set()
    assert all(each.result() for each in draws)
    for result in results:
        for name, value in result.model.model.state_dict().items():
            assert torch.equal(alone[name], value), name


def test_fit_leaves_generator_threads_and_output_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(tmp_path)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert capsys.readouterr() == ("", "")


def test_fit_prints_what_it_has_chosen_and_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, verbose=True)
    out = capsys.readouterr().out
    assert "chosen for these data: " in out and "24 images of [1, 8, 8], 16 of them with a label of 2 classes" in out


def test_fit_takes_floats_and_other_layouts_as_the_same_images() -> None:
    x, y = images()
    expected = dataset_of(x, y)
    for same in (x / 255, torch.from_numpy(x)[:, None], x[:, :, :, None], (x / 255).astype(np.float32), list(x)):
        assert torch.equal(dataset_of(same, y).train_x, expected.train_x)
    assert dataset_of(np.zeros((3, 4)), [0, 1, -1]).levels is None


@pytest.mark.parametrize(
    "y", [[7, -1, 3], np.array([7, -1, 3]), torch.tensor([7, -1, 3]), [np.int64(7), None, np.int64(3)], ["7", "", "3"]]
)
def test_fit_takes_labels_of_any_kind(y: Any) -> None:
    dataset = dataset_of(np.zeros((3, 4)), y)
    assert dataset.train_y.tolist() == [1, -1, 0] and dataset.class_names == ("3", "7")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 8, 8)) + 2, [0, 1, -1], "must be floats in \\[0, 1\\]"),
        (np.zeros((3, 8, 8)), [0, 1], "y must hold a label for each of the 3 rows of x, not 2"),
        (np.zeros((3, 8, 8)), [0, 0, -1], "y needs two classes or more and has one"),
        (np.zeros((3, 8, 8)), [-1, None, ""], "no row has a label"),
        (np.zeros((3, 8, 8)), [0.5, 1, 2], "y must hold texts, integers of 0 or more"),
        (np.zeros((3, 8, 8)), None, "y must hold a label for each row"),
        (np.zeros(3), [0, 1, -1], "x must be images"),
        (np.full((3, 2), np.nan), [0, 1, -1], "must be finite"),
    ],
)
def test_fit_refuses_arrays_that_hold_no_labelled_images(x: Any, y: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        package.fit(x, y, root=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


_COLUMN = np.random.default_rng(0).normal(size=(40, 1)) + 3 * (np.arange(40) % 2)[:, None]


@pytest.mark.parametrize(
    "column",
    [1e30 * _COLUMN, 1e-30 * _COLUMN, 0 * _COLUMN + 7, 0 * _COLUMN + 1e30, (2.0**62 * (1 + _COLUMN)).astype(np.int64)],
    ids=["huge", "tiny", "constant", "huge constant", "whole numbers beyond float32"],
)
def test_fit_takes_columns_of_any_scale(column: np.ndarray, tmp_path: Path) -> None:
    x, y = np.hstack([_COLUMN, column]), np.arange(40) % 2
    result = package.fit(x, y, settings={"threads": 1}, root=tmp_path, max_steps=20, verbose=False)
    assert (result.run / "samples.png").is_file()
    assert np.isfinite(result.model.log_prob(x)).all() and (result.model.predict(x) == y.astype(str)).mean() > 0.7


def test_fit_takes_equal_rows_and_two_rows(tmp_path: Path) -> None:
    for x in (np.ones((6, 3)), np.eye(2)):
        y = np.arange(len(x)) % 2
        result = package.fit(x, y, settings={"threads": 1}, root=tmp_path, max_steps=20, verbose=False)
        assert np.isfinite(result.model.log_prob(x)).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300, 3e38, -1e37])
def test_vectors_of_numbers_that_no_model_takes_are_refused(
    scnf: Callable[..., Any], tmp_path: Path, number: float
) -> None:
    x, y = np.eye(4), np.arange(4) % 2
    x[2, 1] = number
    np.savez(tmp_path / "v.npz", x=x, y=y)
    outcome = scnf("train v.npz --max_steps 20 --threads 1")
    assert outcome.code == 2 and "numbers in 1 row of x, first in row 2" in outcome.err, outcome.err
    with pytest.raises(InvalidArgument, match="must be finite and up to 1e"):
        package.fit(x, y, root=tmp_path / "logs")
    with pytest.raises(ValueError, match=r"finite|NaN|infinity|too large"):
        package.SemiSupervisedClassifier(steps=2).fit(x, y)
    assert not (tmp_path / "logs").exists()


def test_vectors_of_one_number_are_told_to_add_a_column(scnf: Callable[..., Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.eye(4)[:, :1], y=np.arange(4) % 2)
    outcome = scnf("train v.npz")
    assert outcome.code == 2 and "add a column" in outcome.err and "image" not in outcome.err


def test_fit_refuses_unknown_settings_and_other_data(tmp_path: Path) -> None:
    x, y = images()
    with pytest.raises(UserError, match=r"^there is no setting 'epoch'; did you mean"):
        package.fit(x, y, root=tmp_path, epoch=3)
    with pytest.raises(InvalidArgument, match=r"settings must leave data\.name out"):
        package.fit(x, y, settings={"data.name": "mnist"}, root=tmp_path)


@pytest.mark.parametrize(("rows", "steps"), [(10, 7), (10, 500), (300, 40), (5000, 3)])
def test_chosen_settings_take_the_number_of_steps_asked_for(rows: int, steps: int) -> None:
    dataset = dataset_of(np.zeros((rows, 2)), [0, 1] * (rows // 2))
    train = settings_for(dataset, "auto", {}, steps)[0].train
    assert train.max_steps == steps and train.epochs * max(1, train.passes * len(dataset.train_x) // 48) >= steps


def test_fit_says_which_settings_it_chose_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, verbose=True)
    chosen = capsys.readouterr().out.splitlines()[0]
    assert "train.lr" in chosen and "train.epochs" not in chosen and "train.max_steps" not in chosen


@pytest.mark.parametrize("y", [3, np.int64(3), None, "cat"])
def test_fit_refuses_labels_that_are_no_list(tmp_path: Path, y: Any) -> None:
    with pytest.raises(InvalidArgument, match="y must hold a label for each row"):
        package.fit(images()[0], y, root=tmp_path)
