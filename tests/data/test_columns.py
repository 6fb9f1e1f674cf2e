"""The columns of vectors: standard deviations, whole numbers and constants."""

import torch

from scnf import UNLABELLED
from scnf.data.batches import Batches
from scnf.data.columns import Columns


def table(rows: int = 200) -> torch.Tensor:
    """Columns of real numbers, of whole numbers, and of one number."""
    generator = torch.Generator().manual_seed(0)
    real, whole = torch.randn(rows, generator=generator), torch.randint(50, (rows,), generator=generator)
    return torch.stack([1e-3 * real + 7, whole.float(), torch.full((rows,), 0.3)], dim=1)


def test_columns_find_whole_numbers_and_constants() -> None:
    x = table()
    columns = Columns.of(x)
    assert columns.step.tolist() == [0, 1, 1]
    torch.testing.assert_close(columns.mean, x.mean(dim=0))
    variance = x.double().var(dim=0, correction=0) + torch.tensor([0, 1, 1]) / 12
    torch.testing.assert_close(columns.scale, variance.sqrt().float(), rtol=1e-4, atol=0)
    one = Columns.of(x.repeat(2, 1)[:1])
    assert one.step.tolist() == [1, 1, 1] and bool((one.scale > 0).all())


def test_dequantised_columns_round_to_the_whole_numbers() -> None:
    torch.manual_seed(0)
    x = table()
    noisy = Columns.of(x).dequantize(x)
    assert torch.equal(noisy[:, 0], x[:, 0]) and torch.equal(noisy[:, 1].round(), x[:, 1])
    noise = noisy[:, 1:] - x[:, 1:]
    assert noise.abs().max() <= 0.5 and noise.std() > 0.25 and noise.unique().numel() > 300


def test_real_columns_draw_no_noise() -> None:
    x = torch.randn(20, 3)
    state = torch.get_rng_state()
    assert Columns.of(x).dequantize(x) is x and torch.equal(torch.get_rng_state(), state)


def test_batches_move_vectors_by_the_scale_of_each_column() -> None:
    torch.manual_seed(0)
    x, y = table(400), torch.full((400,), UNLABELLED)
    y[:100] = torch.arange(100) % 2
    batches = Batches(x, y, 400, 0.25, seed=0, levels=None, augment=0.5, views=True, columns=Columns.of(x))
    batch = next(batches.epoch(0))
    scale = Columns.of(x).scale
    assert batch.views is not None
    moved = (batch.views - batch.x[100:]).std(dim=0) / scale
    expected = torch.tensor([0.25, 0.25 + 1 / 6 / scale[1] ** 2, 0.25 + 2]).sqrt()
    torch.testing.assert_close(moved, expected, rtol=0.15, atol=0)
