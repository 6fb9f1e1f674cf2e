"""Every test and doctest starts from the same random numbers and settings; and the runs under other conditions."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import REPOSITORY

TESTS = '''
import random

import numpy as np
import pytest
import torch

SEED, THREADS = 7, torch.get_num_threads()


def draws():
    """
    >>> torch.initial_seed() == SEED and draws() == expected()
    True
    """
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def expected():
    random.seed(SEED), np.random.seed(SEED), torch.manual_seed(SEED)
    return draws()


@pytest.fixture(scope="module")
def shared():
    return draws()


def test_first():
    assert draws() == expected()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(THREADS + 2)


def test_second(shared):
    assert shared == draws() == expected()
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == THREADS
'''


def test_seed_option_seeds_all_tests_and_doctests(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    shutil.copy(REPOSITORY / "conftest.py", tmp_path)
    (tmp_path / "test_order.py").write_text(TESTS)
    out, _ = start("-m", "pytest", "-q", "--doctest-modules", "--seed", "7", "-p", "no:cacheprovider").communicate()
    assert "3 passed" in out, out


UNDER_CONDITIONS = """
import os


def test_condition(request):
    assert request.config.getoption("seed") < 1, os.environ["OMP_NUM_THREADS"]
"""


def test_matrix_has_a_line_for_each_run_and_fails_where_one_does(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    shutil.copy(REPOSITORY / "conftest.py", tmp_path)
    (tmp_path / "test_condition.py").write_text(UNDER_CONDITIONS)
    process = start(REPOSITORY / "tests" / "matrix.py", "--seeds", "2", tmp_path / "test_condition.py", "-n0")
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 1 and len([line for line in lines if line.startswith("seed ")]) == 2
    assert "OMP_NUM_THREADS=1" in lines[0] and "1 passed" in lines[0]
    assert "seed 1" in lines[1] and "1 failed" in lines[1] and any("AssertionError: 2" in line for line in lines[2:])
