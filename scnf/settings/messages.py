"""What people read about settings: help, and the answer to a name that nothing goes by."""

import argparse
import difflib
import textwrap
from collections.abc import Mapping
from typing import Any

from scnf.arguments import Argument, arguments_of, docs_of, in_words
from scnf.errors import UserError
from scnf.recipes import RECIPES, Recipe
from scnf.settings.schema import SECTIONS, Settings
from scnf.settings.text import in_yaml

OTHER_NAMES = {
    "supervised": "data.num_labels",
    "sup_weight": "objective.labelled_weight",
    "cl_weight": "objective.classifier_weight",
    "sup_sample_weight": "data.labelled_share (a weight w is a share of w / (1 + w))",
    "train_bs": "train.batch_size",
    "learning_rate": "train.lr",
    "dataset": "data.name",
    "ssl_seed": "data.data_seed",
    "distortion": "objective.neighbours (distortion)",
    "self_training": "objective.neighbours (self-training), with objective.self_training_networks,",
}
"""Names that people know from other projects or earlier versions, and the setting to use here."""


def unknown(name: str, source: str, known: Mapping[str, Argument], recipe: type[Recipe]) -> UserError:
    """The answer to a name that no setting has beside a recipe.

    Args:
        name: as it is given.
        source: where.
        known: all settings by full name.
        recipe: whose arguments are among them.
    """
    short = name.rpartition(".")[2]
    if short in OTHER_NAMES:
        return UserError(f"{source}: {name!r} is called {OTHER_NAMES[short]} here")
    exact = [leaf for leaf in known if leaf.rpartition(".")[2] == short]
    others = [each for each, kind in RECIPES.items() if short in arguments_of(kind)]
    if others and not exact and name in (short, f"model.{short}"):
        return UserError(
            f"{source}: the recipe {recipe.name} takes no argument {short!r}; {', '.join(others[:4])} "
            f"{'does' if len(others) == 1 else 'do'}. Drop it, or set model.recipe"
        )
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    close += [leaf for leaf in known if difflib.get_close_matches(short, [leaf.rpartition(".")[2]], cutoff=0.7)]
    suggestions = list(dict.fromkeys(exact or close))[:3]
    hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else "--help lists all settings"
    return UserError(f"{source}: there is no setting {name!r}; {hint}")


def entries(kind: type) -> list[tuple[Argument, str, str]]:
    """Each argument of a dataclass with what it may be, and with its documentation and default, in words."""
    docs, found = docs_of(kind), []
    for name, argument in arguments_of(kind).items():
        if name in SECTIONS:
            continue
        may_be = in_words(argument.kind, ranges=True)
        effect = f" Has an effect with {argument.condition} alone." if argument.condition else ""
        default = "none" if argument.default is None else in_yaml(_plain(argument.default))
        found.append((argument, may_be, f"{docs.get(name, '')}{effect} Default: {default}"))
    return found


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Recipe) else list(value) if isinstance(value, tuple) else value


def describe(recipe: type[Recipe]) -> str:
    """A recipe on a page: what it is, and its arguments."""
    paragraphs = [f"{recipe.name}: {recipe.summary()}", ""]
    for argument, may_be, text in entries(recipe):
        paragraphs.append(f"  {argument.name}: {may_be}")
        paragraphs += textwrap.wrap(
            text, 112, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join(paragraphs)


def print_help(recipe: type[Recipe]) -> None:
    """Print the options of a training with that recipe."""
    parser = argparse.ArgumentParser(
        prog="scnf train",
        usage="%(prog)s [--config config.yaml] [--section.setting VALUE ...] [--pretrained [PATH]] [--resume RUN]",
        description="Train a semi-supervised model. Also called as `python train_flow_ssl.py`.",
        epilog="A setting whose last part is unique may be given by that part alone: --epochs 3.",
        add_help=False,
        allow_abbrev=False,
    )
    own = parser.add_argument_group("options")
    own.add_argument("--help", action="store_true", help="Print this, with the arguments of the recipe that is chosen.")
    own.add_argument("--config", metavar="FILE", help="YAML file, looked up as given, then in configs/.")
    own.add_argument("--resume", metavar="RUN", help="Continue a run, with its settings.")
    own.add_argument("--import", metavar="FILE", help="Python file that registers parts of your own.")
    own.add_argument("--trust-parts", action="store_true", help="Run the parts that a run of somebody else holds.")
    own.add_argument("--print_config", action="store_true", help="Print all settings as YAML.")
    groups = {"": (own, Settings)} | {
        name: (parser.add_argument_group(name, kind.__doc__), kind) for name, kind in SECTIONS.items()
    }
    for section, (group, kind) in groups.items():
        _add(group, section, entries(kind))
    _add(
        parser.add_argument_group(f"model, of the recipe {recipe.name}", recipe.summary() + "."),
        "model",
        entries(recipe),
    )
    print(parser.format_help(), end="")


def _add(group: Any, section: str, found: list[tuple[Argument, str, str]]) -> None:
    for argument, may_be, text in found:
        name = f"{section}.{argument.name}" if section else argument.name
        group.add_argument(f"--{name}", metavar=f"({may_be})", help=text.replace("%", "%%"))
