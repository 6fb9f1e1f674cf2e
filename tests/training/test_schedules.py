import math
from itertools import pairwise

import pytest

from scnf.training.schedules import SCHEDULES, learning_rate_factor


def factors(schedule: str, total: int = 1000, warmup: float = 0.05) -> list[float]:
    return [learning_rate_factor(schedule, step, total, warmup) for step in range(total)]


def test_schedule_none_is_constant() -> None:
    assert set(factors("none")) == {1.0}


def test_schedule_linear_falls_to_the_last_step() -> None:
    values = factors("linear")
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.001) and values[500] == 0.5
    assert all(a > b for a, b in pairwise(values))


@pytest.mark.parametrize(
    ("schedule", "late"), [("hat", 1 - (0.75 - 0.05) / 0.95), ("cosine", 0.5 + 0.5 * math.cos(math.pi * 0.7 / 0.95))]
)
def test_schedules_hat_and_cosine_rise_and_fall(schedule: str, late: float) -> None:
    values = factors(schedule)
    assert values[0] == pytest.approx(1 / 50) and values[24] == pytest.approx(0.5) and values[49] == pytest.approx(1)
    assert all(a < b for a, b in pairwise(values[:50]))
    assert values[50] == pytest.approx(1) and values[750] == pytest.approx(late)
    assert all(a > b for a, b in pairwise(values[50:]))
    assert 0 < values[-1] < 0.002


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 20, 1000])
def test_learning_rate_factor_is_positive_from_the_first_step(schedule: str, warmup: float, total: int) -> None:
    values = factors(schedule, total, warmup)
    assert all(0 < value <= 1 for value in values)
    if schedule in ("none", "linear") or warmup * total < 1:
        assert values[0] == pytest.approx(1)


def test_learning_rate_factor_of_zero_steps_is_one() -> None:
    assert all(learning_rate_factor(schedule, 0, 0) == 1.0 for schedule in SCHEDULES)
