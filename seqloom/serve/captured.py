"""A step of all running rows: a token and its guesses in, hidden states and what comes next out.

A GPU, and on a CPU a small model, would wait for Python much of the time. So on a CPU the whole step, with the choice
of tokens, is one native call where the model has that (`native_steps`), even several steps where nobody waits for less.
On a GPU it is recorded once (a CUDA graph) and then replayed over the same memory:

    shape     rows, rounded up to a power of two, with tokens of each, whether they are guesses, and pages that the
              longest has, rounded up too; a step is recorded when its shape comes up first
    inputs    tokens, lengths, tables of pages, and how each row chooses, in buffers that stay where they are
    spare     rows that round up: they are empty, write to the spare page, and nobody reads what comes of them
    choice    of rows whose next token depends on logits, filters and seed alone; others get their logits

Recording takes trial runs, which advance recurrent states, so these are put back before the step counts. Whatever asks
the device for a value in the middle cannot be recorded: steps then run one operation after the other, and `state` says
why. Prompts are never recorded.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seqloom.nn.cache import HybridCache, power_of_two
from seqloom.ops.token_choice import Kind, Races, signed, token_choice
from seqloom.serve.contract import LanguageModel
from seqloom.serve.native_steps import NativeSteps
from seqloom.serve.request import Request

Replay = Callable[[], None]


class Recorder(Protocol):
    """Makes a function that works on fixed memory cheap to repeat."""

    def record(self, step: Replay) -> Replay:
        """A replay of the step, which has run a few times in between.

        Raises:
            RuntimeError: the step cannot be recorded.
        """
        ...


class CudaGraphs:
    """Records on a GPU; all graphs share one pool of memory, since only one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, step: Replay) -> Replay:
        side, strictness = torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the mode does not find everything; capturing does
                step()  # compiles kernels, and takes what libraries take at first use
                torch.cuda.set_sync_debug_mode("error")  # names what a graph could not hold
                step()
        finally:
            torch.cuda.set_sync_debug_mode(strictness)
            torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        self._pool = graph.pool()
        return graph.replay


class Decoded(NamedTuple):
    """What a step gave.

    Attributes:
        hidden: until the next step.
        places: of every row and token, the logits on the CPU, or the token that was chosen on the device, -1 where
            its logits are not finite.
    """

    hidden: Float[Tensor, "B T D"]
    places: list[Sequence[Tensor | int]]


