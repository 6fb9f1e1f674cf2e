"""The commands after training: evaluate, sample, runs; and starting from weights."""

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib import image

from conftest import TINY
from scnf import __version__
from scnf.recipes import ScnfDigits
from scnf.runs import Run
from scnf.settings import load_settings
from scnf.settings.schema import leaves
from scnf.shipped import find_config
from scnf.training.checkpoint import load_tensors, save_tensors


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Run:
    """The finished run as number 1 in logs/ of the test's directory."""
    shutil.copytree(finished, tmp_path / "logs" / finished.name)
    return Run(tmp_path / "logs" / finished.name)


def figures_line(run: Run, split: str) -> str:
    figures = run.read_json("summary.json")[split]
    one, deviation = 100 * figures["one_draw_accuracy"], 100 * figures["one_draw_accuracy_std"]
    return (
        f"{split:<10}  accuracy {100 * figures['accuracy']:.2f} % (one draw {one:.2f} %, deviation {deviation:.2f} %), "
        f"{figures['bits_per_dim']:.3f} bits/dim ({figures['bits_per_dim_over_draws']:.3f} over draws), "
        f"ECE {figures['ece']:.3f}"
    )


# --- help


@pytest.mark.parametrize("words", ["--help", "-h"])
def test_help_lists_the_commands(scnf: Callable[..., Any], words: str) -> None:
    outcome = scnf(words)
    assert outcome.code == 0 and outcome.err == ""
    assert all(
        f"\n  {command}" in outcome.out for command in ("train", "evaluate", "export", "sample", "runs", "compare")
    )


def test_version_option_prints_name_and_version(scnf: Callable[..., Any]) -> None:
    outcome = scnf("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"scnf {__version__}\n", "")


def test_version_is_printed_by_the_module(start: Callable[..., Any]) -> None:
    assert start("-m", "scnf", "--version").communicate() == (f"scnf {__version__}\n", "")


def test_version_imports_nothing_heavy(start: Callable[..., Any]) -> None:
    code = "import sys; from scnf.__main__ import main; main(['--version']); print({'torch', 'numpy'} & {*sys.modules})"
    assert start("-c", code).communicate() == (f"scnf {__version__}\nset()\n", "")


def test_command_line_without_words_prints_usage_and_exits_with_2(scnf: Callable[..., Any]) -> None:
    outcome = scnf()
    assert outcome.code == 2 and outcome.out.startswith("usage:")


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "sample", "runs", "compare"])
def test_help_of_a_command_prints_usage_and_writes_nothing(
    scnf: Callable[..., Any], tmp_path: Path, command: str
) -> None:
    outcome = scnf(command, "--help")
    assert (outcome.code, outcome.err) == (0, "") and outcome.out.startswith("usage:")
    assert list(tmp_path.iterdir()) == []


