"""Typed settings, in which a YAML file overrides the defaults and command-line values override the file."""

from scnf.settings.lasting import check_lasting, lasting
from scnf.settings.naming import OTHER_WEIGHTS, SMALLER_STEPS, advising, in_sections, in_settings
from scnf.settings.parse import load_settings, runs_root
from scnf.settings.schema import (
    DataSettings,
    ObjectiveSettings,
    RunSettings,
    Settings,
    TrainSettings,
)
from scnf.settings.text import to_yaml

__all__ = [
    "OTHER_WEIGHTS",
    "SMALLER_STEPS",
    "DataSettings",
    "ObjectiveSettings",
    "RunSettings",
    "Settings",
    "TrainSettings",
    "advising",
    "check_lasting",
    "in_sections",
    "in_settings",
    "lasting",
    "load_settings",
    "runs_root",
    "to_yaml",
]
