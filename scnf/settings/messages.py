"""Print the help of the settings, and suggest the right name for an unknown setting."""

import argparse
import difflib
import textwrap
from collections.abc import Mapping
from typing import Any

from scnf.arguments import Argument, arguments_of, field_docs, in_words
from scnf.errors import UserError
from scnf.recipes import RECIPES, Recipe
from scnf.settings.schema import RECIPE, SECTIONS, Settings
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
"""Names from other projects or earlier versions, each with its setting in scnf."""


def unknown(name: str, source: str, known: Mapping[str, Argument], recipe: type[Recipe]) -> UserError:
    """Return the error for an unknown setting, with a suggestion.

    Args:
        name: Name that is not a setting.
        source: File or command line that holds the name.
        known: All settings by full name.
        recipe: Recipe whose arguments are among the settings.
    """
    short = name.rpartition(".")[2]
    if short in OTHER_NAMES:
        return UserError(f"{source}: {name!r} is called {OTHER_NAMES[short]} here")
    exact = [leaf for leaf in known if leaf.rpartition(".")[2] == short]
    others = [other for other, kind in RECIPES.items() if short in arguments_of(kind)]
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


Entry = tuple[Argument, str, str]
"""An argument with its allowed values, and with its documentation and default."""


def entries(kind: type) -> list[Entry]:
    """Return the entry of each argument of a dataclass."""
    docs, arguments = field_docs(kind), arguments_of(kind)
    return [_entry(argument, docs.get(name, "")) for name, argument in arguments.items() if name not in SECTIONS]


def model_entries(recipe: type[Recipe]) -> list[Entry]:
    """Return the entries of the settings `model.*`, which are the name of the recipe and its arguments."""
    doc = "Recipe of the model. `scnf recipes` lists all recipes, and `scnf recipes NAME` prints the arguments of one."
    return [_entry(RECIPE, doc), *entries(recipe)]


def _entry(argument: Argument, doc: str) -> Entry:
    effect = f" It has an effect only with {argument.condition}." if argument.condition else ""
    default = "none" if argument.default is None else in_yaml(argument.default)
    return argument, in_words(argument.kind, ranges=True), f"{doc}{effect} Default: {default}"


def describe(recipe: type[Recipe]) -> str:
    """Return the summary and the arguments of a recipe as text."""
    paragraphs = [f"{recipe.name}: {recipe.summary()}", ""]
    for argument, allowed, text in entries(recipe):
        paragraphs.append(f"  {argument.name}: {allowed}")
        paragraphs += textwrap.wrap(
            text, 112, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join(paragraphs)


def print_help(recipe: type[Recipe]) -> None:
    """Print the options of a training with a recipe."""
    parser = argparse.ArgumentParser(
        prog="scnf train",
        usage="%(prog)s [FOLDER] [--config config.yaml] [--section.setting VALUE ...] [--pretrained [PATH]] "
        "[--resume RUN]",
        description="Train a semi-supervised model. `python train_flow_ssl.py` is the same command.",
        epilog="The last part of a setting's name is enough where it is unique: --epochs 3. FOLDER holds images of "
        "your own; a CSV list of images or an .npz file may stand in its place. Without --config, the settings are "
        "chosen for these data.",
        add_help=False,
        allow_abbrev=False,
    )
    options = parser.add_argument_group("options")
    options.add_argument("--help", action="store_true", help="Print this help, with the arguments of the recipe.")
    options.add_argument("--config", metavar="FILE", help="YAML file, given by its path or by its name in configs/.")
    options.add_argument("--resume", metavar="RUN", help="Continue a run, with its settings.")
    options.add_argument("--import", metavar="FILE", help="Run a Python file that registers your own parts.")
    options.add_argument("--trust-parts", action="store_true", help="Run the parts of a run that somebody else made.")
    options.add_argument("--print_config", action="store_true", help="Print all settings as YAML.")
    _add(options, "", entries(Settings))
    for section, kind in SECTIONS.items():
        if section == "model":
            group = parser.add_argument_group(f"model, of the recipe {recipe.name}", recipe.summary() + ".")
            _add(group, section, model_entries(recipe))
        else:
            _add(parser.add_argument_group(section, kind.__doc__), section, entries(kind))
    print(parser.format_help(), end="")


def _add(group: Any, section: str, rows: list[Entry]) -> None:
    for argument, allowed, text in rows:
        name = f"{section}.{argument.name}" if section else argument.name
        group.add_argument(f"--{name}", metavar=f"({allowed})", help=text.replace("%", "%%"))
