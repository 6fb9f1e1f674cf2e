import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.batches import Batches, EncodedBatches, dequantize
from scnf.data.labels import draw_split
from scnf.errors import InvalidArgument


def rows_as_points(num_rows: int = 120, num_labelled: int = 12) -> tuple[Tensor, Tensor]:
    """Each row holds its own index, so that a batch tells which rows it drew; labels are index % 4."""
    x = torch.arange(num_rows, dtype=torch.float32).unsqueeze(1).repeat(1, 2)
    y = torch.full((num_rows,), UNLABELLED)
    y[: num_labelled * 5 : 5] = torch.arange(0, num_labelled * 5, 5) % 4
    return x, y


def make(batch_size: int = 20, labelled_share: float = 0.25, seed: int = 0, passes: int = 1, **sizes: int) -> Batches:
    return Batches(*rows_as_points(**sizes), batch_size, labelled_share, seed, levels=None, passes=passes)


def drawn(batches: Batches, epoch: int = 0, start: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """(rows, labels) of each batch."""
    pairs = [(x[:, 0].long().tolist(), y.tolist()) for x, y, *_ in batches.epoch(epoch, start)]
    return [rows for rows, _ in pairs], [labels for _, labels in pairs]


@pytest.mark.parametrize(
    ("batch_size", "share", "labelled"), [(20, 0.25, 5), (20, 0.0, 0), (20, 1.0, 20), (7, 0.3, 2), (2, 0.5, 1)]
)
def test_labelled_share_is_held_in_each_batch(batch_size: int, share: float, labelled: int) -> None:
    rows, labels = drawn(make(batch_size, share))
    for batch_rows, batch_labels in zip(rows, labels, strict=True):
        assert len(batch_rows) == batch_size
        assert batch_labels[labelled:] == [UNLABELLED] * (batch_size - labelled)
        assert batch_labels[:labelled] == [row % 4 for row in batch_rows[:labelled]]
        assert all(row % 5 == 0 and row < 60 for row in batch_rows[:labelled])


def test_epoch_passes_once_over_all_rows_without_their_labels() -> None:
    batches = make()
    assert batches.steps_per_epoch == 8
    for epoch in range(3):
        rows, _ = drawn(batches, epoch)
        assert sorted(row for batch in rows for row in batch[5:]) == list(range(120))


def test_batches_of_some_rows_are_those_of_a_copy_of_these_rows(numbered: tuple[Tensor, Tensor]) -> None:
    x, y = numbered
    rows = torch.arange(39, -1, -3)
    batches = [
        Batches(images, y[rows], 4, 0.25, 0, 256, 0.5, views=True, rows=chosen)
        for images, chosen in ((x, rows), (x[rows], None))
    ]
    assert torch.equal(batches[0].x, x[rows]) and batches[0].steps_per_epoch == batches[1].steps_per_epoch
    epochs = []
    for each in batches:
        torch.manual_seed(0)
        epochs.append([part for batch in each.epoch(0) for part in batch])
    assert len(epochs[0]) > 10 and all(map(torch.equal, *epochs))


def test_epoch_passes_several_times_over_all_rows() -> None:
    batches = make(passes=3)
    assert batches.steps_per_epoch == 24
    rows, _ = drawn(batches)
    unlabelled = [row for batch in rows for row in batch[5:]]
    assert all(sorted(some) == list(range(120)) for some in (unlabelled[:120], unlabelled[120:240], unlabelled[240:]))


@pytest.fixture
def numbered() -> tuple[Tensor, Tensor]:
    """Forty images that show their number, of which four have a label."""
    x, y = torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.full((40,), UNLABELLED)
    x += torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1)
    y[:4] = torch.arange(4)
    return x, y


def test_guessed_labels_go_to_the_rows_of_batches_without_views(numbered: tuple[Tensor, Tensor]) -> None:
    batches = Batches(*numbered, 10, 0.2, seed=0, levels=256)
    labels = next(batches.epoch(0)).y
    assert labels[2:].tolist() == [UNLABELLED] * 8
    batches.guesses = torch.arange(40) % 7 - 1  # of some nobody guesses
    batch = next(batches.epoch(0))
    rows = (256 * batch.x[:, 0, 0, 0]).long()
    assert torch.equal(batch.y[:2], labels[:2]) and torch.equal(batch.y[2:], rows[2:] % 7 - 1)
    assert batch.views is batch.targets is None


