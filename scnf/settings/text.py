"""Write settings as YAML, all of them for a run or a single value for a message."""

import math
from typing import Any

import yaml

from scnf import strict_yaml
from scnf.settings.schema import SECTIONS, Settings, values_of

FORMAT = 3
"""The version of the settings file in a run. It stores all arguments of the recipe, unlike the formats of
:mod:`scnf.settings.format1`."""


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes texts such as 1e3, which :mod:`scnf.strict_yaml` reads as numbers and PyYAML does not."""


_Dumper.add_implicit_resolver(*strict_yaml.SCIENTIFIC)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))


def to_yaml(settings: Settings) -> str:
    """Return all settings as YAML that :func:`~scnf.settings.parse.load_settings` reads back.

    The YAML lists every argument of the recipe, so that a later change of defaults does not affect trained weights.
    Other settings that are None are left out.
    """
    values = values_of(settings)
    tree: dict[str, Any] = {"format": FORMAT}
    tree |= {name: value for name, value in values.items() if "." not in name and value is not None}
    for section in SECTIONS:
        leaves = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(section + ".")}
        tree[section] = {name: value for name, value in leaves.items() if value is not None or section == "model"}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def in_yaml(value: Any) -> str:
    """Return a value as one line of YAML, as the command line accepts it."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
