"""Turn errors of the library into errors about the settings that cause them or may mend them."""

from collections.abc import Iterator
from contextlib import contextmanager

from scnf.arguments import PATH, arguments_of
from scnf.errors import InvalidArgument, NotFinite, UserError
from scnf.recipes import Recipe
from scnf.settings.schema import SECTIONS

SMALLER_STEPS = "Lower train.lr or set train.grad_clip"
"""Advice where a training has diverged."""
OTHER_WEIGHTS = "Use other weights, for example an earlier checkpoint, or train again with a smaller train.lr"
"""Advice where trained weights give no numbers."""


@contextmanager
def section_errors(*sections: str) -> Iterator[None]:
    """Turn an error of the library about an argument into an error about the setting of the same name.

    Args:
        sections: Sections of the settings, such as "data", whose values are arguments in the block.

    Raises:
        UserError: The block raised an :class:`~scnf.errors.InvalidArgument` about a setting. Any other exception is a
            bug, and is raised unchanged.

    Example:
        >>> with section_errors("train"):
        ...     raise InvalidArgument("batch_size", "must be 1 or more, not 0")
        Traceback (most recent call last):
        ...
        scnf.errors.UserError: train.batch_size must be 1 or more, not 0
    """
    names = {
        name: f"{section}.{name}"
        for section in sections
        for name, argument in arguments_of(SECTIONS[section]).items()
        if PATH not in argument.notes  # files are read elsewhere, and the features of a layer are not data.features
    }
    try:
        yield
    except InvalidArgument as error:
        if error.argument in names:
            raise UserError(f"{names[error.argument]} {error.problem}") from error
        raise


@contextmanager
def setting_errors(recipe: Recipe, data: str) -> Iterator[None]:
    """Turn a model's error about an argument of its recipe, or about the data, into an error about settings.

    Args:
        recipe: Recipe of the model.
        data: Name of the data.

    Raises:
        UserError: The model raised an :class:`~scnf.errors.InvalidArgument` about an argument of the recipe, of the
            data or of the training. Any other exception is a bug, and is raised unchanged.
    """
    names = {name: f"model.{name}" for name in arguments_of(type(recipe))} | {"probabilities": "model.prior"}
    with section_errors("data", "train"):
        try:
            yield
        except InvalidArgument as error:
            if error.argument in names:
                raise UserError(f"{names[error.argument]} {error.problem}") from error
            if error.argument in ("shape", "levels", "inputs"):
                raise UserError(f"the recipe {recipe.name} does not take the data {data}: {error}") from error
            raise


@contextmanager
def not_finite_errors(advice: str) -> Iterator[None]:
    """Turn an error about numbers that are not finite into an error with advice on settings.

    Args:
        advice: Last sentence of the message, such as `SMALLER_STEPS`.

    Raises:
        UserError: The block raised :class:`~scnf.errors.NotFinite`. Any other exception is raised unchanged.
    """
    try:
        yield
    except NotFinite as error:
        raise UserError(f"{error}. {advice}") from error
