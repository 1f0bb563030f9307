"""Losses of the learners against torch's own and against their definition."""

import torch
from torch.nn import functional as F

from seqloom.rl.policy_losses import chosen_log_probs, clipped_policy_loss, entropy, policy_gradient_loss, value_loss


def test_log_probs_and_entropy_are_those_of_torch() -> None:
    torch.manual_seed(0)
    logits, actions = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    nats = F.cross_entropy(logits.flatten(0, 1), actions.flatten(), reduction="none").view(4, 3)
    torch.testing.assert_close(chosen_log_probs(logits, actions), -nats)
    torch.testing.assert_close(entropy(logits), torch.special.entr(logits.softmax(-1)).sum())


def test_the_policy_gradient_raises_what_went_well() -> None:
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    gains = torch.tensor([[1.0], [-2.0]])
    policy_gradient_loss(chosen_log_probs(logits, torch.tensor([[0], [0]])), gains).backward()
    assert logits.grad is not None
    third = 1 / 3
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([third - 1, third, third]))
    torch.testing.assert_close(logits.grad[1, 0], -2 * logits.grad[0, 0])


def test_ppo_has_no_gradient_where_the_ratio_has_gone_far_enough() -> None:
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.05]])
    log_ratios = ratios.log().requires_grad_()
    gains = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]])
    loss, outside = clipped_policy_loss(log_ratios, gains, 0.1)
    torch.testing.assert_close(loss, -torch.tensor([1.1, -1.5, 0.5, -0.9, 1.05]).sum())
    loss.backward()
    assert log_ratios.grad is not None
    assert (log_ratios.grad[0] != 0).tolist() == [False, True, True, False, True]
    assert outside[0].tolist() == [True, True, True, True, False]


def test_a_clipped_value_takes_the_worse_of_both() -> None:
    values, targets, old = torch.tensor([[2.0, 0.1]]), torch.tensor([[1.9, 1.0]]), torch.tensor([[0.0, 0.0]])
    torch.testing.assert_close(value_loss(values, targets), torch.tensor(0.5 * (0.01 + 0.81)))
    torch.testing.assert_close(value_loss(values, targets, old, 0.2), torch.tensor(0.5 * (1.7**2 + 0.81)))
