"""Parameter groups, equality with torch's AdamW, and the state on its way to a file and back."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from train.toy import Matrix, ToyModel

from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.train.config import OptimizerConfig
from seqloom.train.optimizers import build_optimizers


class Everything(nn.Module):
    """One parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 6)
        self.mixer = Matrix(6, 8)
        self.experts = nn.Module()
        self.experts.up_proj = nn.Parameter(torch.randn(3, 8, 6))
        self.experts.hidden_matrices = ("up_proj",)
        self.conv1d = nn.Conv1d(6, 6, 4, groups=6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)


def gradients(model: nn.Module, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=source)


def groups(model: nn.Module, config: OptimizerConfig) -> dict[str, tuple[str, float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (type(part).__name__, group["lr"], group["weight_decay"])
        for part in build_optimizers(model, config)._parts
        for group in part.param_groups
        for parameter in group["params"]
    }


def test_muon_takes_marked_matrices_and_adamw_the_rest() -> None:
    found = groups(Everything(), OptimizerConfig(kind="muon", lr=0.1, muon_lr=0.2, weight_decay=0.3))
    assert found == {
        "mixer.weight": ("Muon", 0.2, 0.3),
        "experts.up_proj": ("Muon", 0.2, 0.3),
        "embeddings.weight": ("AdamW", 0.1, 0.3),
        "conv1d.weight": ("AdamW", 0.1, 0.3),
        "mixer.bias": ("AdamW", 0.1, 0.0),
        "conv1d.bias": ("AdamW", 0.1, 0.0),
        "norm.weight": ("AdamW", 0.1, 0.0),
        "norm.bias": ("AdamW", 0.1, 0.0),
    }


def test_adamw_takes_all_and_decays_no_vector() -> None:
    found = groups(Everything(), OptimizerConfig(weight_decay=0.3))
    assert {kind for kind, _, _ in found.values()} == {"AdamW"}
    assert {name for name, (_, _, decay) in found.items() if not decay} == {
        "mixer.bias", "conv1d.bias", "norm.weight", "norm.bias",
    }  # fmt: skip


def test_muon_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer\.kind"):
        build_optimizers(nn.Linear(3, 3), OptimizerConfig(kind="muon"))


def test_adamw_equals_torch() -> None:
    ours, theirs = ToyModel(6, 0.0, False), ToyModel(6, 0.0, False)
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(lr=0.01, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.2)
    optimizers = build_optimizers(ours, config)
    split = [[p for p in theirs.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    oracle = torch.optim.AdamW(
        [{"params": split[0], "weight_decay": 0.2}, {"params": split[1], "weight_decay": 0.0}],
        betas=(0.8, 0.9), eps=1e-6, fused=False, foreach=False,
    )  # fmt: skip
    for step, factor in enumerate([0.5, 1.0, 0.1]):
        for model in (ours, theirs):
            gradients(model, step)
        optimizers.step(factor)
        for group in oracle.param_groups:
            group["lr"] = 0.01 * factor
        oracle.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [
        ("sgd", partial(torch.optim.SGD, momentum=0.7, nesterov=True)),
        ("rmsprop", partial(torch.optim.RMSprop, alpha=0.9, eps=1e-3)),
    ],
)
def test_the_other_kinds_equal_torch(kind: str, oracle: Callable[..., torch.optim.Optimizer]) -> None:
    ours, theirs = ToyModel(6, 0.0, False), ToyModel(6, 0.0, False)
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(kind=kind, lr=0.01, momentum=0.7, beta2=0.9, eps=1e-3, weight_decay=0.0)
    optimizers, other = build_optimizers(ours, config), oracle(theirs.parameters(), lr=0.01)
    for step in range(3):
        for model in (ours, theirs):
            gradients(model, step)
        optimizers.step(1.0)
        other.step()
    assert all(torch.equal(mine, their) for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd", "rmsprop"])
def test_state_goes_round_bit_for_bit(kind: str) -> None:
    config = OptimizerConfig(kind=kind)
    torch.manual_seed(0)
    first, second = Everything(), Everything()
    one, other = build_optimizers(first, config), build_optimizers(second, config)
    gradients(first, 0)
    one.step(1.0)
    second.load_state_dict(first.state_dict())
    other.load({name: tensor.clone() for name, tensor in one.state().items()})
    for optimizers, model in ((one, first), (other, second)):
        gradients(model, 1)
        optimizers.step(0.7)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert one.state().keys() == other.state().keys()
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


def test_state_is_named_by_parameter() -> None:
    model = Everything()
    optimizers = build_optimizers(model, OptimizerConfig(kind="muon"))
    gradients(model, 0)
    optimizers.step(1.0)
    names = optimizers.state().keys()
    assert {
        "mixer.weight.momentum",
        "embeddings.weight.exp_avg",
        "embeddings.weight.exp_avg_sq",
        "norm.bias.step",
    } < names
    assert not any(name.startswith("frozen") for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias.exp_avg"), r"1 tensors missing \['head\.bias\.exp_avg'\]"),
        (lambda state: state.update({"other.exp_avg": torch.zeros(1)}), r"1 unknown \['other\.exp_avg'\]"),
        (lambda state: state.update({"head.bias.exp_avg": torch.zeros(2)}), r"'head\.bias\.exp_avg' is .* \(2,\)"),
        (lambda state: state.update({"head.bias.step": torch.zeros((), dtype=torch.int64)}), r"torch\.int64"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: object, message: str) -> None:
    model = ToyModel(6, 0.0, False)
    optimizers = build_optimizers(model, OptimizerConfig())
    gradients(model, 0)
    optimizers.step(1.0)
    state = dict(optimizers.state())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        build_optimizers(model, OptimizerConfig()).load(state)
