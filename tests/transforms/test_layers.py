"""What single layers promise beyond the contract."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from torch import Tensor, nn

from conftest import needs_compiler
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
    Logit,
    PLULinear,
    Squeeze,
    haar_matrix,
    initialize_from_data,
    two_way_coupling,
)
from scnf.transforms.coupling import Partition

# --- ActNorm


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 4, 5)])
def test_actnorm_standardises_the_first_training_batch(shape: tuple[int, ...]) -> None:
    layer = ActNorm(3)
    per_channel = (1, 3) + (1,) * (len(shape) - 2)
    inputs = torch.randn(shape) * torch.tensor([0.01, 1.0, 50.0]).view(per_channel)
    inputs = inputs + torch.tensor([3.0, -1.0, 100.0]).view(per_channel)
    initialize_from_data(layer, inputs)
    outputs, _ = layer(inputs)
    values = outputs.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.var(dim=1, unbiased=False), torch.ones(3), rtol=1e-4, atol=0)


def test_actnorm_starts_once() -> None:
    layer = ActNorm(2)
    initialize_from_data(layer, 3 + 2 * torch.randn(32, 2))
    started = {name: value.clone() for name, value in layer.state_dict().items()}
    assert bool(started["initialized"])
    initialize_from_data(layer, torch.randn(32, 2))
    assert all(torch.equal(value, started[name]) for name, value in layer.state_dict().items())


def test_actnorm_is_the_identity_before_its_start() -> None:
    layer = ActNorm(2)
    inputs = 3 + 2 * torch.randn(8, 2)
    for mode in (True, False):
        outputs, logabsdet = layer.train(mode)(inputs)
        assert torch.equal(outputs, inputs) and torch.equal(logabsdet, torch.zeros(8))
        assert torch.equal(layer.inverse(inputs)[0], inputs)
        assert not bool(layer.initialized), "going through it starts nothing"


def test_actnorm_stays_finite_on_constant_channels_and_single_rows() -> None:
    layer = ActNorm(3)
    inputs = torch.randn(16, 3)
    inputs[:, 1] = 1000.1
    initialize_from_data(layer, inputs)
    outputs, logabsdet = layer(inputs)
    assert outputs.isfinite().all() and logabsdet.isfinite().all()
    torch.testing.assert_close(outputs[:, 1], torch.zeros(16), rtol=0, atol=1e-3)
    assert layer.log_scale[1] == 0

    layer = ActNorm(3)
    row = torch.tensor([[5.0, -2.0, 0.0]])
    initialize_from_data(layer, row)
    outputs, logabsdet = layer(row)
    assert torch.equal(outputs, torch.zeros(1, 3)) and torch.equal(logabsdet, torch.zeros(1))


def copied_in_place(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies a state into a layer in place, as training on several devices does."""
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            value.copy_(state[name])


@pytest.mark.parametrize("take", [nn.Module.load_state_dict, copied_in_place])
def test_actnorm_takes_its_start_from_a_loaded_state(take: Callable[[nn.Module, dict[str, Tensor]], object]) -> None:
    layer, taken, unstarted = ActNorm(2), ActNorm(2), ActNorm(2)
    initialize_from_data(layer, 3 + 2 * torch.randn(32, 2))
    batch = torch.randn(32, 2)
    take(taken, layer.state_dict())
    initialize_from_data(taken, batch)
    assert torch.equal(taken(batch)[0], layer(batch)[0])
    copied = copy.deepcopy(taken)
    initialize_from_data(copied, batch)
    assert torch.equal(copied(batch)[0], layer(batch)[0])
    # and one that had not started when its state was taken still will
    take(taken, unstarted.state_dict())
    initialize_from_data(taken, batch)
    torch.testing.assert_close(taken(batch)[0].mean(dim=0), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_actnorm_refuses_to_start_from_values_too_large_or_not_finite(value: float) -> None:
    layer = ActNorm(2)
    with pytest.raises(ValueError, match="not too large, for ActNorm to start"):
        initialize_from_data(layer, torch.tensor([[1.0, 2.0], [value, 3.0]]))
    assert not layer.initialized


# --- linear


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_haar_is_orthogonal_and_ends_in_block_means(channels: int) -> None:
    matrix = haar_matrix(channels)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(4 * channels))
    images = torch.randn(5, channels, 6, 4)
    bands, logabsdet = FullLinear(4 * channels, matrix)(Squeeze()(images)[0])
    torch.testing.assert_close(bands[:, 3 * channels :], 2 * F.avg_pool2d(images, 2))
    torch.testing.assert_close(logabsdet, torch.zeros(5), rtol=0, atol=1e-5)
    flat, _ = FullLinear(4 * channels, matrix)(torch.ones(1, 4 * channels, 1, 1))
    torch.testing.assert_close(flat[:, : 3 * channels], torch.zeros(1, 3 * channels, 1, 1))


