import pytest
import torch

from seqloom.nn.packed import pack_linears
from seqloom.serve import short_head
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.serve.short_head import ShortHead
from tiny_models import Nothing, make


@pytest.fixture(autouse=True)
def of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_head, "LEAST", 16)  # of 256, so an eighth of them is more


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["as made", "int8"])
def test_what_can_be_guessed_is_what_came_most_and_lately(weights: str) -> None:
    model, hidden = make("mtp"), torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    if weights == "int8":
        pack_linears(model, "int8")
    head, whole = ShortHead(model), model.head(hidden)

    def guessed() -> set[int]:
        found = head(hidden)
        known = found.isfinite()
        torch.testing.assert_close(found[known], whole[known])
        assert (known == known[0]).all()
        return set(known[0].nonzero().flatten().tolist())

    head.count([200, 200, 200, 7, 7, 250])
    assert guessed() == {*range(30), 200, 250}
    head.count(range(100, 131))
    assert guessed() == {*range(30), 200, 250}  # 31 that are missed are not enough
    head.count([131])
    assert guessed() == {7, 200, *range(100, 130)}  # what came before counts half


def test_guesses_from_part_of_the_vocabulary_change_no_answer() -> None:
    engine = Engine((make("mtp"), Nothing()))
    prompts = [[5, 6, 7, 8, 9, 10, 11], [200, 201, 202]]
    for temperature in (0.0, 0.9):
        sampling = Sampling(max_tokens=24, temperature=temperature, seed=3, ignore_eos=True)
        plain = [each.token_ids for each in engine.generate(prompts, sampling)]
        drafted = engine.generate(prompts, sampling, draft_tokens=3)
        assert [each.token_ids for each in drafted] == plain
        assert any(each.accepted_tokens for each in drafted)
