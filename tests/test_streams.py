"""Standard streams that are full, closed or without a reader, texts that hold anything, and names of files."""

import csv
import errno
import io
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from conftest import TINY
from scnf import streams
from scnf.analysis import compare, plots
from scnf.errors import UserError
from scnf.runs import Run
from scnf.streams import Stream, printable

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the shell and the devices of Linux")
LOST = "cannot write to standard output: "
FULL, CLOSED = f"{LOST}No space left on device", f"{LOST}it is closed"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`SCNF` in the command is the console script; what it writes is cut from the streams that it does not redirect."""
    words = command.replace("SCNF", f"{shlex.quote(sys.executable)} -m scnf.cli")
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **environment}  # what is held back until the end, too
    options: dict[str, Any] = {"cwd": folder, "env": environment, "timeout": 300}
    return subprocess.run(["bash", "-c", words], capture_output=True, text=True, errors="backslashreplace", **options)


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """The test's directory with a finished run in logs/."""
    shutil.copytree(finished, tmp_path / "logs" / finished.name)
    return tmp_path


# --- full and closed streams


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("SCNF runs >/dev/full", 2, "", f"error: {FULL}"),
        ("SCNF runs >&-", 2, "", f"error: {CLOSED}"),
        ("SCNF --help >/dev/full", 2, "", f"error: {FULL}"),
        ("SCNF runs --help >/dev/full", 2, "", f"error: {FULL}"),
        ("SCNF train --config digits.yaml --print_config >&-", 2, "", f"error: {CLOSED}"),
        ("SCNF runs >/dev/full 2>/dev/full", 2, "", ""),
        ("SCNF runs 2>&-", 0, "000001", ""),
        ("SCNF runs --sort x 2>&-", 2, "error: there is no column 'x'", ""),
        ("SCNF sample 2>/dev/full", 2, "error: the following arguments are required", ""),
        ("SCNF runs <&- >&- 2>&-", 2, "", ""),
    ],
)
def test_output_that_cannot_be_written_is_an_error(place: Path, command: str, code: int, out: str, err: str) -> None:
    done = shell(command, place)
    assert done.returncode == code
    for found, expected in ((done.stdout, out), (done.stderr, err)):
        assert expected in found if expected else not found
        assert "Traceback" not in found and "Exception" not in found and found.count("error") <= 1


@pytest.mark.parametrize("words", ["runs", "runs --help", "train --help"])
def test_closed_pipe_ends_a_command_as_sigpipe_would(place: Path, words: str) -> None:
    ends = os.pipe()
    os.close(ends[0])
    command = [sys.executable, "-m", "scnf.cli", *words.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=ends[1], stderr=subprocess.PIPE, cwd=place, env=environment, check=False)
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


TRAIN = f"SCNF train --config digits.yaml {' '.join(TINY)} --max_steps 20"
FILES = {
    "config.yaml",
    "split.json",
    "env.json",
    "metrics.csv",
    "summary.json",
    "samples.png",
    "curves.png",
    "unusual.json",
}


