"""Semi-supervised image classification with exact likelihoods.

`import scnf` is light: submodules are imported when they are first used, see the README for the parts.
"""

__version__ = "0.1.0"

UNLABELLED = -1
"""The label of a row whose class is hidden."""
