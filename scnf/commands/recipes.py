"""Run `scnf recipes`, which prints all recipes or the arguments of one."""

from collections.abc import Sequence

from scnf.commands import options
from scnf.errors import InvalidArgument, UserError


def recipes(words: Sequence[str]) -> int:
    """Print one line for each recipe, or the arguments of one recipe with their defaults and documentation."""
    parser = options.Parser(
        prog="scnf recipes", description="List all recipes. `scnf recipes NAME` prints the arguments of one recipe."
    )
    parser.add_argument("name", nargs="?", help="a recipe")
    arguments = parser.parse_args(list(words))

    from scnf.recipes import RECIPES, recipe_of
    from scnf.settings.messages import describe

    if arguments.name is None:
        width = max(map(len, RECIPES))
        for name, recipe in RECIPES.items():
            print(f"{name:<{width}}  {recipe.summary()}")
        return 0
    try:
        print(describe(recipe_of(arguments.name)))
    except InvalidArgument as error:
        raise UserError(str(error)) from error
    return 0
