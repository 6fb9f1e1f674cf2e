"""Training by the real command, on digits with a tiny model: what it leaves, and that stopping it loses nothing."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import needs_compiler, needs_cuda
from scnf import UNLABELLED, settings_data
from scnf.batch import Batch
from scnf.data import sources
from scnf.data.batches import Batches
from scnf.fitting import course
from scnf.interrupt import WATCHED
from scnf.models.base import JointModel
from scnf.objectives import Objective
from scnf.propagation import distortion, self_training, strategy
from scnf.recipes import build
from scnf.runs import Run
from scnf.training import loop
from scnf.training.averaging import averaged_model, averaging
from scnf.training.checkpoint import load_tensors
from scnf.training.schedules import SCHEDULES
from scnf.training.state import State

COLUMNS = [
    *["epoch", "step", "minutes", "images_per_second", "lr"],
    *["train.loss", "train.labelled_nll", "train.unlabelled_nll", "train.labelled_accuracy", "train.grad_norm"],
    *["validation.accuracy", "validation.nll", "validation.ece", "validation.bits_per_dim"],
]
TIMINGS = ("minutes", "images_per_second")
FIGURES = {"accuracy", "nll", "ece", "bits_per_dim"}
STEPS = 22  # of an epoch on digits: 1097 rows, 48 unlabelled in a batch


def rows(run: Run) -> list[dict[str, str]]:
    """metrics.csv without what a clock decides, as it is written."""
    with open(run.path / "metrics.csv", newline="") as handle:
        return [{key: cell for key, cell in row.items() if key not in TIMINGS} for row in csv.DictReader(handle)]


def same_end(run: Run, reference: Run) -> None:
    assert run.weights.read_bytes() == reference.weights.read_bytes()
    assert rows(run) == rows(reference)
    found, expected = (load_tensors(each.checkpoint("last")) for each in (run, reference))
    assert set(found[0]) == set(expected[0])
    assert [name for name, value in found[0].items() if not torch.equal(value, expected[0][name])] == []
    own = {"minutes", "train_seconds", "run"}
    assert {k: v for k, v in found[1].items() if k not in own} == {k: v for k, v in expected[1].items() if k not in own}
    summaries = [{**each.read_json("summary.json")} for each in (run, reference)]
    for summary in summaries:
        for key in ("minutes", "images_per_second", "peak_memory_mb"):
            summary.pop(key)
    assert summaries[0] == summaries[1] and summaries[0]["status"] == "finished"


# --- what a run leaves


def test_finished_run_has_its_files(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    events = {name for name in names if re.fullmatch(r"tensorboard/events\.out\.tfevents\..+", name)}
    assert len(events) == 1
    assert names - events == {
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "config.yaml",
        "curves.png",
        "env.json",
        "metrics.csv",
        "model.safetensors",
        "samples.png",
        "split.json",
        "inputs.json",
        "summary.json",
        "unusual.json",
    }
    for name in ("curves.png", "samples.png"):
        assert (finished / name).read_bytes()[:4] == b"\x89PNG"


def test_finished_run_has_a_row_of_metrics_for_each_epoch(finished: Path) -> None:
    header, *lines = (finished / "metrics.csv").read_text().splitlines()
    assert header.split(",") == COLUMNS
    metrics = Run(finished).read_metrics()
    assert len(lines) == len(metrics) == 3
    assert [(row["epoch"], row["step"]) for row in metrics] == [(1, 22), (2, 44), (3, 50)]
    assert all(set(row) == set(COLUMNS) for row in metrics)
    assert metrics[-1]["train.loss"] < metrics[0]["train.loss"]
    assert metrics[-1]["validation.bits_per_dim"] < metrics[0]["validation.bits_per_dim"] < 4.2


def test_finished_run_has_a_summary_of_its_figures(finished: Path) -> None:
    summary = Run(finished).read_json("summary.json")
    assert set(summary) == {
        *("status", "parameters", "epochs", "steps", "minutes", "images_per_second", "threads", "peak_memory_mb"),
        *("selected_epoch", "validation", "test"),
    }
    evaluate_draws = {"one_draw_accuracy", "one_draw_accuracy_std", "bits_per_dim_over_draws"}
    assert set(summary["validation"]) == set(summary["test"]) == FIGURES | evaluate_draws
    assert (summary["status"], summary["epochs"], summary["steps"]) == ("finished", round(50 / 22, 4), 50)
    assert summary["images_per_second"] > 0 and summary["peak_memory_mb"] > 0 and 0 < summary["minutes"] < 1
    selected = Run(finished).read_metrics()[summary["selected_epoch"] - 1]
    # of an epoch it is one draw, of the end the mean of eight: 250 rows, and so a standard error of 2 % and less
    assert selected["validation.bits_per_dim"] == pytest.approx(summary["validation"]["bits_per_dim"], abs=0.05)
    tensors, metadata = load_tensors(Run(finished).weights)
    assert metadata == {"recipe": "scnf-digits"}
    best, metadata = load_tensors(Run(finished).checkpoint("best"))
    assert metadata["epoch"] == summary["selected_epoch"] and metadata["accuracy"] == selected["validation.accuracy"]
    assert set(best) == set(tensors) and all(torch.equal(value, tensors[name]) for name, value in best.items())


def test_finished_run_records_its_split_and_environment(finished: Path) -> None:
    split, environment = Run(finished).read_json("split.json"), Run(finished).read_json("env.json")
    assert (len(split["labelled"]), len(split["validation"]), split["num_rows"]) == (100, 250, 1347)
    assert environment["device"] == "cpu" and environment["versions"]["torch"]


def test_config_of_a_run_trains_to_the_same_end_again(
    scnf: Callable[..., Any], finished: Path, last_run: Callable[[], Run]
) -> None:
    assert scnf("train --config", finished / "config.yaml", "--runs.root logs").code == 0
    same_end(last_run(), Run(finished))


def test_run_has_config_split_and_environment_before_training(
    digits: Callable[..., Any], last_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "train_model", stop)
    outcome = digits("--epochs 1")
    assert outcome.code == 130 and "nothing can be resumed" in outcome.err
    assert {path.name for path in last_run().path.iterdir()} == {"config.yaml", "split.json", "inputs.json", "env.json"}


# --- stopping and going on

SEND = """
import os, signal, sys
from scnf.data.batches import Batches
number, at_epoch, at_step = map(int, sys.argv[1:4])
epoch = Batches.epoch
def with_signal(self, index, start=0):
    for step, batch in enumerate(epoch(self, index, start), start):
        if (index, step) == (at_epoch, at_step) and self.num_unlabelled:
            os.kill(os.getpid(), number)
        yield batch
