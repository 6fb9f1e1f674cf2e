import dataclasses

import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.labels import Split, draw_split
from scnf.errors import InvalidArgument

LABELS = torch.randint(10, (500,), generator=torch.Generator().manual_seed(3))


def draw(
    labels: Tensor = LABELS,
    num_classes: int = 10,
    num_labels: int = 50,
    num_validation: int = 100,
    data_seed: int = 0,
    balanced: bool = True,
) -> Split:
    return draw_split(labels, num_classes, num_labels, num_validation, data_seed, balanced)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("data_seed", [0, 1, 2**63 - 1])
def test_split_puts_each_row_into_training_or_validation(balanced: bool, data_seed: int) -> None:
    split = draw(balanced=balanced, data_seed=data_seed)
    validation, labelled, train = (set(rows.tolist()) for rows in (split.validation, split.labelled, split.train))
    assert (len(labelled), len(validation), len(train)) == (50, 100, 400)
    assert not validation & train and validation | train == set(range(500)) and labelled < train
    for rows in (split.validation, split.labelled, split.train):
        assert rows.dtype == torch.int64 and rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("num_labels", [0, 10, 50, 200])
def test_split_balanced_takes_equally_many_labels_of_each_class(num_labels: int) -> None:
    split = draw(num_labels=num_labels)
    assert LABELS[split.labelled].bincount(minlength=10).tolist() == [num_labels // 10] * 10


def test_split_unbalanced_takes_any_number_of_labels() -> None:
    assert [len(draw(num_labels=number, balanced=False).labelled) for number in (0, 1, 7, 400)] == [0, 1, 7, 400]


def test_split_depends_on_data_seed_alone() -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert draw().to_json() == first.to_json()
    assert len({draw(data_seed=seed).sha256 for seed in range(20)}) == 20


def test_validation_rows_do_not_depend_on_the_number_of_labels() -> None:
    assert torch.equal(draw(num_labels=10).validation, draw(num_labels=200, balanced=False).validation)


def test_split_of_more_labels_contains_the_labelled_rows_of_fewer() -> None:
    assert set(draw(num_labels=10).labelled.tolist()) < set(draw(num_labels=50).labelled.tolist())


def test_split_sha256_tells_splits_apart() -> None:
    split = draw()
    moved = torch.cat([split.labelled, split.validation[:1]])
    others = [
        dataclasses.replace(split, labelled=split.labelled[1:]),
        dataclasses.replace(split, validation=split.validation[1:]),
        dataclasses.replace(split, labelled=moved, validation=split.validation[1:]),  # the same rows in the same order
        dataclasses.replace(split, num_rows=501),
        draw(data_seed=1),
    ]
    assert len({split.sha256, *(other.sha256 for other in others)}) == 6
    assert draw().sha256 == split.sha256
    assert split.to_json() == {
        "sha256": split.sha256,
        "num_rows": 500,
        "labelled": split.labelled.tolist(),
        "validation": split.validation.tolist(),
    }


def test_split_shows_the_labels_of_labelled_rows_alone() -> None:
    split = draw()
    before = LABELS.clone()
    visible = split.visible(LABELS)
    hidden = torch.ones(500, dtype=torch.bool)
    hidden[split.labelled] = False
    assert torch.equal(visible[split.labelled], LABELS[split.labelled])
    assert (visible[hidden] == UNLABELLED).all() and int(hidden.sum()) == 450
    assert torch.equal(LABELS, before)


def test_hidden_labels_change_no_visible_label() -> None:
    split = draw(balanced=False)
    changed = LABELS.clone()
    hidden = split.visible(LABELS) == UNLABELLED
    changed[hidden] = (changed[hidden] + 1) % 10
    again = draw(changed, balanced=False)
    assert again.sha256 == split.sha256
    assert torch.equal(again.visible(changed), split.visible(LABELS))


def test_validation_labels_change_no_visible_label_of_a_balanced_split() -> None:
    split = draw()
    changed = LABELS.clone()
    changed[split.validation] = 0
    again = draw(changed)
    assert again.sha256 == split.sha256
    assert torch.equal(again.visible(changed), split.visible(LABELS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 401, "balanced": False}, "asks for 401 labels and the data has 400 training rows beside 100"),
        ({"num_labels": 10**12}, "asks for 1000000000000 labels"),
        ({"num_labels": -10}, "asks for -10 labels"),
        ({"num_labels": 99}, "cannot be shared equally by 10 classes: take 90 or 100, or set balanced to false"),
        ({"num_labels": 7}, "cannot be shared equally by 10 classes"),
        ({"num_labels": 390}, "needs 39 labels of each class, and class"),
        ({"labels": torch.zeros(500, dtype=torch.int64)}, "class 1 has only 0 training rows"),
        ({"num_validation": -1}, "num_validation must be between 0 and 499"),
        ({"num_validation": 500}, "num_validation must be between 0 and 499"),
        ({"num_validation": 499}, "the data has 1 training rows"),
    ],
)
def test_split_that_cannot_be_drawn_is_an_invalid_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        draw(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
