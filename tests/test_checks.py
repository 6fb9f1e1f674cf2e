"""The doors: what is no label and no data is refused where it comes in, by every way in."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.data.augment import random_affine
from scnf.data.batches import Batches, dequantize
from scnf.data.distortion import distortion_labels
from scnf.data.labels import draw_split
from scnf.data.propagation import propagate, spread
from scnf.distributions import ClassPrior
from scnf.models.architectures import build
from scnf.models.base import JointOutput
from scnf.models.classifier import Classifier
from scnf.objectives import Consistency, semi_supervised_loss
from scnf.training.loop import without_density
from scnf.training.metrics import brier_score, evaluate, expected_calibration_error

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


def loss(y: Tensor) -> object:
    return semi_supervised_loss(JointOutput(torch.zeros(ROWS), torch.zeros(ROWS, K)), y, classifier_weight=1.0)


MODELS = ["scnf-digits", "m1", "m2", "m2-drawn", "classifier"]
OF_LABELS: dict[str, tuple[Callable[[Tensor], object], bool, bool]] = {
    "batches": (batches, True, False),
    "loss": (loss, True, True),
    "propagate": (lambda y: propagate(x().flatten(1), y, neighbours=3), True, False),
    "spread": (lambda y: spread(torch.zeros(ROWS, 1).long(), torch.ones(ROWS, 1), y, 0.9, 3), True, False),
    "distortion": (lambda y: distortion_labels(x(), y), True, False),
    "prior": (lambda y: ClassPrior.empirical(y, K), True, True),
    "split": (lambda y: draw_split(y, K, 3, 2, 0, balanced=False), False, True),
    "calibration": (lambda y: expected_calibration_error(torch.zeros(ROWS, K), y), False, True),
    "brier": (lambda y: brier_score(torch.zeros(ROWS, K), y), False, True),
    "evaluate": (lambda y: evaluate(model("scnf-digits"), grey(), y, 17), False, True),
    **{f"{name}-forward": (lambda y, name=name: model(name)(x(), y), True, True) for name in MODELS},
    **{f"{name}-initialize": (lambda y, name=name: model(name).initialize(x(), y), True, True) for name in MODELS},
    **{f"{name}-sample": (lambda y, name=name: model(name).sample(y), False, True) for name in MODELS[:3]},
    "log-prob": (lambda y: model("scnf-digits").log_prob(x(), y), False, True),
}
"""By name: what takes labels, whether some may be hidden, and whether it knows K."""


@pytest.mark.parametrize(("take", "hidden", "knows_classes"), OF_LABELS.values(), ids=OF_LABELS)
def test_every_door_refuses_what_is_no_label(
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
        with pytest.raises(ValueError, match="labels are"):
            take(y)


@pytest.mark.parametrize("name", MODELS)
def test_a_label_of_no_class_is_an_error_also_where_nothing_is_checked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a GPU and in compiled code a step reads no values: the look-up refuses them
    for module in ("scnf.models.base", "scnf.objectives"):
        monkeypatch.setattr(f"{module}.at_hand", lambda values: False)
    for value in (-100, -2, K):
        with pytest.raises((RuntimeError, IndexError)):
            model(name)(x(), torch.where(torch.arange(ROWS) == 3, value, GOOD))
        with pytest.raises((RuntimeError, IndexError)):
            loss(torch.where(torch.arange(ROWS) == 3, value, GOOD))


OF_IMAGES: dict[str, Callable[[Tensor], object]] = {
    "batches": lambda images: Batches(images, GOOD, 4, 0.5, 0, levels=17),
    "dequantize": lambda images: dequantize(images, 17),
    "augment": lambda images: random_affine(images, 1.0),
    "evaluate": lambda images: evaluate(model("scnf-digits"), images, KNOWN, 17),
}


@pytest.mark.parametrize("take", OF_IMAGES.values(), ids=OF_IMAGES)
def test_images_of_floats_are_refused_where_grey_levels_are_wanted(take: Callable[[Tensor], object]) -> None:
    take(grey())
    take(grey().int())
    for images in (x(), grey().double()):
        with pytest.raises(ValueError, match="whole"):
            take(images)


@pytest.mark.parametrize("take", [OF_IMAGES["batches"], OF_IMAGES["evaluate"]], ids=["batches", "evaluate"])
def test_grey_levels_beyond_the_last_are_refused(take: Callable[[Tensor], object]) -> None:
    with pytest.raises(ValueError, match="17 grey levels are 0 to 16; these run from 0 to 255"):
        take(torch.where(grey() == 16, 255, grey()))
    with pytest.raises(ValueError, match=r"images are of shape \[N, C, H, W\]"):
        take(grey().flatten(1))


def test_points_are_finite_floats() -> None:
    points = torch.randn(ROWS, 2)
    Batches(points, GOOD, 4, 0.5, 0, levels=None)
    points[3, 1] = torch.nan
    for wrong, message in ((points, "not finite"), (grey(), "say how many grey levels"), (GOOD[:, None], "floats")):
        with pytest.raises(ValueError, match=message):
            Batches(wrong, GOOD, 4, 0.5, 0, levels=None)


def test_rows_and_labels_are_as_many() -> None:
    with pytest.raises(ValueError, match="there are 8 rows and 7 labels"):
        batches(GOOD[1:])
    with pytest.raises(ValueError, match="there are 8 rows and 7 labels"):
        model("scnf-digits")(x(), GOOD[1:])


@pytest.mark.parametrize("name", ["scnf-digits", "m2", "logistic"])
def test_a_model_refuses_raw_grey_levels(name: str) -> None:
    takes = [lambda m, x: m.initialize(x, GOOD), lambda m, x: m(x, GOOD), lambda m, x: m.log_likelihood(x)]
    for take in takes:
        with pytest.raises(ValueError, match=r"a model takes floats, not torch\.uint8"):
            take(model(name), grey())
        with pytest.raises(ValueError, match=r"0\.00 to 16\.00"):
            take(model(name), grey().float())
        with pytest.raises(ValueError, match="not finite"):
            take(model(name), x().masked_fill(grey() == 3, torch.nan))
        take(model(name), x())


@pytest.mark.parametrize("pixels", ["levels", "logit"])
def test_a_pixel_that_a_flow_rules_out_has_density_zero(pixels: str) -> None:
    torch.manual_seed(0)
    flow = build("scnf-digits", SHAPE, K, levels=17, channels=8, steps=1, pixels=pixels)
    images = x()
    images[2, 0, 3, 4] = -0.5
    for mode in (True, False):
        output = flow.train(mode)(images, GOOD)
        assert output.log_likelihood.isneginf().nonzero().tolist() == [[2]]
        assert output.class_log_probs.isfinite().all()
        assert flow.log_likelihood(images)[2] == -torch.inf
    assert without_density(flow, images, GOOD).startswith("1 of 8 rows have density 0")
    assert without_density(flow, x(), GOOD) == ""
    output.log_likelihood.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["scnf-digits", "m2-drawn", "logistic", "classifier"])
@pytest.mark.usefixtures("double_by_default")
def test_everything_works_where_double_precision_is_the_default(name: str) -> None:
    double, rows = model(name), Batches(grey(), GOOD, 4, 0.5, 0, levels=17, augment=1.0, views=True)
    rows.guesses = distortion_labels(grey(), GOOD)[0]
    propagate(grey().flatten(1), GOOD, neighbours=3)
    images, labels = next(rows.epoch(0))
    double.initialize(images, labels)
    consistency = Consistency(rows.num_views, 1.0)
    output = double(images, labels, rows.num_extra)
    loss, _ = semi_supervised_loss(output, labels, 1.0, 1.0, consistency=consistency, moved=rows.num_moved)
    loss.backward()
    figures = evaluate(double, grey(), KNOWN, 17, views=1, augment=1.0)
    assert loss.isfinite() and loss.dtype == torch.float64 and 0 <= figures["accuracy"] <= 1


def test_maps_and_neighbours_are_the_same_whatever_the_default_type() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            found.append([random_affine(grey(), 1.0), *distortion_labels(grey(), GOOD)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_flow_takes_its_own_samples() -> None:
    flow = model("scnf-digits").eval()
    assert flow.log_likelihood(flow.sample(KNOWN)).isfinite().all()
