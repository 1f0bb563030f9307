import dataclasses
import random

import pytest
import torch
from serve.toy_model import ToyModel, ToyTokenizer

from seqloom.serve import guessing
from seqloom.serve.adaptive import DraftLength
from seqloom.serve.config import Sampling
from seqloom.serve.drafting import NgramDrafter
from seqloom.serve.engine import Engine
from seqloom.serve.request import Request

PROMPTS = [[3], [4, 5, 6, 7, 3, 3, 8, 9, 10], [5, 5], [1, 10, 9, 8]]


def make(**settings: object) -> Engine:
    return Engine((ToyModel(), ToyTokenizer()), **settings)


@pytest.mark.parametrize("right", [0, 1, 2, 4])
@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_what_is_remembered_after_any_number_of_right_guesses(monkeypatch, draft_tokens: int, right: int) -> None:
    """The backbone has seen the text so far, and the block true states with the tokens after them, in all rows."""
    engine, sampling = make(max_rows=8, page_tokens=4, prefix_cache=False), Sampling(max_tokens=12, temperature=0)
    answers = {tuple(prompt): engine.generate([prompt], sampling)[0].token_ids for prompt in PROMPTS}

    def guess(request: Request, logits: torch.Tensor, ahead: int) -> int:
        token = answers[tuple(request.ids[: request.prompt_tokens])][len(request.tokens) + ahead]
        return token if ahead < right else token ^ 1

    monkeypatch.setattr(Request, "guess", guess)
    plain, *drafting = [engine.submit(prompt, sampling, k) for prompt, k in zip(PROMPTS, (0, 9, 9, 9), strict=True)]
    for request in drafting:
        request.draft_tokens = draft_tokens
    steps = 2
    for _ in range(steps):
        engine.step()
    assert engine._scheduler.running == [*drafting, plain]
    with torch.inference_mode():
        engine._scheduler._drafter._catch_up(0, drafting)
    cache, model = engine._scheduler.cache, engine.model
    for row, request in enumerate([*drafting, plain]):
        wanted = 1 + min(right, draft_tokens) if request is not plain else 1
        assert steps * wanted - (request.prompt_tokens == 1) <= len(request.tokens) <= steps * wanted
        with torch.inference_mode():
            hidden, _ = model.hidden(torch.tensor([request.ids[:-1]]), states=model.new_states(1))
        assert torch.equal(cache._backbone.stores[0].states[row], hidden[0, -1])
        if request is not plain:
            entries = model.pages.of(cache._pool.held[row], len(request.ids) - 1)
            assert torch.equal(entries, torch.cat([hidden[0], torch.tensor(request.ids[1:])[:, None].float()], 1))
    for request in [plain, *drafting]:
        while request.finish_reason is None:
            engine.step()
        assert request.tokens == answers[tuple(request.ids[: request.prompt_tokens])]
    found = engine.statistics
    assert all(found.accepted[: min(right, draft_tokens)])
    assert not any(found.accepted[right:])
    assert not any(found.drafted[draft_tokens:])


def test_each_guess_is_made_from_the_block_output_before() -> None:
    """A block without error is the backbone, so chained guesses are what is drawn."""
    engine = Engine((ToyModel(draft_error=0.0), ToyTokenizer()))
    answers = engine.generate(PROMPTS, Sampling(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True), 4)
    assert all(answer.accepted_tokens == answer.drafted_tokens > 10 for answer in answers)


def test_the_block_waits_while_nobody_guesses_and_then_catches_up(monkeypatch) -> None:
    """It runs once a page, where its entries may be remembered; before it guesses all of them are true."""
    engine, length = make(max_rows=2, page_tokens=4), 0
    monkeypatch.setattr(DraftLength, "choose", lambda self, rows: length)
    cache, model, calls = engine._scheduler.cache, engine.model, []
    draft = model.draft
    monkeypatch.setattr(model, "draft", lambda *given: calls.append(given[1].shape) or draft(*given))
    sampling = Sampling(max_tokens=30, temperature=0.8, seed=1, ignore_eos=True)
    requests = [engine.submit(prompt, sampling, "auto") for prompt in ([4, 5, 6, 7, 3, 3], [5, 5, 8])]
    engine.step()
    calls.clear()
    for _ in range(9):
        engine.step()
    assert len(calls) <= 2 * 3
    length = 3
    engine.step()
    with torch.inference_mode():
        engine._scheduler._drafter._catch_up(0, requests)
    for row, request in enumerate(requests):
        with torch.inference_mode():
            hidden, _ = model.hidden(torch.tensor([request.ids[:-1]]), states=model.new_states(1))
        entries = model.pages.of(cache._pool.held[row], len(request.ids) - 1)
        assert torch.equal(entries, torch.cat([hidden[0], torch.tensor(request.ids[1:])[:, None].float()], 1))
    assert any(engine.statistics.drafted)


