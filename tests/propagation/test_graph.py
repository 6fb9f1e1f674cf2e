import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.sources import load
from scnf.propagation.graph import nearest_neighbours
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.spread import most_certain, propagate, spread


def few(y: Tensor, per_class: int = 5) -> Tensor:
    visible = torch.full_like(y, UNLABELLED)
    for k in y.unique():
        rows = (y == k).nonzero().squeeze(1)[:per_class]
        visible[rows] = k
    return visible


def test_nearest_neighbours_have_the_largest_cosine() -> None:
    features = torch.randn(203, 6) + 3
    indices, cosines = nearest_neighbours(features, 7, chunk=50)
    unit = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
    table = (unit @ unit.T).fill_diagonal_(-2)
    torch.testing.assert_close(cosines, table.topk(7, dim=1).values)
    torch.testing.assert_close(table.gather(1, indices), cosines)
    assert not (indices == torch.arange(203).unsqueeze(1)).any()


def test_nearest_neighbours_reduce_many_features_to_varying_ones() -> None:
    core = torch.randn(120, 20)
    wide = torch.cat([core, 1e-4 * torch.randn(120, 100)], dim=1) @ torch.linalg.qr(torch.randn(120, 120)).Q
    assert torch.equal(nearest_neighbours(wide, 5)[0], nearest_neighbours(core, 5)[0])


def by_hand(features: Tensor, y: Tensor, k: int, alpha: float, steps: int) -> Tensor:
    unit = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1).double()
    table = (unit @ unit.T).fill_diagonal_(-2)
    weights = torch.zeros_like(table)
    for row in range(len(table)):
        for column in table[row].topk(k).indices.tolist():
            weights[row, column] += max(0.0, float(table[row, column])) ** 4
    weights = weights + weights.T
    scale = weights.sum(dim=1).clamp_min(1e-12).rsqrt().diag()
    graph, given = scale @ weights @ scale, torch.zeros(len(y), int(y.max()) + 1).double()
    for row in (y != UNLABELLED).nonzero().squeeze(1).tolist():
        given[row, y[row]] = 1
    spread = given
    for _ in range(steps):
        spread = alpha * graph @ spread + (1 - alpha) * given
    spread = spread * given.sum(dim=0) / spread.sum(dim=0)
    return spread / spread.sum(dim=1, keepdim=True)


def test_propagate_equals_the_iteration_on_the_normalised_graph() -> None:
    features, y = torch.randn(60, 5), torch.full((60,), UNLABELLED)
    y[:7] = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = by_hand(features, y, 6, 0.9, 30)
    labels, certainty = propagate(features, y, neighbours=6, alpha=0.9, steps=30)
    assert torch.equal(labels[7:], expected.argmax(dim=1)[7:]) and torch.equal(labels[:7], y[:7])
    torch.testing.assert_close(certainty[7:], expected.max(dim=1).values[7:].float(), rtol=1e-4, atol=1e-5)
    assert bool((certainty[:7] == 1).all())


def test_spread_over_the_graph_of_cosines_equals_propagate() -> None:
    features, y = torch.randn(60, 5), torch.full((60,), UNLABELLED)
    y[:6] = torch.tensor([0, 1, 2, 0, 1, 2])
    indices, cosines = nearest_neighbours(features, 6)
    found = spread(indices, cosines.clamp_min(0).pow(4), y, alpha=0.9, steps=30)
    expected = propagate(features, y, neighbours=6, alpha=0.9, steps=30)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_propagate_labels_digits_by_their_neighbours() -> None:
    data = load("digits", "unused")
    visible = few(data.train_y, 10)
    labels, certainty = propagate(data.train_x.flatten(1), visible)
    hidden = visible == UNLABELLED
    right = (labels == data.train_y).double()
    assert right[hidden].mean() > 0.95
    kept = most_certain(labels, certainty, 0.5)
    sure = hidden & (kept != UNLABELLED)
    assert right[sure].mean() > max(0.99, float(right[hidden].mean()))


def test_propagate_leaves_rows_without_neighbours_uncertain() -> None:
    features = torch.cat([torch.eye(4).repeat_interleave(5, dim=0), -torch.ones(1, 4)])
    y = torch.full((21,), UNLABELLED)
    y[0], y[5] = 1, 0
    labels, certainty = propagate(features, y, neighbours=4)
    assert labels[:5].tolist() == [1] * 5 and labels[5:10].tolist() == [0] * 5
    assert float(certainty[-1]) == 0 and int(most_certain(labels, certainty, 1.0)[-1]) == UNLABELLED


