"""Decode many image files once, in parallel, and keep their pixels in a cache on disk for the next start."""

import hashlib
import json
import logging
import math
import os
import struct
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from scnf.data.decode import MIN_SIDE, DamagedImage, Header, Preprocessing, decode, image_header
from scnf.errors import FileError, InvalidArgument
from scnf.files import atomic_write, cache_folder, map_private, require_file
from scnf.lock import exclusive_folder
from scnf.words import counted, skipped_text

MAX_SIDE = 64
"""Largest height and width that :func:`resolve` chooses by default."""

_log = logging.getLogger("scnf.data")
_FORMAT = 1
"""Number of the file format and of the decoding; each change of one of them counts it up."""
_MAGIC = b"scnf-img"
_END = struct.Struct("<IQ8s")
"""End of a cache file: CRC-32 of all bytes before, length of the index, and the magic number."""
_FILE = "images"
_SCRATCH = "decode-"
_BATCH = 8
"""Files that a thread decodes before it hands the result over."""
_KINDS = 6
"""Kinds of images that a report names."""

T = TypeVar("T")
Skipped = list[tuple[Path, str]]


@dataclass(frozen=True)
class Decoded:
    """Images of one shape from many files.

    Attributes:
        images: Pixels, uint8 [N, C, H, W]. They are mapped from the cache file, which never changes: what is written to
            the tensor stays in this process.
        rows: Indices of the decoded files in the list of files, int64 [N], ascending.
        skipped: Path of each other file, in order, and the reason why it was not decoded.
    """

    images: Tensor
    rows: Tensor
    skipped: Skipped


@dataclass(frozen=True)
class Census:
    """Modes and sizes of many image files.

    Attributes:
        headers: Number of files by header.
        skipped: Path of each file that cannot be decoded, as far as its header tells, and the reason.
    """

    headers: Counter[Header]
    skipped: Skipped

    def text(self) -> str:
        """Return a report of one line.

        Example:
            >>> print(Census(Counter({Header("RGB", (32, 32), True): 2990, Header("P", (20, 30), True): 1}), []).text())
            2,990 RGB images of 32x32, 1 P of 20x30 (height x width)
        """
        kinds: Counter[tuple[str, tuple[int, int]]] = Counter()
        for header, count in self.headers.items():
            kinds[header.mode, header.size] += count
        listed = kinds.most_common(_KINDS)
        parts = [f"{count:,} {mode} of {height}x{width}" for (mode, (height, width)), count in listed]
        if parts:
            (mode, (height, width)), count = listed[0]
            parts[0] = counted(count, f"{mode} image of {height}x{width}", f"{mode} images of {height}x{width}")
        if rest := kinds.total() - sum(count for _, count in listed):
            parts.append(f"{rest:,} of {counted(len(kinds) - len(listed), 'other kind')}")
        oblong = any(height != width for (_, (height, width)), _ in listed)
        return (", ".join(parts) or "no images") + (" (height x width)" if oblong else "")


def census(files: Sequence[Path], workers: int | None = None) -> Census:
    """Count the modes and sizes of image files, from their headers.

    Args:
        files: Paths of the files.
        workers: Number of threads; None for one for each processor.

    Example:
        >>> census([]).text()
        'no images'
    """
    headers: Counter[Header] = Counter()
    skipped: Skipped = []
    for file, outcome in zip(files, _outcomes(image_header, files, workers, "headers"), strict=True):
        if isinstance(outcome, str):
            skipped.append((file, outcome))
        else:
            headers[outcome] += 1
    return Census(headers, skipped)


def resolve(
    headers: Iterable[Header] | Mapping[Header, int], preprocessing: Preprocessing, max_side: int = MAX_SIDE
) -> Preprocessing:
    """Return the preprocessing with a size and a number of channels for these images.

    The size is the most common one, and the larger one among equally common sizes. A larger size than `max_side` is
    reduced to fit into a square of this side. The aspect ratio stays as far as even sides of 8 or more allow.

    Args:
        headers: Headers of the images, or the number of images by header, as :class:`Census` has it.
        preprocessing: Preprocessing, whose given values stay unchanged.
        max_side: Largest height and width that is chosen.

    Raises:
        InvalidArgument: there are no headers.

    Example:
        >>> photos = [Header("RGB", (480, 640), True), Header("RGB", (480, 640), True), Header("L", (32, 32), False)]
        >>> resolve(photos, Preprocessing())
        Preprocessing(size=(48, 64), channels=3, background='white')
    """
    counts = Counter(headers)
    if not counts:
        raise InvalidArgument("headers", "must hold one image or more: none of the files can be decoded")
    sizes: Counter[tuple[int, int]] = Counter()
    for header, count in counts.items():
        sizes[header.size] += count
    common = max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size))
    channels = 3 if any(header.has_colour for header in counts) else 1
    return replace(
        preprocessing,
        size=preprocessing.size or _reduced(common, max_side),
        channels=preprocessing.channels or channels,
    )


