"""Export trained weights as a program from images to probabilities, which runs without this package."""

import copy
import json
import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scnf import __version__
from scnf.errors import InvalidArgument
from scnf.files import atomic_write
from scnf.models.variational import VariationalModel
from scnf.trained import TrainedModel, model_inputs
from scnf.transforms import FixedLinear, InvertibleLinear

if TYPE_CHECKING:
    from torch.export import ExportedProgram

METADATA = "inputs.json"
"""Name of the extra file of a program, and key of the metadata of an ONNX model, with classes and preprocessing."""
_MODULES = ("onnx", "onnxscript")  # of the extra "onnx"


class Probabilities(nn.Module):
    """A module that maps images to p(y | x), with the noise of a :class:`~scnf.trained.TrainedModel` as a constant.

    Args:
        trained: Trained model, which is copied to the CPU.

    Example:
        >>> from scnf.trained import load
        >>> Probabilities(load("scnf-digits"))(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    noise: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        model = copy.deepcopy(trained.model).cpu().eval().requires_grad_(False)
        self.model = _with_fixed_matrices(model.to(memory_format=torch.contiguous_format))
        self.levels, self.is_binary = trained.inputs.levels, trained.model.likelihood_of == "binary"
        self.temperature = 1.0 if trained.calibration is None else trained.calibration.temperature
        self.register_buffer("noise", trained.noise.detach().cpu().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Map grey levels [N, C, H, W] or points [N, D] to p(y | x) [N, K], float32.

        All draws of the noise go through the model at once.
        """
        if self.levels is None:
            x, draws = images, 1
        else:
            draws = self.noise.shape[0]
            x = model_inputs(images.unsqueeze(1), self.noise, self.levels, self.is_binary).flatten(0, 1)
        if isinstance(self.model, VariationalModel):  # binary images are drawn already
            log_probs = self.model.classify(x.round() if self.is_binary else x)
        else:
            log_probs = self.model.step(x, torch.zeros(0, dtype=torch.long))[1]
        by_draw = log_probs.double().unflatten(0, (-1, draws))
        log_posterior = by_draw.logsumexp(dim=1) - math.log(draws)
        if self.temperature != 1:
            log_posterior = torch.log_softmax(log_posterior / self.temperature, dim=1)
        posterior: Tensor = log_posterior.exp().float()
        return posterior


