"""Use the models as estimators of scikit-learn."""

from scnf.estimators.classifier import SemiSupervisedClassifier
from scnf.estimators.folds import LabelledFolds

__all__ = ["LabelledFolds", "SemiSupervisedClassifier"]
