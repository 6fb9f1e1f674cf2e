"""What is asked of the machine underneath."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import needs_compiler
from scnf.machine import description, has_bfloat16

FAULTS = """
import resource, torch
from scnf.machine import FreedMemory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(1 << 20) for _ in range(32)]  # 128 MiB, all freed at the end
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

once, before = [faults() for _ in range(3)][1:]
took = FreedMemory().enabled
faults()
print(took, min(once, before), min(faults(), faults()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_stays_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    took, before, after = done.stdout.split()
    if took == "False":
        pytest.skip("another C library")
    if int(before) < 1000:
        pytest.skip("an allocator or huge pages that never cost much")
    assert int(after) < int(before) / 10


CHILD = """
import torch
from scnf.machine import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""
LARGE_PARENT = f"""
import subprocess, sys
held = b"x" * (1 << 31)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts the parent elsewhere")
def test_peak_memory_is_not_that_of_the_parent() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_PARENT], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < 1500


IN_PIECES = """
import torch
from scnf.machine import FreedMemory

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) // 1024

torch.ones(1)
memory = FreedMemory()
before = resident()

def step(pieces):
    kept = [(torch.ones(1 << 18), torch.ones(1 << 10)) for _ in range(pieces)]  # of 1 MiB, and of 4 KiB
    return [small for _, small in kept]

sizes = []
for pieces in (400, 400, 400, 1200):  # the third is as large as the one before, and so keeps what it has
    small = None
    small = step(pieces)
    sizes.append(resident() - before)
    memory()
    sizes.append(resident() - before)
print(memory.enabled, *sizes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_in_pieces_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", IN_PIECES], capture_output=True, text=True, check=True)
    kept, *sizes = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library")
    freed, left = [int(size) for size in sizes[::2]], [int(size) for size in sizes[1::2]]  # MiB after each step
    assert left[0] < 100 and left[3] < 100
    assert left[1] == freed[1] > 300 and left[2] == freed[2] > 300 and freed[3] > 1000


def test_has_bfloat16_follows_the_instructions_of_the_processor() -> None:
    have = torch.cpu.get_capabilities()
    assert has_bfloat16(torch.device("cpu")) == bool(have.get("avx512_bf16") or have.get("amx_bf16"))


def test_device_name_of_a_processor_is_its_model_where_linux_tells_it() -> None:
    found = description(torch.device("cpu"))
    assert found["device"] == "cpu" and found["threads"] == torch.get_num_threads() and found["cpus"]
    about = subprocess.run(["grep", "-m1", "model name", "/proc/cpuinfo"], capture_output=True, text=True).stdout
    assert found["device_name"] and (not about or about.split(":", 1)[1].strip() == found["device_name"])


def test_compile_for_works_in_a_fresh_process() -> None:
    script = """
import torch
from scnf.machine import compile_for
assert compile_for(torch.cos, torch.device("cpu"), backend="aot_eager")(torch.zeros(2)).tolist() == [1, 1]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COMPILED = """
import torch
from scnf.machine import compile_for

def function(x):
    return (2 * x).tanh()

x = torch.randn(4, 2, 5, 5)
print(float((compile_for(function, x.device)(x) - function(x)).abs().max()))
"""


@needs_compiler
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="with AVX2 alone there is no other code")
def test_compiled_code_kept_for_other_instructions_is_not_taken(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path)
    for capability in ({}, {"ATEN_CPU_CAPABILITY": "avx2"}):
        command = [sys.executable, "-c", COMPILED]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | capability)
        assert float(done.stdout) < 1e-6, capability
