"""Choose the number of threads, since fewer threads are faster beside a busy process."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

_TRIALS, _PATIENCE = 5, 2.0
"""Number of timed runs for each number of threads, and the seconds after which no further run starts."""
_RELATIVE_TIME, _SLOWDOWN = 0.95, 3.0
"""Relative time that fewer threads must stay below, and the slowdown of steps that starts another trial."""
_RETRY_STEPS = 100
"""Steps with fewer threads before another trial; the number doubles with each trial."""


RANDOM = RLock()
"""The lock of torch's generators and of its number of threads, which all threads of a process share."""


class Threads:
    """Search for the fastest number of threads of this process, by timing trials.

    Threads wait for the slowest thread. Where another process keeps a core busy, one thread is twice as fast as two.
    Call :meth:`choose` before the work, and the object itself after each step of the work. It chooses again when steps
    take several times as long as before. With fewer threads than the maximum, it also tries all numbers again from time
    to time, because the other process may have ended.

    Args:
        make_trial: Function () -> a piece of the work to time, which has no lasting effects.
        log: Callback that takes each progress message.
        retry: Whether all numbers are tried again from time to time. Another number of threads recompiles compiled
            code.

    Attributes:
        counts: Numbers of threads that are tried, the largest first; a single number where there is no choice.

    Example:
        >>> threads = Threads(lambda: lambda: torch.rand(100, 100) @ torch.rand(100, 100), log=lambda line: None)
        >>> threads.choose() in threads.counts
        True
    """

    def __init__(
        self, make_trial: Callable[[], Callable[[], Any]], log: Callable[[str], None] = print, retry: bool = True
    ) -> None:
        maximum = torch.get_num_threads()
        self.make_trial, self.log, self.retry = make_trial, log, retry
        self.counts = sorted({maximum, max(1, maximum - 1), max(1, maximum // 2), 1}, reverse=True)
        self._started = 0.0
        self._durations: deque[float] = deque(maxlen=_TRIALS)
        self._baseline: float | None = None  # seconds of a step since the last choice
        self._remaining = self._interval = 0  # steps until another trial of all numbers; an interval of 0 means never

    def choose(self) -> int:
        """Time the work with each number of threads, and set and return the fastest number."""
        self._interval = _RETRY_STEPS if self.retry else 0
        self._choose()
        return torch.get_num_threads()

    def __call__(self) -> None:
        """Record the end of a step, and choose again where steps have become slow or another trial is due."""
        if len(self.counts) == 1:
            return
        now = time.perf_counter()
        self._durations.append(now - self._started)
        self._started = now
        self._remaining -= 1
        if len(self._durations) < _TRIALS:
            return
        latest = statistics.median(self._durations)  # robust against evaluations between steps
        self._baseline = latest if self._baseline is None else min(latest, self._baseline)
        if latest > _SLOWDOWN * self._baseline:
            self.log("steps have become slow: trying all numbers of threads again")
            self.choose()
        elif self._remaining <= 0 < self._interval and torch.get_num_threads() < self.counts[0]:
            self._interval *= 2
            self._choose(current=torch.get_num_threads())

    def _choose(self, current: int | None = None) -> None:
        """Set the fastest number of threads, and report it unless it equals `current`."""
        if len(self.counts) > 1:
            work, seconds = self.make_trial(), {}
            for count in self.counts:
                torch.set_num_threads(count)
                seconds[count] = _seconds(work)
            best = min(self.counts, key=seconds.__getitem__)
            best = best if seconds[best] < _RELATIVE_TIME * seconds[self.counts[0]] else self.counts[0]
            torch.set_num_threads(best)
            if best != current:
                times = ", ".join(f"{1000 * duration:.0f} ms with {count}" for count, duration in seconds.items())
                self.log(f"threads: {best} (a step takes {times})")
        self._durations.clear()
        self._baseline, self._remaining, self._started = None, self._interval, time.perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in a block, for numbers that must not depend on the number of threads, such as initial weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time of a piece of work without its first run, or the first time where one run takes long."""
    times: list[float] = []
    while len(times) <= _TRIALS and sum(times) < _PATIENCE:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:] or times)
