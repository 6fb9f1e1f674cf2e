"""Settings of the Sphinx site.

`pip install -e '.[docs]' && sphinx-build -W -b html docs docs/_build/html` builds it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import scnf
from scnf.objectives import Objective
from scnf.recipes import RECIPES, Recipe
from scnf.settings.messages import Entry, entries, model_entries
from scnf.settings.schema import SECTIONS, Settings

project = "scnf"
author = "the scnf authors"
release = version = scnf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

default_role = "code"  # docstrings mark code by single backticks

html_theme = "furo"
html_title = "scnf"

myst_enable_extensions = ["amsmath", "dollarmath", "deflist"]
myst_heading_anchors = 3

# The docstrings are Google's; types stand in the signatures already.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is annotated in the class, too, would be described twice
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False  # the section says which module it is

# A reference to a name that does not exist is an error, so pages cannot speak of code that is gone.
# The sections "Returns" and the docstrings of constants take what stands before a colon for a type,
# which shows as such an error too: write them without a colon.
nitpicky = True
nitpick_ignore_regex = [
    # other projects, whose documentation an offline build does not see
    ("py:.*", r"(torch|nflows|numpy|mmap|PIL|sklearn|contextlib|os|typing|collections|pathlib|signal|subprocess)\..*"),
    # annotations by short or internal names
    ("py:exc", r"NotFittedError"),
    ("py:class", r"scnf\.training\.subject\.WholeModel"),
    ("py:class", r"ExportedProgram"),
    ("py:class", r"Path|Figure|scnf\.native\.build\.Kernels|scnf\.recipes\.base\._Recipe|scnf\.registry\._Part"),
    ("py:class", r"(dict|tuple)\[str"),  # a signature with a default factory is not parsed, but cut at its commas
]


ARGUMENTS = {
    argument.name for kind in (Settings, *SECTIONS.values(), *RECIPES.values()) for argument, _, _ in entries(kind)
}


LONG = {Settings, *SECTIONS.values()}


def _skip(app: Any, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class describes, and arguments, which have pages of theirs."""
    return True if type(member).__name__ == "_tuplegetter" or (kind == "class" and name in ARGUMENTS) else None


def _signature(app: Any, kind: str, name: str, member: Any, *rest: Any) -> tuple[str, str] | None:
    """Leave out the long signatures of recipes and settings."""
    long = isinstance(member, type) and (issubclass(member, Recipe | Objective) or member in LONG)
    return ("", "") if long and kind == "class" else None


def _table(rows: Iterable[Entry]) -> Iterator[str]:
    yield "| name | values | what it is | default |"
    yield "|---|---|---|---|"
    for argument, may_be, text in rows:
        told, _, default = text.replace("|", r"\|").rpartition(" Default: ")
        yield f"| `{argument.name}` | {may_be} | {told} | `{default}` |"
    yield ""


def _write_pages(app: Any) -> None:
    """Write the pages of settings and recipes from the dataclasses that define them."""
    lines = ["# Recipes", ""]
    lines += ["Each recipe has these arguments, the settings `model.*`. `scnf recipes NAME` prints them, too.", ""]
    for name, recipe in RECIPES.items():
        lines += [f"## {name}", "", f"{recipe.summary()}.", "", *_table(entries(recipe))]
    (Path(__file__).parent / "recipes.md").write_text("\n".join(lines), encoding="utf-8")
    lines = ["# Settings", ""]
    lines += ["Each setting has a place in YAML, and an option `--section.name` on the command line.", ""]
    for section, kind in {"": Settings, **SECTIONS}.items():
        lines += [f"## {section or 'Without a section'}", "", f"{kind.__doc__}".partition("\n")[0], ""]
        lines += _table(model_entries(kind) if kind is Recipe else entries(kind))
    (Path(__file__).parent / "settings.md").write_text("\n".join(lines), encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the hooks above."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    app.connect("builder-inited", _write_pages)
