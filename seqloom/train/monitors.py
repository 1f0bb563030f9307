"""What the inside of a model looks like while it learns: norms, attention, routing, measured at some steps only.

Of every linear layer, over the tokens t of the step's first micro-batch (x_t its input, y_t its output):

    input_norm, output_norm     √ mean ‖x_t‖², √ mean ‖y_t‖²        output_rms    the latter over √width
    input_gradient_norm         √ mean ‖∂L/∂x_t‖², where L is the loss summed over the micro-batch

Of every matrix, and of every layer with all its parameters θ:

    weight_norm, weight_gradient_norm    ‖W‖ and ‖∂loss/∂W‖, before clipping
    gradient_norm, zero_gradients        ‖∂loss/∂θ‖, and the share of its entries that are exactly zero
    update_ratio                         ‖Δθ‖ / ‖θ‖, estimated from up to 4096 evenly spaced entries of each parameter

Of every attention, exact on up to 64 queries spread evenly over rows and positions, with all the keys that they see:

    logit_max    largest |q·k| / √K, before any cap        entropy    of the probabilities, in nats
    one_hot      share of queries of which one key has more than 0.99

Of every router, over the whole step: max_vio, the largest expert load over the mean load.

Nothing here draws random numbers or touches a value that training uses, and a step that is not measured has no hooks.
A head whose loss is computed in pieces, without a forward pass of its own, has no output to measure.
Paper: "Methods of improving LLM training stability", arXiv 2410.16682: what shows a run about to diverge.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seqloom.nn.attention import Attention
from seqloom.nn.moe import Router
from seqloom.ops.attention import Shaping
from seqloom.train.early_warning import EarlyWarning

SAMPLE = 4096  # entries of a parameter whose change is followed; its norm is then known to about one per cent
QUERIES = 64  # of an attention, to look at
SCORES = 2**24  # most attention scores to hold for them
ONE_HOT = 0.99  # a query with a probability above this has chosen a single key


class Monitor:
    """Measures a model in its first step and every `every`-th one, and warns early.

    In the order of a step: `with forward(step)` around each forward pass, `with update(units)` around clipping and the
    optimizer's step, `take()` for the result.
    """

    def __init__(self, model: nn.Module, every: int | None, report: Callable[[str], None]) -> None:
        """
        Args:
            every: None measures nothing.
            report: told what looks like the beginning of a divergence.
        """
        self._model = model
        self._every = every
        self._warning = EarlyWarning(report)
        self._look: _Look | None = None

    @contextmanager
    def forward(self, step: int) -> Iterator[None]:
        """Around the forward pass of a micro-batch, and not its backward pass.

        Only the first one of a step is looked at. The hooks are gone when the block ends, so layers that are computed
        again in the backward pass are not counted twice.

        Args:
            step: counted from 1.
        """
        due = self._every is not None and (step == 1 or step % self._every == 0)
        if not due or (self._look is not None and self._look.step == step):
            yield
            return
        self._look = _Look(step)
        handles = self._look.watch(self._model)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def update(self, units: int) -> Iterator[None]:
        """Around clipping and the optimizer's step, while the summed gradients and the routers' loads are there.

        Args:
            units: what the loop divides the sums by.
        """
        if self._look is None:
            yield
            return
        self._look.before_update(self._model, units)
        yield
        self._look.after_update()

    def take(self) -> dict[str, float] | None:
        """The measures of the step by name, "step" among them; None when it was not measured."""
        if self._look is None:
            return None
        measures = self._look.measures()
        self._look = None
        self._warning.look(measures)
        return measures

    def forget(self) -> None:
        """Drop what was seen of a step that was not taken."""
        self._look = None


class _Line(NamedTuple):
    """One norm of one tensor that went through a linear layer."""

    name: str
    tokens: int
    width: int
    norm: Tensor


class _Look:
    """Everything measured in one step; values wait on the device until all are read at once."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._lines: list[_Line] = []
        self._single: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._norms: list[Tensor] = []  # weights, gradients, zeros, samples, changes; each in the parameters' order
        self._samples: list[Tensor] = []

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook the modules of a model."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or hasattr(module, "hidden_matrices"):
                handles.append(module.register_forward_hook(self._linear(name)))
            if isinstance(module, Attention):
                handles += self._attention(name, module)
        return handles

    @torch.no_grad()
    def before_update(self, model: nn.Module, units: int) -> None:
        """Measure gradients, weights and loads, and keep a sample of the weights."""
        self._parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
        parameters: list[Tensor] = list(self._parameters.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._samples = [_sample(p).clone() for p in parameters]
        self._norms = [
            torch.stack(torch._foreach_norm(parameters)),
            torch.stack(torch._foreach_norm(gradients)) / units,
            torch.stack([gradient.numel() - gradient.count_nonzero() for gradient in gradients]),
        ]
        for name, module in model.named_modules():
            if isinstance(module, Router):
                load = module.load.float()
                self._single[f"{name}.max_vio"] = load.max() / load.mean()

    @torch.no_grad()
    def after_update(self) -> None:
        """Measure how far the weights went."""
        for p, sample in zip(self._parameters.values(), self._samples, strict=True):
            sample.sub_(_sample(p)).mul_(math.sqrt(p.numel() / sample.numel()))
        self._norms.append(torch.stack(torch._foreach_norm(self._samples)))

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """Everything by name: module, then quantity."""
        found = {**self._of_linears(), **self._of_parameters()}
        found |= zip(self._single, _read(list(self._single.values())), strict=True)
        return {"step": self.step, **{name: float(f"{value:.6g}") for name, value in found.items()}}

    def _of_linears(self) -> dict[str, float]:
        squares: dict[str, float] = defaultdict(float)
        tokens: dict[str, int] = defaultdict(int)
        for line, norm in zip(self._lines, _read([line.norm for line in self._lines]), strict=True):
            squares[line.name] += norm * norm
            tokens[line.name] += line.tokens
        found = {name: math.sqrt(squares[name] / tokens[name]) for name in squares}
        for name, _, width, _ in self._lines:
            if name.endswith(".output_norm"):
                found[name.replace("_norm", "_rms")] = found[name] / math.sqrt(width)
        return found

    def _of_parameters(self) -> dict[str, float]:
        found: dict[str, float] = {}
        layers: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        rows = torch.stack(self._norms, dim=1).tolist() if self._parameters else []
        for (name, p), (weight, gradient, zeros, change) in zip(self._parameters.items(), rows, strict=True):
            if p.ndim > 1:
                matrix = name.removesuffix(".weight")
                found |= {f"{matrix}.weight_norm": weight, f"{matrix}.weight_gradient_norm": gradient}
            layers[layer_of(name)].append((weight, gradient, change, zeros, p.numel()))
        for name, parts in layers.items():
            weights, gradients, changes, zeros, numbers = zip(*parts, strict=True)
            weight = math.hypot(*weights)
            found[f"{name}.gradient_norm"] = math.hypot(*gradients)
            found[f"{name}.zero_gradients"] = sum(zeros) / sum(numbers)
            found[f"{name}.update_ratio"] = math.hypot(*changes) / weight if weight else math.nan
        return found

    def _linear(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._keep(f"{name}.input_norm", inputs[0])
            self._keep(f"{name}.output_norm", output)
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda gradient: self._keep(f"{name}.input_gradient_norm", gradient))

        return look

    @torch.no_grad()
    def _keep(self, name: str, x: Tensor) -> None:
        norm = torch.linalg.vector_norm(x.detach(), dtype=torch.float32)
        self._lines.append(_Line(name, x.shape[:-1].numel(), x.shape[-1], norm))

    def _attention(self, name: str, attention: Attention) -> list[RemovableHandle]:
        """Catch queries and keys behind their norms, and look at them when the layer is done."""
        seen: dict[str, Tensor] = {}

        def catch(what: str) -> Callable[..., None]:
            def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
                seen[what] = output.detach().transpose(1, 2)

            return keep

        def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            documents = inputs[1] if len(inputs) > 1 else named.get("documents")
            found = attention_measures(seen.pop("q"), seen.pop("k"), documents, attention.shaping)
            self._single |= {f"{name}.{what}": value for what, value in found.items()}

        return [
            attention.q_norm.register_forward_hook(catch("q")),
            attention.k_norm.register_forward_hook(catch("k")),
            attention.register_forward_hook(look, with_kwargs=True),
        ]


@torch.no_grad()
def attention_measures(q: Tensor, k: Tensor, documents: Tensor | None, shaping: Shaping) -> dict[str, Tensor]:
    """Logits, entropy and one-hot rows of causal attention over whole rows, on a sample of its queries.

    Args:
        q: B H T K.
        k: B G T K.
        documents: B T, -1 for padding.
    """
    (batch, heads, length, width), groups = q.shape, k.shape[1]
    queries = max(1, min(QUERIES, SCORES // (heads * length)))
    rows = _spread(batch, min(4, queries), q.device)
    places = _spread(length, queries // len(rows), q.device)
    visible = (torch.arange(length, device=q.device) <= places[:, None]).expand(len(rows), -1, -1)
    if documents is not None:
        own = documents[rows][:, places, None]
        visible = visible & (own == documents[rows][:, None]) & (own >= 0)
    counted = visible.sum(-1) > 1  # a query with a single key attends to it, however sharp the softmax
    q, k = q[rows][:, :, places].float(), k[rows].float()
    scores = (q.unflatten(1, (groups, -1)) @ k[:, :, None].mT / width**0.5).flatten(1, 2)
    p = shaping.probabilities(scores, (visible | ~counted[..., None])[:, None])
    weight = (counted / (counted.sum() * heads))[:, None]
    return {
        "logit_max": scores.abs().masked_fill(~visible[:, None], 0.0).max(),
        "entropy": (torch.special.entr(p).sum(-1) * weight).sum(),
        "one_hot": ((p.amax(-1) > ONE_HOT) * weight).sum(),
    }


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: its name up to the first number, or else the module that owns it."""
    parts = parameter.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1] if numbered else parts[:-1]) or "(model)"


def _sample(p: Tensor) -> Tensor:
    """Entries of a parameter, evenly spaced through it and through its columns."""
    stride = -(-p.numel() // SAMPLE)
    while stride > 1 and math.gcd(stride, p.shape[-1]) > 1:
        stride += 1
    return p.detach().flatten()[::stride]


def _spread(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of the numbers below `length`, evenly spaced, the last one among them."""
    count = min(length, count)
    return torch.arange(1, count + 1, device=device) * length // count - 1


def _read(values: list[Tensor]) -> list[float]:
    return torch.stack(values).tolist() if values else []
