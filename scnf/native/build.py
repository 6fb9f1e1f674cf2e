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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None with a line in the log that says why there are none."""
    if os.environ.get("SCNF_NATIVE") == "0":
        return None
    try:
        return _load()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        _log.info("networks are PyTorch's, which are slower, for want of a kernel: %s", _said(error))
        return None


def _load() -> ctypes.CDLL:
    """The library for this source, compiler and processor; built if it is not there or damaged."""
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
    target, failed = folder / f"kernels-{key}.so", folder / f"kernels-{key}.failed"
    if failed.is_file():
        raise OSError(f"{failed.read_text(encoding='utf-8')} (remove {failed} to try again)")
    if target.is_file():
        try:
            return ctypes.CDLL(str(target))
        except OSError:
            target.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects, linked = [f"{scratch}/{source.stem}.o" for source in sources], f"{scratch}/kernels.so"
            compilations = [
                (*compiler, *_FLAGS, "-c", str(source), "-o", compiled)
                for source, compiled in zip(sources, objects, strict=True)
            ]
            with ThreadPoolExecutor() as threads:
                list(threads.map(_run, compilations))
            _run((*compiler, "-shared", *objects, "-o", linked))  # without OpenMP's own library: that of torch serves
            Path(linked).replace(target)  # another process may have been faster
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        failed.write_text(_said(error), encoding="utf-8", errors="replace")
        raise


def _said(error: Exception) -> str:
    """The end of what the compiler wrote, or else of the error."""
    return (getattr(error, "stderr", None) or str(error)).strip()[-300:]


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)
