"""Train every configuration for 20 steps on one thread, and compare the weights of two versions of the sources.

    python benchmarks/unchanged.py --write before.json --data.root data                        # before a change
    python benchmarks/unchanged.py --against before.json --data.root data                      # after it
    python benchmarks/unchanged.py --against before.json --package ../other --data.root data   # of another clone

Each job is one `scnf train` in a process of its own, with batches of 32 rows and 100 validation rows. A job ends when
its `model.safetensors` is there, before the test split is evaluated. Existing settings cut what would take minutes:

* `train.compile` is off, and the configuration of the paper gets batches of 16 rows.
* A configuration of MNIST that propagates labels runs twice: without propagation on MNIST, and with it on digits.
* M1+M2 starts from the M1 that an earlier job has trained on the same data.

The file holds two SHA-256 of each job: one of `model.safetensors`, one of its tensors (names, types, shapes, numbers).
The tensors decide. Another processor or another torch changes the last bits, so compare on one machine.
The 33 trainings take 4.5 minutes one after the other (`--jobs 1`, AMD EPYC, beside other work).
The exit code is 0 where no tensor has changed, 1 where one has, and 2 where a training failed.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STEPS = 20
SETTINGS = [
    *["--max_steps", str(STEPS), "--batch_size", "32", "--num_validation", "100", "--seed", "0"],
    *["--device", "cpu", "--threads", "1", "--compile", "false", "--eval_views", "0"],
]
SMALLER = {"mnist_paper.yaml": ["--batch_size", "16"]}
ADAPTED = ["--adapt", "--pretrained", "--data_seed", "1", "--propagations", "1"]
M1, ON_DIGITS = "mnist_m1.yaml", " on digits"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        config: the configuration, by its bare name.
        words: its settings.
        m1: the name of the job whose weights an M1+M2 starts from.
    """

    config: str
    words: tuple[str, ...]
    m1: str | None = None


class Failed(Exception):
    """A training ended without weights."""


def find_configs(package: Path) -> list[Path]:
    """The configurations of a clone, or of an installed package's parent directory."""
    folder = next((each for each in (package / "configs", package / "scnf/configs") if each.is_dir()), None)
    if folder is None:
        raise SystemExit(f"{package} holds neither configs/ nor scnf/configs/")
    return sorted(folder.rglob("*.yaml"))


def plan(configs: list[Path]) -> dict[str, Job]:
    """The jobs by name; an M1 stands before the M1+M2 that needs it."""
    jobs: dict[str, Job] = {M1 + ON_DIGITS: Job(M1, ("--data.name", "digits"))}
    for path in sorted(configs, key=lambda path: (path.name != M1, path.name)):
        tree: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        words = SMALLER.get(path.name, [])
        m1 = M1 if tree["model"].get("recipe") == "m1-m2" else None
        if tree.get("objective", {}).get("propagations") and tree["data"]["name"] == "mnist":
            without = ["--propagations", "0"]
            jobs[path.name] = Job(path.name, (*words, *without), m1)
            if not tree["train"].get("adapt"):  # the weights to adapt are of MNIST
                m1 = m1 and m1 + ON_DIGITS
                jobs[path.name + ON_DIGITS] = Job(path.name, (*words, "--data.name", "digits"), m1)
        else:
            jobs[path.name] = Job(path.name, tuple(words), m1)
    jobs["digits.yaml, adapted"] = Job("digits.yaml", tuple(ADAPTED))
    return jobs


def train(name: str, job: Job, package: Path, root: Path, data: Path, m1: Path | None) -> Path:
    """Run a job until its weights are written, and return their path."""
    folder = root / name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    words = ["--config", job.config, *SETTINGS, *job.words, "--data.root", str(data), "--runs.root", str(folder)]
    if m1 is not None:
        words += ["--model.m1", str(m1.parent)]
    with open(folder / "output.txt", "wb") as output:
        command = [sys.executable, "-m", "scnf", "train", *words]
        process = subprocess.Popen(command, cwd=root, env=environment(package), stdout=output, stderr=output)
        try:
            while process.poll() is None and not list(folder.glob("*/model.safetensors")):
                time.sleep(0.05)
        finally:
            process.kill()  # what is left is the evaluation on the test split
            process.wait()
    weights = list(folder.glob("*/model.safetensors"))  # which is written atomically
    if not weights:
        raise Failed(f"{name} failed:\n{(folder / 'output.txt').read_text(encoding='utf-8', errors='replace')}")
    return weights[0]


