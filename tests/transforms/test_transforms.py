"""Every transform, by one table and one check. Parameters are perturbed first: couplings start at zero."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform, RandomPermutation
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from conftest import needs_compiler, needs_cuda
from scnf.machine import compile_for
from scnf.nn import MLP, ConvNet
from scnf.transforms import (
    LINEAR,
    ActNorm,
    AffineCoupling,
    ChannelPartition,
    CheckerboardPartition,
    CompositeTransform,
    FactorOut,
    Flatten,
    FullLinear,
    GreyLevels,
    InverseTransform,
    Logit,
    Permutation,
    Planar,
    PLULinear,
    Squeeze,
    Standardize,
    Transform,
    Unsqueeze,
    haar_matrix,
    initialize_from_data,
    two_way_coupling,
)
from scnf.transforms.coupling import LOG_SCALES, Partition

ROWS = 3
CONTEXT = 3


class Case(NamedTuple):
    make: Callable[[], Transform]
    shape: tuple[int, ...]
    context: int | None = None
    pixels: bool = False  # takes inputs in (0, 1) only


def network(image: bool, context: int | None) -> Callable[[int, int], nn.Module]:
    return partial(ConvNet if image else MLP, hidden=6, context_features=context or 0)


def coupling(part: Partition, image: bool, context: int | None = None, scale: str = "symmetric") -> AffineCoupling:
    return AffineCoupling(network(image, context)(part.num_identity, 2 * part.num_transformed), part, scale)


def two_way(size: int, partition: type[Partition], image: bool, context: int | None = None) -> Transform:
    return two_way_coupling(network(image, context), size, "sigmoid", partition)


def multi_scale() -> Transform:
    deepest = CompositeTransform([FullLinear(4), Flatten((4, 2, 1))])
    steps = [Squeeze(), PLULinear(8), ActNorm(8), coupling(ChannelPartition(8), True, CONTEXT)]
    level = CompositeTransform([*steps, FactorOut(deepest, (8, 2, 1))])
    steps = [Logit(), coupling(CheckerboardPartition(1), True), Squeeze(), coupling(ChannelPartition(4), True, CONTEXT)]
    return CompositeTransform([*steps, FactorOut(level, (4, 4, 2))])


def spline() -> Transform:
    net = partial(ResidualNet, hidden_features=8, context_features=CONTEXT)
    return PiecewiseRationalQuadraticCouplingTransform([1, 0, 1, 0], net, num_bins=4, tails="linear", tail_bound=3.0)


def standardize() -> Transform:
    layer = Standardize(4)
    layer.start(torch.tensor([3.0, -1.0, 0.0, 20.0]), torch.tensor([0.1, 1.0, 7.0, 3.0]))
    return layer


def random_permutation(size: int) -> Permutation:
    return Permutation(torch.randperm(size))


CASES: dict[str, Case] = {}
for swap, scale, context in product((False, True), LOG_SCALES, (None, CONTEXT)):
    variant = f"{'-swap' if swap else ''}-{scale}{'-context' if context else ''}"
    vector, channel, board = ChannelPartition(5, swap), ChannelPartition(3, swap), CheckerboardPartition(2, swap)
    CASES[f"coupling-vector{variant}"] = Case(partial(coupling, vector, False, context, scale), (5,), context)
    CASES[f"coupling-channel{variant}"] = Case(partial(coupling, channel, True, context, scale), (3, 4, 2), context)
    CASES[f"coupling-checkerboard{variant}"] = Case(partial(coupling, board, True, context, scale), (2, 3, 4), context)
for name, kind in LINEAR.items():
    CASES[f"{name}-vector"] = Case(partial(kind, 5), (5,))
    CASES[f"{name}-image"] = Case(partial(kind, 4), (4, 3, 2))
CASES |= {
    "coupling-unequal-vector": Case(partial(coupling, ChannelPartition(5, first=1), False), (5,)),
    "coupling-unequal-swap": Case(partial(coupling, ChannelPartition(5, swap=True, first=4), False), (5,)),
    "coupling-unequal-channel": Case(partial(coupling, ChannelPartition(4, first=3), True), (4, 2, 3)),
    "coupling-checkerboard-one-channel": Case(partial(coupling, CheckerboardPartition(1), True), (1, 5, 3)),
    "two-way-vector": Case(partial(two_way, 5, ChannelPartition, False, CONTEXT), (5,), CONTEXT),
    "two-way-channel": Case(partial(two_way, 3, ChannelPartition, True), (3, 2, 4)),
    "two-way-checkerboard": Case(partial(two_way, 2, CheckerboardPartition, True, CONTEXT), (2, 3, 4), CONTEXT),
    "full-haar": Case(lambda: FullLinear(4, haar_matrix(1)), (4, 3, 2)),
    "plu-haar": Case(lambda: PLULinear(8, haar_matrix(2)), (8, 2, 2)),
    "actnorm-vector": Case(lambda: ActNorm(4), (4,)),
    "actnorm-image": Case(lambda: ActNorm(3), (3, 2, 4)),
    "standardize": Case(standardize, (4,)),
    "squeeze": Case(Squeeze, (2, 4, 6)),
    "unsqueeze": Case(Unsqueeze, (8, 2, 3)),
    "flatten": Case(lambda: Flatten((2, 3, 4)), (2, 3, 4)),
    "permutation-vector": Case(lambda: random_permutation(6), (6,)),
    "permutation-image": Case(lambda: random_permutation(5), (5, 2, 3)),
    "logit": Case(Logit, (2, 3, 4), pixels=True),
    "grey-levels": Case(lambda: GreyLevels(4), (2, 3, 4), pixels=True),
    "seventeen-grey-levels": Case(lambda: GreyLevels(17), (2, 3, 4), pixels=True),
    "logit-small-alpha": Case(lambda: Logit(1e-3), (6,), pixels=True),
    "factor-out-image": Case(lambda: FactorOut(Flatten((2, 3, 2)), (4, 3, 2)), (4, 3, 2)),
    "factor-out-vector": Case(lambda: FactorOut(FullLinear(3), (5,)), (5,)),
    "factor-out-unequal": Case(lambda: FactorOut(FullLinear(1), (4,), aside=3), (4,)),
    "factor-out-context": Case(
        lambda: FactorOut(coupling(ChannelPartition(3), False, CONTEXT), (4,), aside=1), (4,), CONTEXT
    ),
    "planar": Case(lambda: Planar(4), (4,)),
    "planar-one-feature": Case(lambda: Planar(1), (1,)),
    "planar-context": Case(lambda: Planar(4, CONTEXT), (4,), CONTEXT),
    "planar-inverse": Case(lambda: InverseTransform(Planar(4)), (4,)),
    "composite": Case(
        lambda: CompositeTransform([ActNorm(4), PLULinear(4), coupling(ChannelPartition(4), False, CONTEXT)]),
        (4,),
        CONTEXT,
    ),
    "multi-scale": Case(multi_scale, (1, 8, 4), CONTEXT, pixels=True),
    "inverse-linear": Case(lambda: InverseTransform(FullLinear(4)), (4, 2, 2)),
    "inverse-coupling": Case(lambda: InverseTransform(coupling(ChannelPartition(4), False, CONTEXT)), (4,), CONTEXT),
    "inverse-logit": Case(lambda: InverseTransform(Logit()), (2, 3, 2)),
    "nflows-spline": Case(
        lambda: CompositeTransform([FullLinear(4), RandomPermutation(4), spline(), ActNorm(4)]), (4,), CONTEXT
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def prepared(
    case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Transform, Tensor, Tensor | None]:
    """(transform, inputs, context): started on a batch, then perturbed, and left in training mode."""
    torch.manual_seed(0)
    transform = case.make().double()
    inputs = torch.randn(ROWS, *case.shape, dtype=torch.float64)
    inputs = inputs.sigmoid() if case.pixels else inputs
    context = None if case.context is None else torch.randn(ROWS, case.context, dtype=torch.float64)
    initialize_from_data(transform, inputs, context)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    to = partial(torch.Tensor.to, dtype=dtype, device=device)
    return transform.to(dtype).to(device), to(inputs), None if context is None else to(context)


def rows(values: Tensor | None) -> list[Tensor] | list[None]:
    return [None] * ROWS if values is None else list(values.split(1))


def check_transform(case: Case, device: str = "cpu") -> None:
    transform, inputs, context = prepared(case, device=device)
    state = copy.deepcopy(transform.state_dict())
    given = inputs.clone(), None if context is None else context.clone()

    outputs, logabsdet = transform(inputs, context)
    kept = outputs.clone()
    restored, inverse_logabsdet = transform.inverse(outputs, context)
    again, _ = transform(restored, context)
    size = inputs[0].numel()
    assert outputs.shape[0] == ROWS and outputs[0].numel() == size and restored.shape == inputs.shape
    assert logabsdet.shape == inverse_logabsdet.shape == (ROWS,)
    assert all(values.isfinite().all() for values in (outputs, logabsdet, restored, inverse_logabsdet))

    # nothing is changed and nothing is remembered
    assert torch.equal(inputs, given[0]) and torch.equal(outputs, kept)
    assert context is None or torch.equal(context, given[1])
    assert all(torch.equal(value, state[name]) for name, value in transform.state_dict().items())

    # both directions belong together
    torch.testing.assert_close(restored, inputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again, outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, rtol=1e-10, atol=1e-10)

    # rows are independent
    for row, (one, condition) in enumerate(zip(rows(inputs), rows(context), strict=True)):
        output, logdet = transform(one, condition)
        torch.testing.assert_close(output, outputs[row : row + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logdet, logabsdet[row : row + 1], rtol=1e-12, atol=1e-12)

    # so the Jacobian of their sum holds that of each row: [D, N, D]
    matrices = jacobian(lambda x: transform(x, context)[0].flatten(1).sum(dim=0), inputs, vectorize=True)
    truth = torch.linalg.slogdet(matrices.reshape(size, ROWS, size).transpose(0, 1)).logabsdet
    assert ((logabsdet - truth).abs() <= 1e-10 * truth.abs().clamp_min(1)).all(), (logabsdet, truth)

    # a context decides where there is one and is ignored elsewhere
    other = torch.randn(ROWS, case.context or 7, dtype=inputs.dtype, device=device)
    assert torch.equal(transform(inputs, other)[0], outputs) == (case.context is None)

    # every parameter learns, from the outputs and from the log-determinant of either direction
    parameters = dict(transform.named_parameters())
    for direction in (transform, transform.inverse) if parameters else ():
        transform.zero_grad()
        values, logdet = direction(inputs if direction is transform else kept.detach(), context)
        ((values * torch.randn_like(values)).sum() + logdet.sum()).backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    # a loaded transform can invert at once, and is the same
    torch.manual_seed(1)
    loaded = case.make().double().to(device)
    loaded.load_state_dict(state)
    assert torch.equal(loaded.inverse(outputs, context)[0], restored)
    assert torch.equal(loaded(inputs, context)[0], outputs)


@every_case
def test_transform_inverse_and_log_determinant_are_exact(case: Case) -> None:
    check_transform(case)


@needs_cuda
@every_case
def test_transform_inverse_and_log_determinant_are_exact_on_cuda(case: Case) -> None:
    check_transform(case, "cuda")


@every_case
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_transform_in_single_precision_is_accurate(case: Case, device: str) -> None:
    transform, inputs, context = prepared(case, torch.float32, device)
    outputs, logabsdet = transform(inputs, context)
    restored, inverse_logabsdet = transform.inverse(outputs, context)
    for values in (outputs, logabsdet, restored, inverse_logabsdet):
        assert values.dtype == torch.float32 and values.device == inputs.device
    torch.testing.assert_close(restored, inputs, rtol=1e-4, atol=1e-4)
    exact, _, _ = prepared(case, device=device)
    truth, truth_logabsdet = exact(inputs.double(), None if context is None else context.double())
    torch.testing.assert_close(outputs.double(), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logabsdet.double(), truth_logabsdet, rtol=1e-4, atol=1e-4)


@every_case
@pytest.mark.usefixtures("without_kernels")
def test_transform_stays_in_single_precision_under_autocast(case: Case) -> None:
    transform, inputs, context = prepared(case, torch.float32)
    outputs, logabsdet = transform(inputs, context)
    restored, inverse_logabsdet = transform.inverse(outputs, context)
    full = outputs, logabsdet, restored, inverse_logabsdet
    with torch.autocast("cpu", torch.bfloat16):
        half = *transform(inputs, context), *transform.inverse(outputs, context)
    has_network = any(isinstance(module, MLP | ConvNet | ResidualNet | nn.Linear) for module in transform.modules())
    for ours, theirs in zip(half, full, strict=True):
        assert ours.dtype == torch.float32
        if has_network:
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)
        else:
            assert torch.equal(ours, theirs)
    if has_network:
        assert not torch.equal(half[0], full[0]), "half precision never reached the network"


@needs_compiler
def test_transform_compiled_equals_eager() -> None:
    transform, inputs, context = prepared(CASES["composite"], torch.float32)
    with torch.no_grad():
        compiled = compile_for(transform, inputs.device)(inputs, context)
        torch.testing.assert_close(compiled, transform(inputs, context), rtol=1e-5, atol=1e-5)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "logit-zero": (lambda: Logit(0.0), "alpha must be above 0 and below 0.5, not 0.0"),
    "logit-half": (lambda: Logit(0.5), "alpha must be above 0 and below 0.5"),
    "one-grey-level": (lambda: GreyLevels(1), "levels must be a whole number of 2 or more, not 1"),
    "grey-levels-slope": (lambda: GreyLevels(256, slope=0.0), "slope must be above 0 and finite, not 0.0"),
    "grey-levels-tail": (lambda: GreyLevels(256, tail=0.5), "tail must be above 0 and below 0.5, not 0.5"),
    "logit-nan": (lambda: Logit(float("nan")), "alpha must be above 0 and below 0.5"),
    "permutation-twice": (lambda: Permutation(torch.tensor([0, 0, 1])), "each of 0..2 exactly once"),
    "permutation-from-one": (lambda: Permutation(torch.tensor([1, 2, 3])), "each of 0..2 exactly once"),
    "factor-out-nothing": (
        lambda: FactorOut(Flatten((4,)), (4,), aside=0),
        "leave channels in both parts: 0 of 4",
    ),
    "factor-out-all": (
        lambda: FactorOut(Flatten((4,)), (4,), aside=4),
        "leave channels in both parts: 4 of 4",
    ),
    "factor-out-one-channel": (
        lambda: FactorOut(Flatten((1, 2, 2)), (1, 2, 2)),
        "leave channels in both parts: 0 of 1",
    ),
    "standardize-mean": (
        lambda: Standardize(2).start(torch.tensor([0.0, torch.nan]), torch.ones(2)),
        "mean must be finite",
    ),
    "standardize-scale": (
        lambda: Standardize(2).start(torch.zeros(2), torch.tensor([1.0, 0.0])),
        "scale must be above 0 and finite",
    ),
    "unknown-scale": (
        lambda: AffineCoupling(nn.Identity(), ChannelPartition(2), scale="exp"),
        "scale must be one of sigmoid, symmetric; not 'exp'",
    ),
    "partition-one-channel": (
        lambda: ChannelPartition(1),
        "first must leave channels in both parts: 0 of 1",
    ),
    "partition-all": (
        lambda: ChannelPartition(3, first=3),
        "first must leave channels in both parts: 3 of 3",
    ),
    "two-way-one-channel": (
        lambda: two_way(1, ChannelPartition, False),
        "first must leave channels in both parts: 0 of 1",
    ),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_transform_refuses_invalid_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("product", [-10.0, -25.0, -80.0])
def test_planar_flow_pushed_to_its_limit_stays_finite(product: float) -> None:
    planar = Planar(2)
    with torch.no_grad():
        planar.bias.copy_(torch.tensor([product, 0.0, 1.0, 0.0, 0.0]))  # u w = product, before u is moved
    z = torch.tensor([[0.7, 0.0], [-0.4, 0.3]])
    outputs, logabsdet = planar(z)
    slope = 1 - 1 / z[:, 0].cosh().square()  # of a - tanh(a), where u w is -1 but for a hair
    torch.testing.assert_close(logabsdet, slope.log(), rtol=0, atol=1e-3)
    torch.testing.assert_close(planar.inverse(outputs)[0], z, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "order",
    [
        torch.arange(9).roll(-3),
        torch.arange(5),
        torch.arange(5).flip(0),
        7 * torch.arange(40) % 40,
    ],
    ids=["turned", "same", "reversed", "many"],
)
def test_permutation_loaded_from_a_state_takes_by_its_index(order: Tensor) -> None:
    layer, inputs = Permutation(torch.arange(len(order)).roll(1)), torch.randn(3, len(order), 2, 2, requires_grad=True)
    layer.load_state_dict({"permutation": order})
    outputs, _ = layer(inputs)
    assert outputs.equal(inputs[:, order])
    assert layer.inverse(outputs)[0].equal(inputs)
    weights = torch.randn_like(inputs)
    (outputs * weights).sum().backward()
    assert inputs.grad.equal(weights[:, order.argsort()])
