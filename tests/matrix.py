"""Run the tests under conditions that must not decide their outcome: seeds, threads, kernels, instruction sets.

    python tests/matrix.py              # ten seeds, two of them under each condition
    python tests/matrix.py --short      # another seed, one thread and no kernels, over tests of numbers: minutes
    python tests/matrix.py tests/data   # whatever else is given goes to pytest

One line for each run; the exit code is 1 where one fails.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENTS = [
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    {"SCNF_NATIVE": "0"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
]
OF_NUMBERS = [
    *["scnf", "tests/data", "tests/distributions", "tests/models", "tests/propagation"],
    *["tests/transforms", "tests/test_nn.py"],
    *["tests/test_objectives.py", "tests/training/test_metrics.py", "--ignore=tests/data/test_sources.py"],
]


def passes(seed: int, environment: dict[str, str], arguments: list[str]) -> bool:
    given = {name for each in ENVIRONMENTS for name in each}
    inherited = {name: value for name, value in os.environ.items() if name not in given}
    workers = max(1, (os.cpu_count() or 1) // int(environment.get("OMP_NUM_THREADS", 1)))
    command = [sys.executable, "-m", "pytest", "-n", str(workers), "--seed", str(seed), *arguments]
    start = time.monotonic()
    process = subprocess.run(command, cwd=REPOSITORY, env=inherited | environment, text=True, capture_output=True)
    lines = process.stdout.splitlines() or process.stderr.splitlines() or ["no output"]
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    print(f"seed {seed:<2} {words:<36} {time.monotonic() - start:5.0f} s  {lines[-1].strip('= ')}", flush=True)
    for line in lines[:-1] if process.returncode else ():
        if line.startswith(("FAILED", "ERROR", "E  ")):
            print(f"    {line}", flush=True)
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs, each with a seed of its own (10)")
    parser.add_argument("--short", action="store_true", help="one run, over tests of numbers")
    options, arguments = parser.parse_known_args()
    runs = [(seed, ENVIRONMENTS[seed % len(ENVIRONMENTS)]) for seed in range(options.seeds)]
    if options.short:
        runs, arguments = [(1, {"OMP_NUM_THREADS": "1", "SCNF_NATIVE": "0"})], arguments or OF_NUMBERS
    return int(not all([passes(*run, arguments) for run in runs]))


if __name__ == "__main__":
    sys.exit(main())
