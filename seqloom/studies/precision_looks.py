"""What a number format does to a model at rest: its loss, and the gradient of one batch.

    static      validation loss of the same weights under another forward pass; no training, no chance
    gradient    ‖g - g_ref‖ / ‖g_ref‖ and the cosine of both, over the linear layers of all blocks

Both are formed at a checkpoint of a trunk (`branching.py`), so they belong to weights that no recipe has shaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqloom.core.config import to_data
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies.branching import trunk_of
from seqloom.studies.courses import REFERENCE, Plan
from seqloom.studies.measured import measured
from seqloom.studies.paired import Difference, difference
from seqloom.train.observer import Observer
from seqloom.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seqloom.nn.linear import Linear
    from seqloom.numerics.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Look:
    """A recipe at the weights of one checkpoint.

    Attributes:
        loss: nats per token of held-out text.
        gradient_error, gradient_cosine: against the reference's gradient of the next batch.
    """

    loss: float
    gradient_error: float
    gradient_cosine: float


@dataclass(frozen=True)
class Looks:
    """Looks at every recipe by seed, the reference among them."""

    by_seed: Sequence[Mapping[str, Look]]

    def gap(self, name: str) -> Difference | None:
        """Of the static loss, as a share; below zero the recipe is the worse one."""
        return difference(
            [(looks[REFERENCE].loss - looks[name].loss) / looks[REFERENCE].loss for looks in self.by_seed]
        )

    def mean(self, name: str, field: str) -> float:
        values = [getattr(looks[name], field) for looks in self.by_seed]
        return float(sum(values) / len(values))

    def data(self) -> list[dict[str, Any]]:
        """Plain data, by seed."""
        return [{name: to_data(look) for name, look in looks.items()} for looks in self.by_seed]


def look_at_branch_point(plan: Plan, folder: Path, watch: Observer) -> Looks:
    """Static loss and gradient of the reference and of all branches' formats, at the weights all of them begin with."""
    found = []
    for seed in range(plan.seeds):
        trunk = trunk_of(plan, seed, folder)
        recipes = {REFERENCE: trunk.run.precision} | {name: run.precision for name, run in plan.branches.items()}
        settings = {
            "run": to_data(trunk.run),
            "branch_at": plan.branch_at,
            "recipes": {name: to_data(recipe) for name, recipe in recipes.items()},
        }

        def look(trunk: Any = trunk, recipes: Mapping[str, PrecisionConfig] = recipes) -> dict[str, Any]:
            trunk.train(watch)
            opened = Opened(trunk.run, trunk.at_branch, plan.branch_at)
            return {name: to_data(each) for name, each in opened.looks(recipes).items()}

        stored, _ = measured(folder / "looks" / f"{plan.scale}-{seed}.json", settings, look)
        found.append({name: Look(**each) for name, each in stored.items()})
    return Looks(found)


class Opened:
    """The model of a checkpoint, its task, and what can be asked of them."""

    def __init__(self, run: Run, folder: Path, step: int) -> None:
        """
        Args:
            folder: the checkpoint.
            step: steps it was trained for.
        """
        import torch

        from seqloom.train.loop import resolve

        self.run, device = resolve(run)
        self.step = step
        self.task = self.run.task.build(self.run, device, None)
        torch.manual_seed(0)
        model: Any = self.run.build_model()
        self.model = model.to(device)
        self.model.read_folder(folder)

    def looks(self, recipes: Mapping[str, PrecisionConfig]) -> dict[str, Look]:
        """Every recipe beside the reference, which must be among them."""
        expected = self.gradient(recipes[REFERENCE])
        found = {}
        for name, recipe in recipes.items():
            gradient = expected if name == REFERENCE else self.gradient(recipe)
            found[name] = Look(
                loss=self.loss(recipe),
                gradient_error=_short(float((gradient - expected).norm() / expected.norm())),
                gradient_cosine=_short(float(gradient @ expected / (gradient.norm() * expected.norm()))),
            )
        return found

    def loss(self, recipe: PrecisionConfig) -> float:
        """Of held-out text in the formats of a recipe."""
        self.apply(recipe)
        return self.loss_as_it_is()

    def loss_as_it_is(self) -> float:
        import torch

        from seqloom.train.untraced import untraced

        with torch.no_grad(), untraced(self.model):
            self.model.eval()
            return float(self.task.evaluate(self.model, self.step)["loss"])

    def gradient(self, recipe: PrecisionConfig) -> "Tensor":
        """Of the next batch's loss, over the linear layers of all blocks in one vector of FP64."""
        import torch

        from seqloom.train.untraced import untraced

        self.apply(recipe)
        with untraced(self.model):
            self.model.train()
            for micro in self.task.next_batch(self.model, self.step):
                self.task.loss(self.model, micro).total.backward()
        gradients = [layer.weight.grad for layer in block_linears(self.model).values()]
        found = torch.cat([gradient.double().flatten() for gradient in gradients if gradient is not None])
        self.model.zero_grad(set_to_none=True)
        return found

    def apply(self, recipe: PrecisionConfig) -> None:
        from seqloom.numerics.precision import apply_precision

        apply_precision(self.model, recipe)

    def quantized_loss(self, weights: "Scheme | None", activations: "Scheme | None") -> float:
        """Of held-out text with the linear layers of all blocks quantized after training, all else in FP32."""
        self.apply(replace(self.run.precision, activations="fp32", recipe="plain"))
        with quantized_forward(self.model, weights, activations):
            return self.loss_as_it_is()


def block_linears(model: "nn.Module") -> dict[str, "Linear"]:
    """The linear layers inside the blocks: neither embedding nor head nor router."""
    from seqloom.nn.linear import Linear

    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    return {name: module for name, module in found.items() if ".layers." in name}


@contextmanager
def quantized_forward(model: "nn.Module", weights: "Scheme | None", activations: "Scheme | None") -> Iterator[None]:
    """Round weights, and inputs on their way, to what a scheme can hold; the weights are put back afterwards."""
    from seqloom.numerics.quantized import quantize

    def rounded(x: "Tensor", scheme: "Scheme") -> "Tensor":
        return quantize(x.reshape(-1, x.shape[-1]), scheme).dequantize().view(x.shape).to(x.dtype)

    layers = block_linears(model)
    kept = {name: layer.weight.data for name, layer in layers.items()}
    hooks = []
    try:
        for layer in layers.values():
            if weights is not None:
                layer.weight.data = rounded(layer.weight.data, weights)
            if activations is not None:
                hooks.append(
                    layer.register_forward_pre_hook(lambda _, inputs, to=activations: (rounded(inputs[0], to),))
                )
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.weight.data = kept[name]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
