"""The flow whose class is read by a network: p(x, y) is exact, and each loss trains its own part."""

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.models import ReaderFlow
from scnf.objectives import Weights, semi_supervised_loss
from scnf.recipes import build

SHAPE = (1, 6, 6)


def started(gain: float = 4.0) -> ReaderFlow:
    torch.manual_seed(0)
    small = dict(channels=8, steps=1, reader_channels=4, pixels="logit")
    model = build("scnf-reader", SHAPE, 3, levels=17, gain=gain, **small).double()
    assert isinstance(model, ReaderFlow)
    model.initialize(torch.rand(64, *SHAPE, dtype=torch.float64), torch.arange(64) % 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(rows: int) -> Tensor:
    return torch.rand(rows, *SHAPE, dtype=torch.float64)


def batch(views: bool) -> Batch:
    y = torch.tensor([0, 1, UNLABELLED, UNLABELLED])
    if not views:
        return Batch(images(4), y)
    return Batch(images(4), y, moved=images(2), moved_y=y[:2], views=images(2), targets=torch.tensor([2, UNLABELLED]))


def trained_parts(model: ReaderFlow, batch: Batch, weights: Weights) -> set[str]:
    """The parts of the model that a loss with these weights moves."""
    model.zero_grad()
    semi_supervised_loss(model(batch), batch, weights)[0].backward()
    moved = (name for name, each in model.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0)
    return {name.partition(".")[0] for name in moved}


def test_reader_flow_training_step_has_the_values_of_its_densities() -> None:
    model = started().eval()
    for views in (False, True):
        rows = batch(views)
        output, table = model(rows), model.log_joint(rows.x)
        labelled = table.gather(1, rows.y.clamp_min(0).unsqueeze(1)).squeeze(1)
        expected = torch.where(rows.y == UNLABELLED, table.logsumexp(1), labelled)
        torch.testing.assert_close(output.log_likelihood, expected)
        torch.testing.assert_close(output.class_log_probs, table.log_softmax(1))
        if views:
            assert rows.moved is not None and rows.views is not None
            torch.testing.assert_close(output.moved, model.class_log_probs(rows.moved))
            torch.testing.assert_close(output.views, model.class_log_probs(rows.views))


def test_reader_flow_posterior_is_the_networks_up_to_noise_that_a_large_gain_removes() -> None:
    x = images(5)
    gaps = []
    for gain in (1.0, 100.0):
        model = started(gain).eval()
        image = model.image_read(*super(ReaderFlow, model).latents(x)[:2])
        gaps.append((model.class_log_probs(x) - model.reader(image).log_softmax(1)).abs().max())
    assert gaps[1] < 0.1 < gaps[0]


def test_reader_flow_reads_the_grey_levels_but_for_a_few_pixels() -> None:
    model, x = started().eval(), images(5)
    seen = model.image_read(*super(ReaderFlow, model).latents(x)[:2])
    levels = ((17 * x).floor() + 0.5) / 17
    changed = ~torch.isclose(seen, levels).amax(0)[0]
    assert changed.sum() <= 8 and not changed[2:].any()  # two blocks of 2x2 pixels at the upper edge
    noisy = ((17 * x).floor() + torch.rand_like(x)) / 17  # another draw of the noise of dequantisation
    again = model.image_read(*super(ReaderFlow, model).latents(noisy)[:2])
    assert torch.isclose(seen, again)[:, :, 2:].all()


def test_reader_flow_likelihood_trains_all_but_the_reader_and_cross_entropies_nothing_else() -> None:
    model = started()
    for views in (False, True):
        everything = trained_parts(model, batch(views), Weights(classifier=1.0, consistency=1.0))
        assert everything == {"transform", "reader", "auxiliary", "conditional"}
        assert trained_parts(model, batch(views), Weights()) == {"transform", "auxiliary", "conditional"}
    rows = batch(True)
    gradients = []
    for labelled in (1.0, 5.0):  # the weight of a likelihood does not reach the reader
        model.zero_grad()
        semi_supervised_loss(model(rows), rows, Weights(labelled, classifier=1.0, consistency=1.0))[0].backward()
        gradients.append(
            torch.cat([each.grad.flatten() for each in model.reader.parameters() if each.grad is not None])
        )
    torch.testing.assert_close(gradients[0], gradients[1])


def test_reader_flow_trains_its_noise_as_a_standard_gaussian_and_the_density_of_classes_as_it_is() -> None:
    model, x = started().eval(), images(4)
    transform, classes = list(model.transform.parameters()), list(model.conditional.parameters())
    gradients = torch.autograd.grad(model(Batch.unlabelled(x)).log_likelihood.sum(), [*transform, *classes])
    z_aux, e, logabsdet = super(ReaderFlow, model).latents(x)
    eta, rest = e.tensor_split([model.conditional.used], dim=1)
    assert model.auxiliary is not None
    density = logabsdet + model.auxiliary.log_prob(z_aux) + model.conditional.rest.log_prob(rest)
    density = density - 0.5 * eta.square().sum(dim=1)
    expected = torch.autograd.grad(density.sum(), transform)
    expected += torch.autograd.grad(model.log_joint(x).logsumexp(1).sum(), classes)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_reader_flow_takes_no_gradient_of_rows_beside_moved_ones() -> None:
    model = started()
    for views, with_gradient in ((True, [False, True]), (False, [True])):
        calls: list[bool] = []
        hook = model.reader.register_forward_hook(
            lambda _, inputs, outputs, calls=calls: calls.append(outputs.requires_grad)
        )
        model(batch(views))
        hook.remove()
        assert calls == with_gradient


def test_reader_flow_samples_have_the_latents_that_were_drawn() -> None:
    model = started().eval()
    y = torch.tensor([0, 1, 2, 2])
    torch.manual_seed(1)
    z_f = model.conditional.sample(y)
    torch.manual_seed(1)
    x = model.sample(y)
    assert model.representation(x).shape == (4, 16)
    torch.testing.assert_close(model.latents(x)[1], z_f, rtol=0, atol=1e-3)  # a logit near its end loses digits
