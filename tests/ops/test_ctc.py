"""The loss and the alignment against torch's own loss, finite differences, and every path written out."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.core.errors import DataError
from seqloom.ops.ctc import alignment, ctc_loss, ctc_loss_reference, ctc_loss_torch, extended, frames_needed

FORMS = [ctc_loss_reference, ctc_loss_torch]


def inputs(T: int = 9, V: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Rows without and with repeats, one that cannot be aligned, one without labels, one without frames."""
    torch.manual_seed(0)
    targets = torch.tensor([[1, 2, 3], [3, 3, -1], [1, 1, 1], [-1, -1, -1], [-1, -1, -1]])
    lengths, counts = torch.tensor([T, T - 4, 4, 3, 0]), torch.tensor([3, 2, 3, 0, 0])
    return [torch.randn(5, T, V, dtype=dtype), lengths, targets, counts]


def torch_loss(logits: Tensor, lengths: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets, lengths, counts, reduction="none", zero_infinity=True
    )


def test_the_reference_equals_torch(same):
    same(ctc_loss_reference, torch_loss, *inputs(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_match_finite_differences(form):
    logits, *rest = (leaf[:2] for leaf in inputs(T=7, V=4))
    assert torch.autograd.gradcheck(lambda leaf: form(leaf, *rest), logits.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_never_looked_at(form):
    logits, *rest = inputs()
    wild = logits.clone()
    for row, length in enumerate(rest[0].tolist()):
        wild[row, length:] = torch.nan
    found = []
    for leaf in (logits, wild):
        nats = form(leaf.requires_grad_(), *rest)
        found.append([nats, torch.autograd.grad(nats.sum(), leaf)[0]])
    assert all(map(torch.equal, *found))
    assert found[0][0][[2, 4]].tolist() == [0, 0]
    assert (found[0][1][[2, 4]] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_blank_can_be_any_symbol(form):
    logits, *rest = inputs()
    turned = torch.cat([logits[..., 1:], logits[..., :1]], -1)
    rest[1] = rest[1].clamp(min=0)
    targets = torch.where(rest[1] > 0, rest[1] - 1, rest[1])
    torch.testing.assert_close(form(turned, rest[0], targets, rest[2], blank=4), form(logits, *rest))


def test_bf16_logits_are_summed_in_fp32():
    logits, *rest = inputs(dtype=torch.bfloat16)
    for form in (ctc_loss, *FORMS):
        nats = form(logits.requires_grad_(), *rest)
        assert nats.dtype == torch.float32
        torch.testing.assert_close(nats, ctc_loss_torch(logits.float(), *rest), rtol=1e-5, atol=1e-5)
        assert torch.autograd.grad(nats.sum(), logits)[0].dtype == torch.bfloat16


def test_frames_that_a_target_needs():
    _, _, targets, counts = inputs()
    assert frames_needed(targets, counts).tolist() == [3, 3, 5, 0, 0]
    assert frames_needed(targets[:, :0], counts * 0).tolist() == [0] * 5


def paths(T: int, labels: list[int]) -> list[tuple[int, ...]]:
    """Every way through the states."""

    def allowed(one: int, two: int) -> bool:
        return two - one in (0, 1) or (two - one == 2 and labels[two] != 0 and labels[two] != labels[one])

    last = len(labels) - 1
    return [
        path
        for path in product(range(last + 1), repeat=T)
        if path[0] < 2 and path[-1] >= last - 1 and all(allowed(*step) for step in pairwise(path))
    ]


@pytest.mark.parametrize("targets", [[], [2], [1, 2], [1, 1], [2, 1, 2]])
def test_the_alignment_is_the_best_of_all_paths_and_the_loss_their_sum(targets):
    torch.manual_seed(len(targets))
    logits = 2 * torch.randn(5, 3, dtype=torch.float64)
    y = logits.log_softmax(-1)
    labels = extended(torch.tensor(targets, dtype=torch.int64), 0)
    ways = torch.tensor(paths(5, labels.tolist()))
    scores = y[torch.arange(5), labels[ways]].sum(1)
    assert alignment(y, labels[1::2]).tolist() == ways[scores.argmax()].tolist()
    nats = ctc_loss_torch(logits[None], torch.tensor([5]), labels[None, 1::2], torch.tensor([len(targets)]))
    torch.testing.assert_close(nats[0], -scores.logsumexp(0))


def test_a_target_that_does_not_fit_cannot_be_aligned():
    with pytest.raises(DataError, match="a target of 2 labels needs 3 frames, but there are 2"):
        alignment(torch.zeros(2, 3), torch.tensor([1, 1]))
    assert alignment(torch.zeros(0, 3), torch.tensor([], dtype=torch.int64)).tolist() == []