def check_whole(folder: Path, reference: Path) -> None:
    """The run in logs/ is finished, has all its files, and gave the same weights as the reference would have."""
    run = Run.find(folder / "logs", "last")
    assert {path.name for path in run.path.iterdir()} >= FILES and run.read_json("summary.json")["status"] == "finished"
    assert list(run.read_metrics()[-1])[:2] == ["epoch", "step"]
    assert run.weights.read_bytes() == reference.read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training whose output is read."""
    folder = tmp_path_factory.mktemp("reference")
    done = shell(TRAIN, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return Run.find(folder / "logs", "last").weights


@pytest.mark.parametrize(
    ("redirected", "note"),
    [
        (">/dev/full", "note: standard output is lost (No space left on device)\n"),
        ("> >(true)", "note: standard output is lost (Broken pipe)\n"),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_training_goes_on_without_its_output(tmp_path: Path, reference: Path, redirected: str, note: str) -> None:
    done = shell(f"{TRAIN} {redirected}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", note)
    check_whole(tmp_path, reference)


def test_training_goes_on_when_its_terminal_is_gone(tmp_path: Path, reference: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "scnf.cli", *TRAIN.split()[1:]]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        assert b"scnf-digits" in os.read(ours, 200)
        os.close(ours)
        assert process.wait(timeout=300) == 0
    check_whole(tmp_path, reference)


def test_closed_stream_keeps_its_number_from_files(tmp_path: Path) -> None:
    code = (
        "from scnf import streams\n"
        "with streams.guarded():\n"
        "    file = open('numbers', 'w')\n"
        "    file.write(str(file.fileno()))\n"
    )
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0 and int((tmp_path / "numbers").read_text()) > 2


def test_lost_stream_is_noted_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with streams.guarded():
        sys.stdout = Stream(Full(), "standard output")  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(UserError, match=FULL):
                print("needed")
        streams.make_output_optional()
        for _ in range(3):
            print("not needed", flush=True)
    assert capsys.readouterr() == ("", "note: standard output is lost (No space left on device)\n")


# --- texts that hold anything


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 中 ✓ 🙂", "plain é 中 ✓ 🙂"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\rb\x08\x7f\x9b2J", r"a\rb\x08\x7f\x9b2J"),
        ("one\ntwo\tthree", r"one\ntwo\tthree"),
        ("right \u202e left", r"right \u202e left"),
        ("bytes \udcff", r"bytes \udcff"),
    ],
)
def test_printable_escapes_characters_that_are_not_printable(text: str, expected: str) -> None:
    assert printable(text) == printable(expected) == expected


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", "é ▏"), ("ascii", r"\xe9 \u258f"), ("latin-1", r"é \u258f")]
)
def test_stream_escapes_characters_that_its_encoding_lacks(encoding: str, expected: str) -> None:
    file = io.BytesIO()
    stream = Stream(io.TextIOWrapper(file, encoding=encoding, newline=""), "standard output")
    print("é ▏", end="\t\n", file=stream, flush=True)
    assert file.getvalue().decode(encoding) == f"{expected}\t\n"


def test_progress_bars_move_the_cursor_and_escape_their_description() -> None:
    terminal = io.StringIO()
    stream = Stream(terminal, "standard error", required=False)
    with tqdm(total=2, desc="\x1b[2J\rname", file=stream) as outer, tqdm(total=1, file=stream, mininterval=0) as inner:
        inner.update()
        outer.update()
    shown = terminal.getvalue()
    assert "\r\\x1b[2J\\rname:   0%|" in shown and "\x1b[A" in shown and "\x1b[2J" not in shown


def test_tables_escape_control_codes_of_a_run(place: Path) -> None:
    (original,) = (place / "logs").iterdir()
    name = "a|b$\\foo$\x1b[31m\r"
    copy = place / "logs" / f"000002-2026-01-01-{name}"
    shutil.copytree(original, copy)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "status": "\x1b]0;t\x07\nok", "\x1b[2Jkey": "\x9b1A"}))
    (copy / "\x1b[3m").write_text("")
    expected = printable(name)
    table, page = shell("SCNF runs", place), shell("SCNF runs show 2", place)
    assert "\r" not in table.stdout and table.stdout.count("\n") == 3
    assert f"000002  {expected}  " in table.stdout and table.stdout.endswith("\\x1b]0;t\\x07\\nok\n")
    assert all(
        text in page.stdout for text in ("status: \\x1b]0;t\\x07\\nok\n", "  \\x1b[2Jkey", "  \\x9b1A\n", "  \\x1b[3m ")
    )
    assert not any(c in table.stdout + page.stdout for c in "\x1b\x07\r\x9b")


def test_comparison_keeps_its_rows_where_run_names_hold_control_codes(place: Path) -> None:
    name = "a|b$\\foo$\x1b[31m\r\nc"
    row = dict.fromkeys(compare._HEADINGS) | {"recipe": "m2", "likelihood": "exact", "likelihood_of": "levels"}
    row |= {"run": name, "nats": -1.0, "bits_per_dim": 1.0, "accuracy": 0.5, "ece": 0.1, "brier": 0.1}
    row |= {"posterior_images_per_second": 1.0, "density_images_per_second": 1.0, "parameters": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = compare.write([row, {**row, "run": "日本"}], place / "out", "caption")
    lines = table.splitlines()
    assert [line.replace(r"\|", "").count("|") for line in lines[2:]] == [len(compare._HEADINGS) + 1] * 4
    assert r"| a\|b$\foo$\x1b[31m\r\nc |" in lines[4]
    with open(place / "out" / "comparison.csv", newline="", encoding="utf-8") as file:
        assert [cells[0] for cells in csv.reader(file)] == ["run", printable(name), "日本"]


def test_error_messages_with_control_codes_are_one_printable_line(scnf: Callable[..., Any], place: Path) -> None:
    from numpy import zeros
    from safetensors.numpy import save_file

    save_file({"\x1b[2J\nerror: tensor": zeros(1)}, place / "other.safetensors")
    outcome = scnf("train --config digits.yaml --pretrained other.safetensors")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "\x1b" not in outcome.err
    outcome = scnf("runs --sort", Path("\x1b[2J\nx"))
    assert outcome.code == 2 and outcome.err.startswith(r"error: there is no column '\x1b[2J\nx'")
    outcome = scnf("evaluate", Path("\x1b[2J\nx.safetensors"))
    assert (outcome.code, outcome.err) == (2, "error: there is no file \\x1b[2J\\nx.safetensors: check the path\n")


def test_plot_labels_escape_formulas_and_control_codes() -> None:
    assert plots.plain("cost $x_1$\x1b") == r"cost \$x_1\$\x1b"


# --- names of files

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("environment", [{}, ASCII], ids=["utf-8", "ascii"])
def test_folders_with_an_umlaut_work_in_utf_8_and_ascii(place: Path, environment: dict[str, str]) -> None:
    shutil.move(place / "logs", place / "lögs")
    shown = "lögs" if not environment else r"l\xf6gs"
    done = shell("SCNF sample last --logs lögs --num 4 --label 1 --out lögs/ä.png", place, **environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{shown}/")
    assert (place / "lögs" / "ä.png").is_file()
    done = shell("SCNF runs show 1 --logs lögs", place, **environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{shown}/000001-")


@pytest.mark.parametrize(
    "environment", [{}, {**ASCII, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["utf-8", "ascii alone"]
)
def test_names_that_cannot_be_decoded_are_refused(place: Path, environment: dict[str, str]) -> None:
    name = r"$'\xff'" if not environment else "ä"
    for words in (f"runs --logs {name}", f"sample last --out {name}.png", f"train --config digits.yaml --name {name}"):
        done = shell(f"SCNF {words}", place, **environment)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert (
            done.stderr.startswith("error: ") and "rename the file that it names, or set LC_ALL=C.UTF-8" in done.stderr
        )
