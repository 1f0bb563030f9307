import pytest
import torch
from torch import Tensor
from transformers import NemotronHConfig
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from seqloom.ops.experts import experts, experts_reference, experts_sorted


def inputs(
    S: int = 37, K: int = 3, E: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, up, down = (torch.randn(*shape, dtype=dtype) for shape in ((S, 6), (E, 5, 6), (E, 6, 5)))
    scores = torch.rand(S, E, dtype=torch.promote_types(dtype, torch.float32))
    weights, indices = scores.topk(K, -1)
    return x, indices, weights, up, down


@pytest.mark.parametrize("form", [experts_reference, experts_sorted])
def test_equals_transformers(same, form):
    config = NemotronHConfig(
        n_routed_experts=8, hidden_size=6, moe_intermediate_size=5, moe_latent_size=None, mlp_hidden_act="relu2"
    )
    oracle = NemotronHExperts(config)
    oracle.config._experts_implementation = "eager"

    def theirs(x, indices, weights, up, down):
        parameters = {"up_proj": up, "down_proj": down}
        return torch.func.functional_call(oracle, parameters, (x, indices, weights))

    same(form, theirs, *inputs(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("S", "K", "E"), [(37, 3, 8), (1, 1, 1), (5, 8, 8), (2, 4, 64), (63, 22, 32)])
def test_sorted_equals_reference(same, S, K, E):
    same(experts_sorted, experts_reference, *inputs(S=S, K=K, E=E), rtol=1e-10, atol=1e-11)


def test_gradients_match_finite_differences():
    x, indices, weights, up, down = inputs(S=2, K=2, E=3)
    leaves = [value.requires_grad_() for value in (x, weights, up, down)]
    assert torch.autograd.gradcheck(lambda x, w, up, down: experts_sorted(x, indices, w, up, down), leaves)


def test_experts_without_tokens_get_zero_gradients():
    x, indices, weights, up, down = inputs()
    up, down = up.requires_grad_(), down.requires_grad_()
    dup, ddown = torch.autograd.grad(experts_sorted(x, indices * 0 + 2, weights, up, down).sum(), (up, down))
    for gradient in (dup, ddown):
        assert (gradient[2] != 0).any()
        assert (gradient[[0, 1, 3, 4, 5, 6, 7]] == 0).all()


def test_large_weights_survive_bf16():
    x, indices, weights, up, down = inputs(dtype=torch.bfloat16)
    x, up, down = (value.requires_grad_() for value in (x, up, down))
    weights = (5 * weights).requires_grad_()
    y = experts(x, indices, weights, up, down)
    wide = [value.detach().double().requires_grad_() for value in (x, weights, up, down)]
    expected = experts_reference(wide[0], indices, *wide[1:])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    gradients = torch.autograd.grad(y.float().sum(), (x, weights, up, down))
    truth = torch.autograd.grad(expected.sum(), wide)
    for leaf, mine, theirs in zip((x, weights, up, down), gradients, truth, strict=True):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=0.05, atol=0.05 * theirs.abs().max().item())


def test_override_picks_the_reference(monkeypatch):
    values = inputs()
    monkeypatch.setenv("SEQLOOM_KERNELS", "experts=reference")
    assert torch.equal(experts(*values), experts_reference(*values))
