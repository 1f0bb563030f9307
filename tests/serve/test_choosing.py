import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from serve.byte_tokens import ByteTokens
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from seqloom.core.errors import ConfigError, NumericsError
from seqloom.serve.call_grammar import offered_calls
from seqloom.serve.channels import ChannelMarks, Piece
from seqloom.serve.choosing import Choice, Chooser
from seqloom.serve.config import Grammar, Sampling
from seqloom.serve.constraints import Grammars
from seqloom.serve.penalties import Penalties
from seqloom.serve.vocabulary import Vocabulary

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
NAMES = ("think_open", "think_close", "tool_open", "tool_close")
V = 300
EOS = ByteTokens.eos


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(count, V, generator=torch.Generator().manual_seed(seed))


def chooser(sampling: Sampling, prompt: list[int] | None = None, *tags: str, **marks: bool) -> Chooser:
    vocabulary = Vocabulary(ByteTokens(*tags), V)
    channels = ChannelMarks(**dict(zip(NAMES, TAGS, strict=True)), **marks) if tags or marks else None
    grammars = Grammars(vocabulary) if sampling.grammar else None
    return Chooser(sampling, vocabulary, prompt or [1], channels, grammars)


def pushing(text: str) -> list[torch.Tensor]:
    """Logits of a model that wants to write a text."""
    wanted = [*text.encode(), EOS]
    return [torch.zeros(V).index_fill_(0, torch.tensor(token), 30.0) for token in wanted]


def written(choosing: Chooser, logits: list[torch.Tensor]) -> tuple[list[Choice], str]:
    choices: list[Choice] = []
    for row in logits:
        choices.append(choosing.choose(row))
        if choices[-1].ends:
            break
    pieces = [piece for choice in choices for piece in choice.pieces] + choosing.flush()
    return choices, "".join(text for _, text in pieces)


def test_greedy_takes_the_likeliest() -> None:
    logits = rows(20)
    choosing = chooser(Sampling(temperature=0))
    assert [choosing.choose(row).token for row in logits] == logits.argmax(-1).tolist()


def test_repetition_penalty_is_that_of_transformers() -> None:
    prompt, answer = [5, 9, 9, 250], [7, 9, 120]
    for row in rows(5):
        penalties = Penalties(1.3, 0.0, 0.0, prompt)
        for token in answer:
            penalties.take(token)
        found = row.numpy().copy()
        penalties.apply(found)
        expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + answer]), row[None].clone())[0]
        torch.testing.assert_close(torch.from_numpy(found), expected)


def test_frequency_and_presence_are_those_of_openai() -> None:
    """mu[j] -> mu[j] - c[j] · alpha_frequency - (c[j] > 0) · alpha_presence, c counted over the answer."""
    penalties = Penalties.of(Sampling(frequency_penalty=0.7, presence_penalty=-0.4), [3, 3, 4])
    assert penalties is not None
    answer = [int(token) for token in np.random.default_rng(0).integers(0, 90, 200)]
    for token in answer:
        penalties.take(token)
    counts = np.bincount(answer, minlength=V)
    logits = rows(1)[0].numpy()
    found = logits.copy()
    penalties.apply(found)
    np.testing.assert_allclose(found, logits - counts * 0.7 + 0.4 * (counts > 0), rtol=1e-5, atol=1e-5)
    assert Penalties.of(Sampling(), [3]) is None


def test_penalties_change_what_is_chosen() -> None:
    flat = torch.zeros(V)
    flat[[10, 11, 12]] = torch.tensor([1.0, 0.9, 0.8])
    choosing = chooser(Sampling(temperature=0, presence_penalty=0.5))
    assert [choosing.choose(flat).token for _ in range(4)] == [10, 11, 12, 10]
    choosing = chooser(Sampling(temperature=0, repetition_penalty=1.5), [10])
    assert choosing.choose(flat).token == 11


def test_a_bias_moves_a_choice() -> None:
    row = rows(1)[0]
    assert chooser(Sampling(temperature=0, logit_bias=((77, 100),))).choose(row).token == 77
    best = int(row.argmax())
    assert chooser(Sampling(temperature=0, logit_bias=((best, -100),))).choose(row).token == int(row.topk(2).indices[1])


@pytest.mark.parametrize("setting", [{"logit_bias": ((V, 1.0),)}, {"stop_token_ids": (V,)}])
def test_ids_beyond_the_vocabulary_are_refused(setting: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}: {V}.* up to {V - 1}"):
        chooser(Sampling(**setting))


