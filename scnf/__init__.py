"""Semi-supervised image classification with exact likelihoods.

`import scnf` is light, because submodules are imported at first use. docs/extend.md describes the parts.
"""

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from scnf.commands import register_command as register_command
    from scnf.data.sources import register_dataset as register_dataset
    from scnf.estimators import LabelledFolds as LabelledFolds
    from scnf.estimators import SemiSupervisedClassifier as SemiSupervisedClassifier
    from scnf.fitting.arrays import fit as fit
    from scnf.nn import register_network as register_network
    from scnf.recipes import build as build
    from scnf.recipes import register_recipe as register_recipe
    from scnf.trained import TrainedModel as TrainedModel
    from scnf.trained import load as load
    from scnf.transforms import register_transform as register_transform

__version__ = "0.2.0"

# OpenMP threads that wait for each other spin almost forever by default. Where another process keeps a core busy, a
# step then takes a hundred times as long. This count makes them sleep after a short spin. GNU's OpenMP reads it when
# torch loads the library, so that `import scnf` has to come before `import torch`.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & _os.environ.keys():
    _os.environ["GOMP_SPINCOUNT"] = "10000"

UNLABELLED = -1
"""The label of a row whose class is hidden."""

_PLACES = {
    "build": "scnf.recipes",
    "fit": "scnf.fitting.arrays",
    "LabelledFolds": "scnf.estimators",
    "load": "scnf.trained",
    "register_command": "scnf.commands",
    "register_dataset": "scnf.data.sources",
    "register_network": "scnf.nn",
    "register_recipe": "scnf.recipes",
    "register_transform": "scnf.transforms",
    "SemiSupervisedClassifier": "scnf.estimators",
    "TrainedModel": "scnf.trained",
}


def __getattr__(name: str) -> _Any:
    """Return a public name from the module that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"module 'scnf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
