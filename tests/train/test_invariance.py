"""How a step is cut up never changes its gradient: accumulation, shape of micro-batches, packing, padding.

Measured per tensor as ‖g - g'‖ / ‖g‖ on a narrow model with every kind of layer and a prediction block, weights and
activations in FP32. The pieces' gradients are added in FP64 on both sides, so that what is compared is the work on each
piece and not the order of a sum; added in FP32, as the loop does, the whole gradient agrees as closely. Between packed
and separate documents the chunks of the scan and the shapes of products differ, so the work itself is rounded another
way: there the whole gradient agrees to 1e-6, and each tensor to 5e-6 (worst are A_log and dt_bias, a few numbers that
are what is left of large sums).
The balance loss is meant to depend on the row a token stands in, and is off where rows differ.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import micro_runs
import tiny_models
from seqloom.data.rows import NO_DOCUMENT, NO_TARGET, Rows
from seqloom.systems.hybrid_lm.loss import targets_ahead
from seqloom.systems.hybrid_lm.task import Micro, TextTask

Gradients = dict[str, Tensor]
ROWS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = micro_runs.narrow(micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus"))()
    run = replace(run, precision=replace(run.precision, activations="fp32"))
    return replace(run, task=replace(run.task, batch_rows=ROWS, sequence_length=48))


@pytest.fixture(scope="module")
def task(run: Any) -> TextTask:
    return TextTask(run, torch.device("cpu"))


@pytest.fixture(scope="module")
def model(run: Any) -> nn.Module:
    torch.manual_seed(0)
    return tiny_models.excite(run.model.build()).train()


def gradients(task: TextTask, model: nn.Module, batch: Iterable[Micro], dtype: torch.dtype) -> Gradients:
    """Of the mean over the units of all pieces, added in a dtype."""
    found = {name: torch.zeros_like(p, dtype=dtype) for name, p in model.named_parameters()}
    units = 0
    for micro in batch:
        loss = task.loss(model, micro)
        loss.total.backward()
        units += loss.units
        for name, parameter in model.named_parameters():
            found[name] += parameter.grad
        model.zero_grad()
    return {name: gradient / units for name, gradient in found.items()}


def distance(one: Gradients, other: Gradients) -> float:
    """The largest relative distance of any tensor."""
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


def together(one: Gradients, other: Gradients) -> float:
    """The relative distance of all tensors as one vector."""
    return math.hypot(*((one[n] - other[n]).norm() for n in one)) / math.hypot(*(one[n].norm() for n in one))


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_accumulation_never_changes_a_gradient(pieces: int, run: Any, task: TextTask, model: nn.Module) -> None:
    split = TextTask(replace(run, task=replace(run.task, micro_rows=ROWS // pieces)), torch.device("cpu"))
    at_once, in_parts = task.next_batch(model, 3), split.next_batch(model, 3)
    assert (len(at_once), len(in_parts)) == (1, pieces)
    exact = [gradients(task, model, batch, torch.float64) for batch in (at_once, in_parts)]
    assert distance(*exact) <= 1e-6
    as_trained = [gradients(task, model, batch, torch.float32) for batch in (at_once, in_parts)]
    assert together(*as_trained) <= 1e-6


def test_micro_batches_may_differ_in_shape(task: TextTask, model: nn.Module) -> None:
    (whole,) = task.next_batch(model, 5)
    rows = whole.split(1)
    uneven = [_joined(rows[:1]), _joined(rows[1:4]), _joined(rows[4:])]
    assert distance(*(gradients(task, model, batch, torch.float64) for batch in ([whole], uneven))) <= 1e-6


@pytest.fixture(scope="module")
def unbalanced(run: Any) -> TextTask:
    model = replace(run.model, moe=replace(run.model.moe, balance_weight=0.0))
    return TextTask(replace(run, model=model), torch.device("cpu"))


LENGTHS = (7, 22, 19)


def test_packed_padded_and_separate_documents_give_one_gradient(unbalanced: TextTask, model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(model.vocab_size, (length,), generator=draw) for length in LENGTHS]
    width, total = max(LENGTHS), sum(LENGTHS)
    packed = [_rows([documents], total)]
    packed_and_padded = [_rows([documents], total + 9)]
    padded = [_rows([[document] for document in documents], width)]
    separate = [_rows([[document]], len(document)) for document in documents]
    mixed = [_rows([documents[:2], documents[2:]], 31)]
    wanted = gradients(unbalanced, model, _micros(packed), torch.float64)
    for other in (packed_and_padded, padded, separate, mixed):
        found = gradients(unbalanced, model, _micros(other), torch.float64)
        assert together(wanted, found) <= 1e-6
        assert distance(wanted, found) <= 5e-6


def _joined(micros: list[Micro]) -> Micro:
    rows = Rows(*(torch.cat(parts) for parts in zip(*(micro.rows for micro in micros), strict=True)))
    ahead = [torch.cat(parts) for parts in zip(*(micro.ahead for micro in micros), strict=True)]
    return micros[0]._replace(rows=rows, ahead=ahead)


def _rows(rows: list[list[Tensor]], length: int) -> Rows:
    """Documents laid into rows, padded on the right."""
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    targets, numbers = torch.full_like(tokens, NO_TARGET), torch.full_like(tokens, NO_DOCUMENT)
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents):
            stop = start + len(document)
            tokens[row, start:stop], numbers[row, start:stop] = document, number
            targets[row, start : stop - 1] = document[1:]
            start = stop
    return Rows(tokens, targets, numbers)


def _micros(batch: list[Rows]) -> list[Micro]:
    """The rows as the micro-batches of one step."""
    ahead = [[targets_ahead(rows, depth) for depth in (1, 2)] for rows in batch]
    counts = [sum(int((later[depth] != NO_TARGET).sum()) for later in ahead) for depth in range(2)]
    units = sum(int((rows.targets != NO_TARGET).sum()) for rows in batch)
    scales = [units / count for count in counts]
    return [Micro(rows, scales, 1.0, 1.0, later) for rows, later in zip(batch, ahead, strict=True)]
