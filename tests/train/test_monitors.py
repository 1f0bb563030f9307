"""Measures equal their formulas, whatever the step is made of, and leave no trace in the training."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqloom.data.rows import Rows
from seqloom.nn.attention import Attention
from seqloom.nn.moe import Router
from seqloom.nn.stability import METHODS
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.attention import Shaping
from seqloom.systems.hybrid_lm.loss import cross_entropy, targets_ahead
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.train import monitors
from seqloom.train.monitors import Monitor, attention_measures, layer_of
from tiny_models import make, tokens


class Small(nn.Module):
    """Two linear layers, the second one used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 7)
        self.layers = nn.ModuleList([nn.Linear(7, 7, bias=False), nn.LayerNorm(7)])
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.layers[0](torch.tanh(self.first(x))))


def refuse(text: str) -> None:
    raise AssertionError(text)


def measured(
    model: nn.Module, micros: list[Any], loss: Callable[[nn.Module, Any], Tensor], units: int = 10, step: int = 1
) -> dict[str, float]:
    """One step of plain gradient descent under a monitor."""
    monitor = Monitor(model, 1, refuse)
    for micro in micros:
        with monitor.forward(step):
            total = loss(model, micro)
        total.backward()
    with monitor.update(units):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    result = monitor.take()
    assert result is not None
    assert monitor.take() is None
    return result


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def test_norms_are_those_of_the_first_micro_batch() -> None:
    model, x = Small(), torch.randn(2, 3, 5)
    first = model.first(x)
    second = model.layers[0](torch.tanh(first))
    third = model.layers[0](second)
    found = measured(model, [x, torch.randn(2, 3, 5)], squares)

    def norm(*parts: Tensor) -> float:
        rows = torch.cat([part.detach().flatten(0, -2) for part in parts])
        return float(rows.square().sum(-1).mean().sqrt())

    assert found["step"] == 1
    assert found["first.input_norm"] == pytest.approx(norm(x), rel=1e-5)
    assert found["first.output_norm"] == pytest.approx(norm(first), rel=1e-5)
    assert found["first.output_rms"] == pytest.approx(float(first.detach().square().mean().sqrt()), rel=1e-5)
    assert found["layers.0.output_norm"] == pytest.approx(norm(second, third), rel=1e-5)
    assert found["layers.0.input_norm"] == pytest.approx(norm(torch.tanh(first), second), rel=1e-5)
    assert "first.input_gradient_norm" not in found  # data has no gradient
    assert not any(name.startswith("unused") for name in found)
    assert all(math.isfinite(value) for value in found.values())


def test_the_gradient_of_an_input_is_that_of_the_summed_loss() -> None:
    model, x = Small(), torch.randn(4, 5)
    seen: list[Tensor] = []
    first = torch.tanh(model.first(x)).detach().requires_grad_()
    second = model.layers[0](first)
    second.retain_grad()
    model.layers[0](second).square().sum().backward()
    seen += [part for part in (first.grad, second.grad) if part is not None]
    model.zero_grad()
    expected = torch.cat(seen).square().sum(-1).mean().sqrt()
    found = measured(model, [x, x], squares)
    assert found["layers.0.input_gradient_norm"] == pytest.approx(float(expected), rel=1e-5)


def test_gradients_and_updates_are_those_of_the_whole_step() -> None:
    model, parts = Small(), [torch.randn(4, 5), torch.randn(6, 5)]
    for x in parts:
        squares(model, x).backward()
    gradients = {name: p.grad.clone() / 10 for name, p in model.named_parameters() if p.grad is not None}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = measured(model, parts, squares)
    names = ["first.weight", "first.bias"]
    both = torch.cat([gradients[name].flatten() for name in names])
    weights = torch.cat([before[name].flatten() for name in names])
    assert found["first.weight_norm"] == pytest.approx(float(before["first.weight"].norm()), rel=1e-5)
    assert found["first.weight_gradient_norm"] == pytest.approx(float(gradients["first.weight"].norm()), rel=1e-5)
    assert found["first.gradient_norm"] == pytest.approx(float(both.norm()), rel=1e-5)
    assert found["first.update_ratio"] == pytest.approx(float(both.norm() * 10 * 0.1 / weights.norm()), rel=1e-4)
    assert found["layers.0.zero_gradients"] == 0


def test_zeros_are_counted_and_a_layer_of_zeros_has_no_ratio() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data.zero_()
    model[0].weight.data[0, 0] = 1.0
    x = torch.zeros(3, 4)
    x[:, 0] = 1
    found = measured(model, [x], squares)
    assert found["0.zero_gradients"] == 15 / 16
    model[0].weight.data.zero_()
    assert math.isnan(measured(model, [x], squares)["0.update_ratio"])


