import dataclasses
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from scipy.stats import chisquare
from serve.draw_chances import probabilities
from serve.toy_model import BOS, EOS, ToyModel, ToyTokenizer, V

from seqloom.core.errors import ConfigError, DataError, NumericsError
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine

GREEDY = Sampling(max_tokens=25, temperature=0)
PROMPTS = [[3], [4, 5, 6, 7, 3, 3, 8, 9, 10], [5, 5], [1, 10, 9, 8], [6, 4, 4, 6, 3]]
SAMPLED = [Sampling(max_tokens=20 + index, temperature=1.5, seed=index) for index in range(len(PROMPTS))]


@pytest.fixture
def engine() -> Engine:
    return Engine((ToyModel(), ToyTokenizer()))


def run(engine: Engine) -> None:
    while engine.statistics.rows_running + engine.statistics.rows_waiting:
        engine.step()


def free(engine: Engine) -> None:
    """Nobody has a row or a page any more."""
    found = engine.statistics
    assert (found.rows_running, found.rows_waiting, found.pages_free) == (0, 0, found.pages)


def by_full_passes(model: ToyModel, prompt: list[int], steps: int) -> list[int]:
    """Greedy tokens without any memory: every token from a pass over the whole text."""
    ids = list(prompt)
    for _ in range(steps):
        hidden, _ = model.hidden(torch.tensor([ids]), states=model.new_states(1))
        ids.append(int(model.head(hidden)[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("prefill", [1, 3, 512])
@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_greedy_answers_equal_full_passes(prefill: int, draft_tokens: int) -> None:
    engine = Engine((ToyModel(), ToyTokenizer()), prefill_tokens=prefill)
    for prompt, answer in zip(PROMPTS, engine.generate(PROMPTS, GREEDY, draft_tokens), strict=True):
        assert answer.token_ids == by_full_passes(engine.model, prompt, 25)
        assert answer.prompt_tokens == len(prompt)
        assert (answer.finish_reason == "eos") == (answer.token_ids[-1] == EOS)


@pytest.mark.parametrize("max_rows", [1, 2, 32])
def test_neighbours_change_nothing(max_rows: int) -> None:
    engine = Engine((ToyModel(), ToyTokenizer()), max_rows=max_rows)
    together = engine.generate(PROMPTS, SAMPLED)
    alone = [engine.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, SAMPLED, strict=True)]
    assert together == alone
    backwards = engine.generate(PROMPTS[::-1], SAMPLED[::-1])
    assert backwards[::-1] == alone
    assert len({len(answer.token_ids) for answer in alone}) > 1


@pytest.mark.parametrize("draft_tokens", [0, 3, "auto"])
def test_rows_that_give_their_pages_back_go_on_as_if_nothing_had_been(engine, draft_tokens) -> None:
    settings = [dataclasses.replace(each, logprobs=2) for each in SAMPLED]
    wanted = engine.generate(PROMPTS, settings)
    small = Engine((ToyModel(), ToyTokenizer()), page_tokens=4, cache_tokens=40, prefill_tokens=5)
    found = small.generate(PROMPTS, settings, draft_tokens)
    assert [dataclasses.replace(each, drafted_tokens=0, accepted_tokens=0) for each in found] == wanted
    assert small.statistics.preemptions
    free(small)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5, 16, "auto"])
@pytest.mark.parametrize("sampling", [[GREEDY] * 5, SAMPLED], ids=["greedy", "sampled"])
def test_drafting_changes_nothing(engine, draft_tokens, sampling: list[Sampling]) -> None:
    plain = engine.generate(PROMPTS, sampling)
    drafted = engine.generate(PROMPTS, sampling, draft_tokens)
    for a, b in zip(plain, drafted, strict=True):
        assert dataclasses.replace(b, drafted_tokens=0, accepted_tokens=0) == a
    accepted = sum(answer.accepted_tokens for answer in drafted)
    assert 0 < accepted < sum(answer.drafted_tokens for answer in drafted)