def test_guessed_labels_go_to_the_views_as_targets(numbered: tuple[Tensor, Tensor]) -> None:
    batches = Batches(*numbered, 10, 0.2, seed=0, levels=256, views=True)
    batch = next(batches.epoch(0))
    assert batch.y[2:].tolist() == batch.targets.tolist() == [UNLABELLED] * 8
    batches.guesses = torch.arange(40) % 7
    guessed = next(batches.epoch(0))
    rows, views = ((256 * each[:, 0, 0, 0]).long() for each in (guessed.x, guessed.views))
    assert torch.equal(rows, (256 * batch.x[:, 0, 0, 0]).long()) and torch.equal(rows[2:], views)
    assert torch.equal(guessed.y, batch.y) and torch.equal(guessed.targets, views % 7)


def test_epoch_repeats_no_row_where_the_batch_size_does_not_divide() -> None:
    batches = make(num_rows=119)
    rows, _ = drawn(batches)
    seen = [row for batch in rows for row in batch[5:]]
    assert len(rows) == batches.steps_per_epoch == 7 and len(seen) == len(set(seen)) == 105


def test_labelled_rows_recur_evenly_in_new_orders() -> None:
    rows, _ = drawn(make())
    labelled = [row for batch in rows for row in batch[:5]]
    counts = [labelled.count(row) for row in range(0, 60, 5)]
    assert sum(counts) == 40 and set(counts) == {3, 4}
    for turn in range(3):  # each round is a permutation of its own
        assert sorted(labelled[12 * turn : 12 * (turn + 1)]) == list(range(0, 60, 5))
    assert labelled[:12] != labelled[12:24]


def test_epoch_of_labelled_rows_alone_has_the_size_of_the_data() -> None:
    batches = make(labelled_share=1.0)
    assert batches.steps_per_epoch == 6


def test_batch_may_be_larger_than_the_data() -> None:
    batches = make(batch_size=400)
    rows, labels = drawn(batches)
    assert batches.steps_per_epoch == 1 and len(rows[0]) == 400
    assert set(rows[0][100:]) == set(range(120)) and labels[0][100:] == [UNLABELLED] * 300


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = drawn(make(), epoch=2)
    torch.manual_seed(2)
    batches = make()
    list(batches.epoch(0))
    assert drawn(batches, epoch=2) == first == drawn(batches, epoch=2)
    others = [drawn(make(seed=seed), epoch=epoch)[0] for seed, epoch in ((0, 0), (0, 3), (1, 2), (1, 0))]
    assert first[0] not in others and all(a != b for i, a in enumerate(others) for b in others[:i])


@pytest.mark.parametrize("start", range(9))
def test_epoch_started_late_gives_the_remaining_batches(start: int) -> None:
    rows, labels = drawn(make(), epoch=4)
    assert drawn(make(), epoch=4, start=start) == (rows[start:], labels[start:])


def test_hidden_labels_never_appear_in_batches() -> None:
    x, y = rows_as_points()
    for batch in Batches(x, y, 20, 0.25, 0, None).epoch(0):
        assert (batch.y[5:] == UNLABELLED).all()
    for batch in Batches(x, torch.full_like(y, UNLABELLED), 20, 0.0, 0, None).epoch(0):
        assert (batch.y == UNLABELLED).all()


def test_images_are_dequantised_anew_each_time() -> None:
    images = torch.randint(17, (40, 1, 2, 2), dtype=torch.uint8)
    batches = Batches(images, torch.full((40,), UNLABELLED), 10, 0.0, 0, levels=17)
    first, second = (next(batches.epoch(0)).x for _ in range(2))
    assert torch.equal((first * 17).floor(), (second * 17).floor()) and not torch.equal(first, second)
    assert torch.equal(batches.x, images) and images.dtype == torch.uint8


