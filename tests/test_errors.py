"""What a person can get wrong: exit code 2, one line that says what, no traceback, and nothing written."""

import errno
import json
import os
import pickle
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY
from scnf.batch import Batch
from scnf.cli import main
from scnf.data import download
from scnf.data.sources import DATASETS
from scnf.errors import InvalidArgument, UserError
from scnf.failures import explain, traceback_in
from scnf.machine import check_compiler
from scnf.recipes import build
from scnf.runs import Run
from scnf.training.checkpoint import load_tensors, save_tensors

POINTS = "train --config moons.yaml --augment 0 --consistency_weight 0"
DIGITS = "train --config digits.yaml"
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
IN_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")


class Payload:
    """Makes a directory when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("was-here",)


@pytest.fixture
def place(tmp_path: Path, finished: Path) -> Path:
    """A directory with one finished run, and files of all kinds that no command should take."""
    run = tmp_path / "logs" / finished.name
    shutil.copytree(finished, run)
    files = {
        "typo.yaml": "train: {epohcs: 3}",
        "blank.yaml": "# nothing\n",
        "type.yaml": "train: {epochs: many}",
        "range.yaml": "train: {batch_size: 0}",
        "source.yaml": "supervised: 100",
        "section.yaml": "data: mnist",
        "list.yaml": "- data",
        "broken.yaml": "data: {name: digits",
        "tag.yaml": "seed: !!python/object/apply:os.mkdir [was-here]",
        "a-file": "",
        "empty.safetensors": "",
        "text.safetensors": "no weights at all",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.yaml").write_bytes("data: {name: é}".encode("latin-1"))
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "a-link").symlink_to("a-file")
    os.mkfifo(tmp_path / "a-fifo")
    weights = (run / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "alone.safetensors").write_bytes(weights)
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Payload(), 4))
    torch.save({"weight": Payload()}, tmp_path / "torch.pt")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "model.safetensors", bare)
    return tmp_path


def fresh(place: Path, name: str, **changes: Any) -> None:
    """A copy of the run, as number 2, of which some files are changed or, when None, absent."""
    original = next((place / "logs").iterdir())
    copy = place / "logs" / f"000002-2026-01-01-{name}"
    shutil.copytree(original, copy)
    for file, content in changes.items():
        path = copy / {"last": "checkpoints/last.safetensors"}.get(file, file.replace("_", "."))
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)


BAD: list[Any] = [
    # words
    ("trian", "there is no command 'trian': choose one of train, evaluate, predict"),
    (f"{DIGITS} --epohcs 3", "there is no setting 'epohcs'; did you mean train.epochs"),
    (f"{DIGITS} --supervised 100", "'supervised' is called data.num_labels here"),
    (f"{DIGITS} --epochs many", "train.epochs"),
    (f"{DIGITS} --epochs -1", "train.epochs must be between 0 and 1000000, not -1"),
    (f"{DIGITS} --epochs", "--train.epochs needs a value"),
    (f"{DIGITS} --optimizer sgd", "train.optimizer"),
    (f"{DIGITS} --lr 0", "train.lr must be above 0"),
    (f"{DIGITS} --config", "--config needs a value"),
    (f"{DIGITS} --resume", "--resume needs a value"),
    (f"{DIGITS} stray", "'stray' stands alone"),
    (f"{DIGITS} --resume last", "leave --config out"),
    ("evaluate last --foo 3", "there is no setting 'foo'"),
    (
        "evaluate last --pretrained shipped",
        "this command reads the weights of last: name other weights in place of last, and leave",
    ),
    ("sample last --pretrained 1", "this command reads the weights of last"),
    ("sample last --label 10", "--label must be one of the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not '10'"),
    ("sample last --label -1", "--label must be one of the classes 0, 1"),
    ("sample last --out x.jpg", "--out: pictures are written as PNG: name the file x.png"),
    ("sample last --num 0", "--num: it must be a whole number between 1 and 10000, not '0'"),
    ("sample last --num 1e9", "--num: it must be a whole number between 1 and 10000, not '1e9'"),
    ("sample last --sample-seed -1", "--sample-seed: it must be a whole number between 0 and"),
    ("compare last --k 1000000000", "--k: it must be a whole number between 1 and 10000"),
    ("evaluate last --split all", "--split: invalid choice: 'all'"),
    ("evaluate", "the following arguments are required: RUN|PATH; scnf evaluate --help tells more"),
    ("runs shwo 1", "`scnf runs show RUN` prints one run"),
    ("runs --sort acuracy", "Did you mean 'accuracy'"),
    ("runs --where accuracy", "cannot read the condition"),
    # configurations
    ("train --config typo.yaml", "typo.yaml: there is no setting 'train.epohcs'; did you mean train.epochs"),
    ("train --config type.yaml", "train.epochs"),
    ("train --config range.yaml", "train.batch_size must be between 1 and 100000, not 0"),
    ("train --config source.yaml", "'supervised' is called data.num_labels here"),
    ("train --config section.yaml", "data is a section"),
    ("train --config list.yaml", "not a list"),
    ("train --config broken.yaml", "cannot read the configuration broken.yaml"),
    ("train --config tag.yaml", "cannot read the configuration tag.yaml"),
    ("train --config latin.yaml", "cannot read the configuration latin.yaml"),
    ("train --config directory.yaml", "directory.yaml is a directory: name a configuration in it"),
    ("train --config blank.yaml", "the configuration blank.yaml holds no settings"),
    (
        "train --config digit.yaml",
        "there is no configuration 'digit.yaml', neither at that path nor in configs/; did you mean",
    ),
    # data
    ("train --data.name digitz --data.root nowhere", "data.name must be one of mnist, fashion, "),
    ("train --data.name digitz", "not 'digitz'; did you mean digits? (one of your own needs --import FILE)"),
    ("train --data.root logs", "data.root logs holds 000001-"),
    ("train --data.root logs", "--config digits.yaml need no files. `scnf train FOLDER` trains on images of your own"),
    (f"{DIGITS} --num_labels 1100 --balanced false", "asks for 1100 labels and the data has 1097 training rows"),
    (f"{DIGITS} --num_labels 99", "data.num_labels = 99 cannot be shared equally by 10 classes: take 90 or 100"),
    (f"{DIGITS} --labels_per_class 109", "needs 109 labels of each class, and class"),
    (f"{DIGITS} --num_validation 1347", "data.num_validation must be between 0 and 1346"),
    (f"{DIGITS} --batch_size 3 --labelled_share 0.1", "train.batch_size of 3 cannot hold a labelled share of 0.1"),
    (f"{DIGITS} --num_labels 0", "data.labelled_share asks for labelled rows, and no row has a label"),
    # models
    (f"{DIGITS} --recipe scnf-fats", "not 'scnf-fats'; did you mean scnf-fast?"),
    (f"{DIGITS} --recipe scnf-toy", "scnf-toy does not take the data digits: shape must be (D,)"),
    (f"{POINTS} --recipe scnf-fast", "scnf-fast does not take the data moons: shape must be (C, H, W)"),
    (f"{DIGITS} --means data", "model.means has an effect with conditional gaussian alone"),
    (f"{DIGITS} --pixels logit --alpha 0.5", "model.alpha must be above 0 and below 0.5"),
    (f"{DIGITS} --alpha 0.1", "model.alpha has an effect with pixels logit alone"),
    (f"{DIGITS} --pixels log", "model.pixels must be one of levels, logit"),
    (f"{DIGITS} --passes 0", "train.passes must be between 1 and 1000"),
    (f"{DIGITS} --channels 0", "model.channels must be between 1 and 16384"),
    (f"{DIGITS} --channels 1000000", "model.channels must be between 1 and 16384, not 1000000"),
    (f"{DIGITS} --recipe m1 --latent 1000000000000", "model.latent must be between 1 and 16384"),
    (f"{DIGITS} --channels [8]", "model.channels"),
    (f"{POINTS} --consistency_weight 1", "data.augment must be above 0 for views of points"),
    (
        f"{DIGITS} --augment 1 --classifier_weight 0 --consistency_weight 0",
        "moved images count in cross-entropies alone",
    ),
    (f"{DIGITS} --propagations 2 --num_labels 0", "data.num_labels above 0"),
    (f"{DIGITS} --adapt", "name them with --pretrained"),
    (f"{DIGITS} --adapt --pretrained --recipe m2", "the recipe m2 has no class-conditional part to adapt"),
    (
        f"{DIGITS} --propagations 1 --consistency_weight 1 --balanced false --num_labels 12 --max_steps 1",
        "has a label to propagate: set data.balanced to true",
    ),
    (f"{DIGITS} --propagations -1", "objective.propagations must be between 0 and 1000"),
    (f"{DIGITS} --propagations 1 --self_training_networks 0", "objective.self_training_networks must be between 1 and"),
    (f"{DIGITS} --propagations 1 --distortion true", "'distortion' is called objective.neighbours (distortion) here"),
    (
        f"{DIGITS} --propagations 1 --neighbours cats",
        "objective.neighbours must be one of pixels, ",
    ),
    (f"{DIGITS} --propagations 1 --labelled_share 1", "no unlabelled rows for propagated labels"),
    (f"{DIGITS} --propagations 0 --consistency_weight 1 --labelled_share 1", "no unlabelled rows to take views of"),
    (f"{POINTS} --eval_views 2", "points have no views: set train.eval_views to 0"),
    (f"{POINTS} --propagations 1", "set objective.neighbours to posterior, or objective.propagations to 0"),
    (f"{DIGITS} --prior [0.5,0.5]", "model.prior must be 10 positive numbers"),
    (f"{DIGITS} --prior even", "not 'even'"),
    pytest.param(f"{DIGITS} --device cuda", "use --device cpu", marks=NO_CUDA),
    # weights
    (f"{DIGITS} --pretrained 1", "not 32: with it the weights make another model. Set it to 8, or train a new model"),
    (f"{DIGITS} --pretrained alone.safetensors", "is [8, 2, 3, 3] in the file and [32, 2, 3, 3] in the model; "),
    (f"{POINTS} --pretrained 1", "do not fit this model"),
    (f"{DIGITS} --pretrained empty.safetensors", "cannot read weights from empty.safetensors"),
    (f"{DIGITS} --pretrained text.safetensors", "cannot read weights from text.safetensors"),
    (f"{DIGITS} --pretrained half.safetensors", "cannot read weights from half.safetensors"),
    (f"{DIGITS} --pretrained torch.pt", "torch.pt is a pickled file, which could run code"),
    (f"{DIGITS} --pretrained raw.pkl", "raw.pkl is a pickled file, which could run code"),
    (f"{DIGITS} --pretrained nowhere", "there is no run 'nowhere'"),
    (f"{DIGITS} --recipe scnf-gmm --pretrained", "no weights ship for the recipe scnf-gmm"),
    ("evaluate bare", "bare holds no config.yaml"),
    ("evaluate directory.yaml", "directory.yaml holds no weights: neither model.safetensors nor checkpoints/best"),
    (f"{DIGITS} --pretrained directory.yaml", "directory.yaml holds no weights"),
    ("evaluate torch.pt", "no config.yaml"),
    ("evaluate 7", "there is no run '7'"),
    ("sample nowhere", "there is no run 'nowhere'"),
    ("sample scnf-digit", "Weights that ship: did you mean scnf-digits?"),
    ("runs show 7", "there is no run '7'"),
    # going on
    ("train --resume 7", "there is no run '7'"),
    ("train --resume digits-scnf-digit", "Did you mean 000001-"),
    ("train --resume last --runs.root elsewhere", "elsewhere holds no runs yet"),
    ("train --resume last --data_seed 1", "was trained with another label split"),
    ("train --resume last --num_labels 50", "was trained with another label split"),
    ("train --resume last --num_validation 249", "was trained with another label split"),
    ("train --resume last --recipe scnf-gmm", "model.recipe is scnf-digits in it, not scnf-gmm"),
    ("train --resume last --optimizer adamw", "train.optimizer is adam in it, not adamw"),
    # places
    (f"{DIGITS} --runs.root a-file", "cannot make a run directory in a-file: it is a file"),
    (f"{DIGITS} --runs.root a-file/logs", "cannot make a run directory in a-file/logs"),
    pytest.param(f"{DIGITS} --runs.root /proc/logs", "cannot make a run directory in /proc/logs", marks=IN_PROC),
    ("sample last --out a-file/x.png", "cannot write a-file/x.png"),
    pytest.param("sample last --out /proc/x.png", "cannot write /proc/x.png", marks=IN_PROC),
    pytest.param("sample last --out /dev/full", "cannot write /dev/full: it is a device", marks=IN_PROC),
    pytest.param("sample last --out /dev/null", "cannot write /dev/null: it is a device", marks=IN_PROC),
    ("sample last --out a-link", "cannot write a-link: it is a symbolic link"),
    ("sample last --out a-fifo", "cannot write a-fifo: it is a FIFO"),
    ("sample last --out directory.yaml", "--out: pictures are written as PNG: name the file directory.png"),
    ("sample last --out .", "cannot write .: it is a directory"),
    ("sample last --out /", "cannot write /: it is a directory"),
    ("runs --logs nothere", "there is no directory nothere"),
    ("runs --logs a-file", "there is no directory a-file"),
]


def contents(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def check(outcome: Any, message: str) -> None:
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_command_gives_a_message_and_writes_nothing(
    scnf: Callable[..., Any], place: Path, words: str, message: str
) -> None:
    before = contents(place)
    check(scnf(words), message)
    assert contents(place) == before
    assert not (place / "was-here").exists() and not (place / "elsewhere").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last": None}, "has no checkpoint to resume from"),
        ({"last": b""}, "cannot read weights from"),
        ({"last": b"x" * 100}, "cannot read weights from"),
        ({"last": pickle.dumps(Payload(), 4)}, "is a pickled file"),
        ({"config_yaml": None}, "cannot resume, for its config.yaml is missing: restore it, or start a new run"),
        ({"config_yaml": "data: {nam: digits}"}, "there is no setting 'data.nam'"),
        ({"split_json": None}, "split.json"),
        ({"split_json": "{"}, "split.json is damaged"),
        ({"split_json": "[]"}, "another label split"),
        ({"metrics_csv": b"\xff\n"}, "metrics.csv is damaged"),
    ],
)
def test_resume_of_a_damaged_run_is_refused_and_changes_nothing(
    scnf: Callable[..., Any], place: Path, changes: dict[str, Any], message: str
) -> None:
    fresh(place, "damaged", **changes)
    before = contents(place)
    check(scnf("train --resume 2"), message)
    assert contents(place) == before and not (place / "was-here").exists()


def test_best_weights_of_another_run_are_not_taken(scnf: Callable[..., Any], place: Path) -> None:
    fresh(place, "unfinished", summary_json=None, model_safetensors=None)
    outcome = scnf("evaluate 2 --split validation")
    assert outcome.code == 0 and outcome.err.count("000002-2026-01-01-unfinished is not finished") == 1
    (place / "2").mkdir()  # a number is a run, whatever lies here
    best = place / "logs/000002-2026-01-01-unfinished/checkpoints/best.safetensors"
    assert (
        "not finished"
        not in scnf(f"evaluate {next((place / 'logs').glob('000001*'))}/checkpoints/best.safetensors").err
    )
    tensors, about = load_tensors(best)
    save_tensors(best, tensors, {**about, "run": "b" * 32})
    check(scnf("evaluate 2"), "best.safetensors belongs to another run than")


def test_edited_split_is_refused_by_resume_and_evaluate(scnf: Callable[..., Any], place: Path) -> None:
    fresh(place, "edited")
    run = Run.find(place / "logs", "2")
    split = run.read_json("split.json")
    moved = {**split, "labelled": [*split["labelled"][:-1], split["validation"][0]]}
    (run.path / "split.json").write_text(json.dumps(moved))
    for command in ("train --resume 2", "evaluate 2"):
        check(scnf(command), "another label split")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_of_runs_is_refused(scnf: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(stat.S_IRUSR | stat.S_IXUSR)
    check(scnf(DIGITS), "cannot make a run directory in logs")
    (tmp_path / "logs").chmod(stat.S_IRWXU)


# --- data files


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """MNIST's files as short stand-ins, whose checksums are taken as right; one of them may be damaged."""

    def make(name: str = "", change: Callable[[bytes], bytes] = bytes) -> None:
        import hashlib

        raw = tmp_path / "files" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        sums = []
        for number, file in enumerate(download.IDX_SHAPES):
            content = download.idx_header(download.IDX_SHAPES[file]) + bytes([number]) * 1000
            sums.append(hashlib.md5(content, usedforsecurity=False).hexdigest())
            (raw / file).write_bytes(change(content) if file == name else content)
        monkeypatch.setitem(download.IDX_MD5, "MNIST", tuple(sums))

    return make


