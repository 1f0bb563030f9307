"""The search against all paths, the native form against the reference, and what a user counts on."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.errors import ConfigError, DataError
from seqloom.ops.native.build import library
from seqloom.systems.deep_speech2 import beam_search
from seqloom.systems.deep_speech2.beam_reference import BeamReference, Found
from seqloom.systems.deep_speech2.beam_search import BeamConfig, Decoder, Hypothesis, decode
from seqloom.systems.deep_speech2.ngram import Unit, tokens
from seqloom.systems.deep_speech2.ngram_estimate import estimate
from seqloom.systems.deep_speech2.prior import LanguageModel, Prior, Weights, prior

LETTERS = ("", "a", "b", " ")
BIGRAMS = ("", "a", "b", " ", "ab", "ba")
CHARACTERS = ("", "a", "b", "ab")
TEXTS = ("ab a", "b ab ba", "a b a", "bb ab", "ab ab")
HOT = {"bab": 1.5, "a": -0.5}
ALL = BeamConfig(beam=4000, cutoff_prob=1.0, cutoff_top_n=1000)


def model(unit: Unit, alpha: float = 0.8, beta: float = 0.5) -> LanguageModel:
    ngrams = estimate([tokens(text, unit) for text in TEXTS], 3).model
    return LanguageModel(ngrams, unit, Weights(alpha=alpha, beta=beta))


def frames(count: int, symbols: int, seed: int, sure: float = 2.0) -> Float[Tensor, "T V"]:
    generator = torch.Generator().manual_seed(seed)
    return (sure * torch.randn(count, symbols, generator=generator)).log_softmax(-1)


def priors() -> Iterator[tuple[str, Prior]]:
    yield "nothing", prior(LETTERS)
    yield "words", prior(LETTERS, model("word"), hotwords=HOT)
    yield "characters with spaces", prior(LETTERS, model("character"), hotwords=HOT)
    yield "lexicon", prior(LETTERS, model("word"), words=["ab", "ba", "b"], hotwords=HOT)
    yield "bigrams", prior(BIGRAMS, model("word"), words=["ab", "ba", "bb", "aba"])
    yield "bigrams, characters", prior(BIGRAMS, model("character", beta=-0.5))
    yield "no spaces", prior(CHARACTERS, model("character"))


PRIORS = dict(priors())


@pytest.fixture(params=["reference", "native"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and library() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(beam_search, "_is_native", lambda: request.param == "native")
    return str(request.param)


def brute_force(log_probs: Float[Tensor, "T V"], rules: Prior) -> dict[str, float]:
    """Text -> Q, over all paths."""
    labels: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        kept = tuple(label for label, _ in itertools.groupby(path) if label)
        labels.setdefault(kept, []).append(sum(float(row[label]) for row, label in zip(log_probs, path, strict=True)))
    texts: dict[str, float] = {}
    for kept, costs in labels.items():
        text = " ".join("".join(rules.symbols[label] for label in kept).split())
        texts[text] = texts.get(text, 0.0) + sum(map(math.exp, costs))
    return {text: math.log(p) + spoken_bonus(text, rules) for text, p in texts.items()}


def spoken_bonus(text: str, rules: Prior) -> float:
    """α ln p_lm + β wc + hotwords of a text, by another way than prefixes."""
    total = sum(HOT.get(word, 0.0) for word in text.split()) if rules.lexicon.bonus.any() else 0.0
    if rules.model and text:
        units = tokens(text, rules.model.unit)
        weights = rules.model.weights
        total += weights.alpha * float(rules.model.ngrams.log_probs(units).sum()) + weights.beta * len(units)
    return total


@pytest.mark.parametrize("name", [name for name in PRIORS if name not in ("lexicon", "bigrams")])
def test_equals_all_paths(name: str, form: str) -> None:
    rules = PRIORS[name]
    log_probs = frames(5 if len(rules.symbols) == 4 else 4, len(rules.symbols), seed=1, sure=1.0)
    expected = brute_force(log_probs, rules)
    found = decode(log_probs, rules, ALL, best=1000)
    scores = {each.text: each.score for each in found}
    assert scores.keys() == expected.keys()
    assert scores == pytest.approx(expected, abs=1e-4)
    assert sum(each.confidence for each in found) == pytest.approx(1)
    assert [each.score for each in found] == sorted(scores.values(), reverse=True)


def test_a_lexicon_forbids_other_words(form: str) -> None:
    rules = PRIORS["lexicon"]
    log_probs = frames(5, 4, seed=2, sure=1.0)
    allowed = {"ab", "ba", "b", "bab", "a"}  # hotwords belong to it
    found = decode(log_probs, rules, ALL, best=1000)
    expected = {
        text: score
        for text, score in brute_force(log_probs, rules).items()
        if all(word in allowed for word in text.split())
    }
    assert {each.text: each.score for each in found} == pytest.approx(expected, abs=1e-4)


def _same(left: list[Found], right: list[Found]) -> None:
    left, right = sorted(left), sorted(right)
    assert [each.labels for each in left] == [each.labels for each in right]
    assert [each.whole for each in left] == [each.whole for each in right]
    for field in ("ctc", "bonus"):
        assert [getattr(each, field) for each in left] == pytest.approx([getattr(each, field) for each in right])


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(("beam", "cutoff_prob", "top_n"), [(12, 1.0, 40), (7, 0.9, 3), (1, 1.0, 40)])
def test_the_native_form_keeps_the_same_prefixes(name: str, beam: int, cutoff_prob: float, top_n: int) -> None:
    """So its early exits lose nothing."""
    if library() is None:
        pytest.skip("no compiler")
    rules = PRIORS[name]
    for seed in range(3):
        log_probs = frames(14, len(rules.symbols), seed, sure=(0.0, 1.5, 4.0)[seed])
        forms: list[Any] = [kind(rules, beam, cutoff_prob, top_n) for kind in (BeamReference, beam_search._Native)]
        for each in forms:
            each.accept(log_probs)
        _same(*(each.found() for each in forms))


def test_pieces_change_nothing_and_a_mark_leads_back(form: str) -> None:
    rules = PRIORS["words"]
    log_probs = frames(30, 4, seed=3)
    config = BeamConfig(beam=9)
    whole = decode(log_probs, rules, config, best=9)
    decoder = Decoder(rules, config)
    for start, stop in itertools.pairwise((0, 1, 4, 4, 20)):
        decoder.accept(log_probs[start:stop])
    mark = decoder.snapshot()
    for _ in range(2):
        decoder.accept(log_probs[20:].flip(0))
        assert decoder.result() != whole[:1]
        decoder.restore(mark)
    decoder.accept(log_probs[20:])
    assert decoder.result(9) == whole
    decoder.reset()
    assert decoder.result() == [Hypothesis("", (), 0.0, 0.0, 1.0)]


def test_a_long_stream_forgets_what_no_text_needs() -> None:
    if library() is None:
        pytest.skip("no compiler")
    rules, log_probs = prior(LETTERS), frames(2500, 4, seed=4)
    parts: list[Any] = [beam_search._Native(rules, 60, 1.0, 40) for _ in range(2)]
    parts[0].accept(log_probs)
    for start in range(0, 2500, 500):
        parts[1].accept(log_probs[start : start + 500])
        parts[1] = parts[1].copy()
    assert sorted(parts[0].found()) == sorted(parts[1].found())


def test_a_language_model_and_hotwords_change_the_text(form: str) -> None:
    log_probs = torch.full((5, 4), -6.0)
    for frame, label in enumerate((1, 2, 1, 0, 1)):
        log_probs[frame, label] = 0.0
    log_probs[2, 3] = -0.2  # a space instead of the second a
    log_probs = log_probs.log_softmax(-1)
    assert decode(log_probs, prior(LETTERS))[0].text == "abaa"
    assert decode(log_probs, prior(LETTERS, model("word")))[0].text == "ab a"
    assert decode(log_probs, prior(LETTERS, model("word"), hotwords={"abaa": 9.0}))[0].text == "abaa"
    assert decode(log_probs, prior(LETTERS, words=["a", "ab"]))[0].text == "ab a"


def test_only_hopeful_extensions_ask_the_language_model() -> None:
    if library() is None:
        pytest.skip("no compiler")
    log_probs, rules = frames(60, 4, seed=5, sure=4.0), PRIORS["words"]
    lookups = []
    for beam in (5, 200):
        decoder = Decoder(rules, BeamConfig(beam=beam))
        decoder.accept(log_probs)
        assert decoder.lookups is not None
        lookups.append(decoder.lookups)
    assert 0 < lookups[0] < lookups[1] / 10
    assert lookups[0] < 60 * 5


def test_outputs_without_a_symbol_are_never_written(form: str) -> None:
    log_probs = torch.zeros(3, 5).log_softmax(-1)
    log_probs[:, 4] = 0.0
    assert 4 not in decode(log_probs, prior((*LETTERS, "")))[0].labels


def test_mistakes_are_named() -> None:
    for arguments, said in (
        ({"words": ["ab"]}, "a lexicon needs an alphabet with a space"),
        ({"hotwords": {"ab": 1.0}}, "hotwords needs"),
        ({"model": model("word")}, "a model of words needs"),
    ):
        with pytest.raises(ConfigError, match=said):
            prior(CHARACTERS, **arguments)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the model does not write 'x'"):
        prior(LETTERS, hotwords={"ax": 1.0})
    with pytest.raises(DataError, match="not all numbers"):
        decode(torch.full((1, 4), math.nan), prior(LETTERS))
