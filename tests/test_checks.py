"""The doors: what is no label and no data is refused where it comes in, by every way in."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.analysis.compare import measure
from scnf.batch import Batch
from scnf.data.augment import random_affine
from scnf.data.batches import Batches, dequantize
from scnf.data.labels import draw_split
from scnf.data.sources import load
from scnf.distributions import ClassPrior
from scnf.errors import InvalidArgument
from scnf.models.base import JointOutput
from scnf.models.classifier import Classifier
from scnf.models.flow import LatentFlow, SemiConditionalFlow
from scnf.models.ladder import Ladder
from scnf.nn import MLP, ConvNet
from scnf.objectives import Weights, semi_supervised_loss
from scnf.propagation.distortion import deslanted, distortion_labels, distortion_neighbours
from scnf.propagation.graph import nearest_neighbours
from scnf.propagation.oriented_gradients import oriented_gradients
from scnf.propagation.spread import propagate, spread
from scnf.propagation.strategy import Propagation
from scnf.recipes import build
from scnf.training.averaging import averaged_model
from scnf.training.diagnose import zero_density_clause
from scnf.training.metrics import brier_score, evaluate, expected_calibration_error, representations
from scnf.transforms.pixels import GreyLevels
from scnf.transforms.planar import Planar
from scnf.transforms.shape import FactorOut, Flatten, Permutation

K, ROWS, SHAPE = 3, 8, (1, 8, 8)
GOOD = torch.tensor([0, 1, 2, UNLABELLED, 2, 1, 0, UNLABELLED])
KNOWN = GOOD.abs()


def grey() -> Tensor:
    return torch.randint(0, 17, (ROWS, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def x() -> Tensor:
    return (grey().float() + 0.5) / 17


def model(recipe: str) -> Any:
    torch.manual_seed(0)
    sizes = {
        "scnf-digits": dict(channels=8, steps=1),
        "m1": dict(hidden=16, latent=4),
        "m2": dict(hidden=16, latent=4),
        "m2-drawn": dict(hidden=16, latent=4, labels="gumbel"),
        "logistic": dict(hidden=16, latent=4, likelihood="logistic"),
    }
    if recipe == "classifier":
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, K)), K)
    name = "m2" if recipe in ("m2-drawn", "logistic") else recipe
    return build(name, SHAPE, K, levels=17, **sizes[recipe])


def batches(y: Tensor) -> Batches:
    return Batches(grey(), y, 4, 0.5, 0, levels=17)


def loss(y: Tensor, **words: float) -> object:
    output = JointOutput(torch.zeros(ROWS), torch.zeros(ROWS, K))
    return semi_supervised_loss(output, Batch(x(), y), Weights(1.0, 1.0), **words)


MODELS = ["scnf-digits", "m1", "m2", "m2-drawn", "classifier"]
OF_LABELS: dict[str, tuple[Callable[[Tensor], object], bool, bool]] = {
    "batches": (batches, True, False),
    "loss": (loss, True, True),
    "propagate": (lambda y: propagate(x().flatten(1), y, neighbours=3), True, False),
    "spread": (lambda y: spread(torch.zeros(ROWS, 1).long(), torch.ones(ROWS, 1), y, 0.9, 3), True, False),
    "distortion": (lambda y: distortion_labels(x(), y), True, False),
    "prior": (lambda y: ClassPrior.empirical(y, K), True, True),
    "split": (lambda y: draw_split(y, K, 3, 2, 0, balanced=False), True, True),
    "calibration": (lambda y: expected_calibration_error(torch.zeros(ROWS, K), y), False, True),
    "brier": (lambda y: brier_score(torch.zeros(ROWS, K), y), False, True),
    "evaluate": (lambda y: evaluate(model("scnf-digits"), grey(), y, 17), False, True),
    **{f"{name}-forward": (lambda y, name=name: model(name)(Batch(x(), y)), True, True) for name in MODELS},
    **{f"{name}-initialize": (lambda y, name=name: model(name).initialize(x(), y), True, True) for name in MODELS},
    **{f"{name}-sample": (lambda y, name=name: model(name).sample(y), False, True) for name in MODELS[:3]},
    "log-prob": (lambda y: model("scnf-digits").log_prob(x(), y), False, True),
}
"""By name: what takes labels, whether some may be hidden, and whether it knows K."""


@pytest.mark.parametrize(("take", "hidden", "knows_classes"), OF_LABELS.values(), ids=OF_LABELS)
def test_labels_of_wrong_value_type_or_shape_are_refused_by_every_function(
    take: Callable[[Tensor], object], hidden: bool, knows_classes: bool
) -> None:
    good = GOOD if hidden else KNOWN
    take(good)
    wrong = [
        torch.where(torch.arange(ROWS) == 3, value, good) for value in (-2, -100, *([K, 255] if knows_classes else []))
    ]
    wrong += [good.int(), good.float(), good.unsqueeze(1)]
    wrong += [] if hidden else [GOOD]
    for y in wrong:
        with pytest.raises(InvalidArgument, match="must hold labels") as caught:
            take(y)
        assert caught.value.argument == ("labels" if take is OF_LABELS["split"][0] else "y")
    with pytest.raises(InvalidArgument, match="must be a tensor, not list"):
        take(good.tolist())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_labels_of_no_class_raise_an_error_also_without_value_checks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a GPU and in compiled code a step reads no values: the look-up refuses them
    for module in ("scnf.models.base", "scnf.objectives"):
        monkeypatch.setattr(f"{module}.is_readable", lambda values: False)
    for value in (-100, -2, K):
        with pytest.raises((RuntimeError, IndexError)):
            model(name)(Batch(x(), torch.where(torch.arange(ROWS) == 3, value, GOOD)))
        with pytest.raises((RuntimeError, IndexError)):
            loss(torch.where(torch.arange(ROWS) == 3, value, GOOD))


OF_IMAGES: dict[str, Callable[[Tensor], object]] = {
    "batches": lambda images: Batches(images, GOOD, 4, 0.5, 0, levels=17),
    "dequantize": lambda images: dequantize(images, 17),
    "augment": lambda images: random_affine(images, 1.0),
    "evaluate": lambda images: evaluate(model("scnf-digits"), images, KNOWN, 17),
}


@pytest.mark.parametrize("take", OF_IMAGES.values(), ids=OF_IMAGES)
def test_float_images_are_refused_where_grey_levels_are_wanted(take: Callable[[Tensor], object]) -> None:
    take(grey())
    take(grey().int())
    for images in (x(), grey().double()):
        with pytest.raises(InvalidArgument, match=r"^x must hold .*whole"):
            take(images)


@pytest.mark.parametrize("take", [OF_IMAGES["batches"], OF_IMAGES["evaluate"]], ids=["batches", "evaluate"])
def test_grey_levels_beyond_the_last_are_refused(take: Callable[[Tensor], object]) -> None:
    with pytest.raises(InvalidArgument, match="x must hold 17 grey levels, which are 0 to 16, not numbers from 0 to"):
        take(torch.where(grey() == 16, 255, grey()))
    with pytest.raises(InvalidArgument, match=r"x must hold images of shape \[N, C, H, W\], not of shape \[8, 64\]"):
        take(grey().flatten(1))


def test_batches_refuse_points_that_are_not_finite_floats() -> None:
    points = torch.randn(ROWS, 2)
    Batches(points, GOOD, 4, 0.5, 0, levels=None)
    points[3, 1] = torch.nan
    for wrong, message in ((points, "not finite"), (grey(), "say how many grey levels"), (GOOD[:, None], "floats")):
        with pytest.raises(InvalidArgument, match=message):
            Batches(wrong, GOOD, 4, 0.5, 0, levels=None)


OF_ROWS = [name for name in OF_LABELS if name not in ("loss", "prior", "split") and not name.endswith("-sample")]


@pytest.mark.parametrize("name", OF_ROWS)
def test_labels_of_another_number_than_rows_are_refused(name: str) -> None:
    take, hidden, _ = OF_LABELS[name]
    y = GOOD if hidden else KNOWN
    for wrong in (y[1:], y[:1], y[:0], y.repeat(2)):
        with pytest.raises(InvalidArgument, match=f"y must hold one label for each of 8 rows, not {len(wrong)} labels"):
            take(wrong)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_readable", [True, False])
def test_model_refuses_batches_whose_parts_do_not_fit_also_without_value_checks(
    name: str, is_readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scnf.models.base.is_readable", lambda values: is_readable)
    network = model(name)
    network(Batch(x(), GOOD)), network(Batch(x(), GOOD, views=x(), targets=GOOD)), network.class_log_probs(x())
    wrong: list[tuple[Batch, str]] = [
        (Batch(x(), GOOD, moved=x(), moved_y=GOOD[1:]), "moved_y must hold one label for each of 8 rows, not 7"),
        (Batch(x(), GOOD, moved=x()), "moved must be given together with the labels moved_y of the moved rows"),
        (Batch(x()[:2], GOOD[:2], views=x()), "views must show rows of the batch, which has 2 rows, not 8"),
    ]
    if is_readable:
        wrong.append(
            (Batch(x(), GOOD, views=x(), targets=torch.full_like(GOOD, 99)), "targets must hold .*not numbers from 99")
        )
    for batch, message in wrong:
        with pytest.raises(InvalidArgument, match=message):
            network(batch)
    with pytest.raises(InvalidArgument, match=r"batch must be a scnf\.batch\.Batch\(x, y\), not Tensor"):
        network(x())
    assert network(Batch(x(), GOOD, views=x()[:0], targets=GOOD[:0])).views is None
    with pytest.raises(InvalidArgument, match="y must hold one label for each of 8 rows, not 7 labels"):
        network(Batch(x(), GOOD[1:]))
    with pytest.raises(InvalidArgument, match="x must be a tensor, not ndarray"):
        network(Batch(x().numpy(), GOOD))
    if name != "classifier":  # which is composed by hand here, and knows no shape
        with pytest.raises(InvalidArgument, match=r"of shape \['N', 1, 8, 8\] for this model, not \[8, 1, 16, 16\]"):
            network(Batch(x().repeat(1, 1, 2, 2), GOOD))


WRONG_SHAPE: dict[str, Callable[[Any, Tensor], object]] = {
    "initialize": lambda m, x: m.initialize(dequantize(x, 17), GOOD),
    "log-likelihood": lambda m, x: m.log_likelihood(dequantize(x, 17)),
    "evaluate": lambda m, x: evaluate(m, x, KNOWN, 17),
    "representations": lambda m, x: representations(m, x, 17),
    "compare": lambda m, x: measure(m, x, KNOWN, 17),
}


@pytest.mark.parametrize("name", ["scnf-digits", "m2"])
@pytest.mark.parametrize("take", WRONG_SHAPE.values(), ids=WRONG_SHAPE)
def test_model_refuses_images_of_another_shape(name: str, take: Callable[[Any, Tensor], object]) -> None:
    with pytest.raises(InvalidArgument, match=r"x must be of shape .* for this model"):
        take(model(name), grey().repeat(1, 1, 2, 2))
    with pytest.raises(InvalidArgument, match=r"x must be of shape .* for this model"):
        take(model(name), grey().repeat(1, 3, 1, 1))


def test_model_keeps_its_shape_in_copies_and_not_in_its_weights() -> None:
    flow = model("scnf-digits")
    average = averaged_model(flow, 0.9)
    assert average is not None
    assert deepcopy(flow).shape == average.module.shape == LatentFlow(flow).input_flow().shape == SHAPE
    assert not any("shape" in name for name in flow.state_dict())
    by_hand = SemiConditionalFlow(flow.transform, flow.auxiliary, flow.conditional, flow.prior, flow.semantic_features)
    assert by_hand.shape is None and LatentFlow(flow).shape is None
    assert by_hand(Batch(x(), GOOD)).log_likelihood.isfinite().all()


def rows(**words: Any) -> Batches:
    return Batches(**(dict(x=grey(), y=GOOD, batch_size=4, labelled_share=0.5, seed=0, levels=17) | words))


def figures(**words: Any) -> object:
    return evaluate(model("scnf-digits"), **(dict(x=grey(), y=KNOWN, levels=17, augment=1.0) | words))


def over_cosines(**words: Any) -> object:
    return propagate(**(dict(features=x().flatten(1), y=GOOD) | words))


def over_graph(**words: Any) -> object:
    graph = dict(indices=torch.zeros(ROWS, 1).long(), weights=torch.ones(ROWS, 1))
    return spread(**(graph | dict(y=GOOD, alpha=0.9, steps=3) | words))


def by_distortion(**words: Any) -> object:
    return distortion_neighbours(**(dict(x=x()) | words))


COUNTS = "must be a whole number of"
WRONG_ARGUMENTS: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    *[(figures, {"batch_size": value}, COUNTS) for value in (0, -1, 2.5)],
    *[(figures, {name: value}, COUNTS) for name, value in (("views", -1), ("draws", 0))],
    *[(rows, {"batch_size": value}, COUNTS) for value in (0, -4)],
    (rows, {"passes": 0}, COUNTS),
    *[(rows, {"labelled_share": value}, r"must lie in \[0, 1\]") for value in (-0.1, 1.5, math.nan)],
    *[
        (call, {"alpha": a}, r"must lie in \(0, 1\)")
        for call in (over_cosines, over_graph)
        for a in (0, 1, 2, -1, math.nan)
    ],
    *[(call, {"steps": -1}, COUNTS) for call in (over_cosines, over_graph)],
    *[(call, {"neighbours": value}, COUNTS) for call in (over_cosines, by_distortion) for value in (0, -1)],
    (by_distortion, {"neighbours": 3, "candidates": 2}, "candidates must be a whole number of 3 or more, not 2"),
    (lambda neighbours=7: nearest_neighbours(x().flatten(1), neighbours), {"neighbours": ROWS}, "between 0 and 7"),
    (lambda **words: nearest_neighbours(x().flatten(1), 2, **words), {"chunk": 0}, COUNTS),
    (lambda **words: expected_calibration_error(torch.zeros(ROWS, K), KNOWN, **words), {"bins": 0}, COUNTS),
]


@pytest.mark.parametrize(("call", "words", "message"), WRONG_ARGUMENTS)
def test_arguments_out_of_range_are_refused(call: Callable[..., object], words: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises(InvalidArgument, match=message) as caught:
        call(**words)
    assert caught.value.argument == list(words)[-1]


def other_graph(indices: list[list[int]], weights: list[list[float]]) -> object:
    return spread(torch.tensor(indices), torch.tensor(weights), torch.tensor([0, UNLABELLED]), 0.9, 3)


OTHER_DOORS: dict[str, tuple[Callable[[], object], str]] = {
    "dequantize": (lambda: dequantize(x(), 17), "x"),
    "augment": (lambda: random_affine(x(), 1.0), "x"),
    "views": (lambda: figures(views=1, augment=0.0), "augment"),
    "calibration": (lambda: expected_calibration_error(torch.zeros(K), KNOWN), "class_log_probs"),
    "temperature": (lambda: loss(GOOD, temperature=0.0), "temperature"),
    "output": (lambda: loss(GOOD[1:]), "output"),
    "cosines": (lambda: over_cosines(features=x()), "features"),
    "no-label": (lambda: over_cosines(y=torch.full_like(GOOD, UNLABELLED)), "y"),
    "graph": (lambda: other_graph([[1], [2]], [[1.0], [1.0]]), "indices"),
    "weights": (lambda: other_graph([[1], [0]], [[1.0], [-1.0]]), "weights"),
    "one-image": (lambda: by_distortion(x=x()[:1]), "x"),
    "distances": (lambda: by_distortion(x=-x()), "x"),
    "measure": (lambda: Propagation(x(), GOOD, None, 1, 1, "self-training")(model("m1"), 0), "neighbours"),
    "ladder": (lambda: Ladder([], [], [], []), "latents"),
    "mlp": (lambda: MLP(2, 2, 4, context_features=3)(torch.zeros(1, 2)), "context"),
    "conv-net": (lambda: ConvNet(1, 1, 4, context_features=3)(x()), "context"),
    "planar": (lambda: Planar(2, context_features=3)(torch.zeros(1, 2)), "context"),
    "permutation": (lambda: Permutation(torch.tensor([0, 0])), "permutation"),
    "factor-out": (lambda: FactorOut(Flatten((1,)), (1,)), "aside"),
    "levels": (lambda: GreyLevels(1), "levels"),
    "slope": (lambda: GreyLevels(4, slope=0.0), "slope"),
    "tail": (lambda: GreyLevels(4, tail=0.5), "tail"),
    "name": (lambda: load("mnits"), "name"),
    "root": (lambda: load("mnist", Path(__file__).parent), "root"),
    "m1": (lambda: build("m1-m2", SHAPE, K, levels=17), "m1"),
    "m1-run": (lambda: build("m1-m2", SHAPE, K, levels=17, m1="last"), "m1"),
}


@pytest.mark.parametrize(("call", "argument"), OTHER_DOORS.values(), ids=OTHER_DOORS)
def test_library_error_names_its_argument(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.argument == argument
    assert str(caught.value) == f"{argument} {caught.value.problem}"


OF_ARRAYS: dict[str, Callable[[Any], object]] = {
    "batches": lambda x: rows(x=x),
    "evaluate": lambda x: figures(x=x),
    "compare": lambda x: measure(model("scnf-digits"), x, KNOWN, 17),
    "distortion": lambda x: by_distortion(x=x),
    "distortion-labels": lambda x: distortion_labels(x, GOOD),
    "deslanted": deslanted,
    "gradients": oriented_gradients,
    "propagate": lambda x: over_cosines(features=x.reshape(len(x), -1)),
    "neighbours": lambda x: nearest_neighbours(x.reshape(len(x), -1), 2),
    "initialize": lambda x: model("scnf-digits").initialize(x, GOOD),
}


@pytest.mark.parametrize("take", OF_ARRAYS.values(), ids=OF_ARRAYS)
def test_arrays_are_refused_where_tensors_are_wanted(take: Callable[[Any], object]) -> None:
    with pytest.raises(InvalidArgument, match="must be a tensor, not ndarray"):
        take(grey().numpy())


@pytest.mark.parametrize("name", [name for name in OF_ARRAYS if name not in ("propagate", "neighbours", "initialize")])
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (ROWS, 1, 8, 0)])
def test_images_that_hold_no_pixel_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="x must hold at least one pixel"):
        OF_ARRAYS[name](torch.zeros(shape, dtype=torch.uint8))


def test_points_that_hold_no_number_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="x must hold at least one number"):
        rows(x=torch.zeros(0, 2), levels=None)


@pytest.mark.parametrize("name", ["scnf-digits", "m2", "logistic"])
def test_model_refuses_raw_grey_levels(name: str) -> None:
    takes = [lambda m, x: m.initialize(x, GOOD), lambda m, x: m(Batch(x, GOOD)), lambda m, x: m.log_likelihood(x)]
    for take in takes:
        with pytest.raises(InvalidArgument, match=r"x must hold floats, not torch\.uint8"):
            take(model(name), grey())
        with pytest.raises(InvalidArgument, match=r"0\.00 to 16\.00"):
            take(model(name), grey().float())
        with pytest.raises(InvalidArgument, match="not finite"):
            take(model(name), x().masked_fill(grey() == 3, torch.nan))
        take(model(name), x())


@pytest.mark.parametrize("pixels", ["levels", "logit"])
def test_flow_gives_pixels_out_of_range_density_zero(pixels: str) -> None:
    torch.manual_seed(0)
    flow = build("scnf-digits", SHAPE, K, levels=17, channels=8, steps=1, pixels=pixels)
    images = x()
    images[2, 0, 3, 4] = -0.5
    for mode in (True, False):
        output = flow.train(mode)(Batch(images, GOOD))
        assert output.log_likelihood.isneginf().nonzero().tolist() == [[2]]
        assert output.class_log_probs.isfinite().all()
        assert flow.log_likelihood(images)[2] == -torch.inf
    assert zero_density_clause(flow, Batch(images, GOOD)).startswith("1 of 8 rows have density 0")
    assert zero_density_clause(flow, Batch(x(), GOOD)) == ""
    output.log_likelihood.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["scnf-digits", "m2-drawn", "logistic", "classifier"])
@pytest.mark.usefixtures("double_by_default")
def test_training_and_evaluation_work_with_float64_as_default_dtype(name: str) -> None:
    double, rows = model(name), Batches(grey(), GOOD, 4, 0.5, 0, levels=17, augment=1.0, views=True)
    rows.guesses = distortion_labels(grey(), GOOD)[0]
    propagate(grey().flatten(1), GOOD, neighbours=3)
    batch = next(rows.epoch(0))
    double.initialize(batch.x, batch.y)
    loss, _ = semi_supervised_loss(double(batch), batch, Weights(1.0, 1.0, 1.0))
    loss.backward()
    figures = evaluate(double, grey(), KNOWN, 17, views=1, augment=1.0)
    assert loss.isfinite() and loss.dtype == torch.float64 and 0 <= figures["accuracy"] <= 1


def test_affine_maps_and_neighbours_do_not_depend_on_the_default_dtype() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            found.append([random_affine(grey(), 1.0), *distortion_labels(grey(), GOOD)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_flow_gives_its_own_samples_a_finite_likelihood() -> None:
    flow = model("scnf-digits").eval()
    assert flow.log_likelihood(flow.sample(KNOWN)).isfinite().all()
