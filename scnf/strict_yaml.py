"""YAML, read safely and strictly: what a file says twice, or in a way that YAML 1.1 alone understands, is an error."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from scnf.files import read_text


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, loaded safely and strictly.

    Numbers may be written as 1e3, dates are text, and 0100 is not YAML's octal 64. A key that stands twice in a mapping
    is an error, and so is an alias (`*name`), by which a few lines can stand for gigabytes.

    Raises:
        OSError: as of :func:`scnf.files.read_bytes`.
        ValueError: no UTF-8, no YAML, a key twice, an alias, or brackets that are nested too deep.
    """
    return parse(read_text(path))


def parse(text: str) -> Any:
    """What a text says, by the rules of :func:`read_yaml` (ValueError).

    Example:
        >>> parse("[1e3, 0.5, 2001-01-01]")
        [1000.0, 0.5, '2001-01-01']
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except Exception as error:  # a tag that its value does not fit ends in any
        raise ValueError(str(error)) from error


class _StrictLoader(yaml.SafeLoader):
    """The loader of :func:`read_yaml`."""

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
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                lines = f"lines {before.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands twice, in {lines}")
        return node


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = list("-+.0123456789")
SCIENTIFIC = "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+$"), _NUMBER
"""The rule by which 1e3 is a number, which YAML 1.1 takes for text."""
_StrictLoader.add_implicit_resolver(*SCIENTIFIC)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
    _NUMBER,
)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), _NUMBER)
