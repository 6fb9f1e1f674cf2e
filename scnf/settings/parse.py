"""Settings from a YAML file and from what is typed, in two stages.

The name of the recipe comes first: it decides which settings `model.*` there are. A name that nothing goes by is an
error with a suggestion; it is never dropped. On the command line a leaf that is unique may stand alone (`--epochs 3`
for `--train.epochs 3`), and a flag needs no value (`--compile`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scnf import files, strict_yaml
from scnf.arguments import PATH, Argument, converted, takes_none
from scnf.errors import InvalidArgument, UserError
from scnf.recipes import Recipe, recipe_of
from scnf.settings import format1, messages
from scnf.settings.schema import DEFAULT_RECIPE, SECTIONS, ModelSettings, Settings, leaves
from scnf.settings.text import FORMAT
from scnf.shipped import SHIPPED


def load_settings(config: Path | None, overrides: Sequence[str] = (), kept: bool = False) -> Settings:
    """Settings from a YAML file and what is typed; what is typed wins.

    Args:
        config: the YAML file, None for the defaults.
        overrides: command-line words, `--name value`.
        kept: whether the file is what a run keeps, or what lies beside weights. Then what it leaves out is as it was
            when the file was written, see :mod:`scnf.settings.format1`.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range.
        SystemExit: after `--help` or `--print_config`.

    Example:
        >>> load_settings(None, ["--epochs", "3", "--data.name", "digits"]).train.epochs
        3
    """
    source = "" if config is None else str(config)
    tree, by_hand = ({}, False) if config is None else _read(config, kept)
    typed = _words(overrides)
    recipe = _recipe(tree, typed, source)
    known = leaves(recipe)
    for name in tree:
        if name not in known:
            raise messages.unknown(name, source, known, recipe)
    typed = [replace(word, name=_full_name(word.name, known, recipe)) for word in typed]
    if any(word.name == "help" for word in typed):
        messages.print_help(recipe)
        raise SystemExit(0)
    values = {name: value for name, value in tree.items() if name != "model.recipe"}
    shown = [word.name for word in typed if word.name == "print_config"]
    values |= {word.name: _value(word, known) for word in typed if word.name not in ("model.recipe", "print_config")}
    given = {word.name for word in typed} | (tree.keys() if by_hand else set())
    settings = _settings(recipe, {name: _converted(name, value, known) for name, value in values.items()}, given)
    _check_together(settings)
    if shown:
        from scnf.settings.text import to_yaml

        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings


# --- the file


def _read(path: Path, kept: bool) -> tuple[dict[str, Any], bool]:
    """The settings in a file by their full names, which are today's; and whether somebody wrote them by hand."""
    try:
        tree = strict_yaml.read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if tree is None:
        raise UserError(f"the configuration {path} holds no settings: write some into it, or take config.yaml")
    if not isinstance(tree, dict):
        raise UserError(f"the configuration {path} must hold `name: value` lines, not a {type(tree).__name__}")
    number = tree.pop("format", 1 if kept else None)
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
    """A mapping of sections as one of full names."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in SECTIONS:
            values[str(key)] = value
        elif not isinstance(value, dict):
            raise UserError(f"{path}: {key} is a section; its settings go on indented lines under `{key}:`")
    for section in SECTIONS:
        for leaf, value in tree.get(section, {}).items():
            name = f"{section}.{leaf}"
            if name in values:
                raise UserError(f"{path}: {name} stands twice, as {name!r} and as {leaf!r} under {section!r}")
            values[name] = value
    return values


# --- what is typed


@dataclass(frozen=True)
class _Word:
    """One option: its name as it is typed, and its value; None where none is."""

    name: str
    text: str | None = None


def _words(argv: Sequence[str]) -> list[_Word]:
    """The options that are typed, each with its value."""
    found: list[_Word] = []
    open_ended = False
    for token in argv:
        if re.match(r"--?[A-Za-z]", token):
            name, equals, text = token.lstrip("-").partition("=")
            name = {"h": "help"}.get(name, name.replace("-", "_"))
            found.append(_Word(name, text if equals else None))
            open_ended = not equals and name not in ("help", "print_config")
        elif open_ended:
            found[-1] = replace(found[-1], text=token)
            open_ended = False
        else:
            hint = f"; a configuration as --config {token}" if token.endswith((".yaml", ".yml")) else ""
            raise UserError(f"{token!r} stands alone: settings are given as --name value{hint}")
    return found


def _recipe(tree: Mapping[str, Any], typed: Sequence[_Word], source: str) -> type[Recipe]:
    """The recipe that is asked for, the first stage."""
    names = [word.text for word in typed if word.name in ("recipe", "model.recipe")]
    try:
        return recipe_of(names[-1] or "" if names else tree.get("model.recipe", DEFAULT_RECIPE))
    except InvalidArgument as error:
        where = "" if names or not source else f"{source}: "
        raise UserError(f"{where}wrong setting: model.{error}") from error


def _full_name(name: str, known: Mapping[str, Argument], recipe: type[Recipe]) -> str:
    """The full name of a setting that may be typed by its last part."""
    if name in known or name in ("help", "print_config"):
        return name
    found = [leaf for leaf in known if leaf.rpartition(".")[2] == name]
    if len(found) != 1 or name in messages.OTHER_NAMES:
        raise messages.unknown(name, "command line", known, recipe)
    return found[0]


def _value(word: _Word, known: Mapping[str, Argument]) -> Any:
    """The value of an option: a flag is true, and lists are YAML."""
    if word.text is None:
        if known[word.name].kind is bool:
            return True
        if word.name == "pretrained":
            return SHIPPED
        raise UserError(f"command line: --{word.name} needs a value")
    if word.text == "null":
        return None
    if word.text.startswith(("[", "{")) and word.name not in ("pretrained", "runs.name"):
        try:
            return strict_yaml.parse(word.text)
        except ValueError:
            return word.text
    return word.text


# --- values


def _converted(name: str, value: Any, known: Mapping[str, Argument]) -> Any:
    """A value of the type of its setting (UserError)."""
    argument = known[name]
    if value is None and not takes_none(argument.kind):
        raise UserError(f"{name} needs a value, and null is none")
    if isinstance(value, str):
        if "\0" in value:
            raise UserError(f"{name} holds a character NUL, which no name has")
        if not value:
            raise UserError(f"{name} is empty: leave it out, or see whether a variable of the shell is not set")
    try:
        value = converted(argument.kind, value, name)
        return files.expand(value) if PATH in argument.notes and isinstance(value, str) else value
    except InvalidArgument as error:
        raise UserError(f"wrong setting: {error}") from error
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _settings(recipe: type[Recipe], values: Mapping[str, Any], given: set[str]) -> Settings:
    """The settings of these values; those that somebody has `given` must have an effect."""
    model = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("model.")}
    prior = {"prior": model.pop("prior")} if "prior" in model else {}
    try:
        built = recipe.of(**{name: value for name, value in model.items() if f"model.{name}" in given})
        parts: dict[str, Any] = {"model": ModelSettings(replace(built, **model), **prior)}
    except InvalidArgument as error:
        raise UserError(f"wrong setting: model.{error}") from error
    for section, kind in SECTIONS.items():
        if section != "model":
            here = {name.partition(".")[2]: v for name, v in values.items() if name.startswith(section + ".")}
            parts[section] = kind(**here)
    return Settings(**parts, **{name: value for name, value in values.items() if "." not in name})


def _check_together(settings: Settings) -> None:
    """Refuse settings that do not go with each other."""
    data, objective, train = settings.data, settings.objective, settings.train
    weighed = objective.kl_weight != 1 or objective.kl_warmup > 0
    if getattr(settings.model.recipe, "importance_samples", 1) > 1 and weighed:
        raise UserError(
            "the importance-weighted bound has no KL to weigh: set objective.kl_weight to 1 and objective.kl_warmup to "
            "0, or model.importance_samples to 1"
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
        raise UserError("train.adapt takes the shared flow of trained weights: say which with --pretrained [PATH]")