@pytest.mark.parametrize("name", download.IDX_SHAPES)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:500], "found 500 bytes"),
        (lambda data: b"", "found 0 bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "with MD5"),
        (lambda data: data + b"\0", "expected"),
    ],
    ids=["truncated", "empty", "one bit", "longer"],
)
def test_damaged_data_file_is_named_before_a_run_is_made(
    scnf: Callable[..., Any], damaged: Callable[..., None], tmp_path: Path, name: str, change: Any, found: str
) -> None:
    damaged(name, change)
    outcome = scnf("train --data.root files")
    check(outcome, f"data.root must hold intact files, and files/MNIST/raw/{name} is damaged: ")
    assert found in outcome.err and "Delete it and run again" in outcome.err
    assert not (tmp_path / "logs").exists()


def test_truncated_mnist_file_is_named_before_a_run_is_made(scnf: Callable[..., Any], tmp_path: Path) -> None:
    repository = Path(__file__).parents[1]
    given = os.environ.get("SCNF_DATA_ROOT")
    roots = [Path(given)] if given else [repository / "data"]
    real = next((root / "MNIST" / "raw" for root in roots if (root / "MNIST" / "raw").is_dir()), None)
    if real is None:
        pytest.skip("no MNIST files; set SCNF_DATA_ROOT")
    raw = tmp_path / "files" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in download.IDX_SHAPES:
        if not (real / name).is_file():
            pytest.skip(f"{real} lacks {name}")
        (raw / name).symlink_to((real / name).resolve())
    (raw / "train-images-idx3-ubyte").unlink()
    with open(real / "train-images-idx3-ubyte", "rb") as handle:
        (raw / "train-images-idx3-ubyte").write_bytes(handle.read(100_000))
    check(scnf("train --data.root files"), "train-images-idx3-ubyte is damaged: found 100000 bytes")
    assert not (tmp_path / "logs").exists()


