"""What a training goes through on other people's machines, as one command: kills, full disks, signals, bad settings.

    python benchmarks/faults.py kills --number 100       # SIGKILL at random times, over five kinds of jobs
    python benchmarks/faults.py signals --number 50      # SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2, likewise
    python benchmarks/faults.py disks --number 50        # no file may grow beyond a random size, as on a full disk
    python benchmarks/faults.py writers --number 10      # a second process resumes a run that is still going
    python benchmarks/faults.py caches --number 10       # the kernels' library is damaged
    python benchmarks/faults.py settings --number 2000   # random settings, many impossible, through build and two steps
    python benchmarks/faults.py all                      # each with its default number

Each prints one line of result, and a line for each fault, with what repeats it; the exit code is 1 if there is one.
Jobs are real processes on sklearn's digits and on points, one thread each, forked from this one to spare them the
imports. A run that was disturbed is resumed, or begun anew if it had come to no checkpoint, until it is finished. Then
it must hold the same bits as a run that was left alone: weights, checkpoint, metrics, figures; and the same files.
"""

import argparse
import csv
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

os.environ["OMP_NUM_THREADS"] = "1"  # bits hang on the number of threads

from scnf.arguments import Choice
from scnf.cli import main as scnf
from scnf.recipes import RECIPES
from scnf.runs import Run
from scnf.settings.schema import leaves

SMALL = "--channels 8 --steps 2 --conditional_hidden 16 --conditional_steps 1 --batch_size 64 --epochs 3"
JOBS = {
    "distortion": f"--config digits.yaml {SMALL} --propagations 2 --neighbours distortion",
    "self-training": f"--config digits.yaml {SMALL} --propagations 1 --neighbours self-training --ema 0 "
    "--self_training_networks 1 --optimizer adamw",
    "m2": "--config mnist_m2_gumbel.yaml --data.name digits --num_validation 250 --hidden 32 --latent 4 --epochs 6",
    "adapt": "--config digits.yaml --adapt --pretrained --data_seed 1 --propagations 1 --epochs 6",
    "points": "--config moons.yaml --channels 16 --steps 3 --epochs 2 --reversible --select bits_per_dim",
}
CLOCKS = ("minutes", "images_per_second", "train_seconds", "peak_memory_mb")
IMPORTED = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "sklearn.datasets", "matplotlib.figure"),
    *("scnf.experiment", "scnf.propagation.strategy", "scnf.training.loop"),
    *("scnf.training.metrics", "scnf.analysis.plots", "scnf.analysis.samples", "tqdm"),
)
"""What the jobs would import themselves, which takes longer than most of them."""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


# Processes --------------------------------------------------------------------------------------------------------


class Job:
    """A command of scnf in a process of its own, forked from this one.

    Args:
        words: what follows `scnf`.
        folder: where it runs; its output goes to `output.txt` there.
        before: called in the process, first of all.
    """

    def __init__(self, words: Sequence[str], folder: Path, before: Callable[[], None] | None = None) -> None:
        self.words, self.output = words, folder / "output.txt"
        self.started = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                for number in SIGNALS:  # a shell has its background ignore some, and so does nohup
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                os.chdir(folder)
                descriptor = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(descriptor, stream)
                if before is not None:
                    before()
                code = scnf(list(words))
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, limit: float = 300.0) -> int:
        """The exit code, negative after a signal; after `limit` seconds the process is killed, and it is -SIGALRM."""
        while time.monotonic() - self.started < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return -signal.SIGALRM

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.is_file() else ""


def train(folder: Path, words: str, **options: Any) -> Job:
    apart = ["--device", "cpu", "--runs.root", str(folder / "logs"), "--runs.name", "job"]
    return Job(["train", *words.split(), *apart], folder, **options)


def resume(folder: Path, **options: Any) -> Job:
    return Job(["train", "--resume", "last", "--runs.root", str(folder / "logs")], folder, **options)


def go_on(folder: Path, words: str) -> Job:
    """Resume the last run of a folder, or begin anew where it came to no checkpoint."""
    runs = sorted((folder / "logs").glob("0*"))
    return resume(folder) if runs and Run(runs[-1]).checkpoint("last").is_file() else train(folder, words)


def finish(folder: Path, words: str) -> str:
    """Go on to the end; what went wrong, or nothing."""
    job = go_on(folder, words)
    code = job.wait()
    return "" if code == 0 else f"scnf {' '.join(job.words)} ended with {code}: {job.said()[-500:]}"


# What a finished run holds ----------------------------------------------------------------------------------------


