"""Kernels in C++ for the CPU, compiled for this machine when they are first asked for.

They need Linux, a processor with AVX2 or AVX-512 and a C++ compiler with OpenMP: `$CXX`, else g++ or c++. The library
is kept in `$XDG_CACHE_HOME/scnf` (`~/.cache/scnf`). Where it cannot be built, or with `SCNF_NATIVE=0` in the
environment, PyTorch's own operators do the same, slower.
"""

from scnf.native.build import library
from scnf.native.convolutions import conv3x3, conv_net, mix_channels
from scnf.native.determinants import log_abs_det
from scnf.native.tables import look_up
from scnf.native.vectors import mlp

__all__ = ["conv3x3", "conv_net", "library", "log_abs_det", "look_up", "mix_channels", "mlp"]
