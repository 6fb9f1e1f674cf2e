"""Define a recipe as a dataclass that holds the arguments of a named architecture and builds the model."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from scnf.arguments import Range, arguments_of, check_arguments, check_kind, converted
from scnf.distributions import ClassPrior, make_prior
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel
from scnf.registry import put

Shape = tuple[int, ...]  # shape of one input, (C, H, W) for an image or (D,) for a point


@dataclass(frozen=True)
class Recipe:
    """A recipe holds all arguments of a model p(x, y), with their defaults, and builds the model from them.

    A recipe is a frozen dataclass under this one, with a docstring under each field. :func:`register_recipe` gives it a
    name. Its fields are the settings `model.*`. The type of a field says which values the field takes, see
    :mod:`scnf.arguments`.

    Attributes:
        name: Name of the recipe, as in `model.recipe`.

    Raises:
        InvalidArgument: A field does not take its value.
    """

    name: ClassVar[str] = ""
    prior: tuple[float, ...] | Literal["uniform", "empirical", "learned"] = "uniform"
    """Class prior p(y), which is uniform, empirical (of the visible labels), learned, or a list of K probabilities."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_arguments(self)

    @classmethod
    def from_arguments(cls, **arguments: Any) -> Self:
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
        values = recipe._values()
        for name in arguments:
            argument = arguments_of(cls)[name]
            if not argument.has_effect(values) and values[name] != argument.default:
                assert argument.condition is not None
                other = argument.condition.argument
                raise InvalidArgument(
                    name, f"has an effect with {argument.condition} alone, and {other} is {values[other]}: drop it"
                )
        return recipe

    def arguments(self) -> dict[str, Any]:
        """Return all arguments that have an effect, by name."""
        values = self._values()
        return {name: values[name] for name, each in arguments_of(type(self)).items() if each.has_effect(values)}

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in arguments_of(type(self))}

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring, a summary for people who choose a recipe."""
        text = (cls.__doc__ or "").strip()
        return "" if text.startswith(f"{cls.__name__}(") else text.partition("\n")[0].rstrip(".")  # dataclasses' own

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
        check_recipe(recipe)
        put(RECIPES, name, recipe, "recipe")
        recipe.name = name
        return recipe

    return register


def check_recipe(recipe: Any) -> None:
    """Refuse a class that is no recipe, or whose arguments could not be set or kept (InvalidArgument)."""
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise InvalidArgument("recipe", f"must be a class under scnf.recipes.Recipe, not {recipe!r}")
    if vars(recipe).get("name") in RECIPES:
        raise InvalidArgument("recipe", f"is {recipe.name} already: register a class under it")
    declared = set(vars(recipe).get("__annotations__", {}))
    fields = {each.name: each for each in dataclasses.fields(recipe)}
    if "__dataclass_params__" not in vars(recipe) or not declared <= fields.keys():
        raise InvalidArgument(
            recipe.__name__, "must be a dataclass: write @dataclass(frozen=True) between @register_recipe and the class"
        )
    for name, field in fields.items():
        if name in ("recipe", "name") or any(callable(vars(base).get(name)) for base in recipe.__mro__[1:]):
            raise InvalidArgument(name, "is no name for an argument: choose another, for models have it already")
        if not field.init or (field.default is MISSING and field.default_factory is MISSING):
            raise InvalidArgument(name, "must be an argument with a default")
    for name, argument in arguments_of(recipe).items():
        check_kind(name, argument.kind)
        if name == "prior" and argument.kind != arguments_of(Recipe)[name].kind:
            raise InvalidArgument(name, "must keep its type, for it is the class prior of all models")
        if argument.condition and argument.condition.argument not in fields:
            raise InvalidArgument(name, f"has an effect with {argument.condition} alone, which is no argument")
        if argument.default == "":
            raise InvalidArgument(name, "must not be empty by default: None says that there is no text")
    recipe()  # checks the defaults


def recipe_of(name: str) -> type[Recipe]:
    """Return the class of a recipe by its name.

    Raises:
        InvalidArgument: No recipe has this name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        matches = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise InvalidArgument("recipe", f"must be one of {', '.join(RECIPES)}; not {name!r}{hint}")
    return RECIPES[name]


def build(
    recipe: str | Recipe,
    shape: Sequence[int],
    num_classes: int,
    prior: ClassPrior | str | Sequence[float] | None = None,
    levels: int | None = 256,
    **arguments: Any,
) -> Any:
    """Build a model from its recipe.

    Args:
        recipe: Key of `RECIPES`, or a recipe with its arguments.
        shape: Shape of one input, (C, H, W), or (D,) for points.
        num_classes: Number of classes K.
        prior: Class prior p(y), or the argument `prior` of the named recipe.
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
    if prior is not None and not isinstance(prior, ClassPrior):
        arguments["prior"], prior = prior, None
    if isinstance(recipe, Recipe):
        if arguments:
            raise InvalidArgument("arguments", "must be empty, as the recipe holds its own: name it in place of that")
    else:
        recipe = recipe_of(recipe).from_arguments(**arguments)
    sizes = _shape(shape)
    classes = converted(Annotated[int, Range(1, 10**6)], num_classes, "num_classes")
    grey_levels = converted(Annotated[int, Range(2, 2**16)] | None, levels, "levels")
    prior = make_prior(recipe.prior, classes) if prior is None else prior
    if len(prior.logits) != classes:
        raise InvalidArgument("prior", f"must be a ClassPrior over {classes} classes, not over {len(prior.logits)}")
    model = recipe.build(sizes, classes, prior, grey_levels)
    if not isinstance(model, JointModel):
        raise InvalidArgument("recipe", f"must build a JointModel, and {recipe.name} builds {type(model).__name__}")
    model.shape = sizes
    return model


def _shape(shape: Any) -> Shape:
    """Return the shape of an input as a tuple (InvalidArgument)."""
    try:
        sizes = () if isinstance(shape, str) else tuple(shape)
    except TypeError:
        sizes = ()
    if len(sizes) not in (1, 3):
        raise InvalidArgument("shape", f"must be (C, H, W) of an image or (D,) of a point, not {shape!r}")
    return tuple(converted(Annotated[int, Range(1, 10**9)], size, "shape") for size in sizes)