def files_of(run: Path) -> set[str]:
    """Names of all files; TensorBoard's, of which there is one a process, count as one."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if not path.is_dir()}
    return {"tensorboard/" if name.startswith("tensorboard/") else name for name in names}


def bits_of(run: Path) -> dict[str, Any]:
    """Everything that does not hang on a clock."""
    from scnf.training.checkpoint import load_tensors

    with open(run / "metrics.csv", newline="", encoding="utf-8") as handle:
        rows = [{key: cell for key, cell in row.items() if key not in CLOCKS} for row in csv.DictReader(handle)]
    last = load_tensors(run / "checkpoints" / "last.safetensors")[0]
    summary = {key: value for key, value in Run(run).read_json("summary.json").items() if key not in CLOCKS}
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in last.items()},
        "metrics.csv": rows,
        "summary.json": summary,
        "samples.png": (run / "samples.png").read_bytes(),
    }


def difference(folder: Path, reference: Path) -> str:
    """How the last run of a folder differs from a reference; nothing where it does not."""
    run = sorted((folder / "logs").glob("0*"))[-1]
    found, expected = files_of(run), files_of(reference)
    if found != expected:
        return f"files: {', '.join(sorted(found ^ expected))}"
    ours, theirs = bits_of(run), bits_of(reference)
    return ", ".join(name for name, value in theirs.items() if ours[name] != value)


class References:
    """A run of each kind of job that was left alone, and how long it took."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, tuple[Path, float]] = {}

    def __getitem__(self, name: str) -> tuple[Path, float]:
        if name not in self.made:
            folder = self.root / name
            folder.mkdir()
            job = train(folder, JOBS[name])
            if job.wait():
                raise SystemExit(f"the job {name} does not run: {job.said()[-1000:]}")
            self.made[name] = next((folder / "logs").glob("0*")), time.monotonic() - job.started
        return self.made[name]


# Campaigns: each trial gives what went wrong, or nothing ----------------------------------------------------------

Trial = Callable[[random.Random, Path, References], str]


def disturbed(draw: random.Random, folder: Path, references: References, disturb: Callable[[Job, str], str]) -> str:
    """Disturb a job up to three times, finish it, and compare."""
    name = draw.choice(list(JOBS))
    reference, seconds = references[name]
    for _ in range(draw.randint(1, 3)):
        job = go_on(folder, JOBS[name])
        time.sleep(draw.uniform(0, seconds))
        if wrong := disturb(job, name):
            return f"{name}: {wrong}"
    wrong = finish(folder, JOBS[name]) or difference(folder, reference)
    return f"{name}: {wrong}" if wrong else ""


def kills(draw: random.Random, folder: Path, references: References) -> str:
    def kill(job: Job, name: str) -> str:
        job.send(signal.SIGKILL)
        code = job.wait()
        return "" if code in (0, -signal.SIGKILL) else f"it had ended with {code}: {job.said()[-500:]}"

    return disturbed(draw, folder, references, kill)


def signals(draw: random.Random, folder: Path, references: References) -> str:
    number = draw.choice(SIGNALS)

    def send(job: Job, name: str) -> str:
        job.send(number)
        code = job.wait()
        if code not in (0, 128 + number) or "Traceback" in job.said():
            return f"{number.name} ended it with {code}: {job.said()[-500:]}"
        return ""

    return disturbed(draw, folder, references, send)