def test_requests_that_draft_and_others_run_side_by_side() -> None:
    engine = make(max_rows=3, page_tokens=4)
    choose = random.Random(0)
    settings = [Sampling(max_tokens=choose.randint(1, 20), temperature=1.5, seed=seed) for seed in range(30)]
    prompts = [choose.choices(range(3, 11), k=choose.randint(1, 12)) for _ in settings]
    wanted = engine.generate(prompts, settings)
    requests = [
        engine.submit(prompt, each, choose.choice([0, 0, 1, 3, 16, "auto"]))
        for prompt, each in zip(prompts, settings, strict=True)
    ]
    mixed = 0
    while any(request.finish_reason is None for request in requests):
        engine.step()
        drafts = [request.drafts for request in engine._scheduler.running]
        assert drafts == sorted(drafts, reverse=True)
        mixed += len(set(drafts)) > 1
    assert mixed > 10
    for request, answer in zip(requests, wanted, strict=True):
        drafted = dataclasses.replace(request.completion(), drafted_tokens=0, accepted_tokens=0)
        assert drafted == answer


def test_where_no_guess_pays_few_requests_look_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sampling = make(), Sampling(max_tokens=30, temperature=0)
    plain = engine.generate(PROMPTS, sampling)
    monkeypatch.setattr(DraftLength, "none_pays", lambda self, rows: True)
    monkeypatch.setattr(guessing, "_LOOKING", 8)
    followed = []
    for number in range(16):
        request = engine.submit(PROMPTS[number % 4], sampling, "auto")
        while request.finish_reason is None:
            engine.step()
        assert request.completion().token_ids == plain[number % 4].token_ids
        followed.append(request.drafts)
    assert sum(followed) == 2
    wanted = engine.submit(PROMPTS[0], sampling, 2)
    engine.step()
    assert wanted.drafts  # who asks for guesses gets them


def test_a_text_that_repeats_itself_is_guessed_from_what_was_said() -> None:
    class Text:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    drafter = NgramDrafter()
    text, other, new = Text([3, 4, 5, 6, 7, 9, 4, 5]), Text([3, 4, 3, 8, 8, 3, 4]), Text([3, 4, 5])
    assert drafter.propose([text, other, new], [3, 2, 2]) == [[6, 7, 9], [3, 8], []]
    text.ids += [6, 7, 9, 4, 5]
    assert drafter.propose([text], [2]) == [[6, 7]]  # of four tokens that are the same, the latest place
    text.ids += [8, 9, 4, 5]
    assert drafter.propose([text], [1]) == [[8]]  # the newest of equals
    text.ids += [6, 7]
    assert drafter.propose([text], [2]) == [[9, 4]]


@pytest.mark.parametrize(
    ("right", "cost", "length"),
    [(0.95, 0.05, 5), (0.3, 0.02, 1), (0.5, 0.6, 0), (0.9, 3.0, 0)],
    ids=["good and cheap", "poor and cheap", "not worth it", "dear"],
)
def test_the_length_that_brings_most_tokens_a_second_is_found(right: float, cost: float, length: int) -> None:
    """With guesses right at one rate and a price for each, the best length follows from the formula."""
    rates = [sum(right**k for k in range(n + 1)) / (1 + cost * n) for n in range(6)]
    best = max(range(6), key=rates.__getitem__)
    assert (best >= length) if length else best == 0
    choose, lengths, chosen = random.Random(0), DraftLength(5), []
    for step in range(1500):
        guessed = lengths.choose(1)
        good = 0
        while good < guessed and choose.random() < right:
            good += 1
        lengths.count(guessed, good)
        waited = 5 if step == 0 or choose.random() < 0.2 else 1  # the first step, and a busy machine
        lengths.time(1, guessed, (1 + cost * guessed) * choose.uniform(0.9, 1.3) * waited)
        chosen.append(rates[guessed])
    assert best or sum(chosen[:200]) > 0.9 * 200  # to find out that nothing pays costs little
    assert sum(chosen[500:]) / 1000 > 0.93 * rates[best]
    assert lengths.none_pays(1) == (best == 0)
