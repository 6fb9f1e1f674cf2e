import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scnf import runs
from scnf.analysis.overview import list_runs
from scnf.errors import UserError
from scnf.runs import Run, environment
from scnf.training.checkpoint import load_tensors


def python(code: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path.cwd())


# --- creating and finding


def test_run_ids_of_concurrent_processes_are_unique(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from scnf.runs import Run\n"
        "root = Path(sys.argv[1])\n"
        "while not (root / 'go').exists(): time.sleep(0.001)\n"
        "print(Run.create(root / 'logs', 'same name').id)"
    )
    processes = [python(code, tmp_path) for _ in range(20)]
    (tmp_path / "go").touch()
    results = [process.communicate() for process in processes]
    assert [error for _, error in results if error] == []
    assert sorted(int(output) for output, _ in results) == list(range(1, 21))
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(names) == 20 and all(re.fullmatch(r"0000\d\d-\d{4}-\d\d-\d\d-same-name", name) for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist-scnf-fast", "mnist-scnf-fast"),
        ("../up/é ß", "up"),
        ("a/b c", "a-b-c"),
        ("", "run"),
        ("...", "run"),
        ("x" * 500, "x" * 80),
        ("v1.2_b", "v1.2_b"),
    ],
)
def test_run_names_are_sanitised(tmp_path: Path, name: str, expected: str) -> None:
    run = Run.create(tmp_path / "logs", name)
    assert (run.id, run.name) == (1, expected)
    assert run.path.parent == tmp_path / "logs" and run.path.is_dir()
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


def test_run_ids_go_on_after_the_highest_and_pass_over_abandoned_claims(tmp_path: Path) -> None:
    (tmp_path / "000041-2026-01-02-old").mkdir()
    (tmp_path / "000042").mkdir()
    (tmp_path / "000043-something-else").mkdir()
    (tmp_path / "notes.txt").touch()
    assert Run.create(tmp_path, "new").id == 44
    assert [row["id"] for row in list_runs(tmp_path)] == [41, 44]


