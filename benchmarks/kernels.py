"""How much each kernel gives: the time of a training step with all kernels, and with each of them taken out.

    python benchmarks/kernels.py --data.root data

One process takes steps of a configuration (forward, loss and backward) with all kernels and without each in turn, so
that a disturbance of the machine meets them alike. It prints the median over the rounds of how much longer a step takes
without a kernel. A kernel that gives under 3 % in every configuration, on every machine, is not worth its code.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from scnf.experiment import prepare
from scnf.settings import load_settings
from scnf.shipped import find_config
from scnf.training.loop import trial_step

KERNELS = {
    "conv_net": "convolutions",
    "conv3x3": "convolutions",
    "mix_channels": "convolutions",
    "log_abs_det": "determinants",
    "look_up": "tables",
    "mlp": "vectors",
}
"""Module in scnf/native of each kernel."""
CONFIGS = {"config.yaml": ["--propagations", "0"], "mnist_likelihood.yaml": []}
"""Settings of each configuration beside those of the measurement."""


def steps_of(config: str, data: str) -> Callable[[], Any]:
    """A function that takes one step of a configuration."""
    settings = load_settings(find_config(config), [*CONFIGS[config], "--compile", "false", "--data.root", data])
    experiment = prepare(settings)
    batches = experiment.batches()
    first = next(batches.epoch(0))
    experiment.model.initialize(first.x, first.y)
    return trial_step(experiment.model.train(), settings.objective, batches, experiment.autocast)


def seconds(step: Callable[[], Any], kernel: str, steps: int) -> float:
    """Seconds of so many steps without a kernel; "" for all kernels."""
    module: Any = import_module(f"scnf.native.{KERNELS[kernel]}") if kernel else None
    has = getattr(module, f"has_{kernel}", None)
    if module is not None:
        setattr(module, f"has_{kernel}", lambda *arrays: False)
    try:
        step()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - started
    finally:
        if module is not None:
            setattr(module, f"has_{kernel}", has)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds (12)")
    parser.add_argument("--only", nargs="+", choices=[*KERNELS], default=[*KERNELS], help="these kernels alone")
    parser.add_argument("--steps", type=int, default=20, help="steps at a time (20)")
    parser.add_argument("--data.root", dest="data", default="data", help="where MNIST lies (data)")
    options = parser.parse_args()
    print("| configuration | without | a step takes longer by | quartiles |")
    print("|---|---|---|---|")
    for config in CONFIGS:
        step = steps_of(config, str(Path(options.data).resolve()))
        gains: dict[str, list[float]] = {kernel: [] for kernel in options.only}
        for number in range(options.rounds):
            for kernel in options.only:
                order = ("", kernel) if number % 2 else (kernel, "")
                taken = {name: seconds(step, name, options.steps) for name in order}
                gains[kernel].append(100 * (taken[kernel] / taken[""] - 1))
        for kernel, values in gains.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"| `{config}` | `{kernel}` | {middle:.1f} % | {low:.1f} to {high:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
