"""Train small networks on propagated labels, and return the features that they learn.

Each round propagates labels over nearest neighbours, and a network learns from these labels. The next round finds
neighbours by the network's features, after Iscen et al. (https://arxiv.org/abs/1904.04717). Each round starts with a
new network, so that none continues from labels that the previous network has memorised. Images are moved and features
dropped out during training, like the student's noise in Noisy Student (Xie et al., https://arxiv.org/abs/1911.04252).
The constants were chosen with all labels of MNIST's training images.
"""

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.data.augment import Augmentation
from scnf.data.batches import Batches
from scnf.models.classifier import Classifier
from scnf.nn import Encoder, Features
from scnf.propagation.spread import most_certain, propagate
from scnf.training.metrics import representations
from scnf.training.supervised import train_classifier

HIDDEN, DROPOUT, BATCH = 500, 0.2, 128
STEPS = 500
"""Training steps of the first two networks; the third takes 1.5 times as many, and later networks twice as many."""


def self_trained_features(
    x: Tensor, y: Tensor, levels: int, rounds: int, augment: float | Augmentation = 0.0, autocast: bool = False
) -> Tensor:
    """Learn features in which rows of one class are near each other, from the labels of a few rows.

    Args:
        x: Images uint8 [N, C, H, W], on the device of the training.
        y: Labels [N], UNLABELLED where hidden; each class has a row with a label.
        levels: Number of grey levels, see :func:`scnf.data.batches.dequantize`.
        rounds: Number of networks that are trained. The first learns from the most certain 60 % of the labels that
            spread over neighbours by pixels. The second learns from 90 % of the labels by the first network's features,
            and later networks learn from all labels.
        augment: Augmentation of images, or the strength of its affine maps.
        autocast: Whether the networks compute in bf16.

    Returns:
        Features [N, 500] of the last network; without any round the flattened inputs.
    """
    from tqdm import tqdm

    classes, features = int(y.max()) + 1, x.flatten(1)
    lengths = [min(2 * STEPS, STEPS + STEPS // 2 * max(0, turn - 1)) for turn in range(rounds)]
    with tqdm(total=sum(lengths), unit="step", desc="self-training", disable=None, leave=False) as bar:
        for turn, steps in enumerate(lengths):
            pseudo_labels = most_certain(*propagate(features, y), min(1.0, 0.6 + 0.3 * turn))
            labels = torch.where(y == UNLABELLED, pseudo_labels, y)
            body = Features(x.shape[1:], HIDDEN, kind="conv", dropout=DROPOUT)
            model = Classifier(Encoder(body, nn.Linear(HIDDEN, classes)), classes).to(x.device)
            batches = Batches(x, labels, min(BATCH, len(x)), 1.0, turn, levels, augment, in_place=True)
            train_classifier(model, batches, steps, autocast, bar.update)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                features = representations(model, x, levels).float()
    return features
