"""How many threads: beside a busy neighbour, fewer of them are faster."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TRIALS, _PATIENCE = 5, 2.0
"""How often a piece of work is timed with each number of threads, and the seconds after which once is enough."""
_WORTH, _SLOWER = 0.95, 3.0
"""Fewer threads must take this share of the time; steps that take so many times as long ask for another trial."""
_AGAIN = 100
"""Steps with fewer threads before all are tried again, each time twice as many."""


class Threads:
    """The number of threads of this process, found by trial: as many as there are, or fewer where these are faster.

    Threads wait for the slowest of them: where another process keeps a core busy, one thread is twice as fast as two.
    Call :meth:`choose` before the work, and the object itself after each step of it: when steps come to take several
    times as long, it chooses anew. So it does now and then where it took fewer than there are, for neighbours leave.

    Args:
        begin: () -> a piece of the work to time, which leaves nothing behind.
        say: takes a line for people.
        again: whether all threads are tried again now and then; compiled code is made anew for another number.

    Attributes:
        counts: the numbers of threads that are tried, the largest first; one alone where there is nothing to choose.

    Example:
        >>> threads = Threads(lambda: lambda: torch.rand(100, 100) @ torch.rand(100, 100), say=lambda line: None)
        >>> threads.choose() in threads.counts
        True
    """

    def __init__(
        self, begin: Callable[[], Callable[[], Any]], say: Callable[[str], None] = print, again: bool = True
    ) -> None:
        most = torch.get_num_threads()
        self.begin, self.say, self.again = begin, say, again
        self.counts = sorted({most, max(1, most - 1), max(1, most // 2), 1}, reverse=True)
        self._started = 0.0
        self._latest: deque[float] = deque(maxlen=_TRIALS)
        self._usual: float | None = None  # seconds of a step since the last choice
        self._left = self._wait = 0  # steps until all threads are tried again; 0: they are not

    def choose(self) -> int:
        """Time the work with each number of threads and keep to the best."""
        self._wait = _AGAIN if self.again else 0
        self._choose()
        return torch.get_num_threads()

    def __call__(self) -> None:
        """A step is done."""
        if len(self.counts) == 1:
            return
        now = time.perf_counter()
        self._latest.append(now - self._started)
        self._started = now
        self._left -= 1
        if len(self._latest) < _TRIALS:
            return
        latest = statistics.median(self._latest)  # evaluations come between steps, too
        self._usual = latest if self._usual is None else min(latest, self._usual)
        if latest > _SLOWER * self._usual:
            self.say("steps have become slow: how many threads are best is tried again")
            self.choose()
        elif self._left <= 0 < self._wait and torch.get_num_threads() < self.counts[0]:
            self._wait *= 2
            self._choose(unless=torch.get_num_threads())

    def _choose(self, unless: int | None = None) -> None:
        """Take the best number of threads, and say so, except if it is `unless`."""
        if len(self.counts) > 1:
            work, seconds = self.begin(), {}
            for count in self.counts:
                torch.set_num_threads(count)
                seconds[count] = _seconds(work)
            best = min(self.counts, key=seconds.__getitem__)
            best = best if seconds[best] < _WORTH * seconds[self.counts[0]] else self.counts[0]
            torch.set_num_threads(best)
            if best != unless:
                found = ", ".join(f"{1000 * taken:.0f} ms with {count}" for count, taken in seconds.items())
                self.say(f"threads: {best} (a step takes {found})")
        self._latest.clear()
        self._usual, self._left, self._started = None, self._wait, time.perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """For numbers that must not hang on how many threads there are, such as initial weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of a piece of work, after one that does not count; of that alone where it takes long."""
    taken: list[float] = []
    while len(taken) <= _TRIALS and sum(taken) < _PATIENCE:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:] or taken)
