"""Parse settings from a YAML file and from the command line, in two stages.

The first stage reads the recipe, which decides the settings `model.*`. The second stage reads all values. An unknown
name is never ignored: it is an error with a suggestion. On the command line, the last part of a name is enough where it
is unique (`--epochs 3` for `--train.epochs 3`). A flag needs no value (`--compile`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scnf import files, strict_yaml
from scnf.arguments import PATH, Argument, arguments_of, converted, takes_none
from scnf.errors import InvalidArgument, UserError
from scnf.recipes import RECIPES, Recipe, recipe_of
from scnf.settings import format1, messages
from scnf.settings.schema import DEFAULT_RECIPE, NEVER_SHORT, SECTIONS, RunSettings, Settings, leaves
from scnf.settings.text import FORMAT, to_yaml
from scnf.shipped import SHIPPED


def load_settings(config: Path | None, overrides: Sequence[str] = (), from_run: bool = False) -> Settings:
    """Load settings from a YAML file and from overrides, which take precedence.

    Args:
        config: Path of the YAML file, None for the defaults.
        overrides: Command-line words, `--name value`.
        from_run: Whether the file comes from a run or lies beside weights. Settings that it leaves out then take the
            defaults of the format in which it was written, see :mod:`scnf.settings.format1`.

    Raises:
        UserError: A name is unknown, or a value has a wrong type or is out of range.
        SystemExit: The overrides hold `--help` or `--print_config`, and the text is printed.

    Example:
        >>> load_settings(None, ["--epochs", "3", "--data.name", "digits"]).train.epochs
        3
    """
    source = "" if config is None else str(config)
    tree, is_manual = ({}, False) if config is None else _read(config, from_run)
    options = _options(overrides)
    recipe = _recipe(tree, options, source)
    known = leaves(recipe)
    for name in tree:
        if name not in known:
            raise messages.unknown(name, source, known, recipe)
    options = [replace(option, name=_full_name(option.name, known, recipe)) for option in options]
    if any(option.name == "help" for option in options):
        messages.print_help(recipe)
        raise SystemExit(0)
    values = {name: value for name, value in tree.items() if name != "model.recipe"}
    no_values = ("model.recipe", "print_config")
    typed = {option.name: _value(option, known) for option in options if option.name not in no_values}
    places = {name: f"{source}: " for name in values if name not in typed}
    values |= typed
    explicit = {option.name for option in options} | (tree.keys() if is_manual else set())
    converted = {name: _converted(name, value, known, places.get(name, "")) for name, value in values.items()}
    settings = _settings(recipe, converted, explicit, places)
    _check_together(settings)
    if any(option.name == "print_config" for option in options):
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings


def runs_root(overrides: Sequence[str]) -> Path:
    """Return the directory of all runs, by the command-line words alone.

    A resume needs it before it knows the settings of its run.
    """
    texts = [option.text for option in _options(overrides) if option.name == "runs.root"]
    return Path(files.expand(texts[-1] or "") if texts else RunSettings().root)


def without_arguments(overrides: Sequence[str]) -> list[str]:
    """Return command-line words without arguments of the recipe, which is still to be chosen, and `--print_config`.

    Raises:
        UserError: A name is neither a setting nor an argument of the recipe, or of any recipe where none is named.

    Example:
        >>> without_arguments(["--epochs", "3", "--model.semantic_share", "0.5", "--print_config"])
        ['--train.epochs=3']
    """
    options = _options(overrides)
    recipe = _recipe({}, options, "")
    is_named = any(option.name in ("recipe", "model.recipe") for option in options)
    arguments = {name for kind in ([recipe] if is_named else RECIPES.values()) for name in leaves(kind)}
    words = []
    for option in options:
        if option.name not in arguments and f"model.{option.name}" not in arguments:
            name = _full_name(option.name, leaves(recipe), recipe)
        else:
            name = option.name if option.name in arguments else f"model.{option.name}"
        if name != "print_config" and (name == "model.recipe" or not name.startswith("model.")):
            words.append(f"--{name}" if option.text is None else f"--{name}={option.text}")
    return words


# --- the file


def _read(path: Path, from_run: bool) -> tuple[dict[str, Any], bool]:
    """Return the settings of a file by their full names of today, and whether a person wrote the file."""
    try:
        tree = strict_yaml.read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if tree is None:
        raise UserError(f"the configuration {path} holds no settings: add some, or use config.yaml")
    if not isinstance(tree, dict):
        raise UserError(f"the configuration {path} must hold `name: value` lines, not a {type(tree).__name__}")
    from_run = from_run or path.with_name("split.json").is_file()  # a run, or shipped weights
    number = tree.pop("format", 1 if from_run else None)
    if number is not None and (type(number) is not int or not 1 <= number <= FORMAT):
        raise UserError(
            f"{path}: format must be a whole number from 1 to {FORMAT}, not {number!r}; a newer version of scnf may "
            "have written the file"
        )
    values = _flat(tree, path)
    if number is None or number == 1:
        values = format1.renamed(values, str(path))
    return format1.complete(values) if number is not None and number < 3 else values, number is None


def _flat(tree: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Return a mapping of sections as a mapping of full names."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in SECTIONS:
            values[str(key)] = value
        elif not isinstance(value, dict):
            raise UserError(f"{path}: {key} is a section; put its settings on indented lines under `{key}:`")
    for section in SECTIONS:
        for leaf, value in tree.get(section, {}).items():
            name = f"{section}.{leaf}"
            if name in values:
                raise UserError(
                    f"{path}: {name} is set twice, as {name!r} and as {leaf!r} under {section!r}; remove one of them"
                )
            values[name] = value
    return values


# --- the command line


@dataclass(frozen=True)
class _Option:
    """One option of the command line, with its text or None."""

    name: str
    text: str | None = None


def _options(argv: Sequence[str]) -> list[_Option]:
    """Return the options of the command line."""
    options: list[_Option] = []
    open_ended = False
    for token in argv:
        if re.match(r"--?[A-Za-z]", token):
            name, equals, text = token.lstrip("-").partition("=")
            name = {"h": "help"}.get(name, name.replace("-", "_"))
            options.append(_Option(name, text if equals else None))
            open_ended = not equals and name not in ("help", "print_config")
        elif open_ended:
            options[-1] = replace(options[-1], text=token)
            open_ended = False
        else:
            hint = f"; a configuration as --config {token}" if token.endswith((".yaml", ".yml")) else ""
            raise UserError(f"{token!r} stands alone: settings are given as --name value{hint}")
    return options


def _recipe(tree: Mapping[str, Any], options: Sequence[_Option], source: str) -> type[Recipe]:
    """Return the recipe of the settings, which is the first stage."""
    names = [option.text for option in options if option.name in ("recipe", "model.recipe")]
    try:
        return recipe_of(names[-1] or "" if names else tree.get("model.recipe", DEFAULT_RECIPE))
    except InvalidArgument as error:
        where = "" if names or not source else f"{source}: "
        raise UserError(f"{where}wrong setting: model.{error}; a recipe of your own needs --import FILE") from error


def _full_name(name: str, known: Mapping[str, Argument], recipe: type[Recipe]) -> str:
    """Return the full name of a setting, which the command line may shorten to its last part."""
    if name in known or name in ("help", "print_config"):
        return name
    matches = [leaf for leaf in known if leaf.rpartition(".")[2] == name and leaf not in NEVER_SHORT]
    if len(matches) != 1 or name in messages.OTHER_NAMES:
        raise messages.unknown(name, "command line", known, recipe)
    return matches[0]


def _value(option: _Option, known: Mapping[str, Argument]) -> Any:
    """Return the value of an option, in which a flag is true and lists are YAML."""
    if option.text is None:
        if known[option.name].plain is bool:
            return True
        if option.name == "pretrained":
            return SHIPPED
        raise UserError(f"command line: --{option.name} needs a value")
    if option.text == "null":
        return None
    if option.text.startswith(("[", "{")) and option.name not in ("pretrained", "runs.name"):
        try:
            return strict_yaml.parse(option.text)
        except ValueError:
            return option.text
    return option.text


# --- values


def _converted(name: str, value: Any, known: Mapping[str, Argument], place: str) -> Any:
    """Convert a value to the type of its setting (UserError); `place` is the file that holds it, for the message."""
    argument = known[name]
    if value is None and not takes_none(argument.kind):
        raise UserError(f"{place}{name} needs a value: replace null, or leave the setting out")
    if isinstance(value, str):
        if "\0" in value:
            raise UserError(f"{place}{name} contains a NUL character: remove it")
        if not value:
            raise UserError(f"{place}{name} is empty: leave it out, or set the shell variable that should fill it")
    try:
        value = converted(argument.kind, value, name)
        return files.expand(value) if PATH in argument.notes and isinstance(value, str) else value
    except InvalidArgument as error:
        raise UserError(f"{place}wrong setting: {error}") from error
    except UserError as error:
        raise UserError(f"{place}{name}: {error}") from error


def _settings(
    recipe: type[Recipe], values: Mapping[str, Any], explicit: set[str], places: Mapping[str, str]
) -> Settings:
    """Return the settings of these values. Settings that the user set, which `explicit` names, must have an effect.

    A message begins with the place of a value, where `places` has one.
    """
    model = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("model.")}
    try:
        instance = recipe.from_arguments(
            **{name: value for name, value in model.items() if f"model.{name}" in explicit}
        )
        sections: dict[str, Any] = {"model": replace(instance, **model)}
    except InvalidArgument as error:
        place = places.get(f"model.{error.argument}", "")
        raise UserError(f"{place}wrong setting: model.{error}") from error
    for section, kind in SECTIONS.items():
        if section != "model":
            fields = {name.partition(".")[2]: v for name, v in values.items() if name.startswith(section + ".")}
            sections[section] = kind(**fields)
            _check_effects(section, sections[section], explicit, places)
    return Settings(**sections, **{name: value for name, value in values.items() if "." not in name})


def _check_effects(section: str, instance: Any, explicit: set[str], places: Mapping[str, str]) -> None:
    """Refuse settings that the user changed and that have no effect beside the others (UserError)."""
    arguments = arguments_of(type(instance))
    values = {name: getattr(instance, name) for name in arguments}
    for name, argument in arguments.items():
        if not argument.has_effect(values) and f"{section}.{name}" in explicit and values[name] != argument.default:
            assert argument.condition is not None
            place = places.get(f"{section}.{name}", "")
            raise UserError(
                f"{place}wrong setting: {section}.{name} has an effect with {section}.{argument.condition} alone, and "
                f"{argument.condition.argument} is {values[argument.condition.argument]}: drop it"
            )


def _check_together(settings: Settings) -> None:
    """Refuse combinations of settings that contradict each other."""
    data, objective, train = settings.data, settings.objective, settings.train
    if data.num_validation == 0 and train.select != "last":
        raise UserError("there are no validation rows to select weights by: set train.select to last")
    has_kl_weight = objective.kl_weight != 1 or objective.kl_warmup > 0
    if getattr(settings.model, "importance_samples", 1) > 1 and has_kl_weight:
        raise UserError(
            "the importance-weighted bound has no KL term to weight: set objective.kl_weight to 1 and "
            "objective.kl_warmup to 0, or model.importance_samples to 1"
        )
    if objective.propagations and not data.num_labels:
        raise UserError("there are no labels to propagate: set data.num_labels above 0, or objective.propagations to 0")
    if objective.propagations and data.labelled_share == 1:
        raise UserError(
            "batches have no unlabelled rows for propagated labels: set data.labelled_share below 1, or "
            "objective.propagations to 0"
        )
    if objective.consistency_weight and data.labelled_share == 1:
        raise UserError(
            "batches have no unlabelled rows to take views of: set data.labelled_share below 1, or "
            "objective.consistency_weight to 0"
        )
    if train.adapt and not settings.pretrained:
        raise UserError("train.adapt needs the shared flow of trained weights: name them with --pretrained [PATH]")
