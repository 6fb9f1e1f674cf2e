"""Self-training on the digits: neighbours get better, by visible labels alone."""

import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.labels import draw_split
from scnf.data.sources import load
from scnf.propagation import self_training
from scnf.propagation.self_training import self_trained_features
from scnf.propagation.spread import propagate


@pytest.fixture
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels of which twenty are visible, and all labels."""
    data = load("digits", "data")
    split = draw_split(data.train_y, 10, 20, 200, 0, True)
    visible = torch.full_like(data.train_y, UNLABELLED)
    visible[split.labelled] = data.train_y[split.labelled]
    return data.train_x[split.train], visible[split.train], data.train_y[split.train]


def test_self_trained_features_beat_pixels_for_label_propagation(
    digits: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, truth = digits
    monkeypatch.setattr(self_training, "STEPS", 60)
    features = self_trained_features(x, y, 17, rounds=2, augment=0.5)
    assert features.shape == (len(x), self_training.HIDDEN) and features.dtype == torch.float32
    errors = [int((propagate(each, y)[0] != truth).sum()) for each in (x.flatten(1), features)]
    assert errors[1] < errors[0]  # ten seeds: 47 to 70, pixels 86; networks without a step 92 or more


def test_self_training_without_rounds_gives_the_pixels(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, _ = digits
    assert torch.equal(self_trained_features(x, y, 17, rounds=0), x.flatten(1))


def test_self_training_uses_new_networks_and_more_labels_each_round(
    digits: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, _ = digits
    shares, starts = [], []
    most_certain, classifier = self_training.most_certain, self_training.Classifier

    def watched_most_certain(labels: Tensor, certainty: Tensor, share: float) -> Tensor:
        shares.append(share)
        return most_certain(labels, certainty, share)

    def watched_classifier(network: torch.nn.Module, num_classes: int) -> torch.nn.Module:
        starts.append(next(network.parameters()).clone())
        return classifier(network, num_classes)

    monkeypatch.setattr(self_training, "most_certain", watched_most_certain)
    monkeypatch.setattr(self_training, "Classifier", watched_classifier)
    monkeypatch.setattr(self_training, "STEPS", 2)
    self_trained_features(x, y, 17, rounds=3)
    assert shares == [0.6, pytest.approx(0.9), 1.0]
    assert len(starts) == 3 and not torch.equal(starts[0], starts[1])
