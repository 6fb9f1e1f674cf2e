"""How many threads a training takes, by a clock that the test moves on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY
from scnf.runs import Run
from scnf.threads import Threads

SPINS = "import os, scnf; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000 None"),
        ({"GOMP_SPINCOUNT": "77"}, "77 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_import_bounds_the_spinning_of_threads_unless_the_user_has(given: dict[str, str], expected: str) -> None:
    others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SPINS], capture_output=True, text=True, env={**others, **given})
    assert done.stdout.strip() == expected, done.stderr


class Machine:
    """A clock that only work moves on, by seconds that depend on the number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.said = seconds, 0.0, list[str]()

    def work(self) -> None:
        self.now += self.seconds[torch.get_num_threads()]

    def threads(self) -> Threads:
        return Threads(lambda: self.work, self.said.append)

    def steps(self, threads: Threads, number: int) -> None:
        for _ in range(number):
            self.work()
            threads()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[int, float]], Machine]]:
    """A machine with as many threads as times are given for."""
    before = torch.get_num_threads()

    def make(seconds: dict[int, float]) -> Machine:
        torch.set_num_threads(max(seconds))
        made = Machine(seconds)
        monkeypatch.setattr(time, "perf_counter", lambda: made.now)
        return made

    yield make
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({2: 0.04, 1: 0.06}, 2),
        ({2: 0.2, 1: 0.06}, 1),
        ({2: 0.06, 1: 0.0599}, 2),  # no gain worth the change
        ({4: 0.05, 3: 0.03, 2: 0.04, 1: 0.06}, 3),
        ({2: 50.0, 1: 0.06}, 1),  # one look is enough
    ],
)
def test_threads_are_as_many_as_make_steps_fastest(
    on: Callable[[dict[int, float]], Machine], seconds: dict[int, float], expected: int
) -> None:
    machine = on(seconds)
    assert machine.threads().choose() == expected == torch.get_num_threads()
    assert len(machine.said) == 1 and f"threads: {expected} " in machine.said[0]
    assert machine.now < 60


def test_single_thread_is_not_timed(on: Callable[[dict[int, float]], Machine]) -> None:
    machine = on({1: 1.0})
    threads = machine.threads()
    assert threads.choose() == 1 and machine.now == 0
    machine.steps(threads, 20)
    machine.seconds[1] = 30.0
    machine.steps(threads, 20)  # slow, but there is nothing to choose
    assert machine.said == []


def test_threads_are_chosen_anew_when_steps_get_slow(on: Callable[[dict[int, float]], Machine]) -> None:
    machine = on({2: 0.04, 1: 0.06})
    threads = machine.threads()
    threads.choose()
    machine.steps(threads, 20)
    machine.now += 100  # an evaluation
    machine.steps(threads, 20)
    assert torch.get_num_threads() == 2 and len(machine.said) == 1
    machine.seconds[2] = 0.3  # a neighbour
    machine.steps(threads, 5)
    assert torch.get_num_threads() == 1 and len(machine.said) == 3
    machine.steps(threads, 20)
    assert len(machine.said) == 3


def test_threads_are_tried_again_at_growing_intervals_while_fewer_are_used(
    on: Callable[[dict[int, float]], Machine],
) -> None:
    machine = on({2: 0.3, 1: 0.06})
    threads = machine.threads()
    threads.choose()
    trial = 6 * (0.3 + 0.06)
    for steps in (100, 200, 400):  # the neighbour is still there
        started = machine.now
        machine.steps(threads, steps - 1)
        assert machine.now - started == pytest.approx((steps - 1) * 0.06)
        machine.steps(threads, 1)
        assert machine.now - started == pytest.approx(steps * 0.06 + trial, abs=0.7)  # a slow trial may be cut short
    assert torch.get_num_threads() == 1 and len(machine.said) == 1
    machine.seconds[2] = 0.04
    machine.steps(threads, 800)
    assert torch.get_num_threads() == 2 and len(machine.said) == 2
    started = machine.now
    machine.steps(threads, 3000)  # with all of them, there is nothing more to try
    assert machine.now - started == pytest.approx(3000 * 0.04)


def test_threads_of_compiled_code_are_not_chosen_again(on: Callable[[dict[int, float]], Machine]) -> None:
    machine = on({2: 0.3, 1: 0.06})
    threads = Threads(lambda: machine.work, machine.said.append, retry=False)
    threads.choose()
    machine.seconds[2] = 0.04
    machine.steps(threads, 500)
    assert torch.get_num_threads() == 1 and len(machine.said) == 1


def test_resume_keeps_to_fewer_threads(on: Callable[[dict[int, float]], Machine]) -> None:
    machine = on({2: 0.04, 1: 0.06})
    threads = machine.threads()  # which has not chosen
    torch.set_num_threads(1)
    machine.steps(threads, 1000)
    assert torch.get_num_threads() == 1 and machine.said == []


# --- in a training


def test_training_chooses_its_threads_and_a_resume_keeps_them(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    def run(*words: str) -> tuple[Run, str]:
        process = start("-m", "scnf", "train", *words, env={**os.environ, "OMP_NUM_THREADS": "2"})
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return Run.find(tmp_path / "logs", "last"), out

    words = ["--config", "digits.yaml", *TINY, "--threads", "auto", "--max_steps"]
    chosen, out = run(*words, "3")
    number = chosen.read_json("summary.json")["threads"]
    assert out.count(f"\nthreads: {number} (a step takes ") == 1 and number in (1, 2)
    told, out = run(*words, "3", "--threads", str(number))
    assert "threads:" not in out and told.read_json("summary.json")["threads"] == number
    assert told.weights.read_bytes() == chosen.weights.read_bytes()  # the trial has left nothing behind
    _, out = run("--resume", "1", "--max_steps", "5")
    assert "threads:" not in out and "bit for bit" not in out
    summary = Run.find(tmp_path / "logs", "1").read_json("summary.json")
    assert (summary["threads"], summary["steps"]) == (number, 5)


@pytest.mark.parametrize("adapt", ["", "--adapt --pretrained shipped --augment 0"], ids=["from data", "adapted"])
def test_weights_depend_on_the_threads_of_the_run_and_not_of_the_process(
    scnf: Callable[..., Any], last_run: Callable[[], Run], adapt: str
) -> None:
    def weights(there: int, threads: int | str) -> bytes:
        torch.set_num_threads(there)
        words = "train --config digits.yaml --max_steps 2 --batch_size 256 --classifier_weight 1 --consistency_weight 0"
        assert scnf(words, adapt, "--threads", str(threads)).code == 0
        return last_run().weights.read_bytes()

    one = weights(1, 1)
    assert weights(2, 1) == one
    chosen = weights(2, "auto")
    assert weights(2, last_run().read_json("summary.json")["threads"]) == chosen
