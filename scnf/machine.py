"""Describe the machine, compile functions for it, and manage the memory that is freed."""

import ctypes
import os
import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from scnf.errors import InvalidArgument

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_GROWTH = 1 << 28
_STATUS = Path("/proc/self/status")
"""Growth of the process in bytes after which all freed memory is returned to the system."""


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions, natively on a GPU, or by AVX512-BF16 or AMX on a CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def description(device: torch.device) -> dict[str, str | int | None]:
    """Describe what speed and the last bits depend on, which is the device, its instructions and the threads."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*: *(.+)$", cpuinfo, re.MULTILINE)
    processor = model.group(1).strip() if model else platform.processor() or platform.machine()
    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
    }


def compile_for(function: Any, device: torch.device, **options: Any) -> Any:
    """Compile a function or module by `torch.compile`.

    On a GPU the result is a CUDA graph, whose outputs are valid until the next call. Backward runs without autocast,
    like backward of code that is not compiled, so float32 parts of forward keep their precision.

    PyTorch caches compiled code for other processes, under a key of its settings. The vector instructions of the code
    depend on the processor and on the variable `ATEN_CPU_CAPABILITY`, which are not in the key (torch 2.14). Cached
    code for other instructions silently returns wrong numbers. So the vector width is set explicitly, which makes it
    part of the key.
    """
    import torch._functorch.config as backward_config

    backward_config.backward_pass_autocast = "off"  # read when the first call compiles
    if device.type == "cpu":
        import torch._inductor.config as code_config
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        code_config.cpp.simdlen = pick_vec_isa().bit_width()
    # TF32 would lower the precision of densities, which stay in float32
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", module="torch")
    return torch.compile(function, mode="reduce-overhead" if device.type == "cuda" else None, **options)


def check_compiler(device: torch.device) -> None:
    """Check that the compiler for `torch.compile` exists, a C++ compiler for a CPU and a C compiler for a GPU.

    Raises:
        InvalidArgument: the compiler does not exist; the argument is `compile`.
    """
    windows, mac = sys.platform == "win32", sys.platform == "darwin"
    if device.type == "cuda":
        variable, names = "CC", ["cl"] if windows else ["gcc", "clang"]
    else:
        variable, names = "CXX", ["cl" if windows else "clang++" if mac else "g++"]
    names = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(map(shutil.which, names)):
        raise InvalidArgument(
            "compile",
            f"needs a compiler for torch.compile, and there is no {' or '.join(names)}: install one, name yours in the "
            f"variable {variable}, or set it to false",
        )


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory of a GPU or of this process in MiB, or None where the system does not report it."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    if _STATUS.is_file():  # on Linux, where ru_maxrss counts the process that started this one, too
        _, name, value = _STATUS.read_text(encoding="utf-8").partition("VmHWM:")
        if name:
            return round(int(value.split()[0]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class FreedMemory:
    """Keep freed memory in this process for later allocations, and return it when the process grows.

    glibc returns the memory of large tensors to the system at once, and each training step pays to map new pages. A
    seventh of the step time was measured. So up to a gigabyte stays in the process; tensors of more than 32 MiB are
    returned all the same.

    Memory in the process may become fragmented by small allocations, so that later allocations cannot use it
    (https://sourceware.org/bugzilla/show_bug.cgi?id=14581). Growth of 100 MB per second was measured. Call the object
    after each step. When the process has grown by a quarter of a gibibyte, and after the first step, it returns all
    free memory.

    With any other C library the object does nothing.

    Attributes:
        enabled: Whether the C library accepted the settings.
    """

    def __init__(self) -> None:
        library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        self.enabled = hasattr(library, "mallopt") and all(
            library.mallopt(*option) for option in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30))
        )
        self._trim = getattr(library, "malloc_trim", None) if self.enabled else None
        self._baseline: int | None = 0  # bytes after a step; None until the first step after a return

    def __call__(self) -> None:
        """Return free memory to the system after a step where the process has grown."""
        if self._trim is None:
            return
        resident = _resident()
        if self._baseline is None:
            self._baseline = resident
        elif resident - self._baseline > _GROWTH:
            self._trim(0)
            self._baseline = None


def _resident() -> int:
    """Return the resident memory of this process in bytes, on Linux."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
