"""Locks between real processes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scnf.errors import UserError
from scnf.lock import lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")

HOLD = """
import sys, time
from pathlib import Path
from scnf.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


def holding(start: Callable[..., Any], path: Path, code: str = HOLD) -> Any:
    process = start("-c", code, path, stdin=-1)
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_is_held_by_one_process(start: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = holding(start, path)
    with pytest.raises(BlockingIOError, match=rf"process {holder.pid} on .+ since \d{{4}}-\d\d-\d\dT"), lock(path):
        pass
    assert path.read_text().startswith(f"process {holder.pid} ")
    holder.communicate("go\n")
    with lock(path), pytest.raises(BlockingIOError, match=f"process {os.getpid()} "), lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_free(start: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = holding(start, path)
    holder.kill()
    holder.wait()
    assert path.exists()
    with lock(path):
        assert path.read_text().startswith(f"process {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


FORK = """
import os, subprocess, sys, time
from pathlib import Path
from scnf.lock import lock
with lock(Path(sys.argv[1])):
    forked = os.fork()
    if not forked:
        time.sleep(60)
    started = subprocess.Popen(["sleep", "60"], close_fds=False)
    print("held", flush=True)
    print(forked, started.pid, flush=True)
    time.sleep(60)
"""


def test_lock_is_not_held_by_children(start: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = holding(start, path, FORK)
    children = [int(word) for word in holder.stdout.readline().split()]
    try:
        holder.kill()
        holder.wait()
        with lock(path, wait=True):  # a forked child may not have come to run yet
            for pid in children:
                os.kill(pid, 0)  # they are there, for a minute
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_lock_is_refused_to_a_forked_child(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path):
        pid = os.fork()
        if not pid:
            try:
                lock(path).__enter__()
            except BlockingIOError:
                os._exit(7)
            os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert path.exists()


def test_lock_waits_and_then_holds_the_file_at_its_path(start: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = holding(start, path)
    waits = HOLD.replace("with", "print('waits', flush=True)\nwith").replace("sys.argv[1])", "sys.argv[1]), wait=True")
    waiter = start("-c", waits, path, stdin=-1)
    assert waiter.stdout.readline() == "waits\n"
    time.sleep(0.5)
    holder.stdin.write("go\n")
    holder.stdin.flush()  # it removes its file, whose lock the waiter may get then
    assert waiter.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"process {waiter.pid} "), lock(path):
        pass
    waiter.communicate("go\n")
    assert list(tmp_path.iterdir()) == []


def test_lock_follows_no_link_and_names_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("somebody's")
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    for path in (tmp_path / ".lock", tmp_path / "absent" / ".lock"):
        with pytest.raises(UserError, match=f"cannot write {path}"), lock(path):
            pass
    assert (tmp_path / "other").read_text() == "somebody's"


def test_lock_does_nothing_without_fcntl(start: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None\nfrom pathlib import Path\nfrom scnf.lock import lock\n"
        "with lock(Path('.lock')), lock(Path('.lock')): print(sorted(Path().iterdir()))"
    )
    assert start("-c", code).communicate()[0] == "[]\n"