Batches.epoch = with_signal
from scnf.cli import main
sys.exit(main(sys.argv[4:]))
"""
KINDS = {
    signal.SIGTERM: "--epochs 2 --ema 0.9 --schedule cosine --optimizer adamax --select last "
    "--augment 1 --classifier_weight 10 --consistency_weight 10 --confidence 0.3 --objective.temperature 2 "
    "--propagations 1 --neighbours self-training --self_training_networks 1",
    signal.SIGINT: "--epochs 2 --ema 0 --schedule hat --optimizer adam --weight_decay 1e-3 --select bits_per_dim "
    "--propagations 1 --neighbours distortion",
    signal.SIGKILL: "--epochs 2 --ema 0.9 --schedule linear --optimizer adamw --grad_clip 5 --classifier_weight 1",
}


@pytest.mark.parametrize("number", KINDS, ids=lambda number: number.name)
def test_training_stopped_by_a_signal_resumes_to_the_same_end(
    scnf: Callable[..., Any], start: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    from conftest import TINY

    words = ["train", "--config", "digits.yaml", *TINY, *KINDS[number].split()]
    process = start("-c", SEND, number.value, 1, 9, *words, "--runs.root", "stopped")
    assert scnf(*words).code == 0
    out, err = process.communicate(timeout=300)
    run = Run.find(tmp_path / "stopped", "last")
    assert "Traceback" not in err and err == ""
    done = load_tensors(run.checkpoint("last"))[1]
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert (done["epoch"], done["step"]) == (1, 0)
        assert not (run.path / "summary.json").exists()
    else:
        assert process.returncode == 128 + number
        assert (done["epoch"], done["step"], done["total_step"]) == (1, 10, STEPS + 10)  # the step under way is ended
        assert run.read_json("summary.json")["status"] == "interrupted"
        assert f"scnf train --resume {run.path.relative_to(tmp_path)}" in out
    assert not run.weights.exists()
    resumed = scnf("train --resume", run.path)
    assert (resumed.code, resumed.err) == (0, "")
    same_end(run, Run.find(tmp_path / "logs", "last"))
    assert list(run.path.rglob("*.tmp")) == []


@pytest.mark.parametrize("stops", [[(0, 1)], [(0, 21)], [(0, 20), (0, 21), (1, 0)], [(1, 21)]], ids=str)
def test_training_interrupted_at_any_step_resumes_to_the_same_end(
    digits: Callable[..., Any],
    scnf: Callable[..., Any],
    last_run: Callable[[], Run],
    interrupt_at: Callable[..., None],
    stops: list[tuple[int, int]],
) -> None:
    assert digits("--epochs 2 --runs.name reference").code == 0
    reference, left = last_run(), list(stops)
    interrupt_at(left)
    codes = [digits("--epochs 2").code]
    while codes[-1] == 130 and len(codes) < 9:
        codes.append(scnf("train --resume last").code)
    assert not left and codes == [130] * len(stops) + [0]
    same_end(last_run(), reference)


@pytest.mark.parametrize("place", ["scnf.training.state.State.save", "scnf.runs.Run.log_metrics"])
@pytest.mark.parametrize("late", [False, True])
def test_interrupt_between_metrics_and_checkpoint_loses_no_row(
    digits: Callable[..., Any],
    scnf: Callable[..., Any],
    finished: Path,
    last_run: Callable[[], Run],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    late: bool,
) -> None:
    owner, name = (State, "save") if place.endswith("save") else (Run, "log_metrics")
    whole, calls = getattr(owner, name), []

    def dies(*arguments: Any) -> None:
        calls.append(0)
        if len(calls) == 2 and not late:
            raise KeyboardInterrupt
        whole(*arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, dies)
    assert digits("--max_steps 50").code == 130
    monkeypatch.setattr(owner, name, whole)
    assert scnf("train --resume last").code == 0
    same_end(last_run(), Run(finished))


def test_train_flow_ssl_script_runs_from_another_directory(start: Callable[..., Any], tmp_path: Path) -> None:
    from conftest import REPOSITORY, TINY

    process = start(REPOSITORY / "train_flow_ssl.py", "--config", "digits.yaml", *TINY, "--epochs", "1000")
    for line in process.stdout:
        if line.startswith("epoch   1/1000"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "")
    assert "interrupted after step" in out
    run = Run.find(tmp_path / "logs", "last")
    assert run.read_json("summary.json")["status"] == "interrupted"
    assert len(rows(run)) == load_tensors(run.checkpoint("last"))[1]["epoch"] >= 1
    argv = run.read_json("env.json")["argv"]
    assert argv[0].endswith("train_flow_ssl.py") and argv[1:3] == ["--config", "digits.yaml"]


def test_train_flow_ssl_script_runs_from_the_repository(start: Callable[..., Any], tmp_path: Path) -> None:
    from conftest import REPOSITORY, TINY

    words = ["--config", "digits.yaml", "--max_steps", "3", *TINY, "--runs.root", tmp_path / "logs"]
    process = start("train_flow_ssl.py", *words, cwd=REPOSITORY)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    run = Run.find(tmp_path / "logs", "last")
    assert str(run.path) in out.splitlines()[0] and str(run.path) in out.splitlines()[-1]
    assert run.read_json("summary.json")["steps"] == 3


def test_resuming_a_finished_run_changes_nothing(scnf: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "logs" / finished.name
    shutil.copytree(finished, copy)
    assert scnf("train --resume last").code == 0
    same_end(Run(copy), Run(finished))


def test_resuming_with_more_steps_trains_on(scnf: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "logs" / finished.name)
    shutil.copytree(finished, run.path)
    assert scnf("train --resume last --max_steps 60").code == 0
    assert [row["step"] for row in run.read_metrics()] == [22, 44, 50, 60]
    assert rows(run)[:3] == rows(Run(finished))
    assert run.read_json("summary.json")["steps"] == 60
    assert "max_steps: 60" in (run.path / "config.yaml").read_text()


def test_epoch_cut_by_max_steps_goes_on_where_it_stopped(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "logs" / finished.name)
    shutil.copytree(finished, run.path)
    outcome = scnf("train --resume last --max_steps null --epochs 4")
    assert outcome.code == 0 and "epoch   4/4" in outcome.out and "epoch   5/4" not in outcome.out
    assert [(row["epoch"], row["step"]) for row in run.read_metrics()] == [
        *((1, 22), (2, 44), (3, 50), (3, 66), (4, 88))
    ]
    summary = run.read_json("summary.json")
    assert (summary["epochs"], summary["steps"]) == (4, 88)


def test_run_that_ends_within_its_first_epoch_counts_a_part_of_it(
    digits: Callable[..., Any], scnf: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    outcome = digits("--max_steps 11")
    assert outcome.code == 0 and "11 steps in " in outcome.out
    assert last_run().read_json("summary.json")["epochs"] == 0.5
    assert re.search(r" 100 +0\.5 ", scnf("runs").out)


def test_epoch_cut_where_the_training_was_interrupted_is_evaluated(
    digits: Callable[..., Any],
    scnf: Callable[..., Any],
    last_run: Callable[[], Run],
    interrupt_at: Callable[[list[tuple[int, int]]], None],
) -> None:
    interrupt_at([(0, 10)])
    assert digits("--max_steps 50").code == 130
    run = last_run()
    stopped = int(load_tensors(run.checkpoint("last"))[1]["total_step"])
    assert not run.checkpoint("best").is_file()
    assert scnf("train --resume last --max_steps 5").code == 0
    assert [(row["epoch"], row["step"]) for row in run.read_metrics()] == [(1, stopped)]
    assert run.checkpoint("best").is_file() and run.read_json("summary.json")["selected_epoch"] == 1


def test_final_files_of_a_run_are_removed_while_training_goes_on(
    scnf: Callable[..., Any],
    finished: Path,
    tmp_path: Path,
    interrupt_at: Callable[[list[tuple[int, int]]], None],
) -> None:
    run = Run(tmp_path / "logs" / finished.name)
    shutil.copytree(finished, run.path)
    interrupt_at([(2, 12)])
    assert scnf("train --resume last --max_steps 60").code == 130
    left = {path.name for path in run.path.iterdir()}
    assert not left & {"model.safetensors", "samples.png", "curves.png"}
    assert run.read_json("summary.json")["status"] == "interrupted"
    assert scnf("evaluate last").code == 0


def test_final_files_of_a_run_stay_where_resuming_is_refused(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "logs" / finished.name)
    shutil.copytree(finished, run.path)
    shutil.move(run.path / "config.yaml", tmp_path / "config.yaml")
    (run.path / "config.yaml").symlink_to(tmp_path / "config.yaml")
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    outcome = scnf("train --resume last --max_steps 60")
    assert outcome.code == 2 and "symbolic link" in outcome.err
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "curves.png", "summary.json"])
def test_final_files_that_are_missing_are_made_again_by_resuming(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path, name: str
) -> None:
    run = Run(tmp_path / "logs" / finished.name)
    shutil.copytree(finished, run.path)
    if name == "summary.json":
        (run.path / name).write_text("[]")
    else:
        (run.path / name).unlink()
    assert scnf("train --resume last").code == 0
    same_end(run, Run(finished))
    assert (run.path / "curves.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adamax", "train.optimizer is adam in it, not adamax"),
        ("--model.channels 4", "model.channels is 8 in it, not 4"),
        ("--batch_size 32", "train.batch_size is 64 in it, not 32"),
        ("--labelled_share 0.5", "data.labelled_share is 0.25 in it, not 0.5"),
        ("--passes 2", "train.passes is 1 in it, not 2"),
        ("--consistency_weight 1", "objective.consistency_weight is 0.0 in it, not 1.0"),
        ("--ema 0", "train.ema is 0.99 in it, not 0.0"),
        ("--pretrained last", "pretrained is null in it, not last"),
        ("--data_seed 1", "another label split"),
        ("--lr -1", "train.lr must be"),
    ],
)
def test_resuming_with_unsuitable_settings_is_refused_and_changes_nothing(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path, words: str, message: str
) -> None:
    copy = tmp_path / "logs" / finished.name
    shutil.copytree(finished, copy)
    outcome = scnf("train --resume last", words)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and message in outcome.err
    for path in finished.rglob("*"):
        if path.is_file():
            assert (copy / path.relative_to(finished)).read_bytes() == path.read_bytes(), path


# --- what goes wrong


def test_loss_that_is_not_finite_is_an_error_naming_a_layer(
    digits: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    outcome = digits("--lr 1e30")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert re.match(r"error: the loss or its gradient is not finite at step \d+ \(epoch 1\): ", outcome.err)
    assert re.search(r"the first layer with a non-finite output is transform\.\S+ \(\w+\)", outcome.err)
    assert outcome.err.endswith("there is no checkpoint yet. Lower train.lr or set train.grad_clip\n")
    assert last_run().read_json("summary.json")["status"] == "failed"


def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    digits: Callable[..., Any], scnf: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    assert digits("--max_steps 22 --schedule none").code == 0
    run = last_run()
    good = run.checkpoint("last").read_bytes(), run.checkpoint("best").read_bytes()
    outcome = scnf("train --resume last --max_steps 44 --lr 1e30")
    assert outcome.code == 2 and "the last good checkpoint is kept in" in outcome.err
    assert (run.checkpoint("last").read_bytes(), run.checkpoint("best").read_bytes()) == good
    assert scnf("train --resume last --lr 1e-3").code == 0
    assert len(rows(run)) == 2 and all(value.isfinite().all() for value in load_tensors(run.weights)[0].values())


# --- hidden labels


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--conditional gaussian --means data --prior empirical --classifier_weight 1",
        "--augment 1 --classifier_weight 10 --consistency_weight 10 --confidence 0.3",
        "--augment 1 --consistency_weight 10 --epochs 2 --propagations 2",
        "--classifier_weight 10 --epochs 2 --propagations 2 --neighbours self-training --self_training_networks 1",
        "--classifier_weight 10 --epochs 2 --propagations 2 --neighbours distortion",
    ],
)
@pytest.mark.parametrize("leak", [False, True])
def test_hidden_labels_do_not_change_the_weights(
    scnf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, leak: bool
) -> None:
    monkeypatch.setattr(self_training, "STEPS", 5)
    arguments = f"train --config digits.yaml --model.channels 8 --model.steps 2 {words} --balanced false"
    arguments += " --device cpu --max_steps 30 --select last --runs.root"
    assert scnf(arguments, "a").code == 0
    first, load = Run.find(tmp_path / "a", "last"), sources.load
    split = first.read_json("split.json")

    def scrambled(name: str, root: Any) -> sources.Dataset:
        data = load(name, root)
        train_y = (data.train_y + 1 + torch.arange(len(data.train_y)) % 9) % 10
        assert not (train_y == data.train_y).any()
        if not leak:  # with it, visible labels change as well, which has to show
            train_y[split["labelled"]] = data.train_y[split["labelled"]]
        return dataclasses.replace(data, train_y=train_y, test_y=(data.test_y + 1) % 10)

    monkeypatch.setattr(settings_data, "load", scrambled)
    assert scnf(arguments, "b").code == 0
    second = Run.find(tmp_path / "b", "last")
    assert second.read_json("split.json") == split
    assert (first.weights.read_bytes() == second.weights.read_bytes()) is not leak
    if not leak:
        trained = [
            [{k: v for k, v in row.items() if k.startswith("train.")} for row in rows(run)] for run in (first, second)
        ]
        assert trained[0] == trained[1]
        assert first.read_json("summary.json")["test"] != second.read_json("summary.json")["test"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_while_labels_are_propagated_acts_at_once(
    scnf: Callable[..., Any],
    digits: Callable[..., Any],
    last_run: Callable[[], Run],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    calls, whole = [], strategy.propagate

    def interrupted(features: Any, y: Any) -> Any:
        calls.append(features.shape)
        torch.rand(1)  # what was drawn does not count
        signal.raise_signal(number)
        raise AssertionError("this comes after the interrupt")

    monkeypatch.setattr(strategy, "propagate", interrupted)
    before = [signal.getsignal(each) for each in WATCHED]
    words = "--epochs 2 --propagations 1 --augment 1 --consistency_weight 10"
    outcome = digits(words)
    assert outcome.code == 128 + number and "after step 0; resume with" in outcome.out and len(calls) == 1
    assert [signal.getsignal(each) for each in WATCHED] == before
    stopped = last_run()
    assert stopped.read_json("summary.json")["status"] == "interrupted"
    monkeypatch.setattr(strategy, "propagate", whole)
    assert scnf("train --resume last").code == 0 and digits(words).code == 0
    same_end(stopped, last_run())


@pytest.mark.parametrize("first", ["pixels", "gradients", "self-training", "distortion"])
@pytest.mark.parametrize(("times", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])])
def test_labels_are_propagated_at_even_distances(
    digits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, times: int, expected: list[int], first: str
) -> None:
    widths, shares, found = [], [], []
    whole_propagate, whole_most_certain = strategy.propagate, strategy.most_certain
    whole_neighbours = distortion.distortion_neighbours

    def watched_propagate(features: Any, y: Any) -> Any:
        widths.append(features.shape[1])
        assert (y != UNLABELLED).sum() == 100
        return whole_propagate(features, y)

    def watched_most_certain(labels: Any, certainty: Any, share: float) -> Any:
        shares.append(share)
        return whole_most_certain(labels, certainty, share)

    def watched_neighbours(x: Any) -> Any:
        found.append(x.shape)
        return whole_neighbours(x)

    monkeypatch.setattr(strategy, "propagate", watched_propagate)
    monkeypatch.setattr(strategy, "most_certain", watched_most_certain)
    monkeypatch.setattr(distortion, "distortion_neighbours", watched_neighbours)
    monkeypatch.setattr(self_training, "STEPS", 2)
    words = "--max_steps 100 --epochs 4 --augment 1 --consistency_weight 10 --schedule none"
    words += f" --neighbours {first} --self_training_networks 1"
    assert digits(words, f"--propagations {times}").code == 0
    narrow = {"pixels": [64], "gradients": [972], "self-training": [self_training.HIDDEN], "distortion": []}[first]
    later = 64 + 972 if first == "gradients" else 64  # of the representations, which gradients are added to
    assert widths == narrow + [later] * (len(expected) - 1)
    assert found == ([(1097, 1, 8, 8)] if first == "distortion" else [])
    assert shares == [min(1.0, (0.6 if first in ("pixels", "gradients") else 1.0) + 0.2 * epoch) for epoch in expected]


# --- choices


@pytest.mark.parametrize("optimizer", loop.OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_works_with_each_schedule_and_optimizer(
    scnf: Callable[..., Any], tmp_path: Path, optimizer: str, schedule: str
) -> None:
    words = (
        f"train --config moons.yaml --augment 0 --consistency_weight 0 --channels 8 --steps 1 --optimizer {optimizer}"
    )
    assert (
        scnf(
            words, f"--schedule {schedule} --warmup 0.05 --lr 1e-3 --epochs 2 --batch_size 2000 --eval_batch_size 5000"
        ).code
        == 0
    )
    run = Run.find(tmp_path / "logs", "last")
    metrics = run.read_metrics()
    assert "validation.bits_per_dim" not in metrics[0] and metrics[-1]["validation.nll"] < metrics[0]["validation.nll"]
    steps = int(metrics[-1]["step"])
    factor = loop.learning_rate_factor(schedule, steps - 1, steps, 0.05)
    assert metrics[-1]["lr"] == pytest.approx(1e-3 * factor)


def test_labelled_weight_is_constant_or_decays_to_one(scnf: Callable[..., Any], tmp_path: Path) -> None:
    words = "train --config moons.yaml --channels 8 --steps 1 --epochs 4 --batch_size 1000 --labelled_share 0.5"
    for more in ("", "--labelled_decay 0.5"):
        assert scnf(words, "--labelled_weight 9", more).code == 0
    for number, weights in (("1", [9, 9, 9, 9]), ("2", [None, None, 1, 1])):
        metrics = Run.find(tmp_path / "logs", number).read_metrics()
        for row, weight in zip(metrics, weights, strict=True):
            labelled, others, loss = (row[f"train.{name}"] for name in ("labelled_nll", "unlabelled_nll", "loss"))
            if weight is None:  # on its way
                assert 1.5 < (loss - others) / (labelled - loss) < 8.5
            else:
                assert loss == pytest.approx((weight * labelled + others) / (weight + 1), rel=1e-5)


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="only tried on Linux")
def test_compiled_training_gives_the_figures_of_plain_training(scnf: Callable[..., Any], tmp_path: Path) -> None:
    words = "train --config moons.yaml --augment 0 --consistency_weight 0 --channels 8 --steps 1 --max_steps 2"
    assert scnf(words, "--compile").code == scnf(words).code == 0
    compiled, plain = (Run.find(tmp_path / "logs", number).read_metrics()[0] for number in "12")
    assert compiled["validation.nll"] == pytest.approx(plain["validation.nll"], rel=1e-3)
    assert set(load_tensors(Run.find(tmp_path / "logs", "1").weights)[0]) == set(
        load_tensors(Run.find(tmp_path / "logs", "2").weights)[0]
    )


def test_different_seeds_share_the_split(digits: Callable[..., Any], tmp_path: Path) -> None:
    for seed in (0, 1):
        assert digits(f"--max_steps 2 --seed {seed}").code == 0
    first, second = (Run.find(tmp_path / "logs", number) for number in "12")
    assert first.read_json("split.json") == second.read_json("split.json")
    assert first.weights.read_bytes() != second.weights.read_bytes()


# --- the function itself, with scripted figures


def fit(path: Path, figures: list[dict[str, float]], **options: Any) -> tuple[JointModel, loop.Progress, Run]:
    torch.manual_seed(0)
    model = build("scnf-toy", (2,), 2, channels=4, steps=1)
    y = torch.full((40,), UNLABELLED)
    y[:4] = torch.tensor([0, 0, 1, 1])
    batches, run, script = Batches(torch.randn(40, 2), y, 25, 0.2, 0, None), Run(path), iter(figures)
    model.initialize(*next(batches.epoch(0))[:2])
    plan = loop.Plan(epochs=len(figures), **options)
    progress = loop.train(
        State(model, torch.optim.Adam(model.parameters(), lr=0.01), averaged_model(model, plan.ema)),
        Objective(),
        batches,
        run,
        plan,
        evaluate=lambda kept: {"accuracy": 0.0, "nll": 0.0, "ece": 0.0} | next(script),
        log=lambda line: None,
    )
    return model, progress, run


@pytest.mark.parametrize(
    ("select", "name", "values", "best"),
    [
        ("accuracy", "accuracy", [0.1, 0.5, 0.5, 0.3], 3),  # of equals the later
        ("accuracy", "accuracy", [0.0, 0.0, 0.0, 0.0], 4),
        ("bits_per_dim", "nll", [3.0, -2.0, 1.0, 0.0], 2),
        ("bits_per_dim", "nll", [float("nan"), 2.0, 3.0, float("nan")], 2),
        ("bits_per_dim", "nll", [float("nan")] * 4, 1),
        ("bits_per_dim", "nll", [float("inf"), float("nan"), float("inf"), float("inf")], 4),
        ("last", "accuracy", [0.9, 0.1, 0.5, 0.2], 4),
    ],
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_best_weights_are_kept(
    tmp_path: Path, select: str, name: str, values: list[float], best: int, ema: float
) -> None:
    model, progress, run = fit(tmp_path, [{name: value} for value in values], select=select, ema=ema)
    assert (progress.best_epoch, progress.epoch, progress.total_step) == (best, 4, 8)
    kept, metadata = load_tensors(run.checkpoint("best"))
    assert metadata["epoch"] == best
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    shorter, _, _ = fit(tmp_path / "shorter", [{name: 0.0}] * best, select="last", ema=ema)
    assert all(torch.equal(value, kept[key]) for key, value in shorter.state_dict().items())


def test_averaged_weights_lag_behind(tmp_path: Path) -> None:
    plain, averaged = (fit(tmp_path / str(ema), [{}] * 3, ema=ema, select="last")[0] for ema in (0.0, 0.9))
    trained = load_tensors(Run(tmp_path / "0.9").checkpoint("last"))[0]
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in plain.state_dict().items())
    assert any(not torch.equal(value, trained[f"model.{name}"]) for name, value in averaged.state_dict().items())


def test_weight_average_equals_that_of_pytorch() -> None:
    model = build("classifier", (1, 8, 8), 3, hidden=8, norm="batch")  # it has buffers, of two types
    ours, theirs = (averaged_model(model, 0.9) for _ in range(2))
    assert ours is not None and theirs is not None
    keep_average = averaging(ours, model, 0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        model(Batch(torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, UNLABELLED])))
        keep_average()
        theirs.update_parameters(model)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys() and found["module.network.body.2.num_batches_tracked"] == 3
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    clipped = fit(tmp_path / "a", [{}], max_steps=1, grad_clip=1e-12)[0]
    free = fit(tmp_path / "b", [{}], max_steps=1)[0]
    norms = [Run(tmp_path / name).read_metrics()[0]["train.grad_norm"] for name in "ab"]
    assert norms[0] == norms[1] > 0.1  # what is logged is the norm before
    assert any(not torch.equal(a, b) for a, b in zip(clipped.parameters(), free.parameters(), strict=True))


def test_summary_is_plain_json(finished: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((finished / "summary.json").read_text(), parse_constant=refuse)


def test_reversible_training_gives_the_figures_of_plain_training(scnf: Callable[..., Any], tmp_path: Path) -> None:
    words = "train --config digits.yaml --max_steps 8 --autocast false"  # where networks are in bf16, they round more
    assert scnf(words, "--reversible").code == scnf(words).code == 0
    reversible, plain = (Run.find(tmp_path / "logs", number).read_metrics()[0] for number in "12")
    names = ("train.loss", "train.grad_norm", "validation.nll")
    assert all(reversible[name] == pytest.approx(plain[name], rel=1e-3) for name in names)
    assert any(reversible[name] != plain[name] for name in names), "the inverses should have left their rounding"


@needs_cuda
def test_model_trained_on_a_gpu_has_the_same_figures_on_cpu_and_gpu(
    digits: Callable[..., Any], scnf: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    assert digits("--device cuda --max_steps 60 --augment 0.5 --consistency_weight 1 --propagations 1").code == 0
    assert scnf("train --resume last --max_steps 70").code == 0
    expected = last_run().read_json("summary.json")["test"]["bits_per_dim"]
    for device in ("cpu", "cuda"):
        outcome = scnf(f"evaluate last --split test --device {device}")
        found = re.search(r"([\d.]+) bits/dim", outcome.out)
        assert outcome.code == 0 and found and float(found[1]) == pytest.approx(expected, abs=2e-3)
