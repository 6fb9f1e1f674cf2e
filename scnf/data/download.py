"""Find the files of datasets, check their MD5 checksums, and download the files that are absent."""

import gzip
import hashlib
import json
import logging
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from scnf.errors import FileError, InvalidArgument
from scnf.files import write_bytes
from scnf.interrupt import child
from scnf.lock import exclusive_folder

logger = logging.getLogger("scnf.data")
_SCRATCH = ".fetch-"
QUIET_SECONDS = 20  # without new data, after which an attempt is stopped
_START_SECONDS = 60  # before the first byte, since a slow disk may take long to import a big library

# An attempt gets an empty working directory and returns the directory that holds the files.
Attempt = Callable[[Path], Path]

_DOWNLOADED = {"MNIST", "FashionMNIST", "cifar-10-batches-py", "train_32x32.mat", "test_32x32.mat"}
"""Names of the entries that downloads leave in a data root."""

IDX_SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
IDX_MD5 = {  # of the uncompressed files, in the order of IDX_SHAPES
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


class MissingData(InvalidArgument):
    """A data root that lacks data files, which cannot be downloaded into it."""


class Unavailable(Exception):
    """An attempt that got no data files, for example without a network; :func:`obtain` then makes the next one."""


class _OfAnotherDataset(ValueError):
    """A data file that belongs to another dataset."""


def idx_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an IDX file of bytes: two zeros, type 8 (uint8), number of axes, big-endian lengths."""
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)


def _locate(folder: Path, name: str) -> Path | None:
    """Return the path of the file `name` in `folder`, plain or as a gzip, or None where it is absent.

    The name may have a dot in place of the hyphen before `idx`.
    """
    names = (name, name.replace("-idx", ".idx"))
    candidates = (folder / f"{candidate}{suffix}" for candidate in names for suffix in ("", ".gz"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def read_checked(folder: Path, name: str, md5: str) -> bytes:
    """Return the uncompressed content of the file `name`, after a check of its MD5.

    Raises:
        ValueError: the content does not have this MD5, or the gzip is damaged.
        OSError: the file cannot be read.
    """
    path = _locate(folder, name) or folder / name
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} ({len(data)} bytes) is damaged: {error}") from error
    checksum = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if checksum != md5:
        owner = next((owner for owner, checksums in IDX_MD5.items() if checksum in checksums), None)
        if owner:
            raise _OfAnotherDataset(f"{path} belongs to {owner}")
        shape = IDX_SHAPES.get(name)
        size = f"{len(idx_header(shape)) + math.prod(shape)} bytes with " if shape else ""
        raise ValueError(f"{path} is damaged: found {len(data)} bytes with MD5 {checksum}, expected {size}MD5 {md5}")
    return data


def obtain(root: Path, subfolder: str, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> dict[str, bytes]:
    """Return the checked contents of a dataset's files, and download absent files first.

    Args:
        root: Data root, or any folder on the path from the data root to the files.
        subfolder: Folder of the files, relative to the data root.
        md5s: MD5 of the uncompressed content by file name.
        attempts: Ways to get absent files by description, in the order in which they are tried.

    Raises:
        InvalidArgument: files in the root are damaged, unreadable or of another dataset.
        MissingData: absent files cannot be downloaded.
        FileError: a downloaded file cannot be written.
    """
    folder = find_folder(root, subfolder, md5s)
    if any(_locate(folder, name) is None for name in md5s):
        _refuse_foreign(root, subfolder, md5s)
        _fetch(folder, md5s, attempts)
    try:
        return {name: read_checked(folder, name, md5) for name, md5 in md5s.items()}
    except _OfAnotherDataset as error:
        raise InvalidArgument(
            "root", f"must hold files of this dataset, and {error}. Name another dataset or another directory"
        ) from error
    except ValueError as error:
        raise InvalidArgument(
            "root",
            f"must hold intact files, and {error}. Delete it and run again to fetch it anew, or name another directory",
        ) from error
    except OSError as error:
        raise InvalidArgument(
            "root",
            f"must hold readable files, and {error.filename or folder} cannot be read: {error.strerror or error}. Make "
            "it readable, or name another directory",
        ) from error


def find_folder(root: Path, subfolder: str, names: Iterable[str]) -> Path:
    """Return the folder that holds the files `names`; see `obtain` for `root` and `subfolder`."""
    parts = Path(subfolder).parts
    folders = [root.joinpath(*parts[skip:]) for skip in range(len(parts) + 1)]
    return next((folder for folder in folders if any(_locate(folder, name) for name in names)), folders[0])


def _refuse_foreign(root: Path, subfolder: str, names: Iterable[str]) -> None:
    """Refuse a `root` that has contents of which none belongs to a downloaded dataset (MissingData)."""
    entries = sorted(entry for entry in (os.listdir(root) if root.is_dir() else []) if not entry.startswith("."))
    if entries and not _DOWNLOADED & set(entries) and not (subfolder and (root / subfolder).is_dir()):
        listed = ", ".join(entries[:3]) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")
        raise MissingData(
            "root",
            f"{root} holds {listed}, and none of the data files {', '.join(names)}. Data files are not downloaded into "
            f"a folder with other contents. Name {root / 'downloads'} to download into a new folder, or another "
            "directory or dataset",
        )


def _fetch(folder: Path, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> None:
    """Write the absent files into `folder`, from the first attempt that returns all files intact; see `obtain`."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_folder(folder, _SCRATCH, f"fetches data into {folder}"))
            scratch = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True)
            temporary = Path(stack.enter_context(scratch))
        except (OSError, FileError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            raise MissingData(
                "root",
                f"must hold the data files {', '.join(md5s)}, which are not in {folder} and cannot be fetched into it: "
                f"{reason}. Name a directory that holds them or is writable",
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
                contents = {name: read_checked(source, name, md5) for name, md5 in md5s.items()}
            except (Unavailable, ValueError, OSError) as error:
                logger.info("attempt %d failed: %s", number, error)
                outcomes.append(f"({number}) {description}: {error}")
                continue
            for name, data in contents.items():
                if _locate(folder, name) is None:  # a file that exists, even damaged, belongs to the user
                    write_bytes(folder / name, data)
            logger.info("attempt %d succeeded: the files are in %s", number, folder)
            return
    raise MissingData(
        "root",
        f"must hold the data files {', '.join(md5s)}, which are not in {folder} and could not be fetched: "
        f"{'; '.join(outcomes)}. Name a directory that holds the files, or run again with a network connection",
    )


def run_python(arguments: list[str], work: Path, limit: float = math.inf) -> None:
    """Run a Python process that writes files into `work`, and stop it when no more data arrives.

    A process can always be stopped and ends with this one. A socket's timeout would not do, since it restarts for each
    address of each mirror.

    Args:
        arguments: Arguments of the interpreter.
        work: Directory that the process writes into; its temporary files go there too.
        limit: Maximum run time in seconds.

    Raises:
        Unavailable: the process failed or was stopped; the message is its last line of output, its exit code, or the
            time limit that it exceeded.
    """
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-P", *arguments]  # -P: no module is taken from the current directory
        environment = {**os.environ, "TMPDIR": str(work)}
        with child(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            start = last_change = time.monotonic()
            content: set[tuple[str, int]] = set()
            while True:
                try:
                    process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                if (latest := _listing(work)) != content:
                    content, last_change = latest, now
                patience = QUIET_SECONDS if content else _START_SECONDS
                if now - last_change > patience:
                    raise Unavailable(f"no data arrived for {patience} seconds")
                if now - start > limit:
                    raise Unavailable(f"not finished after {limit:.0f} seconds")
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise Unavailable(lines[-1] if lines else f"exit code {process.returncode}")


def _listing(folder: Path) -> set[tuple[str, int]]:
    """Return the names and sizes of all entries below `folder`, into which another process may be writing."""
    entries = set()
    for directory, folders, files in os.walk(folder):
        for path in (os.path.join(directory, name) for name in folders + files):
            try:
                entries.add((path, os.stat(path).st_size))
            except FileNotFoundError:
                continue
    return entries


_TORCHVISION = """
import json, sys
import torchvision
name, root, splits = sys.argv[1:]
for split in json.loads(splits):
    getattr(torchvision.datasets, name)(root, download=True, **split)
"""


def from_torchvision(class_name: str, subfolder: str, splits: list[dict[str, str]]) -> dict[str, Attempt]:
    """Return an attempt that downloads the given splits by torchvision, under its description."""

    def attempt(work: Path) -> Path:
        root = work / "files"
        run_python(["-c", _TORCHVISION, class_name, str(root), json.dumps(splits)], work)
        return root / subfolder

    return {"torchvision's download": attempt}
