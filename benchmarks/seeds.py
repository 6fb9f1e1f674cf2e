"""Train configurations over several seeds and label splits, and print a table of test figures: mean and spread.

    python benchmarks/seeds.py mnist_m1.yaml mnist_m2_gumbel.yaml --seeds 0 1 2 --jobs 2 --data.root data

Seed s takes `--seed s --data.data_seed s`: other weights, another 100 labels, other validation rows. Each run is one
`scnf train`, `--jobs` of them side by side with the cores shared among them, or OMP_NUM_THREADS each if it is set. Runs
that are finished are not done again. `mnist_m1_m2.yaml` takes the M1 of the same seed, and so wants `mnist_m1.yaml`
before it. Other words are settings, for all runs. Test errors are of p(y | x) averaged over draws of the noise ("-"
where there is but one), and of one draw; the NLL, or its bound, is the mean over draws.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scnf.interrupt import Interrupted, child, watch
from scnf.runs import Run, runs_in
from scnf.settings import load_settings
from scnf.shipped import find_config


def name_of(config: str, seed: int, extra: Sequence[str]) -> str:
    words = "".join(word for word in extra if not word.startswith("--"))
    return f"{Path(config).stem}-seed{seed}" + (f"-{words}" if extra else "")


def finished(root: Path, name: str) -> Run | None:
    runs = [run for run in runs_in(root) if run.name == name and (run.path / "summary.json").is_file()]
    done = [run for run in runs if run.read_json("summary.json").get("status") == "finished"]
    return done[-1] if done else None


def train(root: Path, config: str, seed: int, extra: Sequence[str], threads: int, data: str) -> dict[str, Any]:
    name = name_of(config, seed, extra)
    if finished(root, name) is None:
        words = ["--config", config, "--seed", str(seed), "--data.data_seed", str(seed), "--data.root", data, *extra]
        if Path(config).stem.endswith("m1_m2"):
            m1 = finished(root, name_of("mnist_m1.yaml", seed, []))
            if m1 is None:
                raise SystemExit(f"{config} wants the run of mnist_m1.yaml with seed {seed} first")
            words += ["--model.m1", str(m1.path)]
        command = [sys.executable, "-m", "scnf", "train", *words, "--runs.root", str(root), "--runs.name", name]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with child(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said[-800:]}")
    run = finished(root, name)
    assert run is not None
    summary: dict[str, Any] = run.read_json("summary.json")
    print(f"{name}: {summary['test']} {summary['minutes']} minutes", file=sys.stderr, flush=True)
    return summary


def row(config: str, extra: Sequence[str], summaries: Sequence[dict[str, Any]]) -> str:
    def spread(values: Sequence[float], form: str) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        return f"{format(statistics.mean(values), form)} ± {format(deviation, form)}"

    tests = [summary["test"] for summary in summaries]
    averaged = [100 * (1 - test["accuracy"]) for test in tests if "one_draw_accuracy" in test]
    single = [100 * (1 - test.get("one_draw_accuracy", test["accuracy"])) for test in tests]
    nats = [test["nll"] for test in tests if "nll" in test]
    minutes = statistics.mean(summary["minutes"] for summary in summaries)
    evaluate_draws = f"{spread(averaged, '.2f')} %" if len(averaged) == len(tests) else "-"
    bound = spread(nats, ".1f") if nats else "-"
    cells = [f"`{' '.join([config, *extra])}`", evaluate_draws, f"{spread(single, '.2f')} %", bound]
    cells += [latents(config, extra) if nats else "-", f"{len(summaries)}", f"{summaries[0]['epochs']}"]
    return f"| {' | '.join(cells)} | {minutes:.1f} |"


def latents(config: str, extra: Sequence[str]) -> str:
    """How many draws of its latents a row's bound is made of; rows of a table compare where that is the same."""
    recipe = load_settings(find_config(config), extra).model
    if recipe.name.startswith("scnf"):
        return "exact"
    samples, importance = recipe.num_samples, recipe.importance_samples
    if importance > 1:
        return f"{importance}, importance-weighted" + (f", mean of {samples}" if samples > 1 else "")
    return f"{samples}, mean of bounds" if samples > 1 else "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--runs", type=Path, default=Path("logs"), help="directory of the runs (logs)")
    parser.add_argument("--data.root", dest="data", default="data")
    options, extra = parser.parse_known_args()
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // options.jobs))
    pairs = [(config, seed) for config in options.configs for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(train, options.runs, config, seed, extra, threads, options.data) for config, seed in pairs]
        summaries = dict(zip(pairs, [job.result() for job in jobs], strict=True))
    print("| configuration | test error | of one draw | test NLL or its bound, nats | draws of latents | ", end="")
    print("seeds | epochs | minutes each |")
    print("|---|---|---|---|---|---|---|---|")
    for config in options.configs:
        print(row(config, extra, [summaries[config, seed] for seed in options.seeds]))


if __name__ == "__main__":
    try:
        with watch():
            main()
    except Interrupted as error:
        print(f"interrupted by {error}: the same again goes on after the runs that are finished", file=sys.stderr)
        sys.exit(128 + error.number)