def disks(draw: random.Random, folder: Path, references: References) -> str:
    name = draw.choice(list(JOBS))
    reference, _ = references[name]
    largest = max(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    size = round(largest ** draw.uniform(0.3, 1))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    job = train(folder, JOBS[name], before=limit)
    code, said = job.wait(), job.said()
    if code not in (0, 2) or "Traceback" in said:
        return f"{name}: with files of {size} bytes at most it ended with {code}: {said[-500:]}"
    wrong = finish(folder, JOBS[name]) or difference(folder, reference)
    return f"{name}, {size} bytes: {wrong}" if wrong else ""


def writers(draw: random.Random, folder: Path, references: References) -> str:
    name = draw.choice(list(JOBS))
    reference, seconds = references[name]
    first = train(folder, JOBS[name])
    time.sleep(draw.uniform(0.3, 0.9) * seconds)
    if not sorted((folder / "logs").glob("0*")):
        return "" if first.wait() == 0 else f"{name}: the first ended badly: {first.said()[-500:]}"
    going = os.waitpid(first.pid, os.WNOHANG)[0] == 0
    (folder / "second").mkdir()
    second = Job(["train", "--resume", "last", "--runs.root", str(folder / "logs")], folder / "second")
    code = second.wait()
    if going and first.wait():
        return f"{name}: the first ended badly: {first.said()[-500:]}"
    if code not in (0, 2) or "Traceback" in second.said():
        return f"{name}: the second ended with {code}: {second.said()[-500:]}"
    wrong = difference(folder, reference)
    return f"{name}: {wrong}" if wrong else ""


def caches(draw: random.Random, folder: Path, references: References) -> str:
    """The library of the kernels is damaged between two evaluations, which must give the same figures."""
    reference, _ = references["distortion"]
    cache = folder / "cache"

    def elsewhere() -> None:
        os.environ["XDG_CACHE_HOME"] = str(cache)

    def figures() -> tuple[int, str]:
        job = Job(["evaluate", str(reference)], folder, before=elsewhere)
        return job.wait(), "\n".join(line for line in job.said().splitlines() if "accuracy" in line)

    expected = figures()
    libraries = list(cache.rglob("*.so"))
    if not libraries:
        return ""  # no compiler here, and no kernels
    library = libraries[0]
    content = bytearray(library.read_bytes())
    kind = draw.choice(["zeros", "empty", "half", "flipped"])
    if kind == "flipped":
        for _ in range(100):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        content[:] = bytes(len(content))
    else:
        del content[0 if kind == "empty" else len(content) // 2 :]
    library.write_bytes(content)
    found = figures()
    return "" if found == expected and expected[0] == 0 else f"{kind}: {expected} became {found}"


# Settings ---------------------------------------------------------------------------------------------------------

FLOWS = ["scnf-fast", "scnf-hybrid", "scnf-paper", "scnf-gmm", "scnf-digits", "scnf-toy"]
OTHERS = ["m1", "m2", "adgm", "ladder-vae", "ladder-dgm", "gumbel-autoencoder", "classifier"]
APART = (
    "data.name",
    "data.root",
    "runs.root",
    "runs.name",
    "device",
    "pretrained",
    "train.max_steps",
    "train.compile",
    "model.m1",
)


def settings_of(recipe: str) -> list[tuple[str, Any, Any]]:
    """Every setting that is drawn beside a recipe: full name, type, default."""
    return [(name, each.kind, each.default) for name, each in leaves(RECIPES[recipe]).items() if name not in APART]


def value_for(kind: Any, default: Any, draw: random.Random) -> str:
    """A value for a setting: mostly one that may be, sometimes one at an end or beyond, seldom one of another type."""
    for choice in (note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Choice)):
        return draw.choice(list(choice.table))
    while get_args(kind) and get_origin(kind) not in (Literal, tuple):
        parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        kind = draw.choice([part for part in parts if part is not NoneType])
    if draw.random() < 0.03:
        return draw.choice(["null", "nan", "[]", "{}", "x", "1e400", "-1", "''", "0x10", "1_0"])
    if get_origin(kind) is Literal:
        return str(draw.choice(get_args(kind)))
    if get_origin(kind) is tuple:
        return "[" + ",".join(str(draw.choice([0, 1, 2, 8, 10**6])) for _ in range(draw.randint(0, 3))) + "]"
    if kind is bool:
        return draw.choice(["true", "false"])
    if kind is int:
        return str(draw.choice([0, 1, 2, 3, 5, 8, 8, 16, 16, 33, 100, 1000, -1, 10**6, 10**9, 10**12, 2**63]))
    if kind is float:
        values = [0.0, 1.0, 0.5, 0.5, 0.1, 1e-3, 1e-8, 2.0, 10.0, -1.0, 1e6, 1e30, float("inf"), float("nan")]
        return str(draw.choice(values))
    return str(default or draw.choice(["digits", "moons", "uniform", "learned", "empirical"]))


def settings(draw: random.Random, folder: Path, references: References) -> str:
    points = draw.random() < 0.2
    recipe = draw.choice(["scnf-toy", *OTHERS] if points else [*FLOWS, *OTHERS])
    words = f"--data.name {'moons' if points else 'digits'} --model.recipe {recipe} --train.epochs 1 --batch_size 16"
    words += " --num_validation 50 --num_labels 20 --labelled_share 0.5"
    words += " --hidden 16" if recipe in OTHERS else ""
    if recipe == "scnf-paper":  # for a GPU
        words += " --model.channels 8 --blocks 1 --conditional_hidden 16 --conditional_blocks 1 --conditional_steps 1"
    for name, kind, default in draw.sample(settings_of(recipe), draw.randint(1, 6)):
        words += f" --{name}={value_for(kind, default, draw)}"

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    job = train(folder, f"{words} --max_steps 2", before=limits)
    code, said = job.wait(), job.said()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or code not in (0, 2) or (code == 2 and len(errors) != 1):
        return f"{code} from scnf train {words} --max_steps 2: {said[-400:]}"
    return ""


CAMPAIGNS: Mapping[str, tuple[Trial, int]] = {
    "kills": (kills, 100),
    "signals": (signals, 50),
    "disks": (disks, 50),
    "writers": (writers, 10),
    "caches": (caches, 10),
    "settings": (settings, 2000),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=[*CAMPAIGNS, "all"])
    parser.add_argument("--number", type=int, help="trials")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; trial i has this plus i (0)")
    options = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        references = References(Path(scratch))
        for name, (trial, default) in CAMPAIGNS.items():
            if options.campaign not in (name, "all"):
                continue
            number, wrong, started = options.number or default, 0, time.monotonic()
            for seed in range(options.seed, options.seed + number):
                folder = Path(scratch) / f"{name}-{seed}"
                folder.mkdir()
                if said := trial(random.Random(seed), folder, references):
                    wrong += 1
                    print(f"  {name} --seed {seed} --number 1: {said}", flush=True)
                shutil.rmtree(folder)
            minutes = (time.monotonic() - started) / 60
            print(f"{name}: {number - wrong} of {number} ended well, in {minutes:.1f} minutes", flush=True)
            faults += wrong
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
