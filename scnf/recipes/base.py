"""A recipe: a named architecture as a dataclass that holds its arguments and builds the model."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from scnf.arguments import arguments_of, check_arguments, converted
from scnf.distributions import ClassPrior
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel
from scnf.registry import check_free

Shape = tuple[int, ...]  # of one input: (C, H, W) of an image, (D,) of a point


@dataclass(frozen=True)
class Recipe:
    """The arguments of an architecture, with their defaults; `build` makes the model of them.

    A recipe is a frozen dataclass under this one, with a docstring under each field, that
    :func:`register_recipe` gives a name. Its fields are its settings `model.*`. The type of a field says which values
    it takes, see :mod:`scnf.arguments`.

    Attributes:
        name: of the recipe, as in `model.recipe`.

    Raises:
        InvalidArgument: a value that its field does not take.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_arguments(self)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The recipe with `given` in place of its defaults.

        Raises:
            InvalidArgument: an argument that the recipe does not take, or that has no effect beside the others.
        """
        for name in given:
            if name not in arguments_of(cls):
                raise InvalidArgument(name, f"is no argument of {cls.name}; it takes {', '.join(arguments_of(cls))}")
        recipe = cls(**given)
        values = vars(recipe)
        for name in given:
            argument = arguments_of(cls)[name]
            if not argument.has_effect(values) and values[name] != argument.default:
                assert argument.condition is not None
                other = argument.condition.other
                raise InvalidArgument(
                    name, f"has an effect with {argument.condition} alone, and {other} is {values[other]}: drop it"
                )
        return recipe

    def arguments(self) -> dict[str, Any]:
        """All arguments that have an effect, by name."""
        values = vars(self)
        return {name: values[name] for name, each in arguments_of(type(self)).items() if each.has_effect(values)}

    @classmethod
    def summary(cls) -> str:
        """One line for people who choose: the first of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> JointModel:
        """Build the model, with weights that torch's generator decides.

        Args:
            shape: of one input, (C, H, W) or (D,).
            num_classes: K.
            prior: p(y).
            levels: number of grey levels of the data, None for points.

        Raises:
            InvalidArgument: the recipe does not take such inputs, or its arguments do not fit them.
        """
        raise NotImplementedError


RECIPES: dict[str, type[Recipe]] = {}
"""The recipes by name; :func:`register_recipe` adds one."""
_Recipe = TypeVar("_Recipe", bound=type[Recipe])


def register_recipe(name: str) -> Callable[[_Recipe], _Recipe]:
    """Give a recipe its name: a decorator of a dataclass under :class:`Recipe`.

    Raises:
        InvalidArgument: the name belongs to another recipe.

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
        if taken := {"recipe", "prior"} & arguments_of(recipe).keys():
            raise InvalidArgument("recipe", f"has an argument {taken.pop()!r}, which is another setting of models")
        recipe.name = name
        RECIPES[name] = recipe
        return recipe

    return register


def recipe_of(name: str) -> type[Recipe]:
    """The class of a recipe.

    Raises:
        InvalidArgument: there is no such recipe.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
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
    """Build a model by its recipe.

    Args:
        recipe: a key of `RECIPES`, or a recipe with its arguments.
        shape: shape of one input: (C, H, W), or (D,) for points.
        num_classes: K.
        prior: p(y); uniform by default.
        levels: grey levels of the data, None for points; what the first layer of flows and pixel likelihoods speak of.
        **arguments: of the recipe that is named, in place of its defaults.

    Returns:
        a :class:`scnf.models.base.JointModel`, which takes inputs of this shape alone.

    Raises:
        InvalidArgument: an unknown recipe or argument, or a shape that the recipe does not take.

    Example:
        >>> model = build("scnf-digits", shape=(1, 8, 8), num_classes=10, levels=17)
        >>> model.semantic_features
        64
    """
    if isinstance(recipe, str):
        recipe = recipe_of(recipe).of(**arguments)
    elif arguments:
        raise InvalidArgument("arguments", "go into the recipe, where one is given in place of a name")
    classes = converted(int, num_classes, "num_classes")
    sizes = tuple(converted(int, size, "shape") for size in shape)
    grey = converted(int | None, levels, "levels")
    model = recipe.build(sizes, classes, prior or ClassPrior(classes), grey)
    model.shape = sizes
    return model
