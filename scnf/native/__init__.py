"""C++ kernels for the CPU, which are compiled for this machine when they are first used.

They need Linux, a processor with AVX2 or AVX-512, and a C++ compiler with OpenMP. The compiler is `$CXX`, or g++ or c++
as a fallback. The library is cached in `$XDG_CACHE_HOME/scnf` (`~/.cache/scnf`). PyTorch's own operators are the slower
fallback where the library cannot be built, or with `SCNF_NATIVE=0` in the environment. Programs of torch.export hold
PyTorch's operators alone.
"""

from scnf.native.build import library
from scnf.native.convolutions import conv3x3, conv_net, mix_channels
from scnf.native.determinants import log_abs_det
from scnf.native.operators import exporting
from scnf.native.tables import intervals, look_up
from scnf.native.vectors import mlp

__all__ = ["conv3x3", "conv_net", "exporting", "intervals", "library", "log_abs_det", "look_up", "mix_channels", "mlp"]