def images(augment: float = 0.0, views: bool = False) -> Batches:
    """Each row is an image of one grey level, its own index."""
    x, y = rows_as_points()
    return Batches(x[:, :1, None, None].to(torch.uint8).expand(-1, 1, 8, 8), y, 20, 0.25, 0, 256, augment, views)


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_views_follow_the_rows_that_they_show(augment: float) -> None:
    plain, _ = drawn(make())
    batches = images(augment, views=True)
    assert (batches.num_moved, batches.num_views) == (5 if augment else 0, 15)
    for batch, rows in zip(batches.epoch(0), plain, strict=True):
        moved = rows[: batches.num_moved]
        levels = (batch.inputs() * 256).floor().flatten(1).max(dim=1).values.long()  # zeros come in from outside
        assert levels.tolist() == rows + moved + rows[5:] and batch.sizes == [20, len(moved), 15]
        labels = [row % 4 for row in rows[:5]]
        assert batch.y.tolist() == labels + 15 * [UNLABELLED] and batch.targets.tolist() == 15 * [UNLABELLED]
        assert moved == [] or batch.moved_y.tolist() == labels


def test_encoded_batches_hold_the_codes_of_the_same_rows() -> None:
    batches, seen = images(1.0, views=True), []

    def encode(x: Tensor) -> Tensor:
        seen.append(len(x))
        levels = (x * 256).floor().flatten(1)
        return torch.stack([levels.max(dim=1).values, levels.std(dim=1)], dim=1)

    encoded = EncodedBatches(batches, encode, copies=3, chunk=50)
    assert sum(seen) == 120 + 3 * 12 + 120 and max(seen) == 50
    moved = []
    for batch, plain in zip(encoded.epoch(2), batches.epoch(2), strict=True):
        codes, x = batch.inputs(), plain.inputs()
        assert codes.shape == (40, 2) and batch.sizes == plain.sizes == [20, 5, 15]
        assert all(torch.equal(*pair) for pair in zip(batch[1::2], plain[1::2], strict=True))  # all labels
        assert torch.equal(codes[:, 0], (x * 256).floor().flatten(1).max(dim=1).values)  # the grey level is the row
        assert bool((codes[:20, 1] == 0).all())
        moved += codes[20:25].tolist()
    assert max(std for _, std in moved) > 0 and 12 < len({tuple(code) for code in moved}) <= 36
    assert encoded.steps_per_epoch == batches.steps_per_epoch and len(seen) == 3 + 1 + 3


def test_encoded_batches_need_no_labels_views_or_augmentation() -> None:
    x, y = rows_as_points()
    hidden = torch.full_like(y, UNLABELLED)
    for batches in (Batches(x, hidden, 20, 0.0, 0, None), Batches(x, y, 20, 0.25, 0, None)):
        pairs = zip(EncodedBatches(batches, lambda x: 2 * x).epoch(1), batches.epoch(1), strict=True)
        for codes, points in pairs:
            assert torch.equal(codes.x, 2 * points.x) and torch.equal(codes.y, points.y)


RAMP = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, 8, 8)
"""Any map but the identity changes it."""


def as_they_are(batch: Tensor) -> Tensor:
    """Which images [N] of a batch show the ramp."""
    return ((256 * batch).floor() == RAMP).flatten(1).all(dim=1)


@pytest.mark.parametrize("views", [False, True])
def test_augmentation_leaves_rows_of_the_likelihood_unmoved(views: bool) -> None:
    y = rows_as_points()[1]
    batches = Batches(RAMP.expand(len(y), 1, 8, 8), y, 20, 0.25, 0, 256, 1.0, views)
    sizes = []
    for batch in batches.epoch(0):
        assert as_they_are(batch.inputs()).tolist() == [True] * 20 + [False] * (20 if views else 5)
        sizes.append(batch.sizes)
    assert sizes == [[20, 5, 15 if views else 0]] * 8


def test_augmentation_in_place_moves_labelled_rows_of_a_batch() -> None:
    y = rows_as_points()[1]
    batches = Batches(RAMP.expand(len(y), 1, 8, 8), y, 20, 0.25, 0, 256, 1.0, in_place=True)
    batch = next(batches.epoch(0))
    assert as_they_are(batch.x).tolist() == [False] * 5 + [True] * 15 and batch.sizes == [20, 0, 0]
    assert (batch.y[:5] != UNLABELLED).all() and (batch.y[5:] == UNLABELLED).all()


def test_batches_refuse_views_of_points_without_noise() -> None:
    with pytest.raises(InvalidArgument, match="augment must be above 0 for views of points"):
        Batches(*rows_as_points(), 20, 0.25, 0, None, views=True)


