"""Typed settings, in which a YAML file overrides the defaults and command-line values override the file."""

from scnf.settings.fixed import check_fixed_settings, check_model, fixed_settings
from scnf.settings.naming import OTHER_WEIGHTS, SMALLER_STEPS, not_finite_errors, section_errors, setting_errors
from scnf.settings.parse import load_settings, runs_root, without_arguments
from scnf.settings.schema import (
    DataSettings,
    ObjectiveSettings,
    RunSettings,
    Settings,
    TrainSettings,
)
from scnf.settings.text import in_yaml, to_yaml

__all__ = [
    "OTHER_WEIGHTS",
    "SMALLER_STEPS",
    "DataSettings",
    "ObjectiveSettings",
    "RunSettings",
    "Settings",
    "TrainSettings",
    "check_fixed_settings",
    "check_model",
    "fixed_settings",
    "in_yaml",
    "load_settings",
    "not_finite_errors",
    "runs_root",
    "section_errors",
    "setting_errors",
    "to_yaml",
    "without_arguments",
]
