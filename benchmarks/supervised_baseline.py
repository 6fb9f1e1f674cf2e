"""A network trained on the visible labels alone: what every semi-supervised figure is compared with.

    python benchmarks/supervised_baseline.py [--data.root data] [any setting of data.*]

The rows and labels are those of the label split that the settings draw; the test split is looked at once, at the end.
Each network is trained on the images as they are, and with the random affine maps that the main job uses.
"""

import itertools
import sys

import torch
from torch import Tensor, nn

from scnf import config
from scnf.data.augment import random_affine
from scnf.data.labels import draw_split
from scnf.data.sources import load

STEPS = 1000


def mlp(pixels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, num_classes)
    )


def cnn(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(1024, num_classes),
    )


def fit(network: nn.Module, x: Tensor, y: Tensor, scale: float, augment: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    network.train()
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(network(random_affine(x, augment) / scale), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def main() -> None:
    data = config.load(None, sys.argv[1:]).data
    dataset = load(data.name, data.root)
    data.resolve_labels(dataset.num_classes)
    split = draw_split(
        dataset.train_y, dataset.num_classes, data.num_labels, data.num_validation, data.data_seed, data.balanced
    )
    scale = float((dataset.levels or 2) - 1)
    x, y = dataset.train_x[split.labelled], dataset.train_y[split.labelled]
    networks = {"MLP 600-600": mlp(x[0].numel(), dataset.num_classes), "CNN": cnn(x.shape[1], dataset.num_classes)}
    for name, augment in itertools.product(networks, (0.0, 1.0)):
        network = networks[name]
        accuracies = []
        for seed in range(3):
            fit(network, x, y, scale, augment, seed)
            with torch.no_grad():
                logits = torch.cat([network(part / scale) for part in dataset.test_x.split(1000)])
            accuracies.append(100 * float((logits.argmax(1) == dataset.test_y).double().mean()))
        values = torch.tensor(accuracies)
        print(
            f"{name}, augment {augment:g}: test accuracy {values.mean():.2f} +- {values.std():.2f} % over 3 seeds, "
            f"{len(y)} labels alone",
            flush=True,
        )


if __name__ == "__main__":
    main()
