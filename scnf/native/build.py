"""The kernels' library: compiled for this machine when it is first asked for."""

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

from scnf.errors import UserError
from scnf.files import write_bytes, write_text
from scnf.interrupt import child
from scnf.lock import alone_in

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_PATIENCE = 300
"""Seconds that the compiler has for one source."""
_FORGOTTEN = 3600
"""Seconds after which it is tried again where it took too long: any other failure is quick, and tried every time."""
_SCRATCH = "build-"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")


class Kernels(ctypes.CDLL):
    """The compiled kernels, and what tells them from those of another source, compiler or processor."""

    key: str


@functools.cache
def library() -> Kernels | None:
    """The compiled kernels, or None with a line in the log that says why there are none."""
    if os.environ.get("SCNF_NATIVE") == "0":
        return None
    try:
        return _load()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError, UserError) as error:
        _log.info(
            "networks are PyTorch's, which are slower, for want of a kernel: %s (SCNF_NATIVE=0 spares the attempt)",
            _said(error),
        )
        return None


def _load() -> Kernels:
    """The library for this source, compiler and processor; built if it is not there, or not as it was built."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise OSError("it is for Linux on processors with AVX2 or AVX-512")
    wanted = (shlex.split(os.environ.get("CXX", "")), ["g++"], ["c++"])
    compiler = next((words for words in wanted if words and shutil.which(words[0])), None)
    if compiler is None:
        raise OSError("there is no C++ compiler: install g++")
    program = Path(str(shutil.which(compiler[0]))).resolve()
    about = compiler, program, program.stat().st_mtime, _FLAGS, torch.__version__, torch.cpu.get_capabilities()
    sources = sorted(_FOLDER.glob("*.cpp"))
    contents = [file.read_bytes() for file in (*sources, *sorted(_FOLDER.glob("*.h")))]
    key = hashlib.sha256(repr((contents, about)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scnf"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"others may write to {folder}, where it would be kept")
    target = folder / f"kernels-{key}.so"
    content = _intact(target)
    if content is not None:
        with suppress(OSError):  # it was built beside another C library
            return _opened(content, target)
        target.unlink(missing_ok=True)
    with alone_in(folder, _SCRATCH, "compiles the kernels"):
        content = _intact(target)  # another process may have built it meanwhile
        return _opened(_built(compiler, sources, target) if content is None else content, target)


def _digest(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _intact(target: Path) -> bytes | None:
    """The library's content, None where there is none or it is not what its digest is of."""
    if not (target.is_file() and _digest(target).is_file()):
        return None
    content, listed = target.read_bytes(), _digest(target).read_text(encoding="utf-8", errors="replace")
    return content if listed.startswith(hashlib.sha256(content).hexdigest()) else None


def _opened(content: bytes, target: Path) -> Kernels:
    """The library with this content, from memory: what was checked is what runs, whatever becomes of the file."""
    try:
        descriptor = os.memfd_create("scnf-kernels")  # stays open: the loader tells libraries by their path
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        opened = Kernels(f"/proc/self/fd/{descriptor}")
    except (AttributeError, OSError):  # there is no /proc, or such memory holds no programs here
        opened = Kernels(str(target))
    opened.key = target.stem.removeprefix("kernels-")
    return opened


def _built(compiler: Sequence[str], sources: Sequence[Path], target: Path) -> bytes:
    """Compile, link and keep the library at `target`, and its digest beside it."""
    slow = target.with_suffix(".slow")
    if slow.is_file() and 0 <= time.time() - slow.stat().st_mtime < _FORGOTTEN:
        raise OSError(f"the compiler took more than {_PATIENCE} seconds a while ago: remove {slow} to try again")
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
        objects, linked = [f"{scratch}/{source.stem}.o" for source in sources], f"{scratch}/kernels.so"
        compilations = [
            (*compiler, *_FLAGS, "-c", str(source), "-o", compiled)
            for source, compiled in zip(sources, objects, strict=True)
        ]
        try:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                list(threads.map(_run, compilations))
            _run((*compiler, "-shared", *objects, "-o", linked))  # without OpenMP's own library: that of torch serves
        except subprocess.TimeoutExpired:
            write_text(slow, "")
            raise
        content = Path(linked).read_bytes()
    write_bytes(target, content)
    write_text(_digest(target), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n")
    return content


def _said(error: Exception) -> str:
    """The end of what the compiler wrote, or else of the error."""
    return (getattr(error, "stderr", None) or str(error)).strip()[-300:]


def _run(command: Sequence[str]) -> None:
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        said, _ = process.communicate(timeout=_PATIENCE)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
