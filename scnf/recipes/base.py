"""Define a recipe as a dataclass that holds the arguments of a named architecture and builds the model."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from scnf.arguments import arguments_of, check_arguments, converted
from scnf.distributions import ClassPrior
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel
from scnf.registry import check_free

Shape = tuple[int, ...]  # shape of one input, (C, H, W) for an image or (D,) for a point


@dataclass(frozen=True)
class Recipe:
    """A recipe holds the arguments of an architecture, with their defaults, and builds the model from them.

    A recipe is a frozen dataclass under this one, with a docstring under each field. :func:`register_recipe` gives it a
    name. Its fields are the settings `model.*`. The type of a field says which values the field takes, see
    :mod:`scnf.arguments`.

    Attributes:
        name: Name of the recipe, as in `model.recipe`.

    Raises:
        InvalidArgument: A field does not take its value.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_arguments(self)

    @classmethod
    def of(cls, **arguments: Any) -> Self:
        """Return the recipe with these arguments in place of its defaults.

        Raises:
            InvalidArgument: The recipe does not take an argument, or an argument has no effect beside the others.
        """
        for name in arguments:
            if name not in arguments_of(cls):
                raise InvalidArgument(
                    name, f"is not an argument of {cls.name}, which takes {', '.join(arguments_of(cls))}"
                )
        recipe = cls(**arguments)
        values = vars(recipe)
        for name in arguments:
            argument = arguments_of(cls)[name]
            if not argument.has_effect(values) and values[name] != argument.default:
                assert argument.condition is not None
                other = argument.condition.other
                raise InvalidArgument(
                    name, f"has an effect with {argument.condition} alone, and {other} is {values[other]}: drop it"
                )
        return recipe

    def arguments(self) -> dict[str, Any]:
        """Return all arguments that have an effect, by name."""
        values = vars(self)
        return {name: values[name] for name, each in arguments_of(type(self)).items() if each.has_effect(values)}

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring, a summary for people who choose a recipe."""
        return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> JointModel:
        """Build the model, with weights drawn from torch's generator.

        Args:
            shape: Shape of one input, (C, H, W) or (D,).
            num_classes: Number of classes K.
            prior: Class prior p(y).
            levels: Number of grey levels of the data; None for points.

        Raises:
            InvalidArgument: The recipe does not take inputs of this shape, or its arguments do not fit the inputs.
        """
        raise NotImplementedError


RECIPES: dict[str, type[Recipe]] = {}
"""All recipes by name, to which :func:`register_recipe` adds new ones."""
_Recipe = TypeVar("_Recipe", bound=type[Recipe])


def register_recipe(name: str) -> Callable[[_Recipe], _Recipe]:
    """Return a decorator that registers a dataclass under :class:`Recipe` by a name.

    Raises:
        InvalidArgument: The name belongs to another recipe, or an argument has the name of a setting of all models.

    Example:
        >>> from scnf.recipes import ScnfFast
        >>> @register_recipe("scnf-narrow")
        ... @dataclass(frozen=True)
        ... class Narrow(ScnfFast):
        ...     '''scnf-fast with narrow networks.'''
        ...     channels: int = 8
        >>> build("scnf-narrow", (1, 8, 8), 10, levels=17).semantic_features
        64
        >>> del RECIPES["scnf-narrow"]
    """

    def register(recipe: _Recipe) -> _Recipe:
        check_free(RECIPES, name, "recipe")
        if clashes := {"recipe", "prior"} & arguments_of(recipe).keys():
            raise InvalidArgument(
                "recipe", f"must not have an argument {clashes.pop()!r}, which is a setting of all models"
            )
        recipe.name = name
        RECIPES[name] = recipe
        return recipe

    return register


def recipe_of(name: str) -> type[Recipe]:
    """Return the class of a recipe by its name.

    Raises:
        InvalidArgument: No recipe has this name.
    """
    if name not in RECIPES:
        matches = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise InvalidArgument("recipe", f"must be one of {', '.join(RECIPES)}; not {name!r}{hint}")
    return RECIPES[name]


def build(
    recipe: str | Recipe,
    shape: Sequence[int],
    num_classes: int,
    prior: ClassPrior | None = None,
    levels: int | None = 256,
    **arguments: Any,
) -> Any:
    """Build a model from its recipe.

    Args:
        recipe: Key of `RECIPES`, or a recipe with its arguments.
        shape: Shape of one input, (C, H, W), or (D,) for points.
        num_classes: Number of classes K.
        prior: Class prior p(y); uniform by default.
        levels: Number of grey levels of the data, which the first layer of flows and pixel likelihoods use; None for
            points.
        **arguments: Arguments of the named recipe, in place of its defaults.

    Returns:
        A :class:`scnf.models.base.JointModel`, which takes inputs of this shape alone.

    Raises:
        InvalidArgument: The recipe or an argument is unknown, or the recipe does not take this shape.

    Example:
        >>> model = build("scnf-digits", shape=(1, 8, 8), num_classes=10, levels=17)
        >>> model.semantic_features
        64
    """
    if isinstance(recipe, str):
        recipe = recipe_of(recipe).of(**arguments)
    elif arguments:
        raise InvalidArgument(
            "arguments", "must be set in the recipe itself, where a recipe is given in place of its name"
        )
    classes = converted(int, num_classes, "num_classes")
    sizes = tuple(converted(int, size, "shape") for size in shape)
    grey = converted(int | None, levels, "levels")
    model = recipe.build(sizes, classes, prior or ClassPrior(classes), grey)
    model.shape = sizes
    return model
