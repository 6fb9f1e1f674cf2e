"""Errors of the library on their way to a user: which become errors about settings, and which stay bugs."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from scnf.errors import InvalidArgument, NotFinite, UserError
from scnf.recipes import M2Recipe
from scnf.settings import not_finite_errors, section_errors, setting_errors


def of_m2() -> AbstractContextManager[None]:
    return setting_errors(M2Recipe(), "moons")


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (lambda: section_errors("data"), InvalidArgument("num_labels", "is empty"), "data.num_labels is empty"),
        (lambda: section_errors("data", "train"), InvalidArgument("compile", "needs g++"), "train.compile needs g++"),
        (of_m2, InvalidArgument("batch_size", "is 0"), "train.batch_size is 0"),
        (of_m2, InvalidArgument("augment", "moves images"), "data.augment moves images"),
        (of_m2, InvalidArgument("norm", "must be layer"), "model.norm must be layer"),
        (of_m2, InvalidArgument("probabilities", "must be 2"), "model.prior must be 2"),
        (of_m2, InvalidArgument("shape", "must be (D,)"), "the recipe m2 does not take the data moons: shape must be"),
        (lambda: not_finite_errors("Lower train.lr"), NotFinite("the loss is inf"), "the loss is inf. Lower train.lr"),
    ],
)
def test_setting_errors_name_the_setting_of_an_argument(
    block: Callable[[], AbstractContextManager[None]], error: Exception, message: str
) -> None:
    with pytest.raises(UserError) as caught, block():
        raise error
    assert str(caught.value).startswith(message) and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "block", [lambda: section_errors("data", "train"), of_m2, lambda: not_finite_errors("Lower train.lr")]
)
@pytest.mark.parametrize(
    "error", [InvalidArgument("features", "must be finite"), TypeError("a bug"), KeyError("x"), ValueError("a bug")]
)
def test_setting_errors_let_other_errors_pass_unchanged(
    block: Callable[[], AbstractContextManager[None]], error: Exception
) -> None:
    with pytest.raises(type(error)) as caught, block():
        raise error
    assert caught.value is error
