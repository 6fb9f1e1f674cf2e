"""What is asked of the machine underneath."""

import subprocess
import sys

import pytest
import torch

from scnf.machine import description, has_bfloat16

FAULTS = """
import resource, torch
from scnf.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(1 << 20) for _ in range(32)]  # 128 MiB, all freed at the end
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

once, before = [faults() for _ in range(3)][1:]
took = keep_freed_memory()
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


def test_bfloat16_is_where_the_instructions_are() -> None:
    have = torch.cpu.get_capabilities()
    assert has_bfloat16(torch.device("cpu")) == bool(have.get("avx512_bf16") or have.get("amx_bf16"))


def test_a_processor_goes_by_its_model_where_linux_tells_it() -> None:
    found = description(torch.device("cpu"))
    assert found["device"] == "cpu" and found["threads"] == torch.get_num_threads() and found["cpus"]
    about = subprocess.run(["grep", "-m1", "model name", "/proc/cpuinfo"], capture_output=True, text=True).stdout
    assert found["device_name"] and (not about or about.split(":", 1)[1].strip() == found["device_name"])


def test_a_fresh_process_compiles() -> None:
    script = """
import torch
from scnf.machine import compile_for
assert compile_for(torch.cos, torch.device("cpu"), backend="aot_eager")(torch.zeros(2)).tolist() == [1, 1]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
