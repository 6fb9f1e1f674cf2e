"""Settings of the Sphinx site.

`pip install -e '.[docs]' && sphinx-build -W -b html docs docs/_build/html` builds it.
"""

from typing import Any

import scnf

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
    ("py:.*", r"(torch|nflows|typing|collections|pathlib|signal|subprocess)\..*"),
    ("py:class", r"Path|Figure|scnf\.native\.build\.Kernels"),  # annotations by short or internal names
    ("py:class", r"dict\[str"),  # a signature with a default factory is not parsed, but cut at its commas
]


def _skip(app: Any, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Connect the hook above."""
    app.connect("autodoc-skip-member", _skip)
