"""What every test and doctest starts from: seeded generators, one thread, and PyTorch's settings as they were."""

import os

import scnf  # noqa: F401 - it may say how threads are to wait, and so comes before torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, and for processes that tests start, too

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="that every test starts its random numbers from (0)")


def seed_all(config: pytest.Config) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(config.getoption("seed"))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if fixturedef.scope != "function":  # set up before the test is seeded, and not for each test
        seed_all(request.config)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random numbers of a test do not depend on the tests before it, nor do threads and the default dtype."""
    seed_all(request.config)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
