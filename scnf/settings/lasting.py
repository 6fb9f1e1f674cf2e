"""Settings that stay for the whole of a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scnf.errors import UserError
from scnf.settings import format1
from scnf.settings.schema import MAY_CHANGE, Settings, leaves, values_of
from scnf.settings.text import FORMAT, in_yaml


def lasting(settings: Settings) -> dict[str, Any]:
    """The settings that stay for the whole of a run, by full name: all but `MAY_CHANGE`; and their `format`."""
    values = {name: value for name, value in values_of(settings).items() if name not in MAY_CHANGE}
    return {"format": FORMAT, **{name: _plain(value) for name, value in values.items()}}


def check_lasting(before: Mapping[str, Any], settings: Settings, run: Path) -> None:
    """Refuse settings that :func:`lasting` gives otherwise than a run has them.

    Args:
        before: what :func:`lasting` gave when the run was made.
        settings: those that it is to go on with.
        run: its directory, to say what to type.

    Raises:
        UserError: names the settings, the run's values and the new ones.
    """
    now, kept = lasting(settings), dict(before)
    if kept.pop("format", None) is None:
        kept = format1.complete(format1.renamed(kept, str(run)))
    # a version may have fewer settings than the next
    kept = {name: _plain(each.default) for name, each in leaves(type(settings.model.recipe)).items()} | kept
    changed = [name for name, value in now.items() if name != "format" and value != _plain(kept[name])]
    if not changed:
        return
    said = "; ".join(f"{name} is {in_yaml(kept[name])} in it, not {in_yaml(now[name])}" for name in changed)
    new = {"pretrained": str(run)} | {name: in_yaml(now[name]) for name in changed}
    words = shlex.join(["--config", str(run / "config.yaml"), *(w for name in new for w in (f"--{name}", new[name]))])
    raise UserError(f"a resume keeps the settings of its run: {said}. Leave that out, or start a new run: {words}")


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
