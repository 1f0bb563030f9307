"""What a hybrid model is refused for before its first step: leaks between documents, narrow tensors, idle losses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import micro_runs
import tiny_models
from seqloom.core.errors import ConfigError
from seqloom.nn import attention as attention_module
from seqloom.nn import mamba2
from seqloom.nn.moe import MoE
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm import loss as loss_module
from seqloom.systems.hybrid_lm.folder import write_model
from seqloom.systems.hybrid_lm.leaks import refuse_leaks
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.narrow import refuse_narrow_tensors
from seqloom.systems.hybrid_lm.task import TextTask
from seqloom.train.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return micro_runs.narrow(micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus"))()


def fresh(name: str, activations: str = "fp32") -> HybridLM:
    """A model as training begins with it: its leaks are as small as they get."""
    torch.manual_seed(0)
    model = HybridLM(tiny_models.VARIANTS[name])
    apply_precision(model, PrecisionConfig(activations=activations))
    return model


@pytest.mark.parametrize("activations", ["fp32", "bf16"])
@pytest.mark.parametrize("name", tiny_models.VARIANTS)
def test_a_model_that_keeps_documents_apart_passes(name: str, activations: str) -> None:
    refuse_leaks(fresh(name, activations))
    excited = tiny_models.make(name).train()
    apply_precision(excited, PrecisionConfig(activations=activations))
    excited.checkpoint_layers = True
    refuse_leaks(excited)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in excited.parameters())


def test_it_holds_for_frozen_embeddings_too() -> None:
    model = fresh("mtp").requires_grad_(False)
    refuse_leaks(model)
    assert not model.backbone.embeddings.weight.requires_grad


def blind(real: Callable[..., Any], place: int) -> Callable[..., Any]:
    """An op that does not see where documents begin."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kept = list(args)
        kept[place] = None
        return real(*kept, **kwargs)

    return call


@pytest.mark.parametrize("activations", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("module", "op", "place", "layers"),
    [
        (attention_module, "attention", 3, r"backbone\.layers\.3 \(attention\), mtp\.layers\.0 \(attention\)$"),
        (mamba2, "ssd", 6, r"backbone\.layers\.0 \(Mamba-2\), backbone\.layers\.2 \(Mamba-2\), backbone\.layers\.5"),
        (mamba2, "causal_conv", 4, r"backbone\.layers\.0 \(Mamba-2\), backbone\.layers\.2 \(Mamba-2\), backbone"),
    ],
)
def test_a_leak_is_refused_with_its_layers(
    module: Any, op: str, place: int, layers: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, op, blind(getattr(module, op), place))
    with pytest.raises(ConfigError, match=f"packed documents leak into each other: .* through {layers}"):
        refuse_leaks(fresh("mtp", activations))


def test_a_leak_between_tokens_of_an_expert_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MoE.forward

    def mixing(self: MoE, x: Tensor, documents: Tensor | None = None) -> Any:
        y, routing = forward(self, x, documents)
        return y + 1e-6 * y.mean(1, keepdim=True), routing

    monkeypatch.setattr(MoE, "forward", mixing)
    with pytest.raises(ConfigError, match=r"\(mixture of experts\)"):
        refuse_leaks(fresh("moe"))


def test_a_leak_of_the_look_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    look_ahead = HybridLM.look_ahead

    def unaware(self: HybridLM, hidden: Tensor, tokens: Tensor, documents: Tensor | None, depth: int) -> Any:
        return look_ahead(self, hidden.roll(1, 1), tokens, documents, depth)  # a state too far behind

    monkeypatch.setattr(HybridLM, "look_ahead", unaware)
    with pytest.raises(ConfigError, match="through the loss itself, as no layer does so alone"):
        refuse_leaks(fresh("mtp"))


@pytest.mark.parametrize("name", ["dense", "mtp"])
def test_what_passes_is_true_of_losses_too(name: str) -> None:
    """The loss of a document under two different documents before it."""
    model = tiny_models.make(name)
    torch.manual_seed(0)
    first, second = torch.randint(256, (2, 1, 21)), torch.randint(256, (1, 30))
    documents = torch.tensor([[0] * 21 + [1] * 30])
    losses = []
    for before in first:
        hidden, _ = model.hidden(torch.cat([before, second], 1), documents)
        targets = torch.cat([torch.full((1, 21), -100), second.roll(-1, 1)], 1)
        losses.append(loss_module.main_loss(model, hidden, targets)[1].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_narrow_tensors_are_refused_at_the_start_and_at_a_save(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (
        r"^tensors that must stay in FP32 are narrower: backbone\.layers\.0\.mixer\.A_log \(torch\.bfloat16\), .* more$"
    )
    model = fresh("moe").bfloat16()
    with pytest.raises(ConfigError, match=wanted):
        refuse_narrow_tensors(model)
    with pytest.raises(ConfigError, match=wanted):
        write_model(model, tmp_path)
    refuse_narrow_tensors(fresh("moe"))
    refuse_narrow_tensors(fresh("moe").double())
    for leaf in ("A_log", "D", "dt_bias", "e_score_correction_bias"):
        model = fresh("moe")
        name = next(name for name in model.state_dict() if name.endswith(f".{leaf}"))
        owner = model.get_submodule(name.rpartition(".")[0])
        tensor = getattr(owner, leaf)
        tensor.data = tensor.data.bfloat16()
        with pytest.raises(ConfigError, match=rf"narrower: {name} \(torch\.bfloat16\)$"):
            refuse_narrow_tensors(model)

    build = type(run.model).build
    monkeypatch.setattr(type(run.model), "build", lambda self: build(self).bfloat16())
    with pytest.raises(ConfigError, match="must stay in FP32"):
        train(run, tmp_path / "run")


def test_every_part_of_the_loss_is_named_and_adds_up(run: Any) -> None:
    task = TextTask(run, torch.device("cpu"))
    torch.manual_seed(0)
    model = run.model.build()
    (micro,) = task.next_batch(model, 0)
    loss = task.loss(model, micro)
    assert list(loss.terms) == ["loss", "mtp_1_loss", "mtp_2_loss", "balance_loss"]
    torch.testing.assert_close(sum(loss.terms.values()), loss.total)


@pytest.mark.parametrize("part", ["mtp_2_loss", "balance_loss"])
def test_a_part_of_the_loss_that_moves_nothing_is_refused(
    part: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = TextTask.loss

    def cut(self: TextTask, model: Any, micro: Any) -> Any:
        found = loss(self, model, micro)
        return found._replace(terms={**found.terms, part: found.terms[part].detach()})

    monkeypatch.setattr(TextTask, "loss", cut)
    with pytest.raises(ConfigError, match=f"parts of the loss that move no parameter: {part};"):
        train(run, tmp_path)


def test_a_part_without_weight_need_not_move_anything(run: Any, tmp_path: Path) -> None:
    model = replace(run.model, moe=replace(run.model.moe, balance_weight=0.0))
    train(replace(run, model=model, train=replace(run.train, steps=1)), tmp_path)
