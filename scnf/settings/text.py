"""Settings as text: the YAML that a run keeps, and a single value."""

import math
from typing import Any

import yaml

from scnf import strict_yaml
from scnf.settings.schema import SECTIONS, Settings, values_of

FORMAT = 3
"""The format of the settings that a run keeps. They hold all arguments of the recipe, see
:mod:`scnf.settings.format1`."""


class _Dumper(yaml.SafeDumper):
    """Quotes what :mod:`scnf.strict_yaml` would take for a number, and YAML's own rules would not: 1e3."""


_Dumper.add_implicit_resolver(*strict_yaml.SCIENTIFIC)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))


def to_yaml(settings: Settings) -> str:
    """All settings as YAML that :func:`~scnf.settings.parse.load_settings` reads back.

    The arguments of the recipe stand there each, so that weights do not hang on what the defaults are later. Other
    settings that are None are left out.
    """
    values = values_of(settings)
    tree: dict[str, Any] = {"format": FORMAT}
    tree |= {name: value for name, value in values.items() if "." not in name and value is not None}
    for section in SECTIONS:
        named = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(section + ".")}
        tree[section] = {name: value for name, value in named.items() if value is not None or section == "model"}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def in_yaml(value: Any) -> str:
    """A value as YAML on one line, as it may be typed."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