def test_drafted_answers_are_drawn_from_the_exact_distribution(engine) -> None:
    """All answers of three tokens: how often each comes, against its probability from full passes."""
    model, prompt, count = engine.model, [3, 4], 600
    sampling = Sampling(max_tokens=3, temperature=6.0, top_k=3)
    with torch.inference_mode():
        expected: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(3):
            longer: dict[tuple[int, ...], float] = {}
            for answer, chance in expected.items():
                if EOS in answer:
                    longer[answer] = chance
                    continue
                hidden, _ = model.hidden(torch.tensor([prompt + list(answer)]), states=model.new_states(1))
                p, ids = probabilities(model.head(hidden)[0, -1], sampling)
                longer |= {(*answer, token): chance * q for token, q in zip(ids.tolist(), p.tolist(), strict=True)}
            expected = longer
    total = sum(expected.values())  # 1 but for rounding
    settings = [dataclasses.replace(sampling, seed=seed) for seed in range(count)]
    answers = engine.generate([prompt] * count, settings, draft_tokens=2)
    assert 0.2 < sum(a.accepted_tokens for a in answers) / sum(a.drafted_tokens for a in answers) < 0.99
    seen = dict.fromkeys(expected, 0)
    for answer in answers:
        seen[tuple(answer.token_ids)] += 1
    likely = [answer for answer, chance in expected.items() if chance * count >= 5]
    rare = expected.keys() - set(likely)
    observed = [seen[answer] for answer in likely] + [sum(seen[answer] for answer in rare)] * bool(rare)
    chances = [expected[answer] for answer in likely] + [sum(expected[answer] for answer in rare)] * bool(rare)
    assert len(likely) >= 10
    assert chisquare(observed, [count * chance / total for chance in chances]).pvalue > 1e-4


def test_a_perfect_drafter_saves_passes() -> None:
    engine = Engine((ToyModel(draft_error=0.0), ToyTokenizer()))
    sampling = Sampling(max_tokens=24, temperature=1.0, seed=3)
    (answer,) = engine.generate([[3, 4]], sampling, draft_tokens=3)
    assert answer.finish_reason == "length"
    assert answer.accepted_tokens == answer.drafted_tokens == 18
    assert engine.model.forward_tokens == 1 + 24


def test_the_last_step_guesses_no_more_than_fit(engine) -> None:
    (answer,) = engine.generate([[3, 4]], Sampling(max_tokens=1, seed=0), draft_tokens=5)
    assert (len(answer.token_ids), answer.drafted_tokens) == (1, 0)


@pytest.mark.parametrize("draft_tokens", [0, 4])
def test_a_stop_string_ends_the_text_before_it(engine, draft_tokens: int) -> None:
    (free,) = engine.generate(["abc"], GREEDY)
    stop, place = "ccd", free.text.index("ccd")
    (answer,) = engine.generate(["abc"], dataclasses.replace(GREEDY, stop=("zzz", stop)), draft_tokens)
    assert (answer.text, answer.finish_reason) == (free.text[:place], "stop")
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    assert len(answer.token_ids) == place + 3
    assert answer.accepted_tokens < len(answer.token_ids)


def test_end_of_text_is_counted_and_not_shown(engine) -> None:
    answers = engine.generate([[3]] * 30, [Sampling(max_tokens=50, seed=seed, temperature=3.0) for seed in range(30)])
    ended = [answer for answer in answers if answer.finish_reason == "eos"]
    assert ended
    for answer in ended:
        assert answer.token_ids[-1] == EOS
        assert EOS not in answer.token_ids[:-1]
        assert answer.text == ToyTokenizer().decode(answer.token_ids)


def test_held_text_is_given_at_the_end(engine) -> None:
    (free,) = engine.generate(["abc"], GREEDY)
    never = dataclasses.replace(GREEDY, stop=(free.text[-1] + "zzz",))
    assert engine.generate(["abc"], never)[0] == free


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_a_stream_gives_the_same_text_in_pieces(engine, draft_tokens: int) -> None:
    sampling = dataclasses.replace(SAMPLED[1], stop=("zz",))
    (whole,) = engine.generate(["abc"], sampling, draft_tokens)
    stream = engine.stream("abc", sampling, draft_tokens)
    ends = []

    def show() -> Iterator[str]:
        ends.append((yield from stream))

    pieces = list(show())
    assert ends == [whole]
    assert "".join(pieces) == whole.text
    assert all(pieces)
    assert len(pieces) > 3


def test_a_stream_gives_each_piece_before_the_next_pass(engine) -> None:
    stream = engine.stream([3, 4, 5], GREEDY)
    assert [engine.model.forward_tokens for _ in itertools.islice(stream, 4)] == [3, 4, 5, 6]