class _Outputs:
    """Memory for what steps of all shapes give; it is read before the next step."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def like(self, place: int, value: Tensor) -> Tensor:
        """Room for a value of this shape, which is the output of this number."""
        held = self._held.get(place)
        if held is None or held.numel() < value.numel():
            held = self._held[place] = torch.empty(value.numel(), dtype=value.dtype, device=value.device)
        return held[: value.numel()].view(value.shape)


class _Recorded:
    """A step of one shape, over inputs of its own."""

    def __init__(
        self, model: LanguageModel, states: list[Any], rows: int, tokens: int, kind: Kind, outputs: _Outputs
    ) -> None:
        self._model, self._states, self._kind, self._room = model, states, kind, outputs
        device = next(model.parameters()).device
        self.tokens: Int64[Tensor, "B T"] = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
        self.races = Races(*(each.to(device) for each in _races([], rows, tokens)))
        self.outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self.replay: Replay = self.run

    def run(self) -> None:
        found = _step(self._model, self.tokens, self._states, self.races, self._kind)
        if self.outputs is None:
            hidden, logits, chosen = (self._room.like(*each) for each in enumerate(found))
            self.outputs = hidden, logits, chosen
        for output, value in zip(self.outputs, found, strict=True):
            output.copy_(value)

    def fill(self, fed: list[list[int]], races: Races) -> None:
        self.tokens[: len(fed)] = torch.tensor(fed)
        if self._kind != "greedy":
            for mine, given in zip(self.races, races, strict=True):
                mine.copy_(given)


class DecodeStep:
    """
    Args:
        rows: that may run; the cache has them all, and they are empty now.
        recorder: None never records.
    """

    def __init__(self, model: LanguageModel, cache: HybridCache, rows: int, recorder: Recorder | None) -> None:
        self._model, self._cache, self._most, self._recorder = model, cache, rows, recorder
        self._device = next(model.parameters()).device
        on_cpu = self._device.type == "cpu"
        self._native = NativeSteps(model) if on_cpu else None
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._outputs = _Outputs()
        self._why_not = "off: nothing is recorded on a CPU" if on_cpu else "off: not wanted"
        if recorder is not None:
            for row in range(rows):  # spare rows compute with what is there
                cache.clear(row)

    @property
    def recorded(self) -> int:
        """Shapes that have been recorded."""
        return len(self._recorded)

    @property
    def state(self) -> str:
        """on, with the number of recorded steps, or why nothing is recorded."""
        return self._why_not if self._recorder is None else f"on: {self.recorded} recorded"

    def forget(self) -> None:
        """Record anew, since the weights are no longer where they were."""
        self._recorded.clear()
        self.look_again()

    def look_again(self) -> None:
        """Have the model asked whether a step can be one call; what is changed in it counts from then on."""
        if self._native is not None:
            self._native.forget()

    def __call__(self, requests: Sequence[Request], fed: list[list[int]], guessed: bool, times: int = 1) -> Decoded:
        """Advance rows 0, 1, ... by equally many tokens each.

        Args:
            guessed: all tokens but the first of each row are guesses.
            times: steps that may be taken in one call, each fed what the one before chose, of requests that are plain
                and fed one token; places are of as many as were taken.
        """
        if self._recorder is not None:
            return self._replayed(self._recorder, requests, fed, guessed)
        states = self._cache.states(0, len(fed), len(fed[0]), guessed)
        if self._native is not None and self._native.can(fed, states):
            self._cache.go_on(0, len(fed), times - 1)
            return Decoded(*self._native(requests, fed, states, times))
        tokens = torch.tensor(fed, device=self._device)
        if self._device.type == "cpu":
            hidden, _ = self._model.hidden(tokens, states=states)
            return Decoded(hidden, [row.unbind() for row in self._model.head(hidden).unbind()])
        races = Races(*(each.to(self._device) for each in _races(requests, *tokens.shape)))
        hidden, logits, chosen = _step(self._model, tokens, states, races, _kind(requests))
        return Decoded(hidden, _places(requests, logits, chosen))

    def _replayed(
        self, recorder: Recorder, requests: Sequence[Request], fed: list[list[int]], guessed: bool
    ) -> Decoded:
        rows, tokens = len(fed), len(fed[0])
        spare = min(power_of_two(rows), self._most) - rows
        kind = _kind(requests)
        shape = (kind, *self._cache.shape(0, rows, tokens, guessed, spare))
        states = self._cache.states(0, rows, tokens, guessed, spare)
        if (recorded := self._recorded.get(shape)) is None:
            recorded = _Recorded(self._model, states, rows + spare, tokens, kind, self._outputs)
        recorded.fill(fed, _races(requests, rows + spare, tokens))
        if shape not in self._recorded:
            before = self._cache.save_rows(0, rows + spare)
            try:
                recorded.replay = recorder.record(recorded.run)
                self._recorded[shape] = recorded
            except RuntimeError as error:
                self._recorder, self._why_not = None, f"off: {' '.join(str(error).split())[:300]}"
                self._recorded.clear()
            self._cache.load_rows(before)
        recorded.replay()
        assert recorded.outputs is not None
        hidden, logits, chosen = recorded.outputs
        return Decoded(hidden[:rows], _places(requests, logits, chosen))


def _step(
    model: LanguageModel, tokens: Int64[Tensor, "B T"], states: list[Any], races: Races, kind: Kind
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T V"], Int64[Tensor, "B T"]]:
    hidden, _ = model.hidden(tokens, states=states)
    logits = model.head(hidden)
    return hidden, logits, token_choice(logits, races, kind)


def _kind(requests: Sequence[Request]) -> Kind:
    drawn = [request.sampling for request in requests if request.plain and request.sampling.temperature > 0]
    if any(each.top_k or each.top_p < 1 or each.min_p for each in drawn):
        return "filtered"
    return "race" if drawn else "greedy"


def _races(requests: Sequence[Request], rows: int, tokens: int) -> Races:
    """How the plain rows choose, on the CPU; the others, and spare ones, take the likeliest token."""
    sharpness, top_k, share, floor = [0.0] * rows, [0] * rows, [1.0] * rows, [0.0] * rows
    keys = [[0] * tokens for _ in range(rows)]
    for row, request in enumerate(requests):
        sampling = request.sampling
        if request.plain and sampling.temperature > 0:
            sharpness[row], top_k[row] = 1 / max(sampling.temperature, 1e-20), sampling.top_k
            share[row], floor[row] = sampling.top_p, sampling.min_p
            keys[row] = [signed(request.race(ahead)) for ahead in range(tokens)]
    numbers = (torch.tensor(each, dtype=torch.float64) for each in (sharpness, share, floor))
    return Races(next(numbers), torch.tensor(top_k), next(numbers), next(numbers), torch.tensor(keys))


def _places(
    requests: Sequence[Request], logits: Float[Tensor, "B T V"], chosen: Int64[Tensor, "B T"]
) -> list[Sequence[Tensor | int]]:
    """One copy of the chosen tokens, and one of the logits of rows that choose on the CPU."""
    tokens: list[list[int]] = chosen.tolist()
    others = [row for row, request in enumerate(requests) if not request.plain]
    copied = iter(logits[others].cpu() if others else ())
    return [tokens[row] if request.plain else next(copied).unbind() for row, request in enumerate(requests)]