def environment(package: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def check_package(package: Path, root: Path) -> None:
    """Refuse to go on where Python would import another scnf than that of `package`."""
    code = "import scnf; print(scnf.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment(package), capture_output=True, text=True, check=True
    )
    if not Path(done.stdout.strip()).is_relative_to(package):
        raise SystemExit(f"{package} holds no scnf: Python imports {done.stdout.strip()}")


def processor() -> str:
    """The model of the processor, as Linux names it; elsewhere its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return found[1] if found else platform.machine()


def digests(weights: Path) -> dict[str, str]:
    """SHA-256 of a safetensors file, and of its tensors without its other metadata and their order in the file."""
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    tensors = hashlib.sha256()
    for name, tensor in sorted((key, value) for key, value in header.items() if key != "__metadata__"):
        begin, end = tensor["data_offsets"]
        tensors.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
        tensors.update(content[start + begin : start + end])
    return {"file": hashlib.sha256(content).hexdigest(), "tensors": tensors.hexdigest()}


def train_all(jobs: dict[str, Job], package: Path, data: Path, workers: int) -> dict[str, dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        root = Path(folder)
        check_package(package, root)
        weights: dict[str, Any] = {}

        def run(name: str, job: Job) -> Path:
            m1 = weights[job.m1].result() if job.m1 else None  # it was submitted before, so a worker has it
            started = time.monotonic()
            path = train(name, job, package, root, data, m1)
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
            return path

        try:
            for name, job in jobs.items():
                weights[name] = pool.submit(run, name, job)
            return {name: digests(each.result()) for name, each in weights.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def compare(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]], jobs: dict[str, Job]) -> int:
    """Print what has changed, and return how many jobs have other tensors than before or are gone."""
    changed = 0
    for name, digest in before.items():
        if name not in jobs:
            verdict = "there is no such configuration any more"
        elif name not in now:
            continue  # --only left it out
        elif digest["tensors"] != now[name]["tensors"]:
            verdict = "other tensors"
        elif digest["file"] != now[name]["file"]:
            print(f"{name}: the same tensors, other metadata")
            continue
        else:
            continue
        changed += 1
        print(f"{name}: {verdict}")
    if new := sorted(jobs.keys() - before.keys()):
        print(f"not in the file, and so not compared: {', '.join(new)}")
    compared = len(before.keys() & now.keys())
    print(f"{compared} trainings compared: " + (f"{changed} changed" if changed else "no weight has changed"))
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", type=Path, metavar="FILE", help="write the checksums to this file")
    task.add_argument("--against", type=Path, metavar="FILE", help="compare with the checksums of this file")
    parser.add_argument(
        "--package", type=Path, default=Path(__file__).parents[1], help="directory that holds scnf/ (this clone)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these jobs alone, and the M1 that they need")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings side by side (all cores)")
    parser.add_argument("--data.root", dest="data", type=Path, default=Path("data"), help="where the data lie (data)")
    options = parser.parse_args()
    package = options.package.resolve()
    if options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    if options.write and not options.write.parent.is_dir():
        parser.error(f"there is no directory {options.write.parent} to write {options.write.name} to")
    before = None
    if options.against:
        try:
            before = json.loads(options.against.read_text())
            if not (isinstance(before, dict) and before["weights"] and before["machine"]):
                raise ValueError("it holds no checksums")
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"cannot compare with {options.against}: {error}")
    jobs = plan(find_configs(package))
    chosen = jobs
    if options.only:
        unknown = sorted(set(options.only) - jobs.keys())
        if unknown:
            parser.error(f"there is no job {unknown[0]!r}; there are: {', '.join(map(repr, jobs))}")
        missing = [] if before is None else sorted(set(options.only) - before["weights"].keys())
        if missing:
            parser.error(f"{options.against} holds no checksum of {missing[0]!r}")
        needed = {*options.only, *(jobs[name].m1 for name in options.only)}
        chosen = {name: job for name, job in jobs.items() if name in needed}
    elif before is not None:
        needed = {*before["weights"], *(jobs[name].m1 for name in before["weights"] if name in jobs)}
        chosen = {name: job for name, job in jobs.items() if name in needed}

    machine = {"processor": processor(), "torch": importlib.metadata.version("torch")}
    if before is not None and before["machine"] != machine:
        print(f"note: {options.against} was written on {before['machine']}, this is {machine}")
    started = time.monotonic()
    try:
        now = train_all(chosen, package, options.data.resolve(), options.jobs)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(now)} trainings in {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)
    if before is not None:
        return 1 if compare(before["weights"], now, jobs) else 0
    options.write.write_text(json.dumps({"steps": STEPS, "machine": machine, "weights": now}, indent=1) + "\n")
    print(f"{len(now)} checksums are in {options.write}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