@pytest.mark.parametrize("kind", [FullLinear, PLULinear])
def test_linear_starts_from_a_copy_of_the_given_matrix(kind: type[FullLinear] | type[PLULinear]) -> None:
    initial = torch.randn(5, 5)
    given = initial.clone()
    layer = kind(5, initial)
    weight, logabsdet = layer.matrix(), layer.logabsdet()
    torch.testing.assert_close(weight, initial, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(initial).logabsdet, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        next(layer.parameters()).add_(1.0)
    assert torch.equal(initial, given), "the matrix given is copied"


@pytest.mark.parametrize("name", LINEAR)
def test_linear_starts_orthogonal(name: str) -> None:
    layer = LINEAR[name](6).double()
    weight, logabsdet = layer.matrix(), layer.logabsdet()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-5)
    assert logabsdet.abs() < 1e-5


def test_linear_mixes_channels_of_vectors_and_pixels_alike() -> None:
    layer = FullLinear(3)
    images = torch.randn(2, 3, 4, 5)
    outputs, logabsdet = layer(images)
    pixel, one = layer(images[:, :, 1, 2])
    torch.testing.assert_close(outputs[:, :, 1, 2], pixel)
    torch.testing.assert_close(pixel, images[:, :, 1, 2] @ layer.weight.T)
    torch.testing.assert_close(logabsdet, 20 * one)


# --- couplings


def test_couplings_start_as_a_fixed_scale() -> None:
    inputs = torch.randn(4, 4)
    for scale, start in (("sigmoid", 1 / (1 + math.exp(-2))), ("symmetric", 1.0)):
        layer = AffineCoupling(MLP(2, 4, 8), ChannelPartition(4), scale)
        outputs, logabsdet = layer(inputs)
        torch.testing.assert_close(outputs, torch.cat([inputs[:, :2], start * inputs[:, 2:]], dim=1))
        torch.testing.assert_close(logabsdet, torch.full((4,), 2 * math.log(start)))


def test_coupling_network_outputs_scales_before_shifts() -> None:
    net = MLP(1, 2, 8)
    with torch.no_grad():
        net.leave.bias.copy_(torch.tensor([1.0, 3.0]))
    outputs, logabsdet = AffineCoupling(net, ChannelPartition(2), "symmetric")(torch.tensor([[0.5, 2.0]]))
    log_scale = 2 * math.tanh(0.5)
    torch.testing.assert_close(outputs, torch.tensor([[0.5, 2 * math.exp(log_scale) + 3]]))
    torch.testing.assert_close(logabsdet, torch.tensor([log_scale]))


@pytest.mark.parametrize("swap", [False, True])
def test_partitions_split_and_merge(swap: bool) -> None:
    vectors, images = torch.randn(2, 5), torch.randn(2, 3, 3, 4)
    for part, inputs in ((ChannelPartition(5, swap, first=1), vectors), (CheckerboardPartition(3, swap), images)):
        identity, transformed = part.split(inputs)
        assert torch.equal(part.merge(identity, transformed), inputs)
        assert identity.shape[1] == part.num_identity and transformed.shape[1] == part.num_transformed
    # neighbours differ in colour, and the corner is transformed only when swapped
    assert (images[:, :, 0, 0] == transformed[:, :, 0, 0]).all() == swap
    assert (images[:, :, 0, 1] == identity[:, :, 0, 1]).all() == swap
    assert (images[:, :, 1, 1] == transformed[:, :, 1, 1]).all() == swap


@pytest.mark.parametrize(
    ("partition", "net", "shape"), [(ChannelPartition, MLP, (2, 4)), (CheckerboardPartition, ConvNet, (2, 4, 3, 3))]
)
def test_two_way_coupling_transforms_every_element(
    partition: type[Partition], net: type[nn.Module], shape: tuple[int, ...]
) -> None:
    layer = two_way_coupling(partial(net, hidden=8), 4, "sigmoid", partition)
    inputs = torch.randn(shape)
    assert (layer(inputs)[0] != inputs).all()


