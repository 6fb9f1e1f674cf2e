"""Signals to a real `scnf train` in each of its phases, two trainings of one run, and what a resume makes of them."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interrupt import alive, until
from test_loop import same_end

from conftest import TINY, needs_compiler
from scnf.runs import Run
from scnf.training.checkpoint import load_tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")

WORDS = ["train", "--config", "digits.yaml", *TINY, "--max_steps", "4", "--propagations", "1"]

SEND = """
import importlib, os, sys
number, place, turns = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if place.startswith("import "):
    sys.addaudithook(lambda event, args: event == "import" and args[0] == place[7:] and os.kill(os.getpid(), number))
else:
    module, name = place.split(":")
    owner = importlib.import_module(module)
    whole = getattr(owner, name)
    def with_signal(*arguments, **options):
        global turns
        turns -= 1
        if not turns:
            os.kill(os.getpid(), number)
        return whole(*arguments, **options)
    setattr(owner, name, with_signal)
from scnf.__main__ import main
sys.exit(main(sys.argv[4:]))
"""
"""Sends a signal to itself when it comes to a place for the n-th time, and is `scnf` in all else."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from scnf.cli import main

    root = tmp_path_factory.mktemp("reference")
    assert main([*WORDS, "--runs.root", str(root)]) == 0
    return Run.find(root, "last")


def names(run: Run) -> set[str]:
    """Its files, where those of TensorBoard count as one: a resume begins another."""
    files = (path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file())
    return {re.sub(r"^tensorboard/.*", "tensorboard", name) for name in files}


@pytest.mark.parametrize(
    ("number", "place", "turn", "said"),
    [
        (signal.SIGUSR1, "scnf.propagation.strategy:propagate", 1, "interrupted after step 0; resume with: "),
        (signal.SIGUSR2, "scnf.training.metrics:evaluate_rows", 1, "interrupted after step 4; resume with: "),
        (
            signal.SIGTERM,
            "scnf.training.metrics:evaluate_rows",
            2,
            "scnf train was interrupted by SIGTERM: resume with: ",
        ),
        (signal.SIGHUP, "scnf.analysis.samples:sample_picture", 1, "was interrupted by SIGHUP: resume with: "),
        (signal.SIGKILL, "scnf.analysis.plots:curves", 1, ""),
    ],
    ids=["neighbours", "validation", "final evaluation", "pictures", "killed at pictures"],
)
def test_run_that_a_signal_stopped_is_finished_by_a_resume(
    scnf: Callable[..., Any],
    start: Callable[..., Any],
    last_run: Callable[[], Run],
    reference: Run,
    number: signal.Signals,
    place: str,
    turn: int,
    said: str,
) -> None:
    process = start("-c", SEND, number.value, place, turn, *WORDS)
    out, err = process.communicate(timeout=120)
    run = last_run()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    assert "Traceback" not in err and said in out + err and out.count("resume with") + err.count("\n") == bool(said)
    assert run.checkpoint("last").is_file()
    if (run.path / "summary.json").exists():
        assert run.read_json("summary.json")["status"] == "interrupted"
    assert (names(run) <= names(reference) | {".lock"}) and (".lock" in names(run)) == (number == signal.SIGKILL)
    resumed = scnf("train --resume last")
    assert (resumed.code, resumed.err) == (0, "")
    same_end(run, reference)
    assert names(run) == names(reference)
    for name in ("samples.png", "split.json"):
        assert (run.path / name).read_bytes() == (reference.path / name).read_bytes()


BASELINE = [*WORDS, "--propagations", "0", "--baseline", "true"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_run_stopped_in_its_baseline_holds_nothing_half_written_and_says_so(
    scnf: Callable[..., Any], start: Callable[..., Any], last_run: Callable[[], Run], number: signal.Signals
) -> None:
    process = start("-c", SEND, number.value, "scnf.fitting.baseline:renormalize", 1, *BASELINE)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number) and "Traceback" not in err
    assert ("nothing can be resumed: start a new run" in err) == (number == signal.SIGINT)
    assert names(last_run()) - {".lock"} == {"config.yaml", "split.json", "inputs.json", "env.json"}
    outcome = scnf("train --resume last")
    assert outcome.code == 2 and "Traceback" not in outcome.err and "start a new run" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_run_stopped_after_its_baseline_is_finished_with_it_by_a_resume(
    scnf: Callable[..., Any],
    start: Callable[..., Any],
    last_run: Callable[[], Run],
    number: signal.Signals,
) -> None:
    process = start("-c", SEND, number.value, "scnf.training.loop:learning_rate_factor", 3, *BASELINE)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    run = last_run()
    baseline = run.read_json("baseline.json")
    outcome = scnf("train --resume last")
    assert (outcome.code, outcome.err) == (0, "") and "labels alone: " in outcome.out
    summary = run.read_json("summary.json")
    assert summary["status"] == "finished" and summary["baseline"] == baseline
    assert scnf(*WORDS, "--propagations 0").code == 0
    assert names(run) == names(last_run()) | {"baseline.json"}
    assert run.weights.read_bytes() == last_run().weights.read_bytes()


