"""Models p(x, y) and the recipes that build them."""

from scnf.models.architectures import RECIPES, build
from scnf.models.base import JointModel, JointOutput
from scnf.models.flow import SemiConditionalFlow

__all__ = ["RECIPES", "JointModel", "JointOutput", "SemiConditionalFlow", "build"]
