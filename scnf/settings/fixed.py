"""Compare the settings that are fixed for the whole of a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scnf.arguments import TRAINING, arguments_of
from scnf.errors import UserError
from scnf.recipes import ClassConditionalPart
from scnf.settings import format1
from scnf.settings.schema import MAY_CHANGE, Settings, leaves, values_of
from scnf.settings.text import FORMAT, in_yaml


def fixed_settings(settings: Settings) -> dict[str, Any]:
    """Return the fixed settings of a run by full name, which are all but `MAY_CHANGE`, and their `format`."""
    values = {name: value for name, value in values_of(settings).items() if name not in MAY_CHANGE}
    return {"format": FORMAT, **{name: _plain(value) for name, value in values.items()}}


def check_fixed_settings(before: Mapping[str, Any], settings: Settings, run: Path) -> None:
    """Refuse a resume whose settings differ from the fixed settings of its run.

    Args:
        before: Result of :func:`fixed_settings` when the run was created.
        settings: Settings of the resume.
        run: Run directory, for the command in the message.

    Raises:
        UserError: The settings differ. The message names them with the run's values and the new values.
    """
    after, stored = fixed_settings(settings), dict(before)
    if stored.pop("format", None) is None:
        stored = format1.complete(format1.renamed(stored, str(run)))
    # an earlier version may not know every setting of today
    defaults = {name: _plain(argument.default) for name, argument in leaves(type(settings.model)).items()}
    stored = defaults | stored
    changed = [name for name, value in after.items() if name != "format" and value != _plain(stored[name])]
    if not changed:
        return
    changes = "; ".join(f"{name} is {in_yaml(stored[name])} in it, not {in_yaml(after[name])}" for name in changed)
    options = {"pretrained": str(run)} | {name: in_yaml(after[name]) for name in changed}
    pairs = (word for name, value in options.items() for word in (f"--{name}", value))
    words = shlex.join(["--config", str(run / "config.yaml"), *pairs])
    raise UserError(
        f"a resume keeps the settings of its run: {changes}. Leave the change out, or start a new run: {words}"
    )


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def check_model(trained: Settings, settings: Settings, directory: Path) -> None:
    """Refuse settings under which the weights of `directory` have the right shapes but compute another function.

    With `train.adapt`, the class-conditional part may change.
    """
    recipe = type(settings.model)
    if trained.model.name != recipe.name:
        return  # loading the weights then compares shapes
    before, now = trained.model.arguments(), settings.model.arguments()
    adapted = arguments_of(ClassConditionalPart) if settings.train.adapt else {}
    for name, value in now.items():
        may_change = TRAINING in arguments_of(recipe)[name].notes or name in adapted
        may_change |= name == "prior" and "learned" in (value, before.get(name))  # from the prior of the weights on
        if before.get(name, value) != value and not may_change:
            raise UserError(
                f"model.{name} is {before[name]} in {directory}, not {value}: with it the weights make another model. "
                f"Set it to {before[name]}, or train a new model"
            )
