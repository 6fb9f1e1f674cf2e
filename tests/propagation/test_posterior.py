"""Pseudo-labels of the model's own posterior, in the mix of classes of the labels."""

import pytest
import torch

from scnf import UNLABELLED
from scnf.errors import InvalidArgument
from scnf.propagation.spread import surest_of_classes
from scnf.propagation.strategy import Propagation
from scnf.recipes import build


def test_surest_rows_keep_the_mix_of_classes_of_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    first = 0.3 + 0.7 * torch.rand(100, generator=generator)  # most rows seem to be of the first class
    posterior = torch.stack([first, 1 - first], dim=1).log()
    y = torch.full((100,), UNLABELLED)
    y[:8] = torch.tensor([0, 1, 1, 1, 0, 1, 1, 1])  # in the end 3 of 10 and 7 of 10
    guesses = surest_of_classes(posterior, y, 0.5)
    assert torch.equal(guesses[:8], y[:8])
    assert int((guesses == 0).sum()) == 15 and int((guesses == 1).sum()) <= 35
    chosen = (guesses == 0) & (y == UNLABELLED)
    others = (guesses == UNLABELLED) & (first > 0.5)
    assert first[chosen].min() >= first[others].max()
    assert bool((surest_of_classes(posterior, y, 0.0) == UNLABELLED).all())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_surest_rows_refuse_a_share_out_of_range(share: float) -> None:
    with pytest.raises(InvalidArgument, match="share"):
        surest_of_classes(torch.zeros(2, 2), torch.tensor([0, -1]), share)


def test_propagation_by_the_posterior_takes_vectors_and_grows() -> None:
    torch.manual_seed(0)
    y = torch.full((60,), UNLABELLED)
    y[:6] = torch.arange(6) % 2
    x = torch.randn(60, 3) + 6 * (torch.arange(60) % 2).unsqueeze(1)
    guess = Propagation(x, y, None, times=3, epochs=3, neighbours="posterior")
    model = build("scnf-vectors", (3,), 2, levels=None, steps=0)
    model.initialize(x, y)
    numbers = []
    for epoch in range(3):
        guesses = guess(model.eval(), epoch)
        assert guesses is not None
        found = guesses != UNLABELLED
        assert torch.equal(guesses[found], (torch.arange(60) % 2)[found])
        numbers.append(int(found.sum()))
    assert numbers == [0, 28, 54]
