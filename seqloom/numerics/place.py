"""Where a matrix of few bits stands: what its products need beside their operands, and what they report.

A key for stochastic rounding is a function of (seed, step, micro-batch, rank, matrix, use, role) alone, so results
depend neither on the order of calls nor on recomputation. A matrix that is cut over ranks has one scale, so its largest
magnitude is that of all ranks. Quantized weights are kept until the weight changes: once for all micro-batches.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqloom.core.distributed import Axis
from seqloom.core.seeds import derive
from seqloom.numerics.delayed import AmaxHistory
from seqloom.numerics.recipes import OPERANDS, Delayed, Operand

T = TypeVar("T")

Switch = Literal["both", "forward"]

_use: ContextVar[int] = ContextVar("use", default=0)


@contextmanager
def used_again(number: int) -> Iterator[None]:
    """Inside, weights are used once more in the same micro-batch, which takes random numbers of its own.

    Args:
        number: of uses before.
    """
    before = _use.set(number)
    try:
        yield
    finally:
        _use.reset(before)


class Clock:
    """How far a training is, told to all its layers at once.

    Attributes:
        step, micro: of the micro-batch in work.
        turn: counts the starts of steps, so that what a step reports is told from what came before.
    """

    def __init__(self, seed: int = 0, rank: int = 0, switch_step: int | None = None, switch: Switch = "both") -> None:
        """
        Args:
            rank: place among the ranks that learn from different tokens, whose random numbers differ.
            switch_step: first step after the late switch to BF16; None never switches.
            switch: which passes it changes.
        """
        self.seed, self.rank = seed, rank
        self._switch_step, self._switch = switch_step, switch
        self.step = self.micro = self.turn = 0

    def begin(self, step: int, micro: int = 0) -> None:
        self.step, self.micro = step, micro
        self.turn += micro == 0

    @property
    def switched(self) -> Switch | None:
        """Which passes compute in BF16 from now on."""
        late = self._switch_step is not None and self.step >= self._switch_step
        return self._switch if late else None


class Shared(NamedTuple):
    """Ranks among which a matrix [outputs, inputs] is cut, and which dimension of it."""

    axis: Axis
    dim: int


class _Report:
    """What happened at a place in the step in work."""

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, turn: int) -> None:
        self.turn = turn
        self.events, self.not_finite, self.largest = (dict[str, Tensor]() for _ in range(3))


class Place:
    """Of one matrix, or a stack of them.

    Attributes:
        name: of the parameter in its model.
        shared: set where it is cut over ranks.
        keeps: whether quantized weights are kept; not where weights themselves are put together for a moment only.
    """

    def __init__(self, name: str, clock: Clock, hardware: str = "auto") -> None:
        """
        Args:
            hardware: as `precision.hardware`.
        """
        self.name, self.clock, self.hardware = name, clock, hardware
        self.shared: Shared | None = None
        self.keeps = True
        self._kept: dict[Any, tuple[Callable[[], Any], tuple[int, ...], Any]] = {}
        self._histories: dict[str, AmaxHistory] = {}
        self._report = _Report()
        self._number = self._use = 0

    def of(self, number: int) -> "Place":
        """Of one matrix of the stack; what it keeps and reports is kept and reported here."""
        one = copy.copy(self)
        one._number = number
        return one

    def in_use(self) -> "Place":
        """For the use that `used_again` says, which a backward pass has to be told."""
        one = copy.copy(self)
        one._use = _use.get()
        return one

    def __deepcopy__(self, memo: dict[int, Any]) -> "Place":
        twin = Place(self.name, self.clock, self.hardware)
        twin.shared, twin.keeps = self.shared, self.keeps
        return twin

    def key(self, role: str) -> int:
        """For the random numbers of one operand in the micro-batch in work."""
        clock, part = self.clock, self.shared.axis.index if self.shared else 0
        again = (self._use,) if self._use else ()
        return derive(
            clock.seed, "rounding", clock.step, clock.micro, clock.rank, part, self.name, self._number, role, *again
        )

    def ranks_of(self, operand: str, dim: int) -> Axis | None:
        """The ranks among which a dimension of an operand is cut, if it is.

        Args:
            operand: "x" [tokens, inputs], "w" [outputs, inputs] or "dy" [tokens, outputs].
        """
        if self.shared is None:
            return None
        cut = {"x": {1: 1}, "w": {0: 0, 1: 1}, "dy": {1: 0}}[operand].get(dim)
        return self.shared.axis if cut == self.shared.dim else None

    def once(self, weight: Float[Tensor, "O I"], key: Any, make: Callable[[], T]) -> T:
        """`make()`, or what it gave before for the same numbers of the same weight, which may be one of a stack."""
        owner = weight if weight._base is None else weight._base
        if not self.keeps or owner.is_inference():
            return make()
        key, stamp = (key, weight.storage_offset()), (owner._version, owner.data_ptr(), self.clock.turn)
        known = self._kept.get(key)
        if known is None or known[0]() is not owner or known[1] != stamp:
            self._kept[key] = known = (ref(owner), stamp, make())
        return known[2]

    def count(self, role: str, events: Tensor) -> None:
        """Add to how often each representation was chosen."""
        counts = self.events
        counts[role] = counts[role] + events if role in counts else events

    def watch(self, role: str, finite: Tensor) -> None:
        """Note whether an operand was finite."""
        flags = self.not_finite
        flags[role] = ~finite | flags[role] if role in flags else ~finite

    def delayed_amax(self, operand: str, how: Delayed, own: Tensor) -> Tensor:
        """What an operand is scaled by in this step; its own amax is noted for the steps to come."""
        largest = self._of_this_turn().largest
        largest[operand] = torch.maximum(own, largest[operand]) if operand in largest else own
        return self.history(operand, how).amax(own)

    def history(self, operand: str, how: Delayed) -> AmaxHistory:
        """Of an operand, "x", "w" or "dy"; all matrices of a stack have one."""
        return self._histories.setdefault(operand, AmaxHistory(how.length, how.margin))

    def largest(self, operand: str) -> Tensor | None:
        """The amax of an operand in this step; None if it was not multiplied."""
        return self._of_this_turn().largest.get(operand)

    @property
    def events(self) -> dict[str, Tensor]:
        """How often each representation was chosen in this step, by role."""
        return self._of_this_turn().events

    @property
    def not_finite(self) -> dict[str, Tensor]:
        """By role, whether an operand of this step held NaN or Inf."""
        return self._of_this_turn().not_finite

    def _of_this_turn(self) -> _Report:
        if self._report.turn != self.clock.turn:
            self._report.begin(self.clock.turn)
        return self._report


def places(model: nn.Module) -> dict[str, tuple[nn.Module, Place]]:
    """All places of a model by name, with the modules that they belong to."""
    return {
        place.name: (module, place) for module in model.modules() for place in getattr(module, "places", {}).values()
    }


def spoilt_operands(model: nn.Module) -> list[str]:
    """Operands of this step that held NaN or Inf, as "parameter (role)": those of the forward pass first, from which
    gradients inherit it, then in module order."""
    found = [(name, role) for name, (_, at) in places(model).items() for role, flag in at.not_finite.items() if flag]
    return [f"{name} ({role})" for name, role in sorted(found, key=lambda pair: not pair[1].startswith("forward"))]


def events(model: nn.Module) -> dict[tuple[str, str], dict[str, int]]:
    """How often each representation was chosen in this step, by parameter and role such as "forward.x"; one event is
    one tensor, or one part of it where parts are chosen for."""
    kinds: dict[tuple[str, str], tuple[str, ...]] = {}
    counts: list[Tensor] = []
    for name, (module, place) in places(model).items():
        for role, operand in _roles(module):
            if operand.choice is None:
                continue
            names = kinds[name, role] = operand.choice.representations
            nothing = torch.zeros(len(names), dtype=torch.int64, device=next(module.parameters()).device)
            counts.append(place.events.get(role, nothing))
    numbers = iter(torch.cat(counts).tolist() if counts else ())  # one read for all
    return {key: {kind: int(next(numbers)) for kind in names} for key, names in kinds.items()}


def histories(model: nn.Module) -> dict[str, tuple[AmaxHistory, Tensor | None]]:
    """What delayed scales are made from, by "parameter.operand", and the amax of the operand in this step."""
    return {
        f"{name}.{operand}": (place.history(operand, how.delayed), place.largest(operand))
        for name, (module, place) in places(model).items()
        for operand, how in {role.rpartition(".")[2]: how for role, how in _roles(module)}.items()
        if how.delayed is not None
    }


def _roles(module: Any) -> Iterator[tuple[str, Operand]]:
    """The operands of a module's products by role."""
    for product, operands in OPERANDS.items():
        for name, operand in zip(operands, getattr(module.products, product), strict=True):
            yield f"{product}.{name}", operand