# --- pixels and shapes


def test_logit_covers_the_closed_interval() -> None:
    outputs, logabsdet = Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
    ends = math.log(0.05 / 0.95)
    torch.testing.assert_close(outputs, torch.tensor([[ends, 0.0, -ends]]))
    slope = 0.9 / (0.05 * 0.95)
    torch.testing.assert_close(logabsdet, torch.tensor([2 * math.log(slope) + math.log(0.9 / 0.25)]))


def test_logit_has_density_zero_outside_of_its_support() -> None:
    # 0.05 + 0.9 x passes 0 and 1 at x = -0.0556 and 1.0556
    x = torch.tensor([[0.0], [1.0], [-0.0555], [1.0555], [-0.057], [1.057], [-5.0], [255.0]], requires_grad=True)
    outputs, logabsdet = Logit(0.05)(x)
    assert outputs.isfinite().all()
    assert logabsdet[:4].isfinite().all() and (logabsdet[4:] == -math.inf).all()
    (outputs.sum() + logabsdet[:4].sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_grey_levels_make_the_darkest_level_gaussian() -> None:
    # what a standard Gaussian says of its noise falls short of the uniform density by 0.015 bits, not by 0.25
    noise = (torch.arange(100_000, dtype=torch.float64).unsqueeze(1) + 0.5) / 100_000 / 256
    outputs, logabsdet = GreyLevels(256).double()(noise)
    log_density = -0.5 * outputs.square().squeeze(1) - 0.5 * math.log(2 * math.pi) + logabsdet
    torch.testing.assert_close(math.log(256) - log_density, torch.full_like(log_density, -math.log(1 - 2 * 0.005)))


def test_grey_levels_start_with_slopes_by_the_frequency_of_levels() -> None:
    layer = GreyLevels(5, slope=2.0)
    before = torch.tensor([[0.1, 0.5, 0.7, 0.9]])
    torch.testing.assert_close(layer.eval()(before)[0][0, 1:], layer.highest + 2 * (before[0, 1:] - 0.2))
    batch = torch.tensor([0, 0, 0, 0, 0, 1, 3, 3, 3, 4])
    initialize_from_data(layer, (batch.unsqueeze(1) + 0.5) / 5)
    # half are dark; of the light levels 1 to 4 these are 1/5, 0, 3/5, 1/5
    expected = 10.0 * (0.5 + 0.5 * 4 * torch.tensor([0.2, 0.0, 0.6, 0.2]))
    torch.testing.assert_close(layer.log_slope.exp(), expected)
    kept = layer.log_slope.clone()
    initialize_from_data(layer, torch.rand(10, 1))
    assert torch.equal(layer.log_slope, kept)
    ends, _ = layer(torch.tensor([[0.2], [1.0]]))
    torch.testing.assert_close(ends[:, 0], layer.highest + torch.tensor([0.0, 4 * 10.0 / 5]))  # no room is lost


@pytest.mark.parametrize(("value", "slope"), [(0.0, 10 * 1e-3**0.5), (0.9, 10 * 1e3**0.5)], ids=["dark", "light"])
def test_grey_levels_start_from_a_batch_of_one_level(value: float, slope: float) -> None:
    layer = GreyLevels(256)
    inputs = torch.full((2, 1, 300, 300), value)
    initialize_from_data(layer, inputs)
    outputs, logabsdet = layer(inputs)
    assert outputs.isfinite().all() and logabsdet.isfinite().all()
    assert float(layer.log_slope.detach().exp().mean()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_grey_levels_are_continuous_and_increasing_across_levels(levels: int, dtype: torch.dtype) -> None:
    layer = GreyLevels(levels).to(dtype).eval()
    layer.log_slope.data += torch.randn(levels - 1, dtype=dtype)
    meet = torch.arange(levels + 1, dtype=dtype) / levels
    others = meet.new_tensor([-1e-5, 1 - 2**-24, 1.2])
    inputs = torch.cat([meet - 1e-6, meet, meet + 1e-6, others]).sort().values.unsqueeze(1)
    outputs, _ = layer(inputs)
    steps = outputs.diff(dim=0)
    assert (steps >= -1e-6).all() and steps[inputs.diff(dim=0) < 2e-6].max() < 0.05  # in order, and without gaps
    rounding = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(layer.inverse(outputs)[0], inputs, rtol=0, atol=rounding)


def test_grey_levels_handle_infinite_and_missing_values() -> None:
    layer = GreyLevels(256)
    inf, nan = float("inf"), float("nan")
    pixels, logabsdet = layer.inverse(torch.tensor([[-inf], [1e30], [inf], [nan]]))
    assert pixels[0].item() == pytest.approx(-0.005 / 0.99 / 256) and pixels[1] > 1e26 and pixels[2] == inf
    assert logabsdet[0] == -inf and logabsdet[1:3].isfinite().all() and pixels[3].isnan()
    outputs, _ = layer.eval()(torch.tensor([[nan], [1e30], [inf]]))
    assert outputs[0].isnan() and outputs[1] > 1e30 and outputs[2] == inf


def test_grey_levels_have_density_zero_below_the_darkest_sample() -> None:
    layer = GreyLevels(4).double().eval()
    lowest = -0.005 / 0.99 / 4
    x = torch.linspace(1.01 * lowest, 0.9, 200_001, dtype=torch.float64).unsqueeze(1)
    y, logabsdet = layer(x)
    log_prob = torch.distributions.Normal(0, 1).log_prob(y[:, 0]) + logabsdet
    assert (log_prob[x[:, 0] < 1.001 * lowest] == -torch.inf).all()
    assert log_prob[x[:, 0] > 0.999 * lowest].isfinite().all()
    mass = torch.trapezoid(log_prob.exp(), x[:, 0])
    end = torch.distributions.Normal(0, 1).cdf(y[-1, 0])
    torch.testing.assert_close(mass, end, rtol=0, atol=1e-5)
    pixels = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    pixels[1, 0, 2, 1] = -0.1  # one such pixel, and an image has no density
    logabsdet = layer(pixels)[1]
    assert logabsdet[0].isfinite() and logabsdet[1] == -torch.inf


@needs_compiler
def test_grey_levels_compiled_equal_eager() -> None:
    layer = GreyLevels(16)
    initialize_from_data(layer, torch.rand(4, 1, 5, 5))
    inputs = torch.rand(8, 1, 5, 5).requires_grad_()
    found = []
    for function in (layer, compile_for(layer, torch.device("cpu"), fullgraph=True)):
        outputs, logabsdet = function(inputs)
        loss = (outputs * torch.linspace(0.5, 2, outputs.numel()).view_as(outputs)).sum() + logabsdet.square().sum()
        found.append([outputs, logabsdet, *torch.autograd.grad(loss, [inputs, layer.log_slope])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_squeeze_puts_each_block_into_four_channels() -> None:
    images = torch.arange(8.0).view(1, 2, 2, 2)
    assert Squeeze()(images)[0].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert Squeeze()(image)[0][0, :, 0, 1].tolist() == [2, 3, 6, 7]


def test_factor_out_puts_the_deepest_features_last() -> None:
    inputs = torch.arange(8.0).view(1, 4, 2, 1)
    inner = CompositeTransform([FullLinear(3, 10 * torch.eye(3)), Flatten((3, 2, 1))])
    outputs, logabsdet = FactorOut(inner, (4, 2, 1), aside=1)(inputs)
    assert outputs.tolist() == [[0, 1, 20, 30, 40, 50, 60, 70]]
    torch.testing.assert_close(logabsdet, torch.tensor([6 * math.log(10)]))


# --- nflows


def test_layers_work_inside_an_nflows_flow() -> None:
    steps = [ActNorm(4), PLULinear(4), two_way_coupling(partial(ConvNet, hidden=8), 4)]
    transform = CompositeTransform([Squeeze(), *steps, Flatten((4, 2, 2))])
    flow = Flow(transform, StandardNormal([16]))
    images = torch.randn(5, 1, 4, 4)
    log_prob = flow.log_prob(images)
    z, logabsdet = transform(images)
    expected = -0.5 * z.square().sum(dim=1) - 8 * math.log(2 * math.pi) + logabsdet
    torch.testing.assert_close(log_prob, expected)
    assert flow.sample(3).shape == (3, 1, 4, 4)
    samples, sample_log_prob = flow.sample_and_log_prob(3)
    torch.testing.assert_close(flow.log_prob(samples), sample_log_prob, rtol=1e-4, atol=1e-4)