def test_batches_move_points_by_gaussian_noise() -> None:
    x, y = torch.zeros(400, 3), torch.zeros(400, dtype=torch.int64)
    batch = next(Batches(x, y, 400, 0.5, 0, None, augment=0.5, views=True).epoch(0))
    assert batch.moved is not None and batch.views is not None
    for moved in (batch.moved, batch.views):
        assert moved.shape == (200, 3) and abs(float(moved.std()) - 0.5) < 0.05
    assert not batch.x.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 3, "labelled_share": 0.1}, "batch_size of 3 cannot hold a labelled share of 0.1"),
        ({"batch_size": 3, "labelled_share": 0.9}, "it would have 3 labelled and 0 unlabelled rows"),
        ({"batch_size": 1, "labelled_share": 0.4}, "Raise it, or change labelled_share"),
        ({"num_labelled": 0}, "no row has a label"),
        ({"num_labelled": 0, "labelled_share": 1.0}, "no row has a label"),
    ],
)
def test_batches_that_cannot_hold_the_labelled_share_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(**arguments)
    assert message in str(caught.value)


# --- dequantisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("levels", [*range(2, 20), 49, 100, 255, 256, 257, 1000, 4096, 10_007, 65_535, 65_536])
def test_dequantize_stays_in_the_cell_of_a_level_at_both_ends_of_the_noise(
    levels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.arange(levels, dtype=torch.int32).view(1, 1, 1, -1)
    largest = 1 - torch.finfo(dtype).eps / 2  # that torch.rand gives
    for noise in (0.0, torch.finfo(dtype).eps / 2, 0.5, 1 - 2**-16, 1 - 2**-20, largest):
        monkeypatch.setattr(torch, "rand", lambda shape, noise=noise, **options: torch.full(shape, noise, dtype=dtype))
        found = dequantize(x, levels)
        assert torch.equal((levels * found).floor(), x.to(dtype)) and found.max() < 1
        # and by no more than the last bits
        torch.testing.assert_close(found, (x.to(dtype) + noise) / levels, rtol=3 * torch.finfo(dtype).eps, atol=0)


def test_dequantize_corrects_only_draws_outside_of_their_cell() -> None:
    x = torch.full((1, 1, 1024, 1024), 200, dtype=torch.uint8)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3))
    plain = (x + noise) / 256
    right = (256 * plain).floor() == x
    found = dequantize(x, 256, torch.Generator().manual_seed(3))
    assert torch.equal(found[right], plain[right]) and 0 < int((~right).sum()) < 50
    assert torch.equal((256 * found).floor(), x.float())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantize_adds_uniform_noise_within_the_cell_of_a_level(levels: int) -> None:
    x = torch.arange(levels, dtype=torch.uint8).repeat(1000).view(-1, 1, 1, levels)
    u = dequantize(x, levels)
    assert u.dtype == torch.float32 and u.shape == x.shape and x.dtype == torch.uint8
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert torch.equal((levels * u).floor(), x.float())
    inside = u.double() * levels - x
    assert float(inside.min()) > -1e-4 and float(inside.max()) < 1 + 1e-4
    for moment, expected, variance in ((inside, 1 / 2, 1 / 12), ((inside - 0.5).square(), 1 / 12, 1 / 80 - 1 / 144)):
        assert abs(float(moment.mean()) - expected) < 4.5 * (variance / x.numel()) ** 0.5  # standard errors


def test_dequantize_keeps_the_highest_level_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))  # the largest it can give
    assert float(dequantize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), 256).max()) < 1


def test_dequantize_draws_noise_from_the_given_generator() -> None:
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    state = torch.get_rng_state()
    first, second = (dequantize(x, 256, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(dequantize(x, 256, torch.Generator().manual_seed(8)), first)


def test_dequantize_leaves_points_unchanged() -> None:
    x = torch.randn(5, 2)
    assert dequantize(x, None) is x
    points = next(make().epoch(0)).x
    assert torch.equal(points, points.round())


def test_batches_and_splits_accept_numpy_integers() -> None:
    x, y = torch.randint(17, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20) % 2
    split = [draw_split(y, kind(2), kind(10), kind(4), kind(3)).to_json() for kind in (int, np.int64)]
    assert split[0] == split[1] == json.loads(json.dumps(split[1]))
    torch.manual_seed(0)
    ours, theirs = (Batches(x, y, kind(8), 0.25, kind(5), kind(17)) for kind in (int, np.int64))
    for first, second in zip(ours.epoch(1), theirs.epoch(np.int64(1)), strict=True):
        assert torch.equal(first.y, second.y)