@pytest.mark.parametrize("root", ["/proc/scnf/logs", "/sys/scnf", "/proc"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the read-only directories of Linux")
def test_read_only_root_is_a_user_error(root: str) -> None:
    with pytest.raises(UserError, match=rf"cannot make a run directory in {root}: .*Choose a directory you can write"):
        Run.create(Path(root), "x")


def test_file_in_place_of_the_root_is_a_user_error(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    root.write_text("mine")
    with pytest.raises(UserError, match="it is a file, not a directory"):
        Run.create(root, "x")
    with pytest.raises(UserError, match="cannot make a run directory"):
        Run.create(root / "below", "x")
    assert root.read_text() == "mine" and list(tmp_path.iterdir()) == [root]
    assert list_runs(root) == []


def test_find_takes_every_kind_of_reference_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "logs"
    made = [Run.create(root, name) for name in ("mnist-m2", "mnist-scnf", "digits-vae")]
    second = made[1].path
    for ref in ("2", "000002", second.name, str(second), f"{second}/"):
        assert Run.find(root, ref).path == second
        assert Run.find(root, ref).id == 2
    assert Run.find(root, "last").path == made[2].path
    monkeypatch.chdir(second)
    here = Run.find(root, ".")
    assert (here.id, here.name) == (2, "mnist-scnf")
    copy = tmp_path / "my-copy"
    copy.mkdir()
    (copy / "config.yaml").touch()
    assert (Run.find(root, str(copy)).id, Run.find(root, str(copy)).name) == (0, "my-copy")


def test_missing_run_is_a_user_error_with_a_hint(tmp_path: Path) -> None:
    for ref in ("last", "1", "x"):
        with pytest.raises(UserError, match="holds no runs yet"):
            Run.find(tmp_path / "none", ref)
    made = [Run.create(tmp_path, name).path.name for name in ("mnist-m2", "mnist-scnf", "digits-vae", "svhn-flow")]
    with pytest.raises(UserError, match=f"Did you mean {made[1]}") as caught:
        Run.find(tmp_path, "mnist-snf")
    assert f"The latest are {', '.join(made[1:])}; `scnf runs` lists all." in str(caught.value)
    (tmp_path / "empty").mkdir()
    for ref in ("5", "000000", "zzz", "", "a\0b", "x" * 5000, str(tmp_path / "empty"), str(tmp_path / "no/such")):
        with pytest.raises(UserError, match="there is no run"):
            Run.find(tmp_path, ref)
    (tmp_path / made[0].replace("m2", "copy")).mkdir()
    with pytest.raises(UserError, match="several runs have the id 1"):
        Run.find(tmp_path, "1")


# --- the lock


def test_locked_runs_are_refused_to_others_by_name_and_free_at_the_end(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "digits")
    with run.locked(), run.locked():
        with (
            pytest.raises(UserError, match=f"digits is in use: process {os.getpid()} on .* Wait"),
            Run(run.path).locked(),
        ):
            pass
        assert (run.path / ".lock").exists()
    with Run(run.path).locked():
        pass
    assert list(run.path.iterdir()) == []


def test_locking_a_run_sweeps_temporary_files_of_a_killed_writer(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "digits")
    code = (
        "import os, sys; from pathlib import Path; from scnf.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert python(code, run.checkpoint("last")).wait() == -9
    assert len(list(run.checkpoint("last").parent.iterdir())) == 1
    with run.locked():
        assert list(run.checkpoint("last").parent.iterdir()) == []


# --- files of a run


def test_run_writes_and_reads_its_files(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    assert run.checkpoint("best") == run.path / "checkpoints" / "best.safetensors"
    assert run.weights == run.path / "model.safetensors"
    run.write_text("config.yaml", "a: β\n")
    assert (run.path / "config.yaml").read_text(encoding="utf-8") == "a: β\n"
    run.write_json("a.json", {"path": Path("p"), "n": [1, 2.5, None]})
    assert run.read_json("a.json") == {"path": "p", "n": [1, 2.5, None]}
    assert sorted(os.listdir(run.path)) == ["a.json", "config.yaml"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    run = Run.create(tmp_path, "x")
    (run.path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match=r"summary.json is damaged"):
        run.read_json("summary.json")
    with pytest.raises(UserError, match=r"cannot read .*other.json: No such file"):
        run.read_json("other.json")


def test_numbers_of_numpy_and_torch_are_numbers_in_json(tmp_path: Path) -> None:
    run = Run(tmp_path)
    numbers = {"float": np.float32(0.5), "whole": np.int64(3), "true": np.bool_(True), "row": np.arange(2)}
    run.write_json("summary.json", {**numbers, "tensor": torch.tensor(0.25), "path": Path("a/b")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        **{"float": 0.5, "whole": 3, "true": True, "row": [0, 1]},
        **{"tensor": 0.25, "path": str(Path("a/b"))},
    }


@pytest.mark.parametrize("kind", ["FIFO", "directory"])
def test_fifo_or_directory_in_place_of_a_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    for name in ("summary.json", "metrics.csv", "model.safetensors"):
        os.mkfifo(tmp_path / name) if kind == "FIFO" else (tmp_path / name).mkdir()
    run = Run(tmp_path)
    for read in (lambda: run.read_json("summary.json"), run.read_metrics, lambda: load_tensors(run.weights)):
        with pytest.raises(UserError, match=f"it is a {kind}"):
            read()


# --- metrics


def events(run: Run) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run.path / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_metrics_survive_new_columns_truncation_and_resuming(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    assert run.read_metrics() == []
    run.truncate_metrics(30)
    assert os.listdir(run.path) == []

    rows: list[dict[str, float | int | str]] = [
        {"epoch": 1, "step": 10, "train.loss": 0.1 + 0.2, "note": "a,b"},
        {"epoch": 2, "step": 20, "train.loss": float("nan")},
        {"epoch": 3, "step": 30, "train.loss": 1e-30, "validation.accuracy": 0.5},
        {"epoch": 4, "step": 40, "validation.accuracy": 0.75},
    ]
    for row in rows:
        run.log_metrics(row)
    header = "epoch,step,train.loss,note,validation.accuracy"
    assert (run.path / "metrics.csv").read_text().splitlines() == [
        header,
        '1,10,0.30000000000000004,"a,b",',
        "2,20,nan,,",
        "3,30,1e-30,,0.5",
        "4,40,,,0.75",
    ]
    read = run.read_metrics()
    assert [set(row) for row in read] == [set(row) - {"note"} for row in rows]
    assert read[0]["train.loss"] == 0.1 + 0.2 and read[2] == rows[2]
    run.close()
    run.close()
    assert events(run)["validation.accuracy"] == [(30, 0.5), (40, 0.75)]
    assert set(events(run)) == {"train.loss", "validation.accuracy"}

    resumed = Run.find(tmp_path, "last")
    resumed.truncate_metrics(20)
    assert [row["epoch"] for row in resumed.read_metrics()] == [1, 2]
    resumed.log_metrics({"epoch": 3, "step": 30, "validation.accuracy": 0.25})
    resumed.close()
    assert (run.path / "metrics.csv").read_text().splitlines()[0] == header
    assert [row["epoch"] for row in resumed.read_metrics()] == [1, 2, 3]
    assert events(run)["validation.accuracy"] == [(30, 0.25)]


def test_metrics_drop_half_a_line_left_by_a_killed_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    (run.path / "metrics.csv").write_text("epoch,step,train.loss\n1,10,2.5\n2,20,1.")
    assert run.read_metrics() == [{"epoch": 1, "step": 10, "train.loss": 2.5}]
    run.log_metrics({"epoch": 2, "step": 20, "train.loss": 1.75})
    run.close()
    assert (run.path / "metrics.csv").read_text() == "epoch,step,train.loss\n1,10,2.5\n2,20,1.75\n"


def test_damaged_metrics_are_a_user_error_and_stay_as_they_are(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    (run.path / "metrics.csv").write_bytes(b"\xff\xfe\n")
    for act in (run.read_metrics, lambda: run.truncate_metrics(1), lambda: run.log_metrics({"epoch": 1})):
        with pytest.raises(UserError, match=r"metrics.csv is damaged"):
            act()
    assert (run.path / "metrics.csv").read_bytes() == b"\xff\xfe\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk_is_a_user_error_and_keeps_earlier_files(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    run.write_json("summary.json", {"kept": True})
    code = """
import resource, sys
from pathlib import Path
from scnf.errors import UserError
from scnf.runs import Run

run = Run(Path(sys.argv[1]))
run._log_events = lambda row: None  # the table alone: events come in the next test
row = {"epoch": 1, "step": 1, "train.loss": 1 / 3}
run.log_metrics(row)
size = (run.path / "metrics.csv").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, size + 5))
for act in (
    lambda: run.log_metrics(row),
    lambda: run.log_metrics(row | {"new": 2}),
    lambda: run.write_json("summary.json", list(range(99))),
    lambda: run.write_text("config.yaml", "a" * 99),
):
    try:
        act()
    except UserError as error:
        print(error)
"""
    output, error = python(code, run.path).communicate()
    assert error == ""
    lines = output.splitlines()
    assert len(lines) == 4
    assert all(re.match(r"cannot write .*(metrics.csv|summary.json|config.yaml): .* Free some space", x) for x in lines)
    assert (run.path / "metrics.csv").read_text() == "epoch,step,train.loss\n1,1,0.3333333333333333\n"
    assert run.read_json("summary.json") == {"kept": True}
    assert sorted(os.listdir(run.path)) == ["metrics.csv", "summary.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk_for_tensorboard_is_a_user_error_and_ends(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x")
    code = """
import resource, sys
from pathlib import Path
from scnf.errors import UserError
from scnf.runs import Run

run = Run(Path(sys.argv[1]))
run.log_metrics({"epoch": 1, "step": 1, "train.loss": 1 / 3})
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
for step in range(2, 9):
    try:
        run.log_metrics({"epoch": step, "step": step, "train.loss": 0.5})
    except UserError as error:
        print(error)
        break
try:
    run.close()
except UserError as error:
    print(error)
"""
    output, _ = python(code, run.path).communicate(timeout=300)
    assert re.match(r"cannot write .*tensorboard: .* Free some space", output)
    assert run.read_metrics()[0] == {"epoch": 1, "step": 1, "train.loss": pytest.approx(1 / 3)}


def test_environment_names_versions_and_device_but_not_the_host() -> None:
    found = environment(["scnf", "train"], {"device": "cpu", "cpus": 2})
    assert found["argv"] == ["scnf", "train"] and found["device"] == "cpu" and found["cpus"] == 2
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["torch"] and set(found["versions"]) == {"scnf", "torch", "torchvision", "numpy", "nflows"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", found["started"])
    assert not {"host", "hostname", "node"} & set(found)
    json.dumps(found)


def test_environment_records_the_commit_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def seen() -> tuple[str | None, bool | None]:
        found = environment([], {})
        return found["commit"], found["dirty"]

    package = tmp_path / "scnf"
    package.mkdir()
    (package / "runs.py").write_text("")
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert seen() == (None, None)  # outside git
    git("init")
    (tmp_path / "other.txt").touch()
    git("add", "other.txt")
    git("commit", "-m", "without the package")
    assert seen() == (None, None)  # somebody else's repository
    git("add", ".")
    git("commit", "-m", "with it")
    assert seen() == (git("rev-parse", "HEAD"), False)
    (package / "runs.py").write_text("changed")
    assert seen() == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")
    assert seen() == (None, None)  # no git at all


def test_runs_import_loads_no_torch() -> None:
    _, error = (process := python("import sys, scnf.runs; sys.exit('torch' in sys.modules)")).communicate()
    assert (process.returncode, error) == (0, "")
