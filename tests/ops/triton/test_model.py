"""A whole model with these kernels in the place of all others."""

import pytest
import torch
from torch import Tensor

from seqloom.ops import kernels
from seqloom.systems.hybrid_lm.config import HybridConfig, MambaConfig, MoeConfig
from seqloom.systems.hybrid_lm.loss import main_loss


@pytest.fixture
def _triton_serves_these_tensors(monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(kernels, "DEVICES", {"triton": device, "native": "none"})
    kernels._preferred.cache_clear()
    with torch.device(device):
        yield
    kernels._preferred.cache_clear()


@pytest.mark.usefixtures("_triton_serves_these_tensors")
def test_loss_and_gradients_are_those_of_the_torch_forms(monkeypatch):
    torch.manual_seed(0)
    config = HybridConfig(
        pattern="ME",
        vocab_size=40,
        width=16,
        mamba=MambaConfig(heads=2, head_width=16, state_width=16, groups=1, chunk=16),
        moe=MoeConfig(experts=3, top_k=2, expert_width=16, shared_width=16),
    )
    model = config.build().train()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(40, (1, 20))
    documents = torch.tensor([[0] * 5 + [1] * 9 + [-1] * 6], dtype=torch.int32)
    targets = torch.where(documents < 0, -100, tokens.roll(-1))

    def results() -> list[Tensor]:
        model.zero_grad()
        loss = main_loss(model, model.hidden(tokens, documents)[0], targets)[0]
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    assert set(kernels.table(tokens.device, torch.float32).values()) == {"triton", "torch"}
    found = results()
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    for mine, theirs in zip(found, results(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