@pytest.mark.parametrize("shape", [(64, 4096), (3, 128, 96), (100_003,), (7, 5), ()])
def test_a_sample_of_a_parameter_is_spread_over_it(shape: tuple[int, ...]) -> None:
    places = monitors._sample(torch.arange(float(math.prod(shape))).reshape(shape)).long()
    assert 1 <= len(places) <= monitors.SAMPLE
    assert len(places) > min(math.prod(shape), monitors.SAMPLE) / 3
    if len(shape) > 1 and math.prod(shape) > monitors.SAMPLE:
        assert len((places % shape[-1]).unique()) > 0.9 * min(shape[-1], monitors.SAMPLE // 2)


def test_the_update_of_a_large_parameter_is_estimated_closely() -> None:
    torch.manual_seed(0)
    model = nn.Linear(700, 500)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = measured(model, [torch.randn(20, 700)], squares)
    change = math.hypot(*(float((p.detach() - before[name]).norm()) for name, p in model.named_parameters()))
    expected = change / math.hypot(*(float(p.norm()) for p in before.values()))
    assert found["(model).update_ratio"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.layers.12.mixer.in_proj.weight", "backbone.layers.12"),
        ("mtp.layers.0.eh_proj.weight", "mtp.layers.0"),
        ("backbone.embeddings.weight", "backbone.embeddings"),
        ("scale", "(model)"),
    ],
)
def test_a_parameter_belongs_to_its_numbered_layer_or_its_module(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def lm_loss(model: nn.Module, micro: Tensor) -> Tensor:
    """Main, look-ahead and balance losses of rows in which a document ends; counts the routers' loads."""
    assert isinstance(model, HybridLM)
    documents = torch.arange(micro.shape[1]).gt(17).long().expand_as(micro)
    rows = Rows(micro, micro.roll(-1, 1), documents)
    hidden, routings = model.hidden(micro, documents)
    ahead, more = model.look_ahead(hidden, micro, documents, 2)
    total = cross_entropy(model, hidden, rows.targets)
    for depth, result in enumerate(ahead, start=1):
        total = total + cross_entropy(model, result, targets_ahead(rows, depth))
    for routing in routings + more:
        routing.router.load += routing.counts
        total = total + routing.balance
    return total


def hybrid(dtype: str, recompute: bool) -> HybridLM:
    model = make("mtp", pattern="M*E").train()
    apply_precision(model, PrecisionConfig(activations=dtype))
    model.checkpoint_layers = recompute
    return model


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_is_the_same_bit_for_bit_with_and_without(dtype: str, recompute: bool) -> None:
    def weights(every: int | None) -> dict[str, Tensor]:
        model = hybrid(dtype, recompute)
        optimizer, monitor = torch.optim.AdamW(model.parameters(), lr=1e-3), Monitor(model, every, refuse)
        for step in (1, 2):
            for micro in tokens(2, 24, seed=step).split(1):
                with monitor.forward(step):
                    total = lm_loss(model, micro)
                total.backward()
            with monitor.update(48):
                optimizer.step()
            optimizer.zero_grad()
            assert (monitor.take() is None) == (every is None)
        return {**model.state_dict(), "drawn next": torch.randn(3)}

    plain, watched = weights(None), weights(1)
    assert all(torch.equal(watched[name], tensor) for name, tensor in plain.items())


def test_recomputed_layers_are_measured_once_and_alike() -> None:
    plain, again = (measured(hybrid("fp32", recompute), [tokens(2, 24)], lm_loss) for recompute in (False, True))
    assert again == pytest.approx(plain, rel=1e-4)


def test_every_part_of_a_hybrid_model_is_measured() -> None:
    model = hybrid("fp32", False)
    found = measured(model, [tokens(2, 24)], lm_loss)
    for name in ("in_proj", "q_proj", "o_proj", "experts", "shared_experts.up_proj", "fc1_latent_proj", "eh_proj"):
        quantities = {key.rpartition(".")[2] for key in found if key.rpartition(".")[0].endswith(f".{name}")}
        assert quantities >= {"input_norm", "output_norm", "output_rms", "input_gradient_norm"}, name
    quantities = {key.rpartition(".")[2] for key in found}
    assert quantities >= {"logit_max", "entropy", "one_hot", "max_vio", "gradient_norm", "update_ratio"}
    matrices = [key for key in found if key.endswith(".weight_norm")]
    assert len(matrices) == sum(p.ndim > 1 for p in model.parameters())
    whole = math.hypot(*(value for key, value in found.items() if key.endswith(".gradient_norm")))
    model.zero_grad()
    fresh = hybrid("fp32", False)
    lm_loss(fresh, tokens(2, 24)).backward()
    norm = nn.utils.get_total_norm([p.grad for p in fresh.parameters() if p.grad is not None])
    assert whole == pytest.approx(float(norm) / 10, rel=1e-4)


def test_the_balance_of_a_router_is_what_rebalancing_reports() -> None:
    model = hybrid("fp32", False)
    found = measured(model, [tokens(2, 24), tokens(2, 24, seed=2)], lm_loss)
    for name, module in model.named_modules():
        if isinstance(module, Router):
            assert found[f"{name}.max_vio"] == pytest.approx(module.rebalance(0.0), rel=1e-5)


def softmax_by_hand(q: Tensor, k: Tensor, documents: Tensor | None) -> list[tuple[float, Tensor]]:
    """Largest score and probabilities of every query that sees more than one key."""
    result = []
    for row in range(len(q)):
        for head in range(q.shape[1]):
            for t in range(q.shape[2]):
                keys = [s for s in range(t + 1) if documents is None or documents[row, s] == documents[row, t] >= 0]
                if len(keys) > 1:
                    scores = k[row, head * k.shape[1] // q.shape[1], keys] @ q[row, head, t] / q.shape[-1] ** 0.5
                    result.append((float(scores.abs().max()), scores.softmax(-1)))
    return result


@pytest.mark.parametrize("packed", [False, True])
def test_attention_measures_follow_their_definition(packed: bool) -> None:
    torch.manual_seed(0)
    q, k = 3 * torch.randn(3, 4, 16, 8), torch.randn(3, 2, 16, 8)
    documents = torch.tensor([[0] * 16, [0] * 5 + [1] * 11, [2] * 9 + [-1] * 7]) if packed else None
    found = attention_measures(q, k, documents, Shaping())
    expected = softmax_by_hand(q, k, documents)
    assert found["logit_max"] == pytest.approx(max(score for score, _ in expected), rel=1e-4)
    entropies = [float(-(p * p.log()).nansum()) for _, p in expected]
    assert float(found["entropy"]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    one_hot = [float(p.max()) > 0.99 for _, p in expected]
    assert 0 < sum(one_hot) < len(one_hot)
    assert float(found["one_hot"]) == pytest.approx(sum(one_hot) / len(one_hot), rel=1e-4)


def test_a_cap_shows_in_the_probabilities_and_not_in_the_logits() -> None:
    torch.manual_seed(0)
    q, k = 30 * torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
    plain, capped = (attention_measures(q, k, None, Shaping(cap)) for cap in (None, 0.01))
    assert capped["logit_max"] == plain["logit_max"] > 50
    assert capped["entropy"] > 5 * plain["entropy"]
    assert capped["one_hot"] == 0


def test_long_rows_are_sampled_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "SCORES", 4 * 300 * 2)
    q, k = torch.randn(9, 4, 300, 8), torch.randn(9, 4, 300, 8)
    found = attention_measures(q, k, None, Shaping())  # two queries: the last ones of rows 3 and 8
    expected = max(float((k[row] @ q[row, :, -1, :, None]).abs().max()) / 8**0.5 for row in (3, 8))
    assert found["logit_max"] == pytest.approx(expected, rel=1e-4)
    assert not math.isnan(found["entropy"])


def test_queries_behind_their_norms_are_measured() -> None:
    torch.manual_seed(0)
    mixer = Attention(16, 4, 2, 8, stability=METHODS["qk_norm"])
    for p in mixer.parameters():
        nn.init.normal_(p, std=3.0) if p.ndim > 1 else nn.init.ones_(p)
    mixer.q_norm.bias.data.zero_()
    mixer.k_norm.bias.data.zero_()
    found = measured(nn.Sequential(mixer), [torch.randn(2, 12, 16)], squares)
    assert 0 < found["0.logit_max"] <= 8**0.5 * 1.0001


def test_steps_between_are_left_alone_and_hooks_always_go() -> None:
    model = Small()
    monitor = Monitor(model, 4, refuse)
    looked = []
    for step in range(1, 10):
        with monitor.forward(step):
            hooked = any(module._forward_hooks for module in model.modules())
            squares(model, torch.randn(2, 5)).backward()
        with monitor.forward(step):
            assert not any(module._forward_hooks for module in model.modules())
        with monitor.update(1):
            pass
        if (monitor.take() is not None) is hooked is True:
            looked.append(step)
    assert looked == [1, 4, 8]
    with pytest.raises(RuntimeError), monitor.forward(12):
        model(torch.randn(2, 6))
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_frozen_is_not_measured_as_learning() -> None:
    model = Small()
    model.first.requires_grad_(False)
    found = measured(model, [torch.randn(2, 5)], squares)
    assert "first.output_norm" in found
    assert "first.gradient_norm" not in found
    model.requires_grad_(False)
    monitor = Monitor(model, 1, refuse)
    with monitor.forward(1):
        model(torch.randn(2, 5))
    with monitor.update(1):
        pass
    assert monitor.take() is not None