def test_propagate_refuses_data_without_labels() -> None:
    with pytest.raises(ValueError, match="no row has one"):
        propagate(torch.randn(5, 2), torch.full((5,), UNLABELLED))


def test_propagate_refuses_features_that_are_not_finite() -> None:
    features = torch.randn(20, 3)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        propagate(features, torch.zeros(20, dtype=torch.long))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_nearest_neighbours_refuse_features_that_are_not_finite(value: float) -> None:
    for width in (3, 100):
        features = torch.randn(20, width)
        features[3, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            nearest_neighbours(features, 3)


@pytest.mark.parametrize("factor", [2.0**-140, 1e-30, 1e-20, 2.0**60, 1e30])
def test_propagate_does_not_depend_on_the_range_of_features(factor: float) -> None:
    for width in (3, 100):
        y = few(torch.arange(40) % 2, 4)
        features = torch.randn(40, width) + y.clamp_min(0).unsqueeze(1)
        factors = features.double() * factor  # which single precision would round, or lose
        for found, expected in zip(nearest_neighbours(factors, 3), nearest_neighbours(features, 3), strict=True):
            torch.testing.assert_close(found, expected)
        assert torch.equal(propagate(factors, y)[0], propagate(features, y)[0])
        exact = nearest_neighbours(features * 2.0**-40, 3), nearest_neighbours(features, 3)
        assert all(torch.equal(*pair) for pair in zip(*exact, strict=True))


@pytest.mark.parametrize("factor", [2.0**-100, 1e-30, 1e-20, 2.0**60, 1e30])
def test_spread_does_not_depend_on_the_range_of_weights(factor: float) -> None:
    y = few(torch.arange(40) % 3)
    indices, weights = torch.randint(40, (40, 4)), torch.rand(40, 4)
    labels, certainty = spread(indices, weights, y, 0.9, 30)
    found = spread(indices, weights * factor, y, 0.9, 30)
    assert torch.equal(found[0], labels)
    torch.testing.assert_close(found[1], certainty)


@pytest.mark.parametrize("indices", [[[1], [2]], [[1], [-1]], [1, 0], [[1, 0], [0, 1]]])
def test_spread_refuses_indices_that_are_no_neighbours(indices: list[object]) -> None:
    with pytest.raises(ValueError, match="indices must be rows 0 to 1"):
        spread(torch.tensor(indices), torch.ones(2, 1), torch.tensor([0, UNLABELLED]), 0.9, 5)


def test_nearest_neighbours_of_repeated_images_are_their_copies() -> None:
    # where eigenvalues coincide, eigenvectors in single precision may be no numbers
    x = load("digits", "unused").train_x[220:230].repeat(3, 1, 1, 1)
    indices, cosines = nearest_neighbours(oriented_gradients(x), 2)
    torch.testing.assert_close(cosines, torch.ones(30, 2))
    assert torch.equal(indices % 10, torch.arange(10).repeat(3).unsqueeze(1).expand(-1, 2))


@pytest.mark.parametrize("failure", [torch.nan, torch.inf])
def test_nearest_neighbours_refuse_eigenvectors_that_are_not_finite(
    failure: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    eigh = torch.linalg.eigh

    def failing(matrix: Tensor) -> object:
        found = eigh(matrix)
        found.eigenvectors[0, -1] = failure
        return found

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.raises(ValueError, match="features must have finite principal components"):
        nearest_neighbours(torch.randn(80, 70), 3)


@pytest.mark.parametrize("weight", [-1.0, torch.nan, torch.inf])
def test_spread_refuses_invalid_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="weights must be finite and at least 0"):
        spread(torch.tensor([[1], [0]]), torch.tensor([[1.0], [weight]]), torch.tensor([0, UNLABELLED]), 0.9, 5)


def test_surest_keeps_a_share_of_each_class() -> None:
    labels, certainty = torch.tensor([0] * 10 + [1] * 20 + [2] * 5), torch.rand(35)
    kept = most_certain(labels, certainty, 0.6)
    for k, count in ((0, 6), (1, 12), (2, 3)):
        rows = labels == k
        assert (kept == k).sum() == count
        assert certainty[kept == k].min() > certainty[rows & (kept == UNLABELLED)].max()
    assert torch.equal(most_certain(labels, certainty, 1.0), labels)