def test_no_end_before_its_time() -> None:
    ending = torch.zeros(V)
    ending[[EOS, 65]] = torch.tensor([9.0, 8.0])
    choosing = chooser(Sampling(temperature=0, min_tokens=3, stop_token_ids=(65,)))
    choices = [choosing.choose(ending) for _ in range(4)]
    assert [choice.ends for choice in choices] == [None, None, None, "eos"]
    assert 65 not in [choice.token for choice in choices]


def test_why_an_answer_ends() -> None:
    stop = chooser(Sampling(temperature=0, stop_token_ids=(ord("b"),)))
    choices, text = written(stop, pushing("abc"))
    assert (choices[-1].ends, text, len(choices)) == ("stop", "a", 2)
    choices, text = written(chooser(Sampling(temperature=0, ignore_eos=True)), [*pushing("ab"), *pushing("c")])
    assert (text, [choice.ends for choice in choices]) == ("abc", [None] * 5)
    choices, text = written(chooser(Sampling(temperature=0, stop=("bc",))), pushing("abcd"))
    assert (choices[-1].ends, text) == ("stop", "a")


def test_stop_strings_act_in_content_alone() -> None:
    sampling = Sampling(temperature=0, stop=("STOP",))
    text = "no STOP yet</think>a <tool_call>STOP</tool_call> ST <tool_call></tool_call>OP, STOP here"
    choosing = chooser(sampling, starts_thinking=True)
    choices, shown = written(choosing, pushing(text))
    assert choices[-1].ends == "stop"
    assert shown == text.replace("</think>", "")[: -len("STOP here")]


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = rows(1)[0]
    sampling = Sampling(temperature=0.3, top_k=2, logit_bias=((9, 100),), logprobs=3, presence_penalty=1, seed=0)
    choice = chooser(sampling).choose(logits)
    expected = logits.log_softmax(-1)
    assert choice.token == 9
    assert choice.logprob == pytest.approx(expected[9].item(), abs=1e-5)
    assert [index for index, _ in choice.top] == expected.topk(3).indices.tolist()
    assert chooser(Sampling(seed=0)).choose(logits)[1:3] == (None, [])


def test_draws_follow_the_softmax() -> None:
    logits = torch.full((V,), -math.inf)
    logits[:10] = rows(1)[0, :10]
    counts = np.zeros(10)
    choosing = chooser(Sampling(seed=11))
    for _ in range(1000):
        counts[choosing.choose(logits).token] += 1
    assert chisquare(counts, 1000 * logits[:10].double().softmax(-1).numpy()).pvalue > 1e-4


def test_a_guess_is_what_will_be_chosen_and_changes_nothing() -> None:
    logits = rows(20)
    for sampling in (Sampling(seed=5), Sampling(seed=5, top_p=0.8, frequency_penalty=0.5, logit_bias=((3, 2.0),))):
        plain = chooser(sampling)
        expected = [plain.choose(row).token for row in logits]
        guessing = chooser(sampling)
        for place, row in enumerate(logits):
            for ahead in (2, 1, 0):
                guessing.guess(logits[min(place + ahead, 19)], ahead)
            assert guessing.guess(row, 0) == guessing.choose(row).token == expected[place]
    unpenalized = chooser(Sampling(seed=5))
    assert [unpenalized.guess(row, ahead) for ahead, row in enumerate(logits)] == [
        chooser(Sampling(seed=5)).guess(row, ahead) for ahead, row in enumerate(logits)
    ]


def test_logits_that_are_not_finite_are_named() -> None:
    choosing = chooser(Sampling(temperature=0))
    choosing.choose(rows(1)[0])
    with pytest.raises(NumericsError, match="token 1 "):
        choosing.choose(torch.full((V,), math.nan))


@pytest.mark.parametrize("tags", [(), TAGS])
def test_the_budget_writes_its_tag_without_logprobs(tags: tuple[str, ...]) -> None:
    choosing = chooser(Sampling(seed=1, thinking_tokens=3, logprobs=1), [1], *tags, starts_thinking=True)
    choices = [choosing.choose(row) for row in [*pushing("x" * 40)]]
    forced = [choice for choice in choices if choice.forced]
    assert len(forced) == (1 if tags else len("</think>"))
    assert all((choice.logprob is None) == choice.forced for choice in choices)
    assert choosing.channel == "content"
    assert choosing.channels.closed_by_budget


