"""Steps of running rows in one native call each, with the choice of tokens, where the model has them (`nn.whole_step`).

Asking a model whether it still is what it was takes a good part of a step of a small one, so the answer is kept for
the rows and tokens of a call until somebody says that it may have changed.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seqloom.nn.whole_step import Steps
from seqloom.serve.contract import LanguageModel
from seqloom.serve.request import Request


class NativeSteps:
    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._known: dict[tuple[int, int], tuple[list[Any], Steps | None]] = {}

    def forget(self) -> None:
        """Ask the model anew."""
        self._known.clear()

    def can(self, fed: list[list[int]], states: list[Any]) -> bool:
        """Whether so many tokens can be fed to rows with this memory in one call."""
        return self._steps(fed, states) is not None

    def __call__(
        self, requests: Sequence[Request], fed: list[list[int]], states: list[Any], times: int
    ) -> tuple[Float[Tensor, "B T D"], list[Sequence[Tensor | int]]]:
        """One step with all tokens of each row, or several with one; hidden states and places as `Decoded` has them."""
        steps = self._steps(fed, states)
        assert steps is not None
        rows, length, rules = len(fed), len(fed[0]), [request.rule for request in requests]
        keys: list[int] = []
        if any(rule is not None and rule.sharpness for rule in rules):
            keys = [
                request.race(time + ahead) if rule is not None and rule.sharpness else 0
                for time in range(times)
                for request, rule in zip(requests, rules, strict=True)
                for ahead in range(length)
            ]
        hidden, logits, tokens = steps(fed, rules, keys, times)
        places: list[Sequence[Tensor | int]] = []
        for row, rule in enumerate(rules):
            if logits is not None and rule is None:
                places.append(logits[row].unbind())
            else:
                places.append(tokens[row::rows] if length == 1 else tokens[row * length : (row + 1) * length])
        return hidden, places

    def _steps(self, fed: list[list[int]], states: list[Any]) -> Steps | None:
        key = id(states), len(fed[0])
        if key not in self._known:
            self._known[key] = states, self._model.decoder(len(fed), len(fed[0]), states)
        return self._known[key][1]
