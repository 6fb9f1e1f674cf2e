"""Files of data sets: found, checked by their MD5, and fetched where they are absent."""

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

from scnf.errors import UserError
from scnf.files import write_bytes
from scnf.interrupt import child
from scnf.lock import alone_in

logger = logging.getLogger("scnf.data")
_SCRATCH = ".fetch-"
QUIET_SECONDS = 20  # an attempt that has fetched nothing for so long is given up
_START_SECONDS = 60  # to import a big library from a slow disk, before the first byte

# An attempt gets an empty directory to work in and returns the directory where the files now are.
Attempt = Callable[[Path], Path]

_DOWNLOADED = {"MNIST", "FashionMNIST", "cifar-10-batches-py", "train_32x32.mat", "test_32x32.mat"}
"""What downloads leave in a data root."""

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


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The start of an IDX file of bytes: two zeros, type 8 (uint8), number of axes, big-endian lengths."""
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)


def _locate(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, which may have a dot before its type, else its gzip, else None."""
    candidates = (folder / f"{each}{end}" for each in (name, name.replace("-idx", ".idx")) for end in ("", ".gz"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def read_checked(folder: Path, name: str, md5: str) -> bytes:
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
        owner = next((owner for owner, sums in IDX_MD5.items() if found in sums), None)
        if owner:
            raise UserError(f"{path} is of {owner}, which is not data.name: set that, or point --data.root elsewhere")
        shape = IDX_SHAPES.get(name)
        size = f"{len(idx_header(shape)) + math.prod(shape)} bytes with " if shape else ""
        raise ValueError(f"{path} is damaged: found {len(data)} bytes with MD5 {found}, expected {size}MD5 {md5}")
    return data


def obtain(root: Path, subfolder: str, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> dict[str, bytes]:
    """The checked contents of the files of a dataset, which are fetched first when some are absent.

    Args:
        root: the data root, or any folder on the way from there to the files.
        subfolder: where the files lie under the data root.
        md5s: MD5 of the uncompressed content by file name.
        attempts: the ways to get absent files by description, in the order in which they are tried.
    """
    folder = find_folder(root, subfolder, md5s)
    if any(_locate(folder, name) is None for name in md5s):
        _refuse_foreign(root, subfolder, md5s)
        _fetch(folder, md5s, attempts)
    try:
        return {name: read_checked(folder, name, md5) for name, md5 in md5s.items()}
    except ValueError as error:
        raise UserError(
            f"{error}. Delete it and run again to fetch it anew, or point --data.root elsewhere."
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or folder}: {error.strerror or error}. "
            "Make it readable or point --data.root elsewhere."
        ) from error


def find_folder(root: Path, subfolder: str, names: Iterable[str]) -> Path:
    """Where the files `names` lie; see `obtain`."""
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
            "--data.name for other data. Images of your own cannot be read"
        )


def _fetch(folder: Path, md5s: Mapping[str, str], attempts: Mapping[str, Attempt]) -> None:
    """Put the absent files into `folder` by the first attempt that gives all files intact; see `obtain`."""
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
                contents = {name: read_checked(source, name, md5) for name, md5 in md5s.items()}
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


def run_python(arguments: list[str], work: Path, limit: float = math.inf) -> None:
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
                quiet = QUIET_SECONDS if content else _START_SECONDS
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


def from_torchvision(class_name: str, subfolder: str, splits: list[dict[str, str]]) -> dict[str, Attempt]:
    """The attempt that is torchvision's own download of the given splits, with its description."""

    def attempt(work: Path) -> Path:
        root = work / "files"
        run_python(["-c", _TORCHVISION, class_name, str(root), json.dumps(splits)], work)
        return root / subfolder

    return {"torchvision's download": attempt}
