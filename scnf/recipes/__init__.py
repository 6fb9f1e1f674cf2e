"""Define recipes, whole architectures as dataclasses of arguments, whose code reads as lists of layers."""

from scnf.recipes.base import RECIPES, Recipe, build, recipe_of, register_recipe
from scnf.recipes.coarse_to_fine import ScnfDigits, ScnfFast, ScnfGmm
from scnf.recipes.one_band import ScnfHybrid, ScnfReader
from scnf.recipes.paper import ScnfPaper
from scnf.recipes.parts import ClassConditionalPart, FlowRecipe, ImageFlow
from scnf.recipes.points import ScnfToy, ScnfVectors, VectorFlow
from scnf.recipes.variational import (
    ADGMRecipe,
    ClassifierRecipe,
    GumbelAutoencoder,
    LadderDGM,
    LadderVAE,
    M1M2Recipe,
    M1Recipe,
    M2Recipe,
)

__all__ = [
    "RECIPES",
    "ADGMRecipe",
    "ClassConditionalPart",
    "ClassifierRecipe",
    "FlowRecipe",
    "GumbelAutoencoder",
    "ImageFlow",
    "LadderDGM",
    "LadderVAE",
    "M1M2Recipe",
    "M1Recipe",
    "M2Recipe",
    "Recipe",
    "ScnfDigits",
    "ScnfFast",
    "ScnfGmm",
    "ScnfHybrid",
    "ScnfPaper",
    "ScnfReader",
    "ScnfToy",
    "ScnfVectors",
    "VectorFlow",
    "build",
    "recipe_of",
    "register_recipe",
]
