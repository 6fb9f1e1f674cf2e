"""`scnf export`: programs that give the probabilities of the model where scnf cannot be imported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scnf as package
from scnf.analysis.calibration import Calibration
from scnf.data.batches import dequantize
from scnf.data.inputs import Inputs
from scnf.data.sources import load
from scnf.errors import InvalidArgument
from scnf.export import (
    METADATA,
    _adaptive_max_pool2d,
    _erfinv,
    _searchsorted,
    export_program,
    has_onnx,
    metadata,
    save_onnx,
    save_program,
)
from scnf.native import library, operators
from scnf.recipes import build
from scnf.trained import TrainedModel

NO_SCNF = """
import json, sys
import numpy as np, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("scnf", "nflows"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
try:
    import scnf
    sys.exit("scnf can be imported")
except ImportError:
    pass
program, rows, out = sys.argv[1:]
extra = {"inputs.json": ""}
function = torch.export.load(program, extra_files=extra).module()
with torch.no_grad():
    parts = [function(torch.from_numpy(part)).numpy() for part in np.split(np.load(rows), [1, 3])]
np.save(out, np.concatenate(parts))
print(extra["inputs.json"])
"""
"""A program is loaded where scnf cannot be imported, and called with batches of one, two and all other rows."""


def run_elsewhere(program: Path, rows: np.ndarray, folder: Path) -> tuple[np.ndarray, Any]:
    """The probabilities [N, K] that a program gives in a process without scnf, and the metadata beside it."""
    np.save(folder / "rows.npy", rows)
    arguments = [program, folder / "rows.npy", folder / "out.npy"]
    done = subprocess.run([sys.executable, "-c", NO_SCNF, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npy"), json.loads(done.stdout)


def rows_of(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Random images or points."""
    rng = np.random.default_rng(number)
    if len(shape) == 3:
        return rng.integers(0, 256, (number, *shape)).astype(np.uint8)
    return rng.normal(size=(number, *shape)).astype(np.float32)


def trained(recipe: str, shape: tuple[int, ...] = (1, 8, 8), **arguments: Any) -> TrainedModel:
    """A model of three classes that starts from data, and whose weights are moved, so that its posteriors differ."""
    levels = 256 if len(shape) == 3 else None
    model = build(recipe, shape, 3, levels=levels, **arguments)
    x = torch.randn(64, *shape) if levels is None else dequantize(torch.from_numpy(rows_of(shape, 64)), levels)
    model.initialize(x, torch.arange(64) % 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return TrainedModel(model, Inputs(shape, levels, ("cat", "nuit étoilée", "dog")))


def test_export_command_writes_a_program_that_runs_without_scnf(
    scnf: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    outcome = scnf("export", finished, "--out tiny.pt2")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "input   grey levels 0 to 16, uint8 [N, 1, 8, 8]",
        "output  p(y | x), float32 [N, 10], in the order of class_names",
        "tiny.pt2",
    ]
    model, rows = package.load(finished, device="cpu"), load("digits").test_x[:20]
    probabilities, about = run_elsewhere(tmp_path / "tiny.pt2", rows.numpy(), tmp_path)
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)
    assert probabilities.max(axis=1).min() < 0.999  # else any sharp answer would pass
    assert about == metadata(model) and about["class_names"] == list("0123456789")
    assert str(Path(package.__file__).parent).encode() not in (tmp_path / "tiny.pt2").read_bytes()


MODELS = {
    "flow": ("scnf-digits", (3, 8, 8), {"channels": 8, "steps": 1, "conditional_hidden": 8, "conditional_steps": 1}),
    "hybrid": ("scnf-hybrid", (3, 8, 8), {"channels": 8, "steps": 1, "semantic_channels": 8, "semantic_hidden": 16}),
    "reader": ("scnf-reader", (3, 8, 8), {"channels": 8, "steps": 1, "reader_channels": 4}),
    "points": ("scnf-toy", (2,), {"channels": 8, "steps": 1}),
    "classifier": ("classifier", (3, 8, 8), {"hidden": 8}),
    "binary": ("m2", (1, 8, 8), {"hidden": 16, "latent": 4}),
    "logistic": ("m2", (1, 8, 8), {"hidden": 16, "latent": 4, "likelihood": "logistic"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_program_gives_the_probabilities_of_the_model(name: str, tmp_path: Path) -> None:
    recipe, shape, arguments = MODELS[name]
    model = trained(recipe, shape, **arguments)
    rows = rows_of(shape, 9)
    save_program(model, tmp_path / "model.pt2")
    probabilities, about = run_elsewhere(tmp_path / "model.pt2", rows, tmp_path)
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 1e-4 and about["class_names"] == ["cat", "nuit étoilée", "dog"]


def test_program_of_a_calibrated_model_is_calibrated(tmp_path: Path) -> None:
    model = trained("scnf-digits", channels=8, steps=1)
    rows = rows_of((1, 8, 8), 9)
    before = model.predict_proba(rows)
    model.calibration = Calibration(temperature=3.0, threshold=0.05, alpha=0.1, num_labels=250)
    save_program(model, tmp_path / "model.pt2")
    probabilities, about = run_elsewhere(tmp_path / "model.pt2", rows, tmp_path)
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)
    assert np.abs(probabilities - before).max() > 0.01 and "calibrated, temperature 3" in about["output"]


def test_export_leaves_model_and_kernels_as_they_were() -> None:
    model = trained("scnf-digits", channels=8, steps=1)
    rows = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    before, gradients = model.predict_proba(rows), [p.requires_grad for p in model.model.parameters()]
    program = export_program(model)
    names = [str(node.target) for module in program.graph_module.modules() for node in module.graph.nodes]
    assert not [name for name in names if "scnf" in name and "p_model" not in name]
    assert [p.requires_grad for p in model.model.parameters()] == gradients
    np.testing.assert_array_equal(model.predict_proba(rows), before)
    assert operators.takes(torch.zeros(2), ()) == (library() is not None)


@pytest.mark.parametrize("recipe", ["m1", "adgm"])
def test_export_refuses_posteriors_that_draw_latents(recipe: str) -> None:
    with pytest.raises(InvalidArgument, match=r"model must have a posterior .* without random draws"):
        export_program(trained(recipe, hidden=16, latent=4, likelihood="logistic"))


def test_export_command_refuses_other_files_and_recipes(scnf: Callable[..., Any], tmp_path: Path) -> None:
    outcome = scnf("export scnf-digits --out model.h5")
    assert outcome.code == 2 and "programs are written as .pt2 or .onnx: name the file model.pt2" in outcome.err
    words = "--model.hidden 16 --model.latent 4 --likelihood logistic --max_steps 1 --threads 1 --device cpu"
    assert scnf("train --config digits.yaml --recipe adgm", words, *ADGM).code == 0
    outcome = scnf("export last")
    assert outcome.code == 2 and outcome.err.startswith("error: last cannot be exported: the model must have a poster")
    assert not (tmp_path / "model.pt2").exists()


ADGM = ["--propagations", "0", "--consistency_weight", "0"]


@pytest.mark.skipif(has_onnx(), reason="the packages are installed")
def test_export_command_names_the_packages_that_onnx_needs(scnf: Callable[..., Any]) -> None:
    outcome = scnf("export scnf-digits --out model.onnx")
    assert outcome.code == 2 and "pip install 'scnf[onnx]'" in outcome.err


@pytest.mark.parametrize("name", ["flow", "hybrid", "reader", "classifier", "binary"])
def test_onnx_model_gives_the_probabilities_of_the_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    recipe, shape, arguments = MODELS[name]
    model = trained(recipe, shape, **arguments)
    save_onnx(model, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == metadata(model)
    for number in (1, 9):
        rows = rows_of(shape, number)
        (probabilities,) = session.run(None, {"images": rows})
        np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)


def test_operators_that_onnx_lacks_equal_those_of_torch() -> None:
    table = torch.tensor([-1.0, 0.5, 0.5, 2.0, 7.0])
    values = torch.tensor([[-2.0, -1.0, 0.0], [0.5, 3.0, 9.0]])
    for right in (False, True):
        expected = torch.searchsorted(table, values, right=right, out_int32=True)
        assert torch.equal(_searchsorted(table, values, out_int32=True, right=right), expected)
    for size in (1, 2, 4, 8):
        table = torch.arange(float(size))
        assert torch.equal(_searchsorted(table, table), torch.searchsorted(table, table))
    images = torch.rand(2, 3, 7, 9)
    for shape in ([4, 4], [1, 9], [7, 2]):
        assert torch.equal(
            _adaptive_max_pool2d(images, shape)[0], torch.nn.functional.adaptive_max_pool2d(images, shape)
        )
    u = torch.linspace(-0.999, 0.999, 99)
    torch.testing.assert_close(_erfinv(u), u.erfinv(), rtol=1e-6, atol=1e-7)
