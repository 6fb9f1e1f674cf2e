"""What the machine underneath offers."""

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

from scnf.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_GROWTH = 1 << 28
"""Bytes by which a process grows until what it has freed goes back."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: a GPU that need not emulate it, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    have = torch.cpu.get_capabilities()
    return bool(have.get("avx512_bf16") or have.get("amx_bf16"))


def description(device: torch.device) -> dict[str, str | int | None]:
    """What speed and the last bits depend on: the device, its model and instructions, processors, PyTorch's threads."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = ""
    model = re.search(r"^model name\s*: *(.+)$", about, re.MULTILINE)
    processor = model.group(1).strip() if model else platform.processor() or platform.machine()
    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
    }


def compile_for(function: Any, device: torch.device, **options: Any) -> Any:
    """A function or module through `torch.compile`; on a GPU as CUDA graphs, whose results last until the next call.

    Backward runs without autocast, as it does where nothing is compiled: what forward did in float32 stays so.

    PyTorch keeps compiled code for other processes, by its settings. Which vector instructions it is made of depends on
    the processor and on the variable `ATEN_CPU_CAPABILITY`, which are not among these (torch 2.14): code for others
    gives wrong numbers without a word. So the width of the vectors is made a setting.
    """
    import torch._functorch.config as of_backward

    of_backward.backward_pass_autocast = "off"  # read when the first call compiles
    if device.type == "cpu":
        import torch._inductor.config as of_code
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        of_code.cpp.simdlen = pick_vec_isa().bit_width()
    # densities are float32, not TF32, and to stay so
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", module="torch")
    return torch.compile(function, mode="reduce-overhead" if device.type == "cuda" else None, **options)


def check_compiler(device: torch.device) -> None:
    """Look for the compiler that `torch.compile` will call: of C++ for a CPU, of C for a GPU.

    Raises:
        UserError: there is none.
    """
    windows, mac = sys.platform == "win32", sys.platform == "darwin"
    if device.type == "cuda":
        variable, names = "CC", ["cl"] if windows else ["gcc", "clang"]
    else:
        variable, names = "CXX", ["cl" if windows else "clang++" if mac else "g++"]
    names = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(map(shutil.which, names)):
        raise UserError(
            f"torch.compile needs a compiler, and there is no {' or '.join(names)}: install one, name yours in the "
            f"variable {variable}, or set train.compile to false"
        )


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that was taken, of a GPU or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class FreedMemory:
    """The memory that this process frees: kept for what it allocates next, as long as that is of use.

    glibc gives the memory of large tensors back at once, and every training step pays for getting its pages anew: a
    seventh of its time was seen. So a gigabyte is kept; tensors of more than 32 MiB go back all the same.

    Kept memory may come to lie in pieces, between small things that stay, where it serves nothing that is asked for
    next (https://sourceware.org/bugzilla/show_bug.cgi?id=14581): 100 MB more a second were seen. Call the object after
    each step: when the process has grown by a quarter of a gigabyte, all that is free goes back; so it does after the
    first.

    Nothing is done where the C library is another one.

    Attributes:
        kept: whether the C library took it.
    """

    def __init__(self) -> None:
        library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        self.kept = hasattr(library, "mallopt") and all(
            library.mallopt(*option) for option in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30))
        )
        self._give_back = getattr(library, "malloc_trim", None) if self.kept else None
        self._usual: int | None = 0  # bytes after a step; None until there was one since the last time

    def __call__(self) -> None:
        """A step is done."""
        if self._give_back is None:
            return
        resident = _resident()
        if self._usual is None:
            self._usual = resident
        elif resident - self._usual > _GROWTH:
            self._give_back(0)
            self._usual = None


def _resident() -> int:
    """Bytes of this process in memory, on Linux."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
