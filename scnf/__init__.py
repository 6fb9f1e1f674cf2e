"""Semi-supervised image classification with exact likelihoods.

`import scnf` is light: submodules are imported when they are first used, see docs/extend.md for the parts.
"""

import os as _os

__version__ = "0.2.0"

# Threads of OpenMP that wait for each other spin, by default almost for good: where another process keeps a core busy,
# a step then takes a hundred times as long. So they are to sleep after so many turns. GNU's OpenMP reads this when
# torch loads it, and so `import scnf` has to come before `import torch`.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & _os.environ.keys():
    _os.environ["GOMP_SPINCOUNT"] = "10000"

UNLABELLED = -1
"""The label of a row whose class is hidden."""
