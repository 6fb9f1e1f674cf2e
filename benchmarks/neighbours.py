"""How fast the main job trains alone and beside a process that keeps a core busy, and what memory it takes over time.

    python benchmarks/neighbours.py --data.root data             # images/s by how threads wait and how many there are
    python benchmarks/neighbours.py --memory --data.root data    # memory against steps, neighbours and all

Each line of the first is a training of its own, of `--steps` steps without label propagation; it is given up after 100
seconds. The neighbour is an endless loop. The second trains as the main job does, with its search for neighbours, and
prints every 20 seconds the steps of whole epochs so far, the resident memory and its peak.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scnf.runs import Run, runs_in

REPOSITORY = Path(__file__).parents[1]
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # what GNU's OpenMP does by itself
WAYS: dict[str, tuple[dict[str, str], list[str]]] = {
    "as scnf does it": ({}, []),
    "all threads, spinning bounded": ({}, ["--threads", str(os.cpu_count())]),
    "all threads, spinning": (SPINNING, ["--threads", str(os.cpu_count())]),
    "one thread": ({}, ["--threads", "1"]),
}
LIMIT, EVERY = 100.0, 20.0  # seconds


def train(root: Path, words: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, str(REPOSITORY / "train_flow_ssl.py"), "--config", "config.yaml", "--device", "cpu"]
    with open(root / "output.txt", "wb") as output:
        command += ["--runs.root", str(root / "logs"), *words]
        return subprocess.Popen(command, stdout=output, stderr=output, env=inherited | environment)


def rows(root: Path) -> list[dict[str, float]]:
    runs: list[Run] = runs_in(root / "logs")
    return runs[-1].read_metrics() if runs else []


def rate(words: list[str], environment: dict[str, str]) -> float | None:
    """Images/s of a training's steps; None where it takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        root, started = Path(folder), time.monotonic()
        process = train(root, words, environment)
        while time.monotonic() - started < LIMIT and process.poll() is None:
            if found := rows(root):
                process.kill()
                process.wait()
                return found[-1]["images_per_second"]
            time.sleep(0.5)
        process.kill()
        process.wait()
        if process.returncode not in (0, -9):
            raise SystemExit((root / "output.txt").read_text())
    return None


def speeds(steps: int, extra: list[str]) -> None:
    words = ["--propagations", "0", "--eval_views", "0", "--max_steps", str(steps), *extra]
    print("| threads | idle, images/s | beside a busy core |\n|---|---|---|")
    for name, (environment, own) in WAYS.items():
        alone = rate([*words, *own], environment)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            try:
                beside = rate([*words, *own], environment)
            finally:
                neighbour.kill()
        cells = [f"{each:,.0f}" if each is not None else f"not done in {LIMIT:.0f} s" for each in (alone, beside)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def memory(steps: int, extra: list[str]) -> None:
    print("| seconds | steps | resident MB | peak MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root, started = Path(folder), time.monotonic()
        process = train(root, ["--max_steps", str(steps), *extra], {})
        while process.poll() is None:
            time.sleep(EVERY)
            about = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            sizes = dict(line.split(":", 1) for line in about.splitlines())
            if "VmRSS" not in sizes:  # it has ended
                break
            here, most = (int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
            done = int(found[-1]["step"]) if (found := rows(root)) else 0
            print(f"| {time.monotonic() - started:.0f} | {done} | {here:,.0f} | {most:,.0f} |", flush=True)
        if process.wait():
            raise SystemExit((root / "output.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="memory against steps")
    parser.add_argument("--steps", type=int, default=200, help="of a training (200)")
    options, extra = parser.parse_known_args()
    (memory if options.memory else speeds)(options.steps, extra)


if __name__ == "__main__":
    main()