# --- a full disk

LIMITED = """
import sys
from scnf.cli import main
sys.exit(main(sys.argv[1:]))
"""


def limit(size: int) -> Callable[[], None]:
    """No file of the process may grow beyond `size` bytes, as if the disk were full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
@pytest.mark.parametrize("resumed", [False, True])
def test_full_disk_ends_training_with_a_message_and_keeps_what_was_saved(
    start: Callable[..., Any], place: Path, resumed: bool
) -> None:
    from conftest import TINY

    run = Run.find(place / "logs", "1")
    before = contents(run.path)
    size = 60_000  # more than the weights (41 kB) take, and less than a checkpoint (230 kB)
    assert run.weights.stat().st_size < size < run.checkpoint("last").stat().st_size
    words = ["--resume", "1", "--max_steps", "60"] if resumed else ["--config", "digits.yaml", *TINY, "--epochs", "2"]
    process = start("-c", LIMITED, "train", *words, preexec_fn=limit(size))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in err
    assert err.startswith("error: cannot write ") and err.count("\n") == 1
    assert "last.safetensors" in err and "Free some space" in err
    if not resumed:
        run = Run.find(place / "logs", "2")
        assert not run.checkpoint("last").exists() and run.read_json("summary.json")["status"] == "failed"
        load_tensors(run.checkpoint("best"))
    else:
        assert run.checkpoint("last").read_bytes() == before[run.checkpoint("last")]
        load_tensors(run.checkpoint("best"))
    assert list(run.path.rglob("*tmp*")) == []
    assert all("epoch" in row for row in run.read_metrics())


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_full_disk_from_the_start_gives_a_message_and_no_temporary_file(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start("-c", LIMITED, "train", "--config", "digits.yaml", preexec_fn=limit(100))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in err and err.startswith("error: cannot write ")
    assert list(tmp_path.rglob("*.tmp")) == []


# --- what no layer has put into words

MEMORY = "Lower train.batch_size, train.eval_batch_size or model.channels, set model.class_chunk to 1"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("Storage size calculation overflowed with sizes=[1000000000, 10000000000]"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_memory_errors_are_explained_with_what_to_lower(error: Exception) -> None:
    told = explain(error)
    assert isinstance(told, UserError) and MEMORY in str(told) and "\n" not in str(told)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_model_beyond_the_memory_ends_with_a_message(start: Callable[..., Any], tmp_path: Path) -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    words = ["train", "--config", "digits.yaml", "--recipe", "gumbel-autoencoder", "--variables", "16384"]
    process = start("-c", LIMITED, *words, "--categories", "16384", "--device", "cpu", preexec_fn=little)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.startswith("error: the memory does not suffice (") and err.count("\n") == 1
    assert MEMORY in err and not (tmp_path / "logs").exists()


def test_file_errors_are_explained_with_the_name_of_the_file() -> None:
    assert str(explain(FileNotFoundError(2, "No such file or directory", "a/b"))) == "No such file or directory: a/b"


def broken(*_: Any, **__: Any) -> Any:
    raise RecursionError("maximum recursion\ndepth exceeded")


BUG = "error: this is a bug in scnf, please report it: RecursionError: maximum recursion depth exceeded (the traceback "


@pytest.mark.parametrize(
    "error", [TypeError("no tensor"), KeyError("y"), InvalidArgument("features", "must be finite")]
)
def test_bug_in_a_model_leaves_its_traceback(
    digits: Callable[..., Any], last_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def step(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("scnf.models.flow.SemiConditionalFlow.step", step)
    outcome = digits("--max_steps 1")
    assert outcome.code == 1 and f"this is a bug in scnf, please report it: {type(error).__name__}: " in outcome.err
    text = (last_run().path / "error.txt").read_text()
    assert text.startswith("Traceback") and "in step" in text


def test_bug_in_a_dataset_keeps_its_traceback(scnf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(root: Path) -> Any:
        raise InvalidArgument("batch_size", "must be 1 or more, not 0")

    monkeypatch.setitem(DATASETS, "digits", wrong)
    outcome = scnf(DIGITS)
    assert outcome.code == 1 and "this is a bug in scnf, please report it: InvalidArgument: batch_size" in outcome.err


def test_bug_in_a_training_leaves_its_traceback_in_the_run(
    digits: Callable[..., Any], last_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scnf.objectives.semi_supervised_loss", broken)
    outcome = digits("--max_steps 1")
    run = last_run()
    assert outcome.code == 1 and outcome.err == f"{BUG}is in logs/{run.path.name}/error.txt)\n"
    text = (run.path / "error.txt").read_text()
    assert text.startswith("Traceback") and "in broken" in text and run.read_json("summary.json")["status"] == "failed"


@pytest.mark.parametrize("writable", [True, False])
def test_bug_outside_a_run_leaves_its_traceback_in_a_temporary_file(
    scnf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    monkeypatch.setattr("scnf.analysis.overview.list_runs", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path if writable else tmp_path / "absent"))
    outcome = scnf("runs")
    assert outcome.code == 1 and outcome.err.startswith(BUG)
    if writable:
        (path,) = tmp_path.glob("scnf-error-*.txt")
        assert outcome.err == f"{BUG}is in {path})\n" and "in broken" in path.read_text()
    else:
        assert "cannot be written to a file:\nTraceback" in outcome.err and "in broken" in outcome.err


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(3), UserError("mine"), BrokenPipeError()])
def test_interrupts_and_user_errors_leave_no_traceback_in_the_run(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(error if isinstance(error, type) else type(error)), traceback_in(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_missing_compiler_is_a_user_error_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, device: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    message = f"there is no no-such-compiler: install one, name yours in the variable {variable}, or set it to false"
    with pytest.raises(InvalidArgument, match=message) as caught:
        check_compiler(torch.device(device))
    assert caught.value.argument == "compile"


def test_compile_option_without_a_compiler_is_refused_before_a_run_is_made(
    digits: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check(digits("--compile"), "train.compile needs a compiler for torch.compile, and there is no no-such-compiler")
    assert not (tmp_path / "logs").exists()


def test_train_options_with_empty_values_are_refused(scnf: Callable[..., Any]) -> None:
    for option in ("--pretrained", "--config", "--resume", "--data.root", "--runs.root", "--m1"):
        for words in ([option, ""], [f"{option}="]):
            outcome = main(
                ["train", *([] if option in ("--config", "--resume") else ["--config", "digits.yaml"]), *words]
            )
            assert outcome == 2
    assert not os.path.exists("logs")


@pytest.mark.parametrize("recipe", ["m1", "m2", "adgm", "classifier"])
def test_batch_normalisation_of_one_row_is_refused_in_training_alone(recipe: str) -> None:
    arguments = {"norm": "batch", "hidden": 8}
    model = build(recipe, (1, 8, 8), 3, levels=17, **arguments).train()
    with pytest.raises(InvalidArgument, match="norm must be layer or none where a batch holds one row"):
        model(Batch(torch.rand(1, 1, 8, 8), torch.tensor([0])))
    assert model.eval().class_log_probs(torch.rand(1, 1, 8, 8)).shape == (1, 3)


WITHOUT_RESOURCE = """
import pathlib, sys
sys.modules["resource"] = None  # as on Windows
from scnf import machine
from scnf.cli import main
machine._STATUS = pathlib.Path("absent")
sys.exit(main(sys.argv[1:]))
"""


def test_peak_memory_is_unknown_without_the_resource_module(
    start: Callable[..., Any], last_run: Callable[[], Run]
) -> None:
    process = start("-c", WITHOUT_RESOURCE, "train", "--config", "digits.yaml", *TINY, "--max_steps", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert last_run().read_json("summary.json")["peak_memory_mb"] is None and "MB at most" not in out
