"""Compute learning-rate schedules as factors of the peak learning rate, by optimiser step."""

import math
from collections.abc import Callable


def _none(progress: float, warmup: float) -> float:
    return 1.0


def _linear(progress: float, warmup: float) -> float:
    return 1.0 - progress


def _hat(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else (1.0 - progress) / (1.0 - warmup)


def _cosine(progress: float, warmup: float) -> float:
    return (
        progress / warmup if progress < warmup else 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))
    )


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "none": _none,
    "linear": _linear,
    "hat": _hat,
    "cosine": _cosine,
}


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup: float = 0.0) -> float:
    """Return the factor in [0, 1] of the peak learning rate for one optimiser step.

    Args:
        schedule: Name of the schedule. "none" is constant, and "linear" falls to 0. "hat" and "cosine" rise first, then
            fall to 0 linearly or along a cosine.
        step: Index of the next step, in 0..total_steps-1.
        total_steps: Number of steps of the training.
        warmup: Share of the steps in which "hat" and "cosine" rise.

    Example:
        >>> [learning_rate_factor("linear", step, 4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    rising = schedule in ("hat", "cosine") and step < warmup * total_steps
    progress = min((step + 1) / total_steps, warmup) if rising else step / max(total_steps, 1)
    return SCHEDULES[schedule](progress, warmup)
