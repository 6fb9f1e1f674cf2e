"""Compile the library of kernels for this machine when it is first used, and cache it."""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from scnf.errors import FileError
from scnf.files import cache_folder, write_bytes, write_text
from scnf.interrupt import child
from scnf.lock import exclusive_folder

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_PATIENCE = 300
"""Time limit of the compiler for one source, in seconds."""
_RETRY_SECONDS = 3600
"""Seconds without a new attempt after the compiler ran out of time; other failures are quick and always retried."""
_SCRATCH = "build-"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")


class Kernels(ctypes.CDLL):
    """Compiled kernels with a key that identifies their source, compiler and processor."""

    key: str


@functools.cache
def library() -> Kernels | None:
    """Return the compiled kernels, or log the reason and return None where they are not available."""
    if os.environ.get("SCNF_NATIVE") == "0":
        return None
    try:
        return _load()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError, FileError) as error:
        _log.info(
            "networks are PyTorch's, which are slower, because there is no kernel: %s (SCNF_NATIVE=0 skips the "
            "attempt)",
            _summary(error),
        )
        return None


def _load() -> Kernels:
    """Load the library for this source, compiler and processor, and build it where it is absent or damaged."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise OSError("kernels need Linux and a processor with AVX2 or AVX-512")
    candidates = (shlex.split(os.environ.get("CXX", "")), ["g++"], ["c++"])
    compiler = next((words for words in candidates if words and shutil.which(words[0])), None)
    if compiler is None:
        raise OSError("there is no C++ compiler: install g++")
    program = Path(str(shutil.which(compiler[0]))).resolve()
    build = compiler, program, program.stat().st_mtime, _FLAGS, torch.__version__, torch.cpu.get_capabilities()
    sources = sorted(_FOLDER.glob("*.cpp"))
    contents = [file.read_bytes() for file in (*sources, *sorted(_FOLDER.glob("*.h")))]
    key = hashlib.sha256(repr((contents, build)).encode()).hexdigest()[:16]
    folder = cache_folder()
    if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"other users may write to {folder}, the cache of the kernels")
    target = folder / f"kernels-{key}.so"
    content = _read_intact(target)
    if content is not None:
        with suppress(OSError):  # it may have been built for another C library
            return _open(content, target)
        target.unlink(missing_ok=True)
    with exclusive_folder(folder, _SCRATCH, "compiles the kernels"):
        content = _read_intact(target)  # from another process that has built it meanwhile
        if content is None:
            _log.info("compiling the kernels for this machine, once")
        return _open(_build(compiler, sources, target) if content is None else content, target)


def _digest(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _read_intact(target: Path) -> bytes | None:
    """Return the content of the library, or None where it is absent or its checksum is wrong."""
    if not (target.is_file() and _digest(target).is_file()):
        return None
    content, checksum = target.read_bytes(), _digest(target).read_text(encoding="utf-8", errors="replace")
    return content if checksum.startswith(hashlib.sha256(content).hexdigest()) else None


def _open(content: bytes, target: Path) -> Kernels:
    """Load the checked content from memory, so that later changes of the file do not matter."""
    try:
        descriptor = os.memfd_create("scnf-kernels")  # stays open, since the loader identifies libraries by path
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        kernels = Kernels(f"/proc/self/fd/{descriptor}")
    except (AttributeError, OSError):  # /proc is missing, or the system forbids programs in such memory
        kernels = Kernels(str(target))
    kernels.key = target.stem.removeprefix("kernels-")
    return kernels


def _build(compiler: Sequence[str], sources: Sequence[Path], target: Path) -> bytes:
    """Compile and link the library, write it to `target` with its checksum beside it, and return its content."""
    marker = target.with_suffix(".slow")
    if marker.is_file() and 0 <= time.time() - marker.stat().st_mtime < _RETRY_SECONDS:
        raise OSError(f"the compiler took more than {_PATIENCE} seconds a while ago: remove {marker} to try again")
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
        objects, linked = [f"{scratch}/{source.stem}.o" for source in sources], f"{scratch}/kernels.so"
        compilations = [
            (*compiler, *_FLAGS, "-c", str(source), "-o", compiled)
            for source, compiled in zip(sources, objects, strict=True)
        ]
        try:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                list(threads.map(_run, compilations))
            _run((*compiler, "-shared", *objects, "-o", linked))  # without an OpenMP library, since torch loads one
        except subprocess.TimeoutExpired as error:
            write_text(marker, "")
            raise OSError(
                f"the compiler took more than {_PATIENCE} seconds, and is tried again after an hour, or when "
                f"{marker} is removed"
            ) from error
        content = Path(linked).read_bytes()
    write_bytes(target, content)
    write_text(_digest(target), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n")
    return content


def _summary(error: Exception) -> str:
    """Return the end of the compiler's output, or of the error's message where there is no output."""
    return (getattr(error, "stderr", None) or str(error)).strip()[-300:]


def _run(command: Sequence[str]) -> None:
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        output, _ = process.communicate(timeout=_PATIENCE)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=output)