def test_what_will_be_forced_is_guessed() -> None:
    choosing = chooser(Sampling(seed=1, thinking_tokens=0), starts_thinking=True)
    assert bytes(choosing.guess(rows(1)[0], ahead) for ahead in range(8)) == b"</think>"


@pytest.mark.parametrize("tags", [(), TAGS])
def test_thinking_does_not_open_again(tags: tuple[str, ...]) -> None:
    """A tag that is a token is never drawn; of a spelled one the last letter is not."""
    choosing = chooser(Sampling(temperature=0), [1], *tags, starts_thinking=True)
    logits = pushing("a</think>b")
    logits[-1:] = [torch.zeros(V).index_fill_(0, torch.tensor(257), 8.0)] if tags else pushing("<think>c")
    _, text = written(choosing, logits)
    assert text.startswith("ab")
    assert "<think>" not in text
    assert tags or text.startswith("ab<think")


SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"enum": [1, 22, 333]}}, "required": ["a"], "additionalProperties": False}
)


def channel_texts(choosing: Chooser, logits: list[torch.Tensor]) -> tuple[Choice, dict[str, str]]:
    found: dict[str, str] = {}
    pieces: list[Piece] = []
    for row in logits:
        choice = choosing.choose(row)
        pieces += choice.pieces
        if choice.ends:
            break
    for channel, text in pieces + choosing.flush():
        found[channel] = found.get(channel, "") + text
    return choice, found


@pytest.mark.parametrize("tags", [(), TAGS])
def test_a_grammar_rules_the_content_and_not_the_thinking(tags: tuple[str, ...]) -> None:
    pytest.importorskip("llguidance")
    sampling = Sampling(seed=3, grammar=Grammar(kind="json_schema", text=SCHEMA))
    choosing = chooser(sampling, [1], *tags, starts_thinking=True)
    tags_off = 1e4 * (torch.arange(V) >= 257)  # a call of a tool may take the place of the text
    last, texts = channel_texts(choosing, [*pushing("thoughts {</think>")[:-1], *rows(100, seed=1) - tags_off])
    assert texts["reasoning"] == "thoughts {"
    assert json.loads(texts["content"])["a"] in (1, 22, 333)
    assert last.ends == "eos"


def test_a_tool_call_may_take_the_place_of_what_a_grammar_rules() -> None:
    pytest.importorskip("llguidance")
    sampling = Sampling(temperature=0, grammar=Grammar(kind="regex", text="yes|no"))
    wanted = ByteTokens(*TAGS).encode("<tool_call>free text</tool_call>", specials=True)
    logits = [torch.zeros(V).index_fill_(0, torch.tensor(token), 8.0) for token in wanted]
    choosing = chooser(sampling, [1], *TAGS, starts_thinking=False)
    _, texts = channel_texts(choosing, [*logits, *rows(9)])
    assert texts["tool"] == "<tool_call>free text</tool_call>"
    assert texts["content"] in ("yes", "no")


def test_a_finished_grammar_ends_even_before_min_tokens() -> None:
    pytest.importorskip("llguidance")
    sampling = Sampling(seed=1, min_tokens=50, grammar=Grammar(kind="regex", text="abc"))
    last, texts = channel_texts(chooser(sampling), list(rows(10)))
    assert (last.ends, texts) == ("eos", {"content": "abc"})


@pytest.mark.parametrize("tags", [TAGS, ()], ids=["tokens", "text"])
def test_a_call_that_opens_while_thinking_keeps_to_the_grammar_or_is_free(tags: tuple[str, ...]) -> None:
    pytest.importorskip("llguidance")
    tokenizer = ByteTokens(*tags)
    count = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    strict = offered_calls("json", [{"name": "act", "strict": True, "parameters": count}], tokenizer)
    begun = 'hm <tool_call>\n{"name": "act", "arguments": {"n": '

    def follows(grammar: Grammar | None, text: str) -> bool:
        choosing = chooser(Sampling(temperature=0, grammar=grammar), None, *tags, starts_thinking=True)
        ids = tokenizer.encode(text, specials=True)
        return [choosing.choose(torch.zeros(V).index_fill_(0, torch.tensor(token), 9.0)).token for token in ids] == ids

    assert follows(strict, begun + "3}}\n</tool_call> Done.")
    assert not follows(strict, begun + '"')
    assert follows(Grammar(kind="json"), begun + '"x</tool_call>{}')
    assert not follows(Grammar(kind="json"), begun + '"x</tool_call>[')
