"""The loss against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.models.base import JointOutput, output_from_table
from scnf.objectives import Objective, Weights, semi_supervised_loss

LOG_LIKELIHOOD = (-3.0, -5.0, -10.0, -2.0)
POSTERIOR = ((0.9, 0.1), (0.2, 0.8), (0.5, 0.5), (0.7, 0.3))


def output() -> JointOutput:
    return JointOutput(torch.tensor(LOG_LIKELIHOOD), torch.tensor(POSTERIOR).log())


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


def of(y: Tensor, **more: Tensor) -> Batch:
    """A batch of which the loss reads labels and targets alone."""
    return Batch(torch.zeros(len(y), 1), y, **more)


MIXED, ALL, NONE = labels(0, 0, -1, -1), labels(0, 0, 1, 1), labels(-1, -1, -1, -1)
CROSS_ENTROPY = -(math.log(0.9) + math.log(0.2)) / 2  # of MIXED


@pytest.mark.parametrize(
    ("y", "labelled_weight", "classifier_weight", "expected"),
    [
        (MIXED, 1.0, 0.0, 20 / 4),
        (MIXED, 3.0, 0.0, (3 * 3 + 3 * 5 + 10 + 2) / 8),
        (MIXED, 0.0, 0.0, 12 / 2),
        (MIXED, 1.0, 2.0, 20 / 4 + 2 * CROSS_ENTROPY),
        (MIXED, 3.0, 0.5, 36 / 8 + 0.5 * CROSS_ENTROPY),
        (ALL, 1.0, 0.0, 20 / 4),
        (ALL, 3.0, 0.0, 20 / 4),
        (ALL, 0.0, 0.0, 0.0),
        (ALL, 1.0, 1.0, 5 - (math.log(0.9) + math.log(0.2) + math.log(0.5) + math.log(0.3)) / 4),
        (NONE, 1.0, 0.0, 20 / 4),
        (NONE, 3.0, 5.0, 20 / 4),
    ],
)
def test_loss_equals_values_computed_by_hand(
    y: Tensor, labelled_weight: float, classifier_weight: float, expected: float
) -> None:
    loss, metrics = semi_supervised_loss(output(), of(y), Weights(labelled_weight, classifier_weight))
    torch.testing.assert_close(loss, torch.tensor(expected))
    torch.testing.assert_close(metrics["loss"], loss)


@pytest.mark.parametrize(
    ("y", "labelled", "unlabelled", "accuracy"),
    [(MIXED, 4.0, 6.0, 0.5), (ALL, 5.0, 0.0, 0.25), (NONE, 0.0, 5.0, 0.0), (labels(-1, 1, -1, -1), 5.0, 5.0, 1.0)],
)
def test_metrics_equal_values_computed_by_hand(y: Tensor, labelled: float, unlabelled: float, accuracy: float) -> None:
    given = JointOutput(
        torch.tensor(LOG_LIKELIHOOD), torch.tensor(((0.9, 0.1), (0.2, 0.8), (0.6, 0.4), (0.7, 0.3))).log()
    )
    _, metrics = semi_supervised_loss(given, of(y))
    assert set(metrics) == {"loss", "labelled_nll", "unlabelled_nll", "labelled_accuracy"}
    assert float(metrics["labelled_nll"]) == labelled and float(metrics["unlabelled_nll"]) == unlabelled
    assert float(metrics["labelled_accuracy"]) == accuracy
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("y", [MIXED, ALL, NONE], ids=["mixed", "all", "none"])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 0.0), (5.0, 2.0)])
def test_loss_gradients_are_finite_and_metrics_need_none(y: Tensor, weights: tuple[float, float]) -> None:
    table = (100 * torch.randn(4, 2)).requires_grad_()
    loss, metrics = semi_supervised_loss(output_from_table(table, table, y), of(y), Weights(*weights))
    loss.backward()
    assert loss.isfinite() and table.grad is not None and table.grad.isfinite().all()
    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())


def test_loss_of_a_row_of_density_zero_is_infinite_and_never_nan() -> None:
    log_joint = torch.tensor([[-1.0, -2.0], [-torch.inf, -torch.inf], [-3.0, -4.0]])
    given = output_from_table(log_joint, log_joint, labels(1, -1, -1))
    loss, metrics = semi_supervised_loss(given, of(labels(1, -1, -1)), Weights(classifier=1.0))
    assert loss == torch.inf and metrics["unlabelled_nll"] == torch.inf and metrics["labelled_nll"] == 2
    # it does not count where its weight is 0
    given = output_from_table(log_joint, log_joint, labels(-1, 1, -1))
    loss, metrics = semi_supervised_loss(given, of(labels(-1, 1, -1)), Weights(labelled=0.0))
    torch.testing.assert_close(loss, -torch.logsumexp(log_joint[[0, 2]], dim=1).mean())
    assert metrics["labelled_nll"] == torch.inf and metrics["unlabelled_nll"].isfinite()


def test_loss_is_finite_where_classes_without_a_label_have_probability_zero() -> None:
    posterior = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).log()
    given = JointOutput(torch.zeros(3), posterior, views=torch.tensor([[0.0, 1.0]]).log())
    batch, weights = of(labels(0, 1, -1)), Weights(classifier=1.0, consistency=1.0)
    loss, metrics = semi_supervised_loss(given, batch, weights)
    assert loss == 0 and metrics["labelled_accuracy"] == 1
    posterior[2] = torch.tensor([0.5, 0.5]).log()  # nobody is sure of a class for the view
    assert semi_supervised_loss(given, batch, weights)[0] == 0


def test_classifier_term_sees_labelled_rows_only() -> None:
    table = torch.zeros(4, 2, requires_grad=True)
    given = output_from_table(torch.zeros(4, 2), table, MIXED)._replace(log_likelihood=torch.zeros(4))
    semi_supervised_loss(given, of(MIXED), Weights(classifier=1.0))[0].backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, torch.tensor([[-0.25, 0.25], [-0.25, 0.25], [0, 0], [0, 0]]))


def test_loss_does_not_depend_on_the_order_of_rows() -> None:
    order = torch.tensor([2, 0, 3, 1])
    shuffled = JointOutput(*(values[order] for values in output()[:2]))
    ours, _ = semi_supervised_loss(shuffled, of(MIXED[order]), Weights(3.0, 0.5))
    torch.testing.assert_close(ours, semi_supervised_loss(output(), of(MIXED), Weights(3.0, 0.5))[0])
    assert (MIXED == UNLABELLED).sum() == 2


def with_views() -> JointOutput:
    """One labelled row, two unlabelled ones, and a view of each of these; the first is sure of class 1."""
    posterior = torch.tensor([[0.9, 0.1], [0.05, 0.95], [0.6, 0.4]])
    views = torch.tensor([[0.3, 0.7], [0.2, 0.8]])
    return JointOutput(torch.tensor([-3.0, -5.0, -10.0]), posterior.log(), views=views.log())


ONE_LABEL = labels(0, -1, -1)


def test_consistency_term_equals_values_computed_by_hand() -> None:
    loss, metrics = semi_supervised_loss(with_views(), of(ONE_LABEL), Weights(consistency=4.0))
    assert float(loss) == pytest.approx(18 / 3 - 4 * math.log(0.7) / 2)
    assert float(metrics["pseudo_labelled"]) == 0.5
    assert float(metrics["unlabelled_nll"]) == 7.5


def test_guessed_label_takes_precedence_over_a_confident_prediction() -> None:
    # the first row is sure of class 1, the second of none
    batch = of(ONE_LABEL, targets=labels(0, UNLABELLED))
    loss, metrics = semi_supervised_loss(with_views(), batch, Weights(consistency=4.0))
    assert float(loss) == pytest.approx(18 / 3 - 4 * math.log(0.3) / 2)
    assert float(metrics["pseudo_labelled"]) == 0.5 and float(metrics["labelled_nll"]) == 3.0
    batch = of(ONE_LABEL, targets=labels(UNLABELLED, 1))
    loss, metrics = semi_supervised_loss(with_views(), batch, Weights(consistency=4.0))
    assert float(loss) == pytest.approx(18 / 3 - 4 * (math.log(0.7) + math.log(0.8)) / 2)
    assert float(metrics["pseudo_labelled"]) == 1.0


def test_cross_entropy_uses_moved_rows_and_likelihood_the_unmoved_rows() -> None:
    posterior = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95]]).log()
    moved, view = torch.tensor([[0.6, 0.4], [0.7, 0.3]]).log(), torch.tensor([[0.3, 0.7]]).log()
    given = JointOutput(torch.tensor([-3.0, -5.0, -10.0]), posterior, moved=moved, views=view)
    batch = of(labels(0, 1, -1), moved_y=labels(0, 1), targets=labels(-1))
    loss, metrics = semi_supervised_loss(given, batch, Weights(3.0, 2.0, 4.0))
    likelihood = (3 * 3 + 3 * 5 + 10) / 7
    cross_entropy = -(math.log(0.6) + math.log(0.3)) / 2
    assert float(loss) == pytest.approx(likelihood + 2 * cross_entropy - 4 * math.log(0.7))
    assert (float(metrics["labelled_nll"]), float(metrics["unlabelled_nll"])) == (4.0, 10.0)
    assert float(metrics["labelled_accuracy"]) == 0.5  # of the moved rows; of the rows as they are it is 1


def test_views_without_consistency_weight_leave_the_loss_unchanged() -> None:
    loss, _ = semi_supervised_loss(with_views(), of(ONE_LABEL))
    plain, _ = semi_supervised_loss(with_views()._replace(views=None), of(ONE_LABEL))
    assert float(loss) == float(plain)


def test_consistency_targets_get_no_gradient() -> None:
    row, view = (torch.tensor([each], requires_grad=True) for each in ([0.05, 0.95], [0.3, 0.7]))
    given = JointOutput(torch.zeros(1), row.log(), views=view.log())
    semi_supervised_loss(given, of(labels(-1)), Weights(consistency=1.0))[0].backward()
    assert row.grad is None and view.grad is not None and bool((view.grad != 0).any())


def test_temperature_flattens_the_posterior_of_cross_entropies_and_confidences() -> None:
    q = torch.softmax(torch.tensor([0.9, 0.1]).log() / 4, 0)
    loss, metrics = semi_supervised_loss(with_views(), of(ONE_LABEL), Weights(1.0, 2.0, 4.0), temperature=4.0)
    assert float(loss) == pytest.approx(18 / 3 - 2 * math.log(q[0]))
    assert float(metrics["pseudo_labelled"]) == 0.0  # 0.95 at temperature 4 is 0.68


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (0.0, Weights(5.0, 7.0, 0.0, 0.0)),
        (0.1, Weights(4.0, 7.0, 1.0, 0.5)),
        (0.2, Weights(3.0, 7.0, 2.0, 1.0)),
        (0.4, Weights(1.0, 7.0, 4.0, 2.0)),
        (1.0, Weights(1.0, 7.0, 4.0, 2.0)),
    ],
)
def test_weights_follow_their_schedules(done: float, expected: Weights) -> None:
    objective = Objective(5.0, 0.4, 7.0, 2.0, 4.0, 0.4, 0.8, kl_weight=2.0, kl_warmup=0.4)
    assert objective.weights_at(done) == pytest.approx(expected)
    loss, _ = objective(with_views(), of(ONE_LABEL), done)
    assert loss == semi_supervised_loss(with_views(), of(ONE_LABEL), objective.weights_at(done), 2.0, 0.8)[0]


def test_weights_without_a_schedule_stay_constant() -> None:
    objective = Objective(labelled_weight=3.0, kl_weight=0.5, consistency_weight=2.0, consistency_ramp=0.0)
    assert objective.weights_at(0.5) == Weights(3.0, 0.0, 2.0, 0.5) and objective.weights_at(0.0).labelled == 3.0


@pytest.mark.parametrize(
    ("given", "batch", "message"),
    [
        (with_views(), of(labels(0)), "output must belong to the batch of 1 labels, not have log_likelihood"),
        (with_views()._replace(log_likelihood=torch.zeros(3, 1)), of(ONE_LABEL), "output must belong to the batch"),
        (
            with_views(),
            of(ONE_LABEL, targets=labels(0)),
            "the batch of 1 labels of views, not have 2 views",
        ),
        (
            with_views(),
            of(ONE_LABEL, moved_y=labels(0)),
            "output must have moved rows where the batch has",
        ),
        (
            with_views()._replace(views=torch.zeros(4, 2)),
            of(ONE_LABEL),
            "must have views of rows of the batch, which has 3 rows",
        ),
    ],
)
def test_loss_refuses_an_output_of_another_batch(given: JointOutput, batch: Batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        semi_supervised_loss(given, batch)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"labelled_weight": -1.0},
        {"kl_weight": math.inf},
        {"confidence": 90.0},
        {"labelled_decay": -0.5},
    ],
)
def test_objective_refuses_numbers_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Objective(**arguments)