def decode_all(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    strict: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
) -> Decoded:
    """Decode image files to one tensor, or read their pixels from the cache where they have been decoded before.

    A cache belongs to one preprocessing and one list of files, by their paths, sizes and times of change. Damaged files
    are skipped, and tried again at each start. A damaged cache is rebuilt. Where the cache cannot be written, the
    pixels stay in memory and a warning says so. To free the space, remove the directory of the caches.

    Args:
        files: Paths of the files.
        preprocessing: Shape of the images, with size and channels; see :func:`resolve`.
        strict: Whether a file that cannot be decoded is an error.
        cache: Directory of the caches; None for `$XDG_CACHE_HOME/scnf/images` (`~/.cache/scnf/images`).
        workers: Number of threads; None for one for each processor.

    Raises:
        InvalidArgument: the preprocessing lacks size or channels, or `strict` is set and some files are damaged.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> decoded = decode_all([folder / "absent.png"], Preprocessing((8, 8), channels=1), cache=folder)
        >>> decoded.images.shape, decoded.skipped[0][1]
        (torch.Size([0, 1, 8, 8]), 'it does not exist')
    """
    if preprocessing.size is None or preprocessing.channels is None:
        raise InvalidArgument(
            "preprocessing", "must have a size and channels: resolve(headers, preprocessing) adds them"
        )
    task = _Task(files, preprocessing, workers)
    try:
        decoded = _cached(task, (cache_folder("images") if cache is None else cache) / task.key[:32])
    except (OSError, FileError) as error:
        _log.warning("decoded images stay in memory, and the next start decodes them again: %s", error)
        decoded = _in_memory(task)
    if strict and decoded.skipped:
        raise InvalidArgument("strict", _complaint(decoded.skipped, len(files)))
    return decoded


class _Task:
    """Files, what is done with them, and a key of both."""

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, workers: int | None) -> None:
        assert preprocessing.size is not None and preprocessing.channels is not None
        self.files = files
        self.shape = (preprocessing.channels, *preprocessing.size)
        self._decode = partial(
            decode, size=preprocessing.size, channels=preprocessing.channels, background=preprocessing.background
        )
        self._workers = workers
        digest = hashlib.sha256(repr((_FORMAT, PIL.__version__, preprocessing)).encode())
        for file in files:
            try:
                status = os.stat(file)
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "absent"
            digest.update(b"\0".join([b"", state.encode(), os.fsencode(os.path.abspath(file))]))
        self.key = digest.hexdigest()

    def outcomes(self, files: Sequence[Path], title: str = "images") -> Generator[np.ndarray | str, None, None]:
        """Yield the pixels of each file, uint8 [C, H, W], or the reason why it cannot be decoded."""
        return _outcomes(self._decode, files, self._workers, title)

    def decoded(self, images: Tensor, skipped: Mapping[int, str]) -> Decoded:
        """Return the images of all files but those skipped, whose reasons are given by index."""
        rows = torch.tensor([row for row in range(len(self.files)) if row not in skipped], dtype=torch.int64)
        return Decoded(images, rows, [(self.files[row], reason) for row, reason in skipped.items()])


# The cache -------------------------------------------------------------------------------------------------------
#
# A cache is one file, so that it is replaced as a whole: the pixels, an index in JSON, and an end of fixed length.


def _cached(task: _Task, folder: Path) -> Decoded:
    """Return the images from the cache in a folder, which is built where it is absent or damaged."""
    decoded = _load(task, folder / _FILE)
    if decoded is None:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_folder(folder, _SCRATCH, "decodes the same images"):
            decoded = _load(task, folder / _FILE)  # from another process that has decoded them meanwhile
            if decoded is None:
                decoded = _load(task, folder / _FILE, _build(task, folder / _FILE))
    if decoded is None:
        raise OSError(f"{folder} does not keep what is written to it")
    return decoded


