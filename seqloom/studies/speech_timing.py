"""The measurements of the study of speed: training steps in two ways that must agree, and CTC beside torch's."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from seqloom.core.progress import Progress
from seqloom.systems.deep_speech2.config import Run

if TYPE_CHECKING:
    import torch

    from seqloom.systems.deep_speech2.task import Micro, SpeechTask

PLAIN = "recurrence=torch,ctc=torch,linear=torch"
"""A loop over steps, torch's CTC, torch's products."""
PARTS = {
    "minibatches of like lengths": (True, PLAIN),
    "the recurrence of this package": (False, "ctc=torch,linear=torch"),
    "the CTC of this package": (False, "recurrence=torch,linear=torch"),
}
CLOSE = 1e-4
CTC_TURNS = 5


def system_times(run: Run, turns: int, progress: Progress) -> dict[str, Any]:
    """Median seconds of a step in both ways, shares of padding, and how much each part alone speeds up the plain way.

    All ways take turns, so that a busy machine slows all of them.
    """
    import torch

    from seqloom.core.devices import pick_device
    from seqloom.systems.deep_speech2.task import SpeechTask

    device = pick_device(run.train.device)
    task = SpeechTask(run, device, progress)
    torch.manual_seed(run.seed)
    model = run.model.build().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    longest = max(one.frames for one in task.data.train)
    _agree(task, model, longest)
    ways = {"here": (True, ""), "plain": (False, PLAIN), **PARTS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    padding: dict[str, list[float]] = {name: [] for name in ways}
    per_epoch = task.report()["steps_per_epoch"]
    for turn in range(turns + 1):
        for number, (name, (alike, kernels)) in enumerate(ways.items()):
            progress(f"timing training, {name}", (turn * len(ways) + number) / ((turns + 1) * len(ways)))
            with _kernels(kernels):
                _wait(device)
                start = time.perf_counter()
                step = turn * max(1, per_epoch // (turns + 1)) % per_epoch
                batch = task.next_batch(model, step)[0] if alike else _any_lengths(task, turn, longest)
                _loss(task, model, batch, on_cpu="ctc=torch" in kernels).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
                optimizer.step()
                optimizer.zero_grad()
                _wait(device)
                spent = time.perf_counter() - start
            if turn:
                seconds[name].append(spent)
                padding[name].append(1 - int(batch.lengths.sum()) / batch.features[:, 0].numel())
    plain = median(seconds["plain"])
    return {
        "seconds": median(seconds["here"]),
        "plain_seconds": plain,
        "padding": median(padding["here"]),
        "plain_padding": median(padding["plain"]),
        "gains": {name: plain / median(seconds[name]) for name in PARTS},
    }


def _any_lengths(task: "SpeechTask", turn: int, longest: int) -> "Micro":
    """Utterances as they come, padded to the longest of all."""
    import torch

    from seqloom.core.seeds import generator
    from seqloom.systems.deep_speech2.evaluate import labels, stack
    from seqloom.systems.deep_speech2.features import utterance_features
    from seqloom.systems.deep_speech2.task import Micro

    order = torch.randperm(len(task.data.train), generator=generator(task.run.seed, "any", turn))
    rows = [task.data.train[index] for index in order[: task.run.task.batch_rows].tolist()]
    features, lengths = stack([utterance_features(one.samples(), task.run.model.features) for one in rows])
    features = torch.nn.functional.pad(features, (0, longest - features.shape[2]))
    return Micro(*(tensor.to(task.device) for tensor in (features, lengths, *labels(rows))))


def _loss(task: "SpeechTask", model: Any, batch: "Micro", *, on_cpu: bool) -> "torch.Tensor":
    from seqloom.ops.ctc import ctc_loss

    if not on_cpu:
        return task.loss(model, batch).total / len(batch.lengths)
    logits, steps = model(batch.features, batch.lengths)
    return ctc_loss(logits.cpu(), steps.cpu(), batch.targets.cpu(), batch.counts.cpu()).sum() / len(batch.lengths)


def _agree(task: "SpeechTask", model: Any, longest: int) -> None:
    """The same utterances have the same loss in both ways."""
    import torch

    micro = task.next_batch(model, 0)[0]
    padded = micro._replace(features=torch.nn.functional.pad(micro.features, (0, longest - micro.features.shape[2])))
    with torch.no_grad():
        here = float(_loss(task, model, micro, on_cpu=False))
        with _kernels(PLAIN):
            plain = float(_loss(task, model, padded, on_cpu=True))
    assert abs(here - plain) <= CLOSE * abs(plain), f"{here} and {plain} nats: the two ways do not agree"


def ctc_times(shapes: Sequence[tuple[int, int, int]], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Median seconds of cost and gradient, here, by torch, and, with a GPU, by torch on the CPU with the copies."""
    import torch

    from seqloom.core.devices import pick_device
    from seqloom.core.seeds import generator
    from seqloom.ops.ctc import ctc_loss, ctc_loss_torch

    device, found = pick_device("auto"), []
    for steps, count, symbols in shapes:
        for batch in rows:
            draw = generator(0, "ctc", steps, symbols, batch)
            logits = torch.randn(batch, steps, symbols, generator=draw).to(device).requires_grad_()
            targets = torch.randint(1, symbols, (batch, count), generator=draw).to(device)
            lengths, counts = (torch.full((batch,), size, device=device) for size in (steps, count))
            inputs = (logits, lengths, targets, counts)
            ways: dict[str, CtcLoss] = {"here": ctc_loss, "torch": ctc_loss_torch, "round trip": _round_trip}
            timed = _in_turns({name: partial(_cost_and_gradient, way, *inputs) for name, way in ways.items()}, device)
            found.append(
                {
                    "steps": steps,
                    "labels": count,
                    "symbols": symbols,
                    "rows": batch,
                    "seconds": timed["here"],
                    "torch_seconds": timed["torch"],
                    "round_trip_seconds": timed["round trip"] if device.type == "cuda" else None,
                }
            )
    return found


