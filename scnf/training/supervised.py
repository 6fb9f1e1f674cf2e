"""Train a plain network p(y | x) for a fixed number of steps, without checkpoints."""

from collections.abc import Callable
from itertools import count, islice

import torch

from scnf.data.batches import Batches
from scnf.models.classifier import Classifier
from scnf.training.schedules import learning_rate_factor

LEARNING_RATE = 2e-3


def train_classifier(
    model: Classifier,
    batches: Batches,
    steps: int,
    autocast: bool = False,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Minimise the cross-entropy of labelled rows by Adam, with a cosine schedule of the learning rate.

    Args:
        model: Network, which is left in training mode.
        batches: Batches of labelled rows.
        steps: Number of optimiser steps.
        autocast: Whether the network computes in bf16.
        after_step: Function that is called after each step, for example to advance a progress bar.
    """
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    stream = (batch for epoch in count() for batch in batches.epoch(epoch))
    for step, batch in enumerate(islice(stream, steps)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_factor("cosine", step, steps)
        with torch.autocast(batches.x.device.type, torch.bfloat16, enabled=autocast):
            loss = -model(batch).log_likelihood.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        after_step()