def test_runs_command_ends_silently_where_its_output_pipe_is_closed(copied: Run) -> None:
    command = [sys.executable, "-c", "from scnf.cli import main; raise SystemExit(main())", "runs"]
    with subprocess.Popen(
        [*command, "--logs", str(copied.path.parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_help_of_train_names_every_setting(scnf: Callable[..., Any]) -> None:
    outcome = scnf("train --config digits.yaml --epochs 3 --help")
    assert all(f"--{name}" in outcome.out for name in (*leaves(ScnfDigits), "config", "resume", "print_config"))


def test_print_config_prints_settings_that_load_again(scnf: Callable[..., Any], tmp_path: Path) -> None:
    outcome = scnf("train --config digits.yaml --epochs 3 --print_config")
    assert (outcome.code, outcome.err) == (0, "") and list(tmp_path.iterdir()) == []
    tree = yaml.safe_load(outcome.out)
    assert (tree["data"]["name"], tree["train"]["epochs"]) == ("digits", 3)
    (tmp_path / "printed.yaml").write_text(outcome.out)
    expected = load_settings(find_config("digits.yaml"), ["--epochs", "3"])
    assert load_settings(tmp_path / "printed.yaml") == expected


# --- evaluate


@pytest.mark.parametrize(
    "ref", ["last", "1", "000001", "logs/{name}", "logs/{name}/", "{name}", "logs/{name}/model.safetensors"]
)
def test_evaluate_gives_the_figures_of_the_summary(scnf: Callable[..., Any], copied: Run, ref: str) -> None:
    outcome = scnf("evaluate", ref.format(name=copied.path.name))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [figures_line(copied, "validation"), figures_line(copied, "test")]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_prints_only_the_split_asked_for(scnf: Callable[..., Any], copied: Run, split: str) -> None:
    outcome = scnf("evaluate last --split", split)
    assert outcome.out.splitlines() == [figures_line(copied, split)]


def test_evaluate_takes_settings_and_leaves_the_run_unchanged(scnf: Callable[..., Any], copied: Run) -> None:
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    assert scnf("evaluate last --eval_batch_size 450 --split test").code == 0
    assert {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()} == before


def test_evaluate_takes_the_best_checkpoint_of_an_interrupted_run(scnf: Callable[..., Any], copied: Run) -> None:
    copied.weights.unlink()
    outcome = scnf("evaluate last")
    assert outcome.code == 0 and figures_line(copied, "test") in outcome.out


def test_evaluate_finds_runs_outside_the_current_directory(scnf: Callable[..., Any], finished: Path) -> None:
    for words in ("evaluate 1 --logs", "evaluate 1 --runs.root"):
        assert scnf(words, finished.parent).code == 0
    assert scnf("evaluate", finished).code == 0


@pytest.mark.parametrize("words", ["evaluate last", "compare last", "train --config digits.yaml --epochs 0"])
def test_nan_figures_are_refused_by_evaluate_compare_and_train(
    scnf: Callable[..., Any], copied: Run, words: str
) -> None:
    tensors, metadata = load_tensors(copied.weights)
    huge = {name: value * 1e5 if value.is_floating_point() else value for name, value in tensors.items()}
    save_tensors(copied.weights, huge, metadata)
    outcome = scnf(words, *([*TINY, "--pretrained", "last"] if words.startswith("train") else []))
    assert outcome.code == 2 and "nan" not in outcome.out
    assert re.fullmatch(r"error: .*: .*nll.*bits_per_dim.* came out as NaN.*smaller train\.lr\n", outcome.err)
    assert not (copied.path.parent / "comparison").exists()
    assert all((run / "summary.json").is_file() is (run == copied.path) for run in copied.path.parent.glob("00*"))


# --- from weights


@pytest.mark.parametrize(
    "pretrained", ["1", "logs/{name}", "logs/{name}/model.safetensors", "logs/{name}/checkpoints/best.safetensors"]
)
def test_train_of_zero_epochs_gives_the_figures_of_the_pretrained_weights(
    digits: Callable[..., Any], copied: Run, last_run: Callable[[], Run], pretrained: str
) -> None:
    outcome = digits("--epochs 0 --pretrained", pretrained.format(name=copied.path.name))
    assert outcome.code == 0
    run = last_run()
    found, expected = run.read_json("summary.json"), copied.read_json("summary.json")
    assert (run.id, found["steps"], found["epochs"], found["images_per_second"]) == (2, 0, 0, None)
    assert (found["validation"], found["test"]) == (expected["validation"], expected["test"])
    weights, original = load_tensors(run.weights)[0], load_tensors(copied.weights)[0]
    assert all(torch.equal(value, original[name]) for name, value in weights.items())


def test_training_starts_from_pretrained_weights(
    digits: Callable[..., Any], copied: Run, last_run: Callable[[], Run]
) -> None:
    losses = []
    for words in ("", "--pretrained 1"):
        assert digits("--max_steps 5 --lr 1e-9", words).code == 0
        losses.append(last_run().read_metrics()[0]["train.loss"])
    assert losses[1] < losses[0] - 5


def test_pretrained_without_a_value_takes_shipped_weights_and_checks_their_sum(
    digits: Callable[..., Any], finished: Path, shipped: Path, last_run: Callable[[], Run]
) -> None:
    assert digits("--epochs 0 --pretrained").code == 0
    assert last_run().read_json("summary.json")["test"] == Run(finished).read_json("summary.json")["test"]
    weights, listed = shipped / "model.safetensors", shipped / "model.safetensors.sha256"
    listed.write_text(f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  model.safetensors\n")
    assert digits("--epochs 0 --pretrained").code == 0
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    outcome = digits("--epochs 0 --pretrained")
    assert outcome.code == 2 and "model.safetensors is damaged" in outcome.err


def test_pretrained_weights_of_another_dataset_are_noted(scnf: Callable[..., Any]) -> None:
    words = "--channels 8 --steps 1 --conditional gaussian --linear plu --batch_size 2000 --eval_batch_size 5000"
    assert scnf("train --config moons.yaml --max_steps 1", words).code == 0
    outcome = scnf("train --config circles.yaml --epochs 0 --pretrained 1", words)
    assert outcome.code == 0 and "was trained on moons, not on circles" in outcome.out


ADAPT = "--adapt --pretrained 1 --data_seed 1 --augment 1 --consistency_weight 10 --propagations 1 --epochs 2"


def test_adapting_trains_the_conditional_part_alone(
    digits: Callable[..., Any], copied: Run, last_run: Callable[[], Run]
) -> None:
    outcome = digits(ADAPT, "--select last --runs.name adapted")
    assert outcome.code == 0 and "saw another label split" in outcome.out
    adapted, original = load_tensors(last_run().weights)[0], load_tensors(copied.weights)[0]
    assert set(adapted) == set(original)
    for name, value in adapted.items():
        if name.startswith("transform."):
            assert torch.equal(value, original[name]), name
        elif name.startswith("conditional.") and value.dtype == torch.float32 and value.dim():
            assert not torch.equal(value, original[name]), name
    metrics = last_run().read_metrics()
    assert metrics[1]["train.loss"] < metrics[0]["train.loss"]
    assert metrics[0]["train.pseudo_labelled"] == 1
    summary, path = last_run().read_json("summary.json"), last_run().path
    assert digits("--epochs 0 --data_seed 1 --pretrained", path).code == 0
    assert last_run().read_json("summary.json")["test"] == summary["test"]  # those of images


def test_adapting_draws_class_embeddings_unlike_those_of_the_pretrained_run(
    digits: Callable[..., Any], copied: Run, last_run: Callable[[], Run]
) -> None:
    drawn = []
    for words in ("", "--seed 0", "--adapt --pretrained 1"):
        assert digits("--epochs 0", words).code == 0
        drawn.append(load_tensors(last_run().weights)[0]["conditional.embedding.weight"].flatten())
    assert torch.equal(drawn[0], drawn[1])
    assert torch.corrcoef(torch.stack(drawn))[0, 2].abs() < 0.5


def test_adapting_resumes_to_the_same_end_after_an_interrupt(
    digits: Callable[..., Any],
    scnf: Callable[..., Any],
    copied: Run,
    last_run: Callable[[], Run],
    interrupt_at: Callable[..., None],
) -> None:
    assert digits(ADAPT).code == 0
    reference = last_run()
    interrupt_at([(1, 3)])
    assert digits(ADAPT).code == 130
    assert scnf("train --resume last").code == 0
    assert last_run().weights.read_bytes() == reference.weights.read_bytes()


def test_untrained_models_are_evaluated(digits: Callable[..., Any], last_run: Callable[[], Run]) -> None:
    for words in ("--epochs 0", "--max_steps 0"):
        assert digits(words).code == 0
        assert last_run().read_json("summary.json")["test"]["bits_per_dim"] < 8


def test_figures_are_of_several_draws_at_the_end_and_of_one_draw_in_epochs(
    digits: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    outcome = digits("--max_steps 22")
    assert "one draw" in outcome.out.splitlines()[-2] and "one draw" not in outcome.out.splitlines()[1]
    evaluate_draws = {"one_draw_accuracy", "one_draw_accuracy_std", "bits_per_dim_over_draws"}
    run = last_run()
    for split in ("validation", "test"):
        assert evaluate_draws < set(run.read_json("summary.json")[split])
    assert not any("draw" in column for row in run.read_metrics() for column in row)


def test_final_figures_include_views_where_eval_views_is_set(
    digits: Callable[..., Any], scnf: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    outcome = digits("--max_steps 22 --augment 1 --classifier_weight 1 --eval_views 2")
    run = last_run()
    told = f"; over views {100 * run.read_json('summary.json')['test']['views_accuracy']:.2f} %), "
    assert told in outcome.out.splitlines()[-2] and "over views" not in outcome.out.splitlines()[1]
    assert not any("views" in column for row in run.read_metrics() for column in row)
    assert told in scnf("evaluate last --split test").out
    assert "over views" not in scnf("evaluate last --split test --eval_views 0").out


def test_eval_views_without_augmentation_are_refused(
    digits: Callable[..., Any], scnf: Callable[..., Any], copied: Run, tmp_path: Path
) -> None:
    for outcome in (digits("--augment 0 --eval_views 2"), scnf("evaluate last --eval_views 2")):
        assert outcome.code == 2 and outcome.err.startswith("error: views are moved versions of each image")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [copied.path.name]


def test_eval_views_of_points_are_refused(scnf: Callable[..., Any]) -> None:
    assert scnf("train --config moons.yaml --max_steps 1").code == 0
    outcome = scnf("evaluate last --eval_views 2")
    assert outcome.code == 2 and outcome.err == "error: points have no views: set train.eval_views to 0\n"


# --- sample


def test_sample_command_draws_one_class_as_its_seed_decides(
    scnf: Callable[..., Any], copied: Run, tmp_path: Path
) -> None:
    outcome = scnf("sample last --label 3 --num 16 --out x.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "x.png\n", "")
    picture = image.imread(tmp_path / "x.png")
    assert picture.shape[0] == picture.shape[1] >= 32 and picture.std() > 0.01
    scnf("sample last --label 3 --num 16 --out same.png")
    scnf("sample last --label 3 --num 16 --out other.png --sample-seed 1")
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("x", "same", "other"))
    assert first == same != other


def test_sample_command_draws_a_row_of_each_class(scnf: Callable[..., Any], copied: Run, tmp_path: Path) -> None:
    assert scnf("sample", copied.path, "--num 2").out == "samples.png\n"
    picture = image.imread(tmp_path / "samples.png")
    assert picture.shape[0] > 3 * picture.shape[1]  # ten rows of two


def test_sample_command_draws_points(scnf: Callable[..., Any], tmp_path: Path) -> None:
    assert (
        scnf("train --config moons.yaml --augment 0 --consistency_weight 0 --channels 8 --steps 1 --max_steps 2").code
        == 0
    )
    assert scnf("sample last --num 100 --out new/points.png").code == 0
    assert image.imread(tmp_path / "new" / "points.png").std() > 0.01


# --- runs


def test_runs_command_lists_sorts_and_filters_runs(
    scnf: Callable[..., Any], copied: Run, digits: Callable[..., Any]
) -> None:
    assert digits("--max_steps 1 --runs.name second").code == 0
    lines = scnf("runs").out.splitlines()
    accuracy = f"{100 * copied.read_json('summary.json')['test']['accuracy']:.2f} %"
    assert lines[0].split()[:3] == ["id", "name", "recipe"]
    assert [line.split()[:2] for line in lines[1:]] == [["000001", "digits-scnf-digits"], ["000002", "second"]]
    assert accuracy in lines[1] and lines[1].endswith("finished")
    assert [line.split()[0] for line in scnf("runs --sort epochs").out.splitlines()[1:]] == ["000002", "000001"]
    assert len(scnf("runs --where name=second").out.splitlines()) == 2
    assert scnf("runs --where accuracy>100%").out == "no runs where accuracy>100%\n"


def test_runs_command_says_that_there_are_no_runs(scnf: Callable[..., Any]) -> None:
    assert scnf("runs").out == "no runs\n"


@pytest.mark.parametrize("ref", ["1", "last", "000001"])
def test_runs_show_prints_status_recipe_and_files(scnf: Callable[..., Any], copied: Run, ref: str) -> None:
    outcome = scnf("runs show", ref)
    assert (outcome.code, outcome.err) == (0, "")
    assert "status: finished" in outcome.out and "scnf-digits" in outcome.out
    for name in ("model.safetensors", "metrics.csv", "checkpoints/last.safetensors"):
        assert re.search(rf"^  {name} .* k?B$", outcome.out, re.MULTILINE)


# --- processes


def test_interrupt_outside_training_exits_with_130_and_names_the_command(
    scnf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(words: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("scnf.commands.runs.list_runs", stop)
    outcome = scnf("runs")
    assert (outcome.code, outcome.err) == (130, "scnf runs was interrupted by SIGINT: run the same command again\n")


def test_resume_of_a_finished_run_changes_no_file(scnf: Callable[..., Any], copied: Run) -> None:
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    outcome = scnf("train --resume 1")
    assert outcome.code == 0 and "the run is finished" in outcome.out
    assert {path: path.read_bytes() for path in before} == before