def ctc_accuracy() -> dict[str, float]:
    """Largest differences from torch in double precision, as shares of the largest value, over ragged rows of up to
    2000 steps with repeats and an empty one; finite is 1 if all of it is."""
    import torch

    from seqloom.core.devices import pick_device
    from seqloom.core.seeds import generator
    from seqloom.ops.ctc import ctc_loss, ctc_loss_torch

    draw, device = generator(0, "ctc accuracy"), pick_device("auto")
    logits = (3 * torch.randn(4, 2000, 29, generator=draw)).to(device)
    targets = torch.randint(1, 4, (4, 200), generator=draw).to(device)  # few symbols, so that many repeat
    lengths, counts = torch.tensor([2000, 1500, 700, 40], device=device), torch.tensor([200, 150, 90, 0], device=device)

    others = (lengths, targets, counts)
    mine = _cost_and_gradient(ctc_loss, logits.requires_grad_(), *others)
    torchs = _cost_and_gradient(ctc_loss_torch, logits, *others)
    exact = _cost_and_gradient(ctc_loss_torch, logits.detach().double().requires_grad_(), *others)

    def apart(found: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
        return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]

    finite = all(bool(each.isfinite().all()) for each in mine)
    (cost, gradient), (torch_cost, torch_gradient) = apart(mine), apart(torchs)
    return {
        "cost": cost, "gradient": gradient, "torch_cost": torch_cost, "torch_gradient": torch_gradient,
        "finite": float(finite),
    }  # fmt: skip


CtcLoss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def _cost_and_gradient(
    loss: CtcLoss, logits: "torch.Tensor", lengths: "torch.Tensor", targets: "torch.Tensor", counts: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    cost = loss(logits, lengths, targets, counts)
    return cost.detach(), torch.autograd.grad(cost.sum(), logits)[0]


def _round_trip(
    logits: "torch.Tensor", lengths: "torch.Tensor", targets: "torch.Tensor", counts: "torch.Tensor"
) -> "torch.Tensor":
    """Torch's CTC on the CPU, with the copies there and, of the gradient, back."""
    from seqloom.ops.ctc import ctc_loss_torch

    return ctc_loss_torch(logits.cpu(), lengths.cpu(), targets.cpu(), counts.cpu())


def _in_turns(ways: Mapping[str, Callable[[], object]], device: "torch.device") -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(CTC_TURNS + 1):
        for name, way in ways.items():
            _wait(device)
            start = time.perf_counter()
            way()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in seconds.items()}


def _wait(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _kernels(override: str) -> Iterator[None]:
    """Other implementations for a while; an empty override leaves the choice as it is."""
    from seqloom.ops.kernels import VARIABLE

    before = os.environ.get(VARIABLE)
    if override:
        os.environ[VARIABLE] = override if before is None else f"{before},{override}"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