@pytest.mark.parametrize(
    ("number", "words", "place", "what"),
    [
        (signal.SIGINT, WORDS, "import scnf.failures", "scnf"),
        (signal.SIGHUP, WORDS, "import torch", "scnf train"),
        (signal.SIGUSR1, ["evaluate", "shipped"], "scnf.data.sources:load", "scnf evaluate"),
        (signal.SIGTERM, ["runs"], "scnf.analysis.overview:list_runs", "scnf runs"),
    ],
    ids=["start-up", "import", "data", "reading"],
)
def test_signal_before_anything_is_written_leaves_nothing(
    start: Callable[..., Any], tmp_path: Path, number: signal.Signals, words: list[str], place: str, what: str
) -> None:
    process = start("-c", SEND, number.value, place, 1, *words)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"{what} was interrupted by {number.name}: run the same command again\n"
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_signal_while_pytorch_compiles_acts_at_once(start: Callable[..., Any], last_run: Callable[[], Run]) -> None:
    words = ["train", "--config", "digits.yaml", *TINY, "--max_steps", "4", "--compile", "true"]
    process = start("-c", SEND, signal.SIGTERM.value, "torch._inductor.compile_fx:compile_fx", 1, *words)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "scnf train was interrupted by SIGTERM: " in err and "nothing can be resumed" in err
    assert "Traceback" not in err
    assert names(last_run()) == {"config.yaml", "split.json", "inputs.json", "env.json"}


def test_ignored_hangup_stays_ignored(start: Callable[..., Any], last_run: Callable[[], Run]) -> None:
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}  # as nohup does
    process = start("-c", SEND, signal.SIGHUP.value, "scnf.training.metrics:evaluate_rows", 1, *WORDS, **ignore)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert last_run().read_json("summary.json")["status"] == "finished"


# --- children


WAITS = """#!/bin/sh
sleep 60 & echo $! > "$0.$$"
wait
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are compiled on Linux alone")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", ["download", "compile"])
def test_child_processes_of_a_command_die_with_the_command(
    start: Callable[..., Any], tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    if phase == "compile" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("kernels are for processors with AVX2 or AVX-512, and for others nothing is compiled")
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text(WAITS)
    program.chmod(0o755)
    fake = tmp_path / "modules" / "torchvision"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(f"import subprocess; subprocess.run([{str(program)!r}])")
    environment = {**os.environ, "CXX": str(program), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("SCNF_NATIVE", None)
    if phase == "download":
        environment["PYTHONPATH"] = os.pathsep.join([str(fake.parent), environment.get("PYTHONPATH", "")])
        words = ["evaluate", "shipped", "--data.root", "files"]
    else:
        words = WORDS
    process = start("-m", "scnf", *words, env=environment)

    def pids() -> list[int]:
        found = [path.read_text() for path in program.parent.glob("program.*")]
        return [int(text) for text in found if text.endswith("\n")]

    until(lambda: bool(pids()) or process.poll() is not None, 60)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    until(lambda: not any(map(alive, pids())))
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert f"scnf {words[0]} was interrupted by SIGTERM: " in err and "Traceback" not in err
        places = [tmp_path / "files" / "MNIST" / "raw", tmp_path / "cache" / "scnf"]
        assert [list(place.iterdir()) for place in places if place.exists()] == [[]]


# --- two writers


def test_run_in_training_is_refused_to_others_until_its_process_is_dead(
    scnf: Callable[..., Any], start: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    process = start("-m", "scnf", "train", "--config", "digits.yaml", *TINY, "--epochs", "1000")
    for line in process.stdout:
        if line.startswith("epoch   1/1000"):
            break
    run = last_run()
    outcome = scnf("train --resume last")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.match(rf"error: \S+ is in use: process {process.pid} on \S+ since \S+ writes into it\. ", outcome.err)
    assert "status: unfinished" in scnf("runs show last").out and scnf("evaluate last").code == 0
    process.kill()
    process.wait()
    done = load_tensors(run.checkpoint("last"))[1]["total_step"]
    outcome = scnf("train --resume last --max_steps", str(done + 1))
    assert outcome.code == 0 and run.read_json("summary.json")["steps"] == done + 1
    assert not (run.path / ".lock").exists()
