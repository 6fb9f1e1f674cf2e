"""`output_from_table` against values worked out by hand."""

import math

import torch

from scnf import UNLABELLED
from scnf.models.base import output_from_table

LOG_2, LOG_3 = math.log(2), math.log(3)


def test_labelled_rows_take_their_column() -> None:
    table = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    output = output_from_table(table, torch.zeros(2, 3), torch.tensor([2, 0]))
    assert output.log_likelihood.tolist() == [-3.0, -4.0]
    torch.testing.assert_close(output.class_log_probs, torch.full((2, 3), -LOG_3))


def test_unlabelled_rows_take_the_bound() -> None:
    # q = (1/4, 3/4): the bound is 1/4 (-1 + log 4) + 3/4 (-2 + log 4/3)
    logits = torch.tensor([[0.0, LOG_3]])
    output = output_from_table(torch.tensor([[-1.0, -2.0]]), logits, torch.tensor([UNLABELLED]))
    expected = 0.25 * (-1 + math.log(4)) + 0.75 * (-2 + math.log(4 / 3))
    torch.testing.assert_close(output.log_likelihood, torch.tensor([expected]))
    torch.testing.assert_close(output.class_log_probs.exp(), torch.tensor([[0.25, 0.75]]))


def test_bound_is_tight_for_the_exact_posterior_only() -> None:
    table = torch.tensor([[math.log(0.2), math.log(0.6)]])
    hidden = torch.tensor([UNLABELLED])
    torch.testing.assert_close(output_from_table(table, table, hidden).log_likelihood.exp(), torch.tensor([0.8]))
    torch.testing.assert_close(output_from_table(table, table - 7, hidden).log_likelihood.exp(), torch.tensor([0.8]))
    for log_odds in (-30.0, -3.0, 0.0, 1.0, 1.2, 3.0, 30.0):  # of the exact posterior: log 3 = 1.1
        logits = torch.tensor([[0.0, log_odds]])
        assert output_from_table(table, logits, hidden).log_likelihood < math.log(0.8) - 1e-4


def test_output_gradients_reach_the_table_and_the_logits() -> None:
    table, logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True).unbind()
    y = torch.tensor([2, UNLABELLED, 0, UNLABELLED])
    assert torch.autograd.gradcheck(lambda a, b: output_from_table(a, b, y)[:2], (table, logits))


def test_output_of_density_zero_is_minus_infinity_with_finite_gradients() -> None:
    table = torch.tensor([[-math.inf, -math.inf], [-1.0, -2.0], [-math.inf, -3.0]], requires_grad=True)
    for y in (UNLABELLED, 0):
        output = output_from_table(table, table, torch.full((3,), y))
        expected = torch.logsumexp(table, dim=1) if y == UNLABELLED else table[:, 0]
        torch.testing.assert_close(output.log_likelihood, expected)
        assert output.log_likelihood[0] == -math.inf and not output.class_log_probs.isnan().any()
        torch.testing.assert_close(output.class_log_probs.exp()[[0, 2]], torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
        (grad,) = torch.autograd.grad(output.log_likelihood.sum(), table)
        assert grad.isfinite().all()
    torch.testing.assert_close(grad, torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0]]))


def test_bound_ignores_a_class_that_q_rules_out() -> None:
    # 0 * -inf: the bound is that of the only class left
    logits = torch.tensor([[0.0, -200.0]], requires_grad=True)
    table = torch.tensor([[-1.0, -math.inf]])
    bound = output_from_table(table, logits, torch.tensor([UNLABELLED]), kl=torch.tensor([[2.0, math.inf]]))
    assert bound.log_likelihood.tolist() == [-1.0] and bound.kl is not None and bound.kl.tolist() == [2.0]
    bound.log_likelihood.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_output_of_extreme_tables_is_finite() -> None:
    table = torch.tensor([[-1e4, -2e4, -3e4], [5e3, -5e3, 0.0]], requires_grad=True)
    output = output_from_table(table, table, torch.tensor([UNLABELLED, UNLABELLED]))
    torch.testing.assert_close(output.log_likelihood, torch.tensor([-1e4, 5e3]))
    output.log_likelihood.sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