def test_text_follows_the_beginning_token_and_nothing_means_only_that(engine) -> None:
    as_text, as_ids, empty, nothing = engine.generate(["ab", [BOS, 3, 4], "", []], GREEDY)
    assert as_text == as_ids
    assert empty == nothing
    assert empty.prompt_tokens == 1
    assert engine.generate([], GREEDY) == []
    engine.tokenizer.bos = None
    assert engine.generate(["ab"], GREEDY) == engine.generate([[3, 4]], GREEDY)
    with pytest.raises(DataError, match="prompt 1: it is empty"):
        engine.generate(["ab", ""], GREEDY)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("abc", DataError, "expected a list"),
        ([3, 4], DataError, "prompt 0: expected a text or a list of token ids, got int"),
        ([[3], [4, V]], DataError, "prompt 1: 11 at place 1 .* from 0 to 10"),
        ([[-1]], DataError, "prompt 0: -1 at place 0"),
        ([[True]], DataError, "prompt 0: True at place 0"),
        ([["a"]], DataError, "prompt 0: 'a' at place 0"),
        (["a\ud800"], DataError, "prompt 0: character 1 is half a surrogate pair"),
        ([b"abc"], DataError, "prompt 0: .* got bytes"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(engine, prompts: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        engine.generate(prompts, GREEDY)


def test_settings_that_cannot_be_used_are_named(engine) -> None:
    with pytest.raises(ConfigError, match="one for each of 2 prompts"):
        engine.generate([[3], [4]], [GREEDY])
    with pytest.raises(ConfigError, match="one Sampling"):
        engine.generate([[3]], [None])
    with pytest.raises(ConfigError, match="draft_tokens: -1"):
        engine.generate([[3]], GREEDY, -1)
    with pytest.raises(ConfigError, match="draft_tokens: -1"):
        engine.stream([3], GREEDY, -1)  # at once, not at the first piece
    with pytest.raises(ConfigError, match=r"draft_tokens: 17 .* from 0 to 16"):
        engine.generate([[3]], GREEDY, 17)
    for name in ("max_rows", "cache_tokens", "page_tokens", "prefill_tokens"):
        with pytest.raises(ConfigError, match=f"{name}: 0"):
            Engine((ToyModel(), ToyTokenizer()), **{name: 0})
    model = ToyModel()
    model.mtp = None
    with pytest.raises(ConfigError, match="no prediction block, so use 'ngram'"):
        Engine((model, ToyTokenizer()), drafter="mtp")


def test_a_text_that_cannot_be_remembered_is_refused_and_an_answer_ends_where_memory_does() -> None:
    engine = Engine((ToyModel(), ToyTokenizer()), page_tokens=4, cache_tokens=12)
    with pytest.raises(DataError, match="prompt 0: it has 12 tokens, and this engine remembers 12"):
        engine.generate([[3] * 12], GREEDY)
    for draft_tokens in (0, 3):
        (answer,) = engine.generate([[3] * 5], GREEDY, draft_tokens)
        assert (len(answer.token_ids), answer.finish_reason) == (7, "length")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = ToyTokenizer()
    tokenizer.size = V + 1
    with pytest.raises(DataError, match="12 tokens but the model only 11"):
        Engine((ToyModel(), tokenizer))


def test_a_broken_model_stops_with_an_error(engine) -> None:
    with torch.no_grad():
        engine.model.readout[5] = math.nan
    with pytest.raises(NumericsError, match="token 0"):
        engine.generate([[3, 4]], GREEDY)


@pytest.mark.parametrize("scored", [None, 1])
def test_an_error_of_one_request_leaves_the_others_alone(engine, scored: int | None) -> None:
    (healthy,) = engine.generate([[4, 5]], GREEDY)
    with torch.no_grad():
        engine.model.embedding[10] = math.nan  # so only a text with this token is hit
    others = [engine.submit([4, 5], GREEDY) for _ in range(2)]
    broken = engine.submit([4, 10, 4], dataclasses.replace(GREEDY, prompt_logprobs=scored))
    run(engine)
    assert broken.finish_reason == "error"
    assert broken.error.startswith("token 2 of the prompt: " if scored else "token 0 of the answer: ")
    assert broken.tokens == []
    assert [other.completion().token_ids for other in others] == [healthy.token_ids] * 2
    free(engine)


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_a_request_may_be_cancelled_at_any_moment(draft_tokens: int) -> None:
    """While it waits, is read, runs, and after it has ended; the others never notice."""
    engine = Engine((ToyModel(), ToyTokenizer()), max_rows=3, page_tokens=4, prefill_tokens=2)
    settings = [dataclasses.replace(each, max_tokens=9) for each in SAMPLED]
    wanted = [answer.token_ids for answer in engine.generate(PROMPTS, settings)]
    for victim in (0, 1, 4):
        for turns in (0, 1, 3, 8, 40):
            requests = [engine.submit(*each, draft_tokens) for each in zip(PROMPTS, settings, strict=True)]
            for _ in range(turns):
                engine.step()
            engine.cancel(requests[victim])
            engine.cancel(requests[victim])
            run(engine)
            ends = [request.finish_reason for request in requests]
            assert ends[victim] == "cancelled" or turns >= 8
            for index, request in enumerate(requests):
                tokens = wanted[index] if index != victim else wanted[index][: len(request.tokens)]
                assert request.tokens == tokens
            free(engine)


def test_a_stream_that_nobody_reads_on_gives_its_row_back(engine) -> None:
    stream = engine.stream([3, 4, 5], GREEDY)
    next(stream)
    assert engine.statistics.rows_running == 1
    stream.close()
    free(engine)


def test_after_an_interruption_every_row_is_computed_again(engine, monkeypatch) -> None:
    wanted = [answer.token_ids for answer in engine.generate(PROMPTS, SAMPLED)]
    requests = [engine.submit(*each, 2) for each in zip(PROMPTS, SAMPLED, strict=True)]
    draft, calls = engine.model.draft, []

    def interrupted(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) % 7 == 0:
            raise KeyboardInterrupt
        return draft(*arguments)

    monkeypatch.setattr(engine.model, "draft", interrupted)
    interruptions = 0
    while any(request.finish_reason is None for request in requests):
        try:
            engine.step()
        except KeyboardInterrupt:
            interruptions += 1
            engine.model.pages.entries.fill_(math.nan)
    assert [request.tokens for request in requests] == wanted
    assert interruptions > 3
    free(engine)


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_a_turn_says_what_is_new(draft_tokens: int) -> None:
    engine = Engine((ToyModel(), ToyTokenizer()), max_rows=2)
    settings = [dataclasses.replace(each, logprobs=1, stop=("zz",)) for each in SAMPLED]
    answers = engine.generate(PROMPTS, settings)
    requests = [engine.submit(*each, draft_tokens) for each in zip(PROMPTS, settings, strict=True)]
    seen = {request: ([], [], []) for request in requests}
    while any(request.finish_reason is None for request in requests):
        for request in engine.step():
            fresh = request.fresh
            assert len(fresh.token_ids) == len(fresh.logprobs) > 0
            for all_of_it, part in zip(seen[request], (fresh.token_ids, fresh.logprobs, fresh.pieces), strict=True):
                all_of_it.extend(part)
    for request, answer in zip(requests, answers, strict=True):
        tokens, choices, pieces = seen[request]
        assert (tokens, choices) == (answer.token_ids, answer.logprobs)
        assert "".join(text for _, text in pieces) == answer.text
        assert request.usage.completion_tokens == len(tokens)


@pytest.mark.parametrize("cache_tokens", [None, 40], ids=["room", "little room"])
def test_tokens_of_the_prompt_are_scored_once(cache_tokens: int | None) -> None:
    engine = Engine((ToyModel(), ToyTokenizer()), page_tokens=4, prefill_tokens=3, cache_tokens=cache_tokens)
    engine.generate(PROMPTS[1:2], GREEDY)  # what could be reused must be scored all the same
    asked = Sampling(max_tokens=20, prompt_logprobs=2, ignore_eos=True)
    found = {engine.submit(prompt, asked): [] for prompt in PROMPTS}
    while any(request.finish_reason is None for request in found):
        for request in engine.step():
            found[request] += request.fresh.prompt_logprobs or []
    assert bool(engine.statistics.preemptions) == (cache_tokens is not None)
    for prompt, (request, scores) in zip(PROMPTS, found.items(), strict=True):
        with torch.inference_mode():
            hidden, _ = engine.model.hidden(torch.tensor([prompt]), states=engine.model.new_states(1))
            nats = engine.model.head(hidden)[0].log_softmax(-1)
        assert scores == request.completion().prompt_logprobs
        assert scores[0] == (None, [])
        assert len(scores) == len(prompt)
        for place, (logprob, top) in enumerate(scores[1:], 1):
            assert logprob == pytest.approx(float(nats[place - 1, prompt[place]]), abs=1e-5)
            assert [token for token, _ in top] == nats[place - 1].topk(2).indices.tolist()


def test_the_default_samples_from_everything(engine) -> None:
    (answer,) = engine.generate([[3]])
    assert 1 <= len(answer.token_ids) <= Sampling().max_tokens
