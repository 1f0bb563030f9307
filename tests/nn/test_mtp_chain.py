"""Guesses of one call: those of the modules one after the other."""

from collections.abc import Sequence

import pytest

from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.native.build import why_not
from seqloom.serve.config import Sampling
from seqloom.serve.drafting import MtpDrafter
from seqloom.serve.engine import Engine
from seqloom.serve.request import Request
from tiny_models import Nothing, make


@pytest.mark.parametrize("format", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9, "top_k": 50}])
def test_the_guesses_and_the_memory_of_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, format: str, settings: dict[str, float]
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    model, seen = make("mtp"), []
    apply_precision(model, PrecisionConfig(activations=format))
    at_once = MtpDrafter._in_one_call

    def both(self: MtpDrafter, requests: Sequence[Request], counts: list[int]) -> list[list[int]] | None:
        known = [vars(request.followed).copy() for request in requests]
        before = self._cache.save_draft(0, len(requests))
        found, after = at_once(self, requests, counts), self._cache.save_draft(0, len(requests))
        ahead = [request.followed.ahead for request in requests]
        self._cache.load_draft(before)
        for request, each in zip(requests, known, strict=True):
            vars(request.followed).update(each)
        assert found == self._one_by_one(requests, counts)
        assert after == self._cache.save_draft(0, len(requests))
        for request, state in zip(requests, ahead, strict=True):
            assert request.followed.ahead.equal(state)
        seen.append(len({len(each["tokens"]) for each in known}))
        return found

    monkeypatch.setattr(MtpDrafter, "_in_one_call", both)
    prompts = [[5, 6, 7, 8, 9], [200, 201, 202], [40, 41, 42, 43]]
    Engine((model, Nothing())).generate(prompts, Sampling(max_tokens=20, seed=3, ignore_eos=True, **settings), 3)
    assert len(seen) > 5
    assert max(seen) > 1 or not settings["temperature"]  # rows that have more and fewer to follow, too
