"""Read YAML safely and strictly, without duplicate keys, aliases and the surprising types of YAML 1.1."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from scnf.files import read_text


def read_yaml(path: Path) -> Any:
    """Read a YAML file safely and strictly.

    Numbers may be written as 1e3, dates stay text, and 0100 is not the octal number 64 of YAML 1.1. A duplicate key in
    a mapping is an error. So is an alias (`*name`), since a few lines of aliases can expand to gigabytes.

    Raises:
        OSError: the file cannot be read, see :func:`scnf.files.read_bytes`.
        ValueError: the content is not UTF-8 or not YAML, or has a duplicate key, an alias or brackets nested too deep.
    """
    return parse(read_text(path))


def parse(text: str) -> Any:
    """Parse a text by the rules of :func:`read_yaml`, and raise a ValueError where it breaks them.

    Example:
        >>> parse("[1e3, 0.5, 2001-01-01]")
        [1000.0, 0.5, '2001-01-01']
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except Exception as error:  # a tag with an unsuitable value may raise any exception
        raise ValueError(str(error)) from error


class _StrictLoader(yaml.SafeLoader):
    """YAML loader of :func:`read_yaml`."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = cast(yaml.SafeLoader, self).peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"write out what the alias *{event.anchor} stands for", event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            earlier = first.setdefault((key.tag, key.value), key)
            if earlier is not key:
                lines = f"lines {earlier.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands twice, in {lines}")
        return node


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = list("-+.0123456789")
SCIENTIFIC = "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+$"), _NUMBER
"""Resolver that reads 1e3 as a number, which YAML 1.1 reads as text."""
_StrictLoader.add_implicit_resolver(*SCIENTIFIC)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
    _NUMBER,
)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), _NUMBER)
