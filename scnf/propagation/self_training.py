"""Self-training: what small networks see in images after learning from labels that were propagated.

In turns, labels are propagated over nearest neighbours and a network learns from them, in whose features the next
neighbours are looked for, after Iscen et al. (https://arxiv.org/abs/1904.04717), but with a new network each time, so
that none goes on from what the one before had learned by heart. Images are moved and features dropped while it learns,
the noise of students in Noisy Student (Xie et al., https://arxiv.org/abs/1911.04252). All labels of MNIST's training
images scored the constants here, while they were chosen.
"""

from itertools import count, islice

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.data.batches import Batches
from scnf.models.classifier import Classifier
from scnf.nn import Encoder, Features
from scnf.propagation.spread import propagate, surest
from scnf.training.metrics import representations
from scnf.training.schedules import learning_rate_factor

HIDDEN, DROPOUT, BATCH, LEARNING_RATE = 500, 0.2, 128, 2e-3
STEPS = 500
"""Of the first two networks, which have the fewest labels; the third takes one and a half, later ones twice as many."""


def self_trained_features(
    x: Tensor, y: Tensor, levels: int, rounds: int, augment: float = 0.0, autocast: bool = False
) -> Tensor:
    """Features in which rows of one class are near each other, from the labels of a few.

    Args:
        x: uint8 [N, C, H, W], on the device of the training.
        y: [N], UNLABELLED where hidden; each class has a row with a label.
        levels: as in :func:`scnf.data.batches.dequantize`.
        rounds: networks that are trained. The first learns from the surest 60 % of the labels that neighbours among
            pixels give, the second from 90 % of those of its features, later ones from all.
        augment: strength of the random affine maps of images, see :mod:`scnf.data.augment`.
        autocast: bf16 inside the networks.

    Returns:
        the last network's features [N, 500]; of no round the inputs themselves, flat.
    """
    from tqdm import tqdm

    classes, features = int(y.max()) + 1, x.flatten(1)
    lengths = [min(2 * STEPS, STEPS + STEPS // 2 * max(0, turn - 1)) for turn in range(rounds)]
    with tqdm(total=sum(lengths), unit="step", desc="self-training", disable=None, leave=False) as bar:
        for turn, steps in enumerate(lengths):
            found = surest(*propagate(features, y), min(1.0, 0.6 + 0.3 * turn))
            labels = torch.where(y == UNLABELLED, found, y)
            body = Features(x.shape[1:], HIDDEN, kind="conv", dropout=DROPOUT)
            model = Classifier(Encoder(body, nn.Linear(HIDDEN, classes)), classes).to(x.device).train()
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
            batches = Batches(x, labels, min(BATCH, len(x)), 1.0, turn, levels, augment, in_place=True)
            stream = (batch for epoch in count() for batch in batches.epoch(epoch))
            for step, batch in enumerate(islice(stream, steps)):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_factor("cosine", step, steps)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                    loss = -model(batch).log_likelihood.mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                features = representations(model, x, levels).float()
    return features
