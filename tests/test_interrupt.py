"""What a signal ends: in this process, and in processes with children."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scnf import interrupt
from scnf.interrupt import WATCHED, Interrupted, watch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")  # nobody has asked for it


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", WATCHED, ids=lambda number: number.name)
def test_watched_signal_raises_where_it_arrives(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in WATCHED]
    with pytest.raises(Interrupted, match=number.name) as raised, watch():
        signal.raise_signal(number)
        raise AssertionError("this comes after the signal")
    assert raised.value.number == number
    assert [signal.getsignal(each) for each in WATCHED] == before


@pytest.mark.parametrize("number", WATCHED, ids=lambda number: number.name)
def test_deferred_signal_waits_and_a_later_second_one_raises(number: signal.Signals, monkeypatch: Any) -> None:
    with watch() as signals, signals.deferred():
        signal.raise_signal(number)
        signal.raise_signal(number)  # `timeout` sends it to the process and to its group
        assert signals.received == number
        monkeypatch.setattr(interrupt, "_REPEAT_SECONDS", 0.0)
        with pytest.raises(Interrupted):
            signal.raise_signal(number)


def test_deferred_signal_raises_on_entry_to_an_at_once_block() -> None:
    reached = []
    with watch() as signals, signals.deferred():
        with signals.immediate():
            reached.append("no signal")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), signals.immediate():
            reached.append("a signal that came before")
    assert reached == ["no signal"]


def test_signal_that_a_library_turns_into_an_error_still_interrupts() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), watch():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error


def test_errors_unrelated_to_a_deferred_signal_pass_unchanged() -> None:
    with pytest.raises(ImportError), watch() as signals, signals.deferred():
        signal.raise_signal(signal.SIGTERM)  # which waits for the next step
        raise ImportError("for another reason")


def test_nested_watch_is_the_outer_watch() -> None:
    with watch() as outer:
        with watch() as inner, inner.deferred():
            signal.raise_signal(signal.SIGTERM)
        assert inner is outer and outer.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is outer


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "an application's"])
def test_signals_with_a_handler_of_the_application_are_left_alone(handler: Any) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with watch() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is handler and signals.received is None
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_watch_outside_the_main_thread_leaves_signals_alone() -> None:
    def body() -> None:
        with watch() as signals:
            seen.extend([signals.received, *map(signal.getsignal, WATCHED)])

    seen: list[Any] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None, *map(signal.getsignal, WATCHED)]


SLOW = """
import signal, sys, time
from scnf.interrupt import watch
with watch():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt as error:
        print(error, flush=True)
        time.sleep(60)
"""


def test_second_signal_kills_a_process_that_is_ending(start: Callable[..., Any]) -> None:
    process = start("-c", SLOW)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(1.1)  # sooner, it would be taken for the same
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == -signal.SIGUSR1


def test_forked_child_does_not_handle_watched_signals(start: Callable[..., Any]) -> None:
    code = SLOW.replace(
        "time.sleep(60)\n    except", "os.fork() or os.kill(os.getpid(), 15)\n        os.wait()\n    except"
    )
    out, err = start("-c", "import os\n" + code).communicate(timeout=30)
    assert (out, err) == ("ready\n", "")


# --- children

PARENT = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from scnf.interrupt import child, watch
GRANDPARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
WRITE = "import os, sys, time; open(sys.argv[1] + '/' + str(os.getpid()), 'w'); time.sleep(60)"

def wait(number):
    with child([sys.executable, "-c", GRANDPARENT, "-c", WRITE, sys.argv[1]]) as process:
        process.wait()

with watch(), ThreadPoolExecutor() as threads:
    list(threads.map(wait, range(3)))
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_children_die_with_their_parent(start: Callable[..., Any], tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "pids").mkdir()
    process = start("-c", PARENT, tmp_path / "pids")
    until(lambda: len(os.listdir(tmp_path / "pids")) == 3)
    pids = [int(name) for name in os.listdir(tmp_path / "pids")]
    assert all(map(alive, pids))
    process.send_signal(number)
    process.wait(timeout=30)
    until(lambda: not any(map(alive, pids)))


def test_grandchildren_end_with_the_block_of_the_child(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    with interrupt.child([sys.executable, "-c", code], stdout=-1, text=True) as process:
        pid = int(process.stdout.readline())
        assert process.wait() == 0 and alive(pid)
    until(lambda: not alive(pid))


def test_child_gives_its_own_exit_code() -> None:
    with interrupt.child([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), 9)"]) as process:
        assert process.wait() == -9
    with interrupt.child(["sh", "-c", "read line; exit 3"]) as process:
        assert process.wait() == 3  # its input is empty
