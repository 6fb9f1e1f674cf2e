"""What all tests share: the command line called in process, processes of their own, a finished run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scnf.cli import main
from scnf.interrupt import WATCHED
from scnf.native import library, operators
from scnf.runs import Run

REPOSITORY = Path(__file__).parents[1]
TINY = [
    *["--model.channels", "8", "--model.steps", "2", "--conditional_hidden", "16", "--conditional_steps", "1"],
    *["--batch_size", "64", "--labelled_share", "0.25", "--lr", "3e-3", "--schedule", "cosine", "--ema", "0.99"],
    *[
        "--augment",
        "0",
        "--consistency_weight",
        "0",
        "--classifier_weight",
        "0",
        "--device",
        "cpu",
        "--threads",
        "1",
    ],
]
"""A model that trains in no time, on one thread, where every run has the same bits; settings that tests count on."""
TINY_DIGITS = [
    *TINY[TINY.index("--batch_size") :],
    *["--recipe", "scnf-digits", "--model.channels", "8", "--model.steps", "1", "--conditional_hidden", "8"],
]
"""A model of small images that trains in no time, to which tests add the length."""


# A shell that starts a job in the background has it ignore SIGINT, and nohup SIGHUP: this one and its children listen.
for _number in WATCHED:
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

if library() is None:
    os.environ["SCNF_NATIVE"] = "0"  # said once: processes that tests start would each say it again


@dataclass
class Outcome:
    """What a command did: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="torch.compile needs a C++ compiler, and writes code with vectors that ATEN_CPU_CAPABILITY=default hides",
)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are PyTorch's, as on a GPU."""
    monkeypatch.setattr(operators, "_available", lambda: False)


@pytest.fixture
def scnf(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`scnf WORDS...` in this process, from an empty directory; words may hold several words."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            code = main([part for word in words for part in (word.split() if isinstance(word, str) else [str(word)])])
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def digits(scnf: Command, tmp_path: Path) -> Command:
    """`scnf train` on digits with a tiny model, into logs/ of the test's directory."""
    return lambda *words: scnf("train --config digits.yaml", *TINY, *words)


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[int, int]]], None]:
    """SIGINT when a training comes to these (epoch, step), which leave the list one by one."""
    from scnf.data.batches import Batches

    def call(left: list[tuple[int, int]]) -> None:
        epoch = Batches.epoch

        def with_signal(self: Batches, index: int, start: int = 0) -> Any:
            for step, batch in enumerate(epoch(self, index, start), start):
                if left and (index, step) == left[0]:
                    left.pop(0)
                    signal.raise_signal(signal.SIGINT)
                yield batch

        monkeypatch.setattr(Batches, "epoch", with_signal)

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """A Python process of its own in the test's directory: `start("-m", "scnf.cli", ...)`."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str | Path, **options: object) -> "subprocess.Popen[str]":
        options = {"cwd": tmp_path, **options}
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes, **options))  # type: ignore[call-overload]
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def last_run(tmp_path: Path) -> Callable[[], Run]:
    """The latest run in logs/ of the test's directory."""
    return lambda: Run.find(tmp_path / "logs", "last")


def write_photos(folder: Path, low: int, numbers: Iterable[int]) -> None:
    """Write photos of 8x8 pixels with these numbers for names, whose grey levels are from `low` to `low` + 127."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(low)
    for number in numbers:
        pixels = rng.integers(low, low + 128, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def image_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of decoded images of the test's own; kernels stay where they are."""
    for module in ("cache", "backbone"):
        monkeypatch.setattr(f"scnf.data.{module}.cache_folder", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path, image_cache: Path) -> Path:
    """A folder of 12 bright photos, 12 dark ones, and 30 without a label, of which those of odd numbers are bright."""
    write_photos(tmp_path / "photos" / "day", 128, range(12))
    write_photos(tmp_path / "photos" / "nuit, étoilée", 0, range(12))
    write_photos(tmp_path / "photos" / "unlabelled", 128, range(1, 30, 2))
    write_photos(tmp_path / "photos" / "unlabelled", 0, range(0, 30, 2))
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits: 2 epochs and a bit. Tests only read it."""
    root = tmp_path_factory.mktemp("finished")
    words = ["train", "--config", "digits.yaml", *TINY, "--runs.root", str(root), "--max_steps", "50"]
    assert main(words) == 0
    return Run.find(root, "last").path


@pytest.fixture
def shipped(finished: Path, tmp_path: Path) -> Path:
    """Weights that ship for scnf-digits in the test's directory: those of the finished run."""
    folder = tmp_path / "pretrained" / "scnf-digits"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "model.safetensors"):
        shutil.copy(finished / name, folder)
    return folder