def _build(task: _Task, path: Path) -> dict[int, str]:
    """Write the cache file, and return the reason for each file that is skipped, by its index."""
    skipped: dict[int, str] = {}
    checksum = 0
    with atomic_write(path) as file:
        # Closed here, since an error keeps its traceback, which would keep the threads.
        with closing(task.outcomes(task.files)) as outcomes:
            for row, outcome in enumerate(outcomes):
                if isinstance(outcome, str):
                    skipped[row] = outcome
                else:
                    checksum = zlib.crc32(outcome.data, checksum)
                    file.write(outcome.data)
        index = json.dumps({"key": task.key, "skipped": list(skipped)}).encode()
        file.write(index + _END.pack(zlib.crc32(index, checksum), len(index), _MAGIC))
    return skipped


def _load(task: _Task, path: Path, reasons: dict[int, str] | None = None) -> Decoded | None:
    """Return the images of a cache file, or None where it is absent, damaged or out of date.

    Args:
        task: Files and preprocessing.
        path: Path of the cache file.
        reasons: Reason for each file that is skipped, by its index; None to try these files again.
    """
    try:
        require_file(path)
        with path.open("rb") as file:
            end = file.seek(-_END.size, os.SEEK_END)
            checksum, length, magic = _END.unpack(file.read(_END.size))
            if magic != _MAGIC or length > end:
                return None
            start = file.seek(end - length)
            text = file.read(length)
            index: dict[str, Any] = json.loads(text)
            skipped: list[int] = index["skipped"]
            shape = (len(task.files) - len(skipped), *task.shape)
            if index["key"] != task.key or start != math.prod(shape):
                return None
            # Mapped copy on write: PyTorch warns of arrays that are read-only.
            pixels = np.frombuffer(map_private(file, start), np.uint8) if start else np.empty(0, np.uint8)
            pixels = pixels.reshape(shape)
            if zlib.crc32(text, zlib.crc32(pixels.data)) != checksum:
                return None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    if reasons is None:
        outcomes = list(task.outcomes([task.files[row] for row in skipped], "skipped images"))
        reasons = {row: outcome for row, outcome in zip(skipped, outcomes, strict=True) if isinstance(outcome, str)}
        if len(reasons) < len(skipped):
            return None  # some files could not be read when the cache was built
    return task.decoded(torch.from_numpy(pixels), reasons)


def _in_memory(task: _Task) -> Decoded:
    images = torch.empty((len(task.files), *task.shape), dtype=torch.uint8)
    skipped: dict[int, str] = {}
    for row, outcome in enumerate(task.outcomes(task.files)):
        if isinstance(outcome, str):
            skipped[row] = outcome
        else:
            images[row - len(skipped)] = torch.from_numpy(outcome)
    return task.decoded(images[: len(task.files) - len(skipped)], skipped)


# Threads and reports ---------------------------------------------------------------------------------------------


def _outcomes(
    function: Callable[[Path], T], files: Sequence[Path], workers: int | None, title: str
) -> Generator[T | str, None, None]:
    """Yield what a function returns for each file in order, or the reason why a file cannot be decoded.

    Threads do the work, since the decoders release Python's lock. At most a few batches wait, so that memory does not
    grow with the number of files.
    """
    from tqdm import tqdm

    def batch(part: Sequence[Path]) -> list[T | str]:
        return [_outcome(function, file) for file in part]

    workers = workers or _processors()
    parts = (files[start : start + _BATCH] for start in range(0, len(files), _BATCH))
    bar = tqdm(total=len(files), unit="image", desc=title, disable=None, leave=False)
    threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in intact images
        try:
            waiting = deque(threads.submit(batch, part) for part in islice(parts, 4 * workers))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(threads.submit(batch, part) for part in islice(parts, 1))
                yield from done
                bar.update(len(done))
        finally:
            threads.shutdown(cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcome(function: Callable[[Path], T], file: Path) -> T | str:
    try:
        return function(file)
    except DamagedImage as error:
        return str(error)


def _complaint(skipped: Skipped, total: int) -> str:
    share = f"{len(skipped):,} of {total:,} images cannot be decoded"
    return f"is set, and {share}: {skipped_text(skipped)}. Repair or remove these files, or unset strict to skip them"


def _reduced(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return a size that fits into the largest one, with even sides where it is reduced."""
    if max(size) <= max_side:
        return size
    height, width = (max(MIN_SIDE, 2 * round(side * max_side / max(size) / 2)) for side in size)
    return height, width