def _with_fixed_matrices(model: nn.Module) -> Any:
    """Put constants in the place of all matrices of a model, whose inverse and determinant ONNX cannot compute."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InvertibleLinear):
                setattr(module, name, FixedLinear(child))
    return model


def export_program(trained: TrainedModel) -> "ExportedProgram":
    """Trace p(y | x) of a trained model as a program of PyTorch's operators.

    Args:
        trained: Trained model.

    Returns:
        A program with one input and one output. The input holds the rows of :meth:`scnf.data.inputs.Inputs.rows`: grey
        levels [N, C, H, W], uint8 for up to 256 levels and else int32; or points [N, D], float32. The output is
        p(y | x) [N, K], float32, as :meth:`~scnf.trained.TrainedModel.predict_proba` gives it. N is free.

    Raises:
        InvalidArgument: The posterior of the model draws random numbers, or torch.export cannot trace the model.

    Example:
        >>> from scnf.data.inputs import Inputs
        >>> from scnf.recipes import build
        >>> model = build("classifier", (1, 8, 8), 2, hidden=8)
        >>> program = export_program(TrainedModel(model, Inputs((1, 8, 8), 256, ("cat", "dog"))))
        >>> program.module()(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([5, 2])
    """
    inputs = trained.inputs
    kind = torch.float32 if inputs.levels is None else torch.uint8 if inputs.levels <= 256 else torch.int32
    images = torch.zeros(3, *inputs.shape, dtype=kind)
    try:
        with torch.no_grad():
            program = torch.export.export(
                Probabilities(trained), (images,), dynamic_shapes={"images": {0: torch.export.Dim("rows", min=1)}}
            )
    except Exception as error:  # torch.export raises errors of every type
        raise InvalidArgument("model", f"cannot be traced by torch.export: {_first_line(error)}") from error
    random = set()
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                random.add(node.target.overloadpacket.__name__)
    if random:
        raise InvalidArgument(
            "model",
            f"must have a posterior p(y | x) without random draws, and this one draws latent variables "
            f"({', '.join(sorted(random))})",
        )
    return program


def metadata(trained: TrainedModel) -> dict[str, Any]:
    """Return the classes and the preprocessing of a model as they are stored beside its program.

    Example:
        >>> from scnf.trained import load
        >>> metadata(load("scnf-digits"))["input"]
        'grey levels 0 to 16, uint8 [N, 1, 8, 8]'
    """
    inputs = trained.inputs
    shape = ", ".join(map(str, ("N", *inputs.shape)))
    kind = "uint8" if inputs.levels is not None and inputs.levels <= 256 else "int32"
    by = "" if inputs.backbone is None else f", the embeddings of images by {inputs.backbone.network} of torchvision"
    text = f"points, float32 [{shape}]{by}"
    if inputs.levels is not None:
        text = f"grey levels 0 to {inputs.levels - 1}, {kind} [{shape}]"
    temperature = (
        "" if trained.calibration is None else f", calibrated, temperature {trained.calibration.temperature:.3g}"
    )
    output = f"p(y | x), float32 [N, {inputs.num_classes}], in the order of class_names{temperature}"
    return {**inputs.to_json(), "input": text, "output": output, "scnf": __version__}


def save_program(trained: TrainedModel, path: Path) -> None:
    """Write the program of :func:`export_program` to a file for `torch.export.load`.

    The extra file "inputs.json" of the program holds :func:`metadata`.

    Raises:
        InvalidArgument: The model cannot be exported.
        FileError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from scnf.data.inputs import Inputs
        >>> from scnf.recipes import build
        >>> model = build("classifier", (1, 8, 8), 2, hidden=8)
        >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
        >>> save_program(TrainedModel(model, Inputs((1, 8, 8), 256, ("cat", "dog"))), path)
        >>> extra = {METADATA: ""}
        >>> program = torch.export.load(path, extra_files=extra)
        >>> json.loads(extra[METADATA])["class_names"]
        ['cat', 'dog']
    """
    program = export_program(trained)
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata(trained), ensure_ascii=False)})


def has_onnx() -> bool:
    """Return whether the packages of the extra "onnx" are installed, which :func:`save_onnx` needs."""
    return all(find_spec(name) is not None for name in _MODULES)


def save_onnx(trained: TrainedModel, path: Path) -> None:
    """Write p(y | x) of a trained model as an ONNX model, with :func:`metadata` under the key "inputs.json".

    ONNX lacks some operators of PyTorch, which are computed by others; erfinv by the polynomials of Giles
    ("Approximating the erfinv function", GPU Computing Gems 2, 2011), whose relative error is below 4e-7.

    Raises:
        InvalidArgument: The model cannot be exported, or ONNX lacks an operator of the model.
        FileError: The file cannot be written.
    """
    program = export_program(trained)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.onnx about itself
            program = program.run_decompositions(_missing_in_onnx())
            onnx: Any = torch.onnx.export(
                program, input_names=["images"], output_names=["probabilities"], dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter raises errors of every type
        raise InvalidArgument("model", f"cannot be written as ONNX: {_first_line(error)}") from error
    onnx.model.metadata_props[METADATA] = json.dumps(metadata(trained), ensure_ascii=False)
    with atomic_write(path) as file:
        file.write(onnx.model_proto.SerializeToString())


def _missing_in_onnx() -> dict[Any, Any]:
    """Return functions for the operators that ONNX lacks."""
    aten: Any = torch.ops.aten
    return {
        aten.erfinv.default: _erfinv,
        aten.searchsorted.Tensor: _searchsorted,
        aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    }


_CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503),
    *(-0.00417768164, 0.246640727, 1.50140941),
)
_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613),
    *(0.00943887047, 1.00167406, 2.83297682),
)
"""Coefficients of the polynomials of :func:`_erfinv`, from the highest power to the constant."""


def _erfinv(x: Tensor) -> Tensor:
    """Return the inverse error function of x in (-1, 1) in single precision (Giles, 2011, table 5)."""
    w = -torch.log((1 - x) * (1 + x))
    is_central = w < 5
    w = torch.where(is_central, w - 2.5, w.clamp_min(5).sqrt() - 3)
    result = torch.where(is_central, _CENTRAL[0], _TAIL[0])
    for central, tail in zip(_CENTRAL[1:], _TAIL[1:], strict=True):
        result = torch.where(is_central, central, tail) + result * w
    return result * x


def _searchsorted(table: Tensor, values: Tensor, out_int32: bool = False, right: bool = False, **_: Any) -> Tensor:
    """Return how many entries of an ascending table [K] are below each value, or with `right` at most that value."""
    entries = table.shape[0]
    number = torch.zeros_like(values, dtype=torch.long)
    for bit in reversed(range(entries.bit_length())):
        larger = number + (1 << bit)
        entry = table[larger.clamp(max=entries) - 1]
        fits = (entry <= values) if right else (entry < values)
        number = torch.where((larger <= entries) & fits, larger, number)
    return number.int() if out_int32 else number


def _adaptive_max_pool2d(x: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Return the maxima [N, C, *size] of a grid of windows, and zeros for their places, which no model reads."""
    for axis, number in zip((-2, -1), size, strict=True):
        length = x.shape[axis]
        starts = [(i * length // number, -(-(i + 1) * length // number)) for i in range(number)]
        x = torch.stack([x.narrow(axis, low, high - low).amax(axis) for low, high in starts], axis)
    return x, torch.zeros_like(x, dtype=torch.long)


def _first_line(error: BaseException) -> str:
    """Return the first line of the error that is the cause of all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
